"""What VSA costs beside its sparse attention, and how dense that is: plain arithmetic, without torch.

A multiply-add is 2 FLOP; softmax, comparisons and the top-k are not counted. `N` cubes, `L` tokens, `D` head size.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from bsa_kernels.expected import Expected

if TYPE_CHECKING:
    from bsa_kernels.plan import BlockPlan

Triple = tuple[int, int, int]


def kept_cubes(num_cubes: int, *, topk: int | None = None, density: float | None = None) -> int:
    """K: min(topk, N), or `density` * N rounded half up, at least 1.

    Raises:
        ValueError: not one of the two, or it is out of range.
    """
    if (topk is None) == (density is None):
        raise ValueError(f"topk, density: expected one of the two, got topk={topk!r} and density={density!r}")
    if topk is not None:
        if isinstance(topk, bool) or not isinstance(topk, int) or topk < 1:
            raise ValueError(f"topk: expected an integer of at least 1, got {topk!r}")
        return min(topk, num_cubes)
    if density is None or not (math.isfinite(density) and 0 < density <= 1):
        raise ValueError(f"density: expected a share above 0 and at most 1, got {density!r}")
    return max(1, math.floor(density * num_cubes + 0.5))


def expected(
    *, grid: Triple, block: Triple, head_dim: int, topk: int | None = None, density: float | None = None
) -> Expected:
    """Predict one (batch, head) of the fine branch, K/N of all pairs; exact where the cube divides the grid.

    Raises:
        ValueError: see `kept_cubes`.
    """
    tokens, cubes = _sizes(grid, block)
    share = kept_cubes(cubes, topk=topk, density=density) / cubes
    is_even = all(g % b == 0 for g, b in zip(grid, block, strict=True))
    return Expected(
        pairs=share * tokens**2,
        density=share,
        selection_flop=_selection(tokens, cubes, head_dim),
        is_exact=is_even or share == 1,
    )


def selection_flop(plan: BlockPlan, head_dim: int) -> float:
    """FLOP of a forward's selection, over all batches and heads: pooled q and k, and their scores.

    The coarse output needs these scores too; `coarse_flop` counts what it needs beside them.
    """
    b, h, cubes, _ = plan.shape
    return b * h * _selection(plan.q_grid.num_tokens, cubes, head_dim)


def coarse_flop(
    *, grid: Triple, block: Triple, head_dim: int, which: Literal["forward", "backward", "forward+backward"]
) -> float:
    """FLOP of the coarse branch and the combination for one (batch, head), without what `selection_flop` has.

    Forward: pooled v, softmax times pooled v, gate and sum. Backward: four products of N x N x D, the gradients of
    three means, of the repeated rows and of the gate.
    """
    tokens, cubes = _sizes(grid, block)
    rows, product = tokens * head_dim, 2 * cubes**2 * head_dim
    forward, backward = rows + product + 2 * rows, 4 * product + 3 * rows + rows + 2 * rows
    return {"forward": forward, "backward": backward, "forward+backward": forward + backward}[which]


def _selection(tokens: int, cubes: int, head_dim: int) -> int:
    return 2 * tokens * head_dim + 2 * cubes**2 * head_dim


def _sizes(grid: Triple, block: Triple) -> tuple[int, int]:
    """L and N."""
    return math.prod(grid), math.prod(math.ceil(g / b) for g, b in zip(grid, block, strict=True))
