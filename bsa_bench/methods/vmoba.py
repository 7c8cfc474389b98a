"""VMoBA: each query attends to the blocks whose mean key it resembles; blocks change their shape by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from bsa_bench.block_method import BlockMethod, block_cost
from bsa_bench.contract import Cost, MethodOptions
from bsa_bench.result import Claims
from bsa_bench.workload import MAX_SHAPE, Tokens, Triple, Workload

if TYPE_CHECKING:
    from torch import Tensor

    from bsa_bench.contract import BlockEngine
    from bsa_kernels.operator import Operator

_TOKEN = (1, 1, 1)


class VmobaOptions(MethodOptions):
    """Meanings in docs/methods/vmoba.md; `topk` and `kv_density` (a share of the blocks) go with `select = "topk"`."""

    layer: Annotated[int, Field(ge=0, le=MAX_SHAPE)] = 2
    temporal_block: Tokens = 3
    spatial_block: tuple[Tokens, Tokens] = (8, 8)
    block: Triple = (4, 8, 8)
    select: Literal["threshold", "topk"] = "threshold"
    scope: Literal["head_global", "query_head", "block", "overall"] = "head_global"
    tau: Annotated[float, Field(ge=0, le=1)] = 0.25
    topk: Tokens | None = None
    kv_density: Annotated[float, Field(gt=0, le=1)] | None = None

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        given = [name for name in ("topk", "kv_density") if getattr(self, name) is not None]
        if self.select == "topk" and len(given) != 1:
            raise ValueError(
                f"select = 'topk': expected topk or kv_density with it, got {' and '.join(given) or 'none'}"
            )
        if self.select == "threshold" and given:
            raise ValueError(f"{given[0]}: goes with select = 'topk', got select = 'threshold', which has tau")
        return self


class Vmoba(BlockMethod):
    """Every query has a list of its own, so its query blocks are single tokens."""

    name = "vmoba"
    Options = VmobaOptions

    def claims(self, options: VmobaOptions) -> Claims:  # noqa: ARG002
        """Trains, and approximates dense attention."""
        return Claims(source="arXiv 2506.23858 and the authors' code; see docs/methods/vmoba.md")

    def unsupported(self, workload: Workload, options: VmobaOptions) -> str | None:
        """Windows and 3-D blocks have to divide the grid."""
        try:
            self._block(workload, options)
        except ValueError as error:
            return f"vmoba.{error}"
        return None

    def operator(self, workload: Workload, options: VmobaOptions, engine: BlockEngine, *, scale: float) -> Operator:
        """Select, plan, attend."""
        from bsa_kernels.methods import vmoba
        from bsa_kernels.operator import Operator
        from bsa_kernels.stages import block_stages

        q_grid, kv_grid = vmoba.grids(workload.token_grid, self._block(workload, options))
        how = self._how(kv_grid.num_blocks, options)

        def select(q: Tensor, k: Tensor, *, is_tiled: bool) -> Tensor:
            return vmoba.select(vmoba.score(q, k, kv_grid, is_tiled=is_tiled), kv_grid, **how)

        return Operator(
            block_stages(
                engine, q_grid, kv_grid, select, lambda mask: vmoba.build_plan(mask, q_grid, kv_grid), scale=scale
            )
        )

    def expected(self, workload: Workload, options: VmobaOptions) -> Cost:
        """Exact for `topk` on equal blocks; for a threshold an estimate that takes scores to be normal."""
        from bsa_bench.block_method import num_blocks
        from bsa_kernels.methods.vmoba.cost import expected

        block = self._block(workload, options)
        how = self._how(num_blocks(workload, block), options)
        one = expected(grid=workload.token_grid, block=block, head_dim=workload.head_dim, heads=workload.heads, **how)
        return block_cost(
            workload,
            density=one.density,
            block=block,
            query_block=_TOKEN,
            selection_flop=workload.batch * workload.heads * one.selection_flop,
        )

    def expected_sparsity(self, workload: Workload, options: VmobaOptions) -> float | None:
        """By `topk`; a threshold's is known after the run only."""
        return self.expected(workload, options).sparsity if options.select == "topk" else None

    def selection_flop(self, workload: Workload, options: VmobaOptions) -> float:
        """Mean keys, all scores, their normalisation."""
        return self.expected(workload, options).selection_flop

    @staticmethod
    def _block(workload: Workload, options: VmobaOptions) -> Triple:
        from bsa_kernels.methods.vmoba.cost import layer_block

        return layer_block(
            workload.token_grid,
            options.layer,
            temporal_block=options.temporal_block,
            spatial_block=options.spatial_block,
            block=options.block,
        )

    @staticmethod
    def _how(num_blocks: int, options: VmobaOptions) -> dict[str, Any]:
        """The selection, as `bsa_kernels.methods.vmoba` asks for it."""
        topk = options.topk
        if options.kv_density is not None:
            topk = max(1, int(options.kv_density * num_blocks + 0.5))
        return {"mode": options.select, "scope": options.scope, "tau": options.tau, "topk": topk}


VMOBA = Vmoba()
