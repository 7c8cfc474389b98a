"""The options of BitStopper, checked once, and the quantisation of q and k."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

Mode = Literal["adaptive", "exact", "fixed"]


@dataclass(frozen=True)
class Options:
    """What `simulate` and `reference` are asked for; the meaning of each is in the docstring of `simulate`.

    Raises:
        ValueError: names the argument, what was expected and what was given.
    """

    scale: float
    bits: int
    alpha: float
    radius: float
    mode: Mode
    fixed_planes: int

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode: expected one of {', '.join(get_args(Mode))}; got {self.mode!r}")
        if not 2 <= self.bits <= 16:
            raise ValueError(f"bits: expected 2 to 16, got {self.bits}")
        if self.mode == "fixed" and not 1 <= self.fixed_planes <= self.bits:
            raise ValueError(f"fixed_planes: expected 1 to bits = {self.bits}, got {self.fixed_planes}")
        if not self.alpha >= 0:
            raise ValueError(f"alpha: expected a number of at least 0, got {self.alpha}")
        for name in ("scale", "radius"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}: expected a finite number above 0, got {value}")

    def decides_after(self, plane: int) -> bool:
        """Whether keys may stop after this plane, counted from 0."""
        if self.mode == "exact":
            return False
        return self.mode == "adaptive" or plane in {self.fixed_planes - 1, self.bits - 1}


def check_shapes(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> None:
    """Check q [..., Lq, D], k [..., Lk, D] and v [..., Lk, Dv].

    Raises:
        ValueError: names the argument, the expected shape and the given one.
    """
    lead = list(q.shape[:-2])
    expected_k = [*lead, "Lk" if not causal else q.shape[-2], q.shape[-1]]
    if [*k.shape[:-2], k.shape[-1]] != [*lead, q.shape[-1]] or (causal and k.shape != q.shape):
        raise ValueError(f"k: expected shape {expected_k}, got {list(k.shape)}")
    if v.shape[:-1] != k.shape[:-1]:
        raise ValueError(f"v: expected shape {[*k.shape[:-1], 'Dv']}, got {list(v.shape)}")


def quantisation_step(x: Tensor, bits: int = 12) -> float:
    """Compute the step of symmetric quantisation to `bits` bits: max|x| / (2^(bits-1) - 1), 1 for a tensor of zeros.

    Raises:
        ValueError: x holds values that are not finite.
    """
    largest = float(x.detach().abs().amax())
    if not math.isfinite(largest):
        raise ValueError(f"x: expected finite values to quantise, got {largest}")
    return largest / (2 ** (bits - 1) - 1) or 1.0


def quantise(x: Tensor, step: float) -> Tensor:
    """Round x / step to integers, ties to even, held in fp64, where sums of their products are exact."""
    return (x.detach().double() / step).round()
