"""VMoBA's blocks by layer, and what its selection costs and keeps: plain arithmetic, without torch.

A multiply-add is 2 FLOP; comparisons and sorting are not counted. `N` blocks, `L` tokens, `D` head size.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal, get_args

from bsa_kernels.expected import Expected

if TYPE_CHECKING:
    from bsa_kernels.plan import BlockPlan

Triple = tuple[int, int, int]
SelectMode = Literal["threshold", "topk"]
Scope = Literal["head_global", "query_head", "block", "overall"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

# Minimum, maximum, difference, quotient, sum: what normalising a score takes.
_NORMALISE = 5


def layer_block(
    grid: Triple, layer: int, *, temporal_block: int, spatial_block: tuple[int, int], block: Triple
) -> Triple:
    """The block (t, h, w) of a layer, by its index modulo 3; only the one that the layer uses is read and checked.

    0: whole frames, `temporal_block` of them, the last block short where it does not divide. 1: a window
    `spatial_block` (h, w) over all frames. 2: `block`. The last two must divide the grid. Source: arXiv 2506.23858
    and the authors' code, which asserts the same.

    Raises:
        ValueError: a block does not divide the grid (the error names the sides that do), a side or the layer is out of
            range.
    """
    if isinstance(layer, bool) or not isinstance(layer, int) or layer < 0:
        raise ValueError(f"layer: expected an index of at least 0, got {layer!r}")
    frames, height, width = grid
    if layer % 3 == 0:
        if isinstance(temporal_block, bool) or not isinstance(temporal_block, int) or temporal_block < 1:
            raise ValueError(f"temporal_block: expected a number of frames of at least 1, got {temporal_block!r}")
        return min(temporal_block, frames), height, width
    if layer % 3 == 1:
        _check_divides("spatial_block", spatial_block, (height, width), ("h", "w"))
        return frames, spatial_block[0], spatial_block[1]
    _check_divides("block", block, grid, ("t", "h", "w"))
    return block


def expected(
    *,
    grid: Triple,
    block: Triple,
    head_dim: int,
    mode: SelectMode = "threshold",
    scope: Scope = "head_global",
    tau: float = 0.25,
    topk: int | None = None,
    heads: int = 1,
) -> Expected:
    """Predict one (batch, head), with the block of its layer.

    `topk` keeps k/N of all pairs, exactly where blocks are equal. `threshold` depends on the data; the estimate takes
    the scores to be normal and their extremes to be the normal quantiles of one pair in the scope's number of pairs:
    then the highest share x of all pairs carries x + pdf(z) / r of their sum, with z the quantile of 1 - x and r that
    of 1 - 1/pairs. For the paper's shape it gives densities 0.12, 0.20, 0.28, 0.42 at tau 0.15, 0.25, 0.35, 0.5, where
    the paper measured 0.13, 0.19, 0.27, 0.39.

    Args:
        grid, block: tokens along (t, h, w), and the block of the layer, from `layer_block`.
        head_dim, mode, scope, tau, topk: as `select` has them.
        heads: how many share a scope, for `block` and `overall`.

    Raises:
        ValueError: `topk` is missing or out of range.
    """
    tokens = math.prod(grid)
    blocks = math.prod(math.ceil(g / b) for g, b in zip(grid, block, strict=True))
    is_even = all(g % b == 0 for g, b in zip(grid, block, strict=True))
    if mode == "topk":
        if topk is None or topk < 1:
            raise ValueError(f"topk: expected an integer of at least 1 with mode='topk', got {topk!r}")
        density = min(topk, blocks) / blocks
        is_exact = is_even or density == 1
    else:
        in_scope = {"query_head": blocks, "head_global": tokens * blocks, "block": heads * tokens}
        density = _threshold_density(blocks, in_scope.get(scope, heads * tokens * blocks), tau)
        is_exact = density == 1
    return Expected(density * tokens**2, density, _selection(tokens, blocks, head_dim, mode), is_exact)


def selection_flop(plan: BlockPlan, head_dim: int, *, mode: SelectMode) -> float:
    """FLOP of a forward's selection, over all batches and heads: mean keys, all scores, their normalisation."""
    b, h, tokens, _ = plan.shape
    return b * h * _selection(tokens, plan.kv_grid.num_blocks, head_dim, mode)


def _selection(tokens: int, blocks: int, head_dim: int, mode: SelectMode) -> int:
    pairs = tokens * blocks
    return tokens * head_dim + 2 * pairs * head_dim + (_NORMALISE * pairs if mode == "threshold" else 0)


def _threshold_density(blocks: int, scope_pairs: int, tau: float) -> float:
    """Share of pairs kept: own blocks, of average score, and the highest others until tau, half a pair over."""
    if tau == 1 or blocks == 1:
        return 1.0
    own = 1 / blocks
    needed = max(0.0, (tau - own) / (1 - own))
    normal = NormalDist()
    extreme = normal.inv_cdf(1 - 1 / max(scope_pairs, 3))
    low, high = 0.0, 1.0
    for _ in range(50):
        x = (low + high) / 2
        share = x + normal.pdf(normal.inv_cdf(1 - x)) / extreme
        low, high = (x, high) if share < needed else (low, x)
    return min(1.0, own + max((1 - own) * low + 0.5 / scope_pairs, 1 / scope_pairs))


def _check_divides(name: str, block: tuple[int, ...], sides: tuple[int, ...], axes: tuple[str, ...]) -> None:
    if len(block) != len(sides) or any(
        isinstance(b, bool) or not isinstance(b, int) or b < 1 or g % b for b, g in zip(block, sides, strict=False)
    ):
        fits = "; ".join(
            f"{axis} one of {', '.join(str(b) for b in range(1, g + 1) if g % b == 0)}"
            for axis, g in zip(axes, sides, strict=True)
        )
        raise ValueError(
            f"{name}: expected sides that divide the grid's {'x'.join(map(str, sides))}: {fits}; got {block!r}"
        )
