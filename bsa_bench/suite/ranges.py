"""Ranges of an axis: `{start, stop, step}` or `{start, stop, num, scale}`, both with `stop` inside."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

MAX_VALUES = 10_000


class Range(BaseModel):
    """Evenly spaced numbers from `start` to `stop`, by `step` or as `num` values.

    With `step`, `stop` is reached only if a whole number of steps leads to it. `scale = "log2"` spaces `num` values by
    a constant factor; a key that counts (tokens, frames, heads) rounds them and drops repetitions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    start: FiniteFloat
    stop: FiniteFloat
    step: FiniteFloat | None = None
    num: Annotated[int, Field(ge=2, le=MAX_VALUES)] | None = None
    scale: Literal["linear", "log2"] = "linear"

    @model_validator(mode="after")
    def _possible(self) -> Range:
        if self.stop < self.start:
            raise ValueError(f"stop: got {self.stop:g}, expected at least start = {self.start:g}")
        if (self.step is None) == (self.num is None):
            raise ValueError("expected either step or num")
        if self.step is not None:
            if self.step <= 0:
                raise ValueError(f"step: got {self.step:g}, expected a number above 0")
            if self.scale != "linear":
                raise ValueError(f"scale: got {self.scale!r} with step, expected num with it")
            if (self.stop - self.start) / self.step >= MAX_VALUES:
                raise ValueError(f"expected at most {MAX_VALUES:,} values")
        if self.scale == "log2" and self.start <= 0:
            raise ValueError(f'start: got {self.start:g}, expected a number above 0 with scale = "log2"')
        return self

    def values(self, *, whole: bool) -> list[int] | list[float]:
        """Expand, ascending and without repetitions; `whole` rounds `num` values to integers.

        Steps are added in decimal, so that 0.05 + 2 * 0.05 is 0.15 as it was written.
        """
        if self.step is not None:
            start, stop, step = (Decimal(str(x)) for x in (self.start, self.stop, self.step))
            stepped = [start + i * step for i in range(int((stop - start) / step) + 1)]
            if whole and all(x == int(x) for x in stepped):
                return [int(x) for x in stepped]
            return [float(x) for x in stepped]
        assert self.num is not None
        shares = [i / (self.num - 1) for i in range(self.num)]
        exact = {self.start, *(self._at(share) for share in shares[1:-1]), self.stop}
        return sorted({round(x) for x in exact}) if whole else sorted(exact)

    def _at(self, share: float) -> float:
        """The value between `start` and `stop`, to twelve digits: 0.3 and not 0.30000000000000004."""
        if self.scale == "log2":
            value = 2 ** ((1 - share) * math.log2(self.start) + share * math.log2(self.stop))
        else:
            value = self.start + share * (self.stop - self.start)
        return min(max(float(f"{value:.12g}"), self.start), self.stop)
