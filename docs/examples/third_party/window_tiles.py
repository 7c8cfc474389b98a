"""A method and an engine from outside: each tile of a video sees the tiles around it; masked attention in plain torch.

The two know nothing of each other. torch is imported inside functions, for suites, predictions and `--dry-run` ask
methods without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from bsa_bench.block_method import BlockMethod, block_cost
from bsa_bench.contract import BLOCKS, DENSE, MethodOptions, by_pass
from bsa_bench.result import Claims
from bsa_bench.workload import Triple

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from bsa_bench.contract import BlockEngine, Cost
    from bsa_bench.workload import Workload
    from bsa_kernels import BlockPlan
    from bsa_kernels.operator import Operator


class WindowTilesOptions(MethodOptions):
    """`tile`: tokens along (t, h, w); `tile_window`: tiles along (t, h, w); `wraps`: windows go on at the other end."""

    SHORT: ClassVar[dict[str, str]] = {"tile_window": "w"}

    tile: Triple = (4, 4, 4)
    tile_window: Triple = (3, 3, 3)
    wraps: bool = False


class WindowTiles(BlockMethod):
    """The mask depends on the grid alone."""

    name = "window-tiles"
    Options = WindowTilesOptions

    def claims(self, options: WindowTilesOptions) -> Claims:  # noqa: ARG002
        """Trains, and approximates dense attention."""
        return Claims(source="an example of how to add a method")

    def operator(
        self, workload: Workload, options: WindowTilesOptions, engine: BlockEngine, *, scale: float
    ) -> Operator:
        """Make the mask, plan, attend."""
        from bsa_kernels import BlockGrid, BlockPlan
        from bsa_kernels.operator import Operator
        from bsa_kernels.stages import block_stages

        grid = BlockGrid(workload.token_grid, options.tile)

        def select(q: Tensor, *, is_tiled: bool) -> Tensor:  # noqa: ARG001
            return window_mask(grid.blocks, options, q.device).expand(*q.shape[:2], -1, -1)

        def plan(mask: Tensor) -> BlockPlan:
            return BlockPlan.from_mask(grid, grid, mask)

        return Operator(block_stages(engine, grid, grid, select, plan, scale=scale, reads=("q",)))

    def expected(self, workload: Workload, options: WindowTilesOptions) -> Cost:
        """The mean share of the tiles in a window along each axis; exact where the tiles divide the grid."""
        density = 1.0
        for side, tile, window in zip(workload.token_grid, options.tile, options.tile_window, strict=True):
            tiles = -(-side // tile)
            density *= sum(len(near(place, window, tiles, wraps=options.wraps)) for place in range(tiles)) / tiles**2
        return block_cost(workload, density=density, block=options.tile)

    def expected_sparsity(self, workload: Workload, options: WindowTilesOptions) -> float | None:
        """By the window."""
        return self.expected(workload, options).sparsity


def near(place: int, window: int, tiles: int, *, wraps: bool) -> set[int]:
    """The tiles of one axis in the window around a place."""
    around = range(place - window // 2, place + (window + 1) // 2)
    return {tile % tiles for tile in around if wraps or 0 <= tile < tiles}


def window_mask(blocks: Triple, options: WindowTilesOptions, device: torch.device) -> Tensor:
    """[N, N] bool: tile i sees tile j."""
    import torch

    mask = torch.ones(1, 1, device=device)
    for tiles, window in zip(blocks, options.tile_window, strict=True):
        along = torch.zeros(tiles, tiles, device=device)
        for place in range(tiles):
            along[place, list(near(place, window, tiles, wraps=options.wraps))] = 1
        mask = torch.kron(mask, along)
    return mask.bool()


class DenseMask:
    """Masked attention over all pairs; its memory is quadratic in the length."""

    name = "dense-mask"
    offers = frozenset({DENSE, BLOCKS})
    expected_ops: tuple[str, ...] = ()
    layout = "natural"
    fills = True
    runs_triton = False

    def version(self) -> str:
        """Torch's version."""
        import torch

        return f"torch {torch.__version__}"

    def unsupported(self, device: torch.device, dtype: torch.dtype, head_dim: int, *, backward: bool) -> str | None:  # noqa: ARG002
        """Return None: plain torch runs everywhere."""
        return None

    def untimed(self, device: torch.device) -> str | None:  # noqa: ARG002
        """Return None: its time means something."""
        return None

    def unsupported_plan(self, plan: BlockPlan) -> str | None:  # noqa: ARG002
        """Return None: a mask says all that a plan can."""
        return None

    def dense(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
        """Softmax over all keys."""
        return ((q @ k.mT) * scale).softmax(-1) @ v

    def prepare(self, plan: BlockPlan, like: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """For each token the token whose output it takes, [B, H, L], and the keys which that one sees, [B, H, L, L]."""
        source = plan.source_of_token()
        mask = plan.dense_mask()
        return source, mask.gather(2, source.clamp(min=0).unsqueeze(-1).expand(mask.shape))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, prepared, *, scale: float) -> Tensor:  # noqa: ARG002
        """The output of all tokens, in natural order."""
        source, mask = prepared
        source = source.unsqueeze(-1)
        q = q.gather(2, source.clamp(min=0).expand(q.shape))
        scores = ((q @ k.mT) * scale).masked_fill(~mask, -1e30)
        return (scores.softmax(-1) @ v).masked_fill(source < 0, 0)

    def executed_flop(self, contract, state, which) -> float:  # noqa: ARG002
        """All pairs: two products forward, four backward, for autograd keeps the weights."""
        b, h, length, head_dim = state["q"].shape
        product = 2.0 * b * h * length**2 * head_dim
        return by_pass(2 * product, 4 * product, which)


WINDOW_TILES = WindowTiles()
DENSE_MASK = DenseMask()
