"""Sliding tile attention: each tile of a video sees the tiles of a window around it. The smallest method there is.

A method of block plans is this much: options, claims, the mask, and what it is expected to cost. Everything else, the
stages on each engine, the oracle, the work counts, comes from `BlockMethod` and `block_stages`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from bsa_bench.block_method import BlockMethod, block_cost
from bsa_bench.contract import Cost, MethodOptions
from bsa_bench.result import Claims
from bsa_bench.workload import Triple, Workload

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from bsa_bench.contract import BlockEngine
    from bsa_kernels import BlockPlan
    from bsa_kernels.operator import Operator


class SlidingTileOptions(MethodOptions):
    """`tile`: tokens along (t, h, w); `tile_window`: tiles along (t, h, w).

    Where a window would leave the grid, it is moved inwards.
    """

    SHORT: ClassVar[dict[str, str]] = {"tile_window": "w"}

    tile: Triple = (4, 4, 4)
    tile_window: Triple = (3, 3, 3)


class SlidingTile(BlockMethod):
    """The mask depends on the grid alone, so there is no selection to time."""

    name = "sliding-tile"
    Options = SlidingTileOptions

    def claims(self, options: SlidingTileOptions) -> Claims:  # noqa: ARG002
        """Approximates dense attention; trained with in its paper."""
        return Claims(source="arXiv 2502.04507 (sliding tile attention); tile and window are the suite's")

    def operator(
        self, workload: Workload, options: SlidingTileOptions, engine: BlockEngine, *, scale: float
    ) -> Operator:
        """Make the mask, plan, attend."""
        from bsa_kernels import BlockGrid, BlockPlan
        from bsa_kernels.operator import Operator
        from bsa_kernels.stages import block_stages

        grid = BlockGrid(workload.token_grid, options.tile)

        def select(q: Tensor, *, is_tiled: bool) -> Tensor:  # noqa: ARG001
            return window_mask(grid.blocks, options.tile_window, q.device).expand(*q.shape[:2], -1, -1)

        def plan(mask: Tensor) -> BlockPlan:
            return BlockPlan.from_mask(grid, grid, mask)

        return Operator(block_stages(engine, grid, grid, select, plan, scale=scale, reads=("q",)))

    def expected(self, workload: Workload, options: SlidingTileOptions) -> Cost:
        """The window's share of the tiles along each axis."""
        density = 1.0
        for side, tile, window in zip(workload.token_grid, options.tile, options.tile_window, strict=True):
            density *= min(1.0, window / -(-side // tile))
        return block_cost(workload, density=density, block=options.tile)

    def expected_sparsity(self, workload: Workload, options: SlidingTileOptions) -> float | None:
        """By the window."""
        return self.expected(workload, options).sparsity


def window_mask(tiles: Triple, window: Triple, device: torch.device) -> Tensor:
    """[N, N] bool: tile i sees tile j. Along each axis the window's centre is clamped so that it stays inside."""
    import torch

    mask = torch.ones(1, 1, dtype=torch.bool, device=device)
    for count, width in zip(tiles, window, strict=True):
        place = torch.arange(count, device=device)
        size = min(width, count)
        first = (place - size // 2).clamp(0, count - size)
        along = (place >= first.unsqueeze(1)) & (place < first.unsqueeze(1) + size)
        mask = (mask[:, None, :, None] & along[None, :, None, :]).flatten(2).flatten(0, 1)
    return mask


SLIDING_TILE = SlidingTile()
