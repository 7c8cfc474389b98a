"""Video Sparse Attention: attention between cube averages, which also picks the cubes that get exact attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, model_validator

from bsa_bench.block_method import BlockMethod, block_cost
from bsa_bench.contract import Cost, MethodOptions, MethodWork, Reference, TensorSpec
from bsa_bench.result import Claims, PassName
from bsa_bench.workload import Tokens, Triple, Workload

if TYPE_CHECKING:
    from torch import Tensor

    from bsa_bench.contract import BlockEngine
    from bsa_bench.verify.sample import RowSample
    from bsa_kernels.operator import Operator

#: Cubes that a cube picks where neither `topk` nor `kv_density` says it. Source: the paper.
TOPK = 32


class VsaOptions(MethodOptions):
    """`block`: tokens of a cube along (t, h, w); `topk` cubes that each picks, or the share `kv_density` of all."""

    block: Triple = (4, 4, 4)
    topk: Tokens | None = None
    kv_density: Annotated[float, Field(gt=0, le=1)] | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.topk is not None and self.kv_density is not None:
            raise ValueError(f"expected topk or kv_density, got both: {self.topk} and {self.kv_density}")
        return self

    @property
    def choice(self) -> dict[str, Any]:
        """How many cubes are picked, as `bsa_kernels.methods.vsa` asks for it."""
        if self.kv_density is not None:
            return {"density": self.kv_density}
        return {"topk": self.topk or TOPK}


class Vsa(BlockMethod):
    """Coarse, select, plan, attend, combine; see docs/methods/vsa.md."""

    name = "vsa"
    Options = VsaOptions

    def claims(self, options: VsaOptions) -> Claims:  # noqa: ARG002
        """Trains, and approximates dense attention."""
        return Claims(source="arXiv 2505.13389 and the authors' code; see docs/methods/vsa.md")

    def tensors(self, workload: Workload, options: VsaOptions) -> dict[str, TensorSpec]:  # noqa: ARG002
        """The gate of the coarse branch; in a model a linear map of the layer's input."""
        return {"gate": TensorSpec("BHLD", "sigmoid")}

    def operator(self, workload: Workload, options: VsaOptions, engine: BlockEngine, *, scale: float) -> Operator:
        """Two branches that read q, k and v; the coarse one's scores pick the cubes of the fine one."""
        from bsa_kernels import BlockGrid
        from bsa_kernels.methods import vsa
        from bsa_kernels.operator import Operator
        from bsa_kernels.stages import block_stages

        grid = BlockGrid(workload.token_grid, options.block)

        def select(scores: Tensor, *, is_tiled: bool) -> Tensor:  # noqa: ARG001
            return vsa.select(scores, **options.choice)

        fine = block_stages(
            engine,
            grid,
            grid,
            select,
            lambda mask: vsa.build_plan(mask, grid),
            scale=scale,
            reads=("scores",),
            out="o_fine",
        )
        return Operator((vsa.coarse_stage(grid, scale=scale), *fine, vsa.combine_stage()))

    def reference(
        self,
        workload: Workload,
        options: VsaOptions,
        tensors: Mapping[str, Tensor],
        state: Mapping[str, Any],
        rows: RowSample,
        head: tuple[int, int],
        *,
        scale: float,
    ) -> Reference:
        """Attention between averages by the cubes' own lists of tokens, gated, and attention by the plan."""
        import torch

        from bsa_kernels import BlockGrid

        fine = super().reference(workload, options, tensors, state, rows, head, scale=scale)
        grid = BlockGrid(workload.token_grid, options.block)
        slots = grid.token_of_slot(rows.tokens.device)
        is_real = (slots >= 0).unsqueeze(-1)
        # In the format of a coarse branch that sums in fp32 at least, as all implementations do.
        wide = {name: x if x.dtype == torch.float64 else x.float() for name, x in tensors.items()}
        q, k, v = ((wide[name][slots.clamp(min=0)] * is_real).sum(1) / is_real.sum(1) for name in ("q", "k", "v"))
        block = grid.slot_of_token(rows.tokens.device)[rows.tokens] // grid.block_size
        coarse = ((q @ k.T) * scale).softmax(-1) @ v
        out = coarse[block].to(fine.output.dtype) * tensors["gate"][rows.tokens] + fine.output
        return replace(fine, output=out)

    def expected(self, workload: Workload, options: VsaOptions) -> Cost:
        """Exact where cubes are full."""
        from bsa_kernels.methods.vsa.cost import expected

        heads = workload.batch * workload.heads
        fine = expected(grid=workload.token_grid, block=options.block, head_dim=workload.head_dim, **options.choice)
        return block_cost(
            workload,
            density=fine.density,
            block=options.block,
            selection_flop=heads * fine.selection_flop,
            own_flop=self._coarse_flop(workload, options, "forward"),
        )

    def expected_sparsity(self, workload: Workload, options: VsaOptions) -> float | None:
        """By the cubes picked."""
        return self.expected(workload, options).sparsity

    def work(self, workload: Workload, options: VsaOptions, state: Mapping[str, Any], which: PassName) -> MethodWork:
        """The fine branch's pairs, and the coarse branch besides, whose scores the selection has counted."""
        fine = super().work(workload, options, state, which)
        own = self._coarse_flop(workload, options, which)
        dense = 4 * workload.head_dim * workload.dense_pairs()
        coarse = self._coarse_flop(workload, options, "forward")
        density = None if fine.density is None else fine.density + coarse / dense
        return replace(fine, nominal_flop=fine.nominal_flop + own, own_flop=own, density=density)

    def selection_flop(self, workload: Workload, options: VsaOptions) -> float:
        """Pooled queries and keys, and their scores."""
        return self.expected(workload, options).selection_flop

    def _coarse_flop(self, workload: Workload, options: VsaOptions, which: PassName) -> float:
        from bsa_kernels.methods.vsa.cost import coarse_flop

        one = coarse_flop(grid=workload.token_grid, block=options.block, head_dim=workload.head_dim, which=which)
        return workload.batch * workload.heads * one


VSA = Vsa()
