"""VSA's coarse branch and its combination with the fine one, all differentiable.

Each cube's mean query attends to the mean keys of all cubes; all tokens of the cube take the one row that this gives,
times a gate, beside their own exact attention to the few cubes that `selection` picked. Source: arXiv 2505.13389; that
the fine branch has no gate, as in the authors' code.

Shape legend: `B` batch, `H` heads, `L` tokens, `N` cubes, `M` slots a cube, `D` head size.
"""

from __future__ import annotations

from torch import Tensor

from bsa_kernels.grid import BlockGrid
from bsa_kernels.operator import Stage
from bsa_kernels.ranking import block_means


def pool(x: Tensor, grid: BlockGrid, *, is_tiled: bool = False) -> Tensor:
    """Average the real tokens of each cube: [B, H, L, D], or [B, H, N*M, D] where tiled, -> [B, H, N, D].

    In fp32, or fp64 for fp64 inputs. Differentiable.
    """
    return block_means(x, grid, is_tiled=is_tiled)


def coarse(pooled_q: Tensor, pooled_k: Tensor, pooled_v: Tensor, *, scale: float) -> tuple[Tensor, Tensor]:
    """Attend between cube averages, each cube counting once whatever its size.

    Returns:
        The output rows [B, H, N, D], differentiable; and the scores before the softmax [B, H, N, N], scaled and cut
        from the graph, for selection is no part of it.
    """
    scores = (pooled_q @ pooled_k.transpose(-1, -2)) * scale
    return scores.softmax(-1) @ pooled_v, scores.detach()


def expand(rows: Tensor, grid: BlockGrid) -> Tensor:
    """Give each cube's row to all its tokens: [B, H, N, D] -> [B, H, L, D] in natural order. Differentiable.

    The backward sums over the cube's real tokens, in a fixed order (no atomics).
    """
    (t, h, w), (bt, bh, bw), (gt, gh, gw) = grid.blocks, grid.block, grid.grid
    b, heads, _, d = rows.shape
    cubes = rows.view(b, heads, t, 1, h, 1, w, 1, d).expand(-1, -1, -1, bt, -1, bh, -1, bw, -1)
    video = cubes.reshape(b, heads, t * bt, h * bh, w * bw, d)
    return video[:, :, :gt, :gh, :gw].reshape(b, heads, -1, d)


def combine(o_coarse: Tensor, o_fine: Tensor, gate: Tensor) -> Tensor:
    """Add the branches, the coarse one gated: all [B, H, L, D]. Differentiable in all three."""
    return o_coarse * gate + o_fine


def coarse_stage(grid: BlockGrid, *, scale: float) -> Stage:
    """Make the stage `coarse`: q, k, v in natural order -> `o_coarse` in v's format, and `scores` for `select`."""

    def run(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        rows, scores = coarse(pool(q, grid), pool(k, grid), pool(v, grid), scale=scale)
        return expand(rows.to(v.dtype), grid), scores

    return Stage("coarse", ("q", "k", "v"), ("o_coarse", "scores"), run)


def combine_stage() -> Stage:
    """Make the stage `combine`: `o_coarse`, `o_fine`, `gate` -> `o`."""
    return Stage(
        "combine", ("o_coarse", "o_fine", "gate"), ("o",), lambda rows, fine, gate: (combine(rows, fine, gate),)
    )
