"""The output of one timed call, taken from the middle of the samples, against a call that nobody times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from bsa_bench.result import Correctness
from bsa_bench.verify.calls import fault_of

#: Two results inside their budgets are at most this many budgets apart.
APART = 2.0


@dataclass
class Midway:
    """Takes the result of a timed call: `taken`, copies made as soon as the sample has ended.

    A timer that returns nothing of a call, as one that replays a graph, leaves nothing to take.
    """

    taken: list[Tensor] = field(default_factory=list)
    fault: str | None = None

    def take(self, result: object, like: Sequence[Tensor]) -> None:
        """Copy what a call returned: an output, or a tuple of gradients."""
        values = result if isinstance(result, tuple | list) else [result]
        if result is None:
            return
        for value, expected in zip(values, like, strict=True):
            self.fault = self.fault or fault_of(value, expected, ())
        if self.fault is None:
            self.taken = [value.clone() for value in values if isinstance(value, Tensor)]

    def compare(self, call: Callable[[], object], correctness: Correctness, names: Sequence[str]) -> str | None:
        """Why what was taken is not what the call gives now, or None; `names` as in `correctness.checked`."""
        if self.fault:
            return f"a timed call's result {self.fault}"
        if not self.taken:
            return None
        now = call()
        values = now if isinstance(now, tuple | list) else [now]
        for name, timed, value in zip(names, self.taken, values, strict=True):
            allowed = APART * correctness.budget[name]
            error = _relative_l2(timed, value)
            if not error <= allowed:
                return f"{name}: that of a timed call differs from an untimed one's by {error:.3g}, above {allowed:.3g}"
            if name == "output":
                largest, allowed = _largest(timed, value), APART * correctness.max_abs_budget[name]
                if not largest <= allowed:
                    return f"{name}: a timed call differs from an untimed one by {largest:.3g}, above {allowed:.3g}"
        return None


def _relative_l2(x: Tensor, reference: Tensor) -> float:
    """By a head at a time, which is short of memory."""
    squared = norm = 0.0
    for one, other in zip(_heads(x), _heads(reference), strict=True):
        squared += float((one.double() - other.double()).square().sum())
        norm += float(other.double().square().sum())
    return float((squared / (norm or 1.0)) ** 0.5)


def _largest(x: Tensor, reference: Tensor) -> float:
    pairs = zip(_heads(x), _heads(reference), strict=True)
    return max(float((one.double() - other.double()).abs().max().nan_to_num(nan=float("inf"))) for one, other in pairs)


def _heads(x: Tensor) -> Tensor:
    return x.detach().flatten(0, 1)
