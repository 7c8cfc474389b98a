"""Bidirectional Sparse Attention: few query rows of each block, few KV blocks each, the rest filled by copies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from bsa_bench.block_method import BlockMethod, block_cost, num_blocks
from bsa_bench.contract import Cost, MethodOptions
from bsa_bench.result import Claims
from bsa_bench.workload import Triple, Workload

if TYPE_CHECKING:
    from bsa_bench.contract import BlockEngine
    from bsa_kernels.operator import Operator


class BsaOptions(MethodOptions):
    """The options of the method `bsa`; meanings in `bsa_kernels.bsa_attention`."""

    SHORT: ClassVar[dict[str, str]] = {"kv_density": "d", "query_keep": "k"}

    block: Triple = (4, 4, 4)
    query_block: Triple | None = None
    query_keep: Annotated[float, Field(gt=0, le=1)] = 0.5
    kv_density: Annotated[float, Field(gt=0, le=1)] = 0.1
    query_rule: Literal["window", "block", "flat_half", "central_mean"] = "window"
    kv_rule: Literal["statistical", "topk", "mass", "softmax_stat"] = "statistical"
    fill: Literal["nearest", "similar", "flat", "zero"] = "nearest"


class Bsa(BlockMethod):
    """As `bsa_kernels.bsa_attention` runs it; see docs/methods/bsa.md."""

    name = "bsa"
    Options = BsaOptions

    def claims(self, options: BsaOptions) -> Claims:  # noqa: ARG002
        """Trains, and approximates dense attention."""
        return Claims(source="arXiv 2509.01085; what it leaves open is decided in docs/methods/bsa.md")

    def operator(self, workload: Workload, options: BsaOptions, engine: BlockEngine, *, scale: float) -> Operator:
        """The stages that `bsa_attention` runs in a row."""
        from bsa_kernels.methods.bsa.options import BsaOptions as KernelOptions
        from bsa_kernels.methods.bsa.pipeline import bsa_operator

        return bsa_operator(KernelOptions(grid=workload.token_grid, **options.model_dump()), engine, scale=scale)

    def expected_sparsity(self, workload: Workload, options: BsaOptions) -> float:  # noqa: ARG002
        """By the shares that the options ask for."""
        return 1 - options.query_keep * options.kv_density

    def selection_flop(self, workload: Workload, options: BsaOptions) -> float:
        """Similarity of queries, pooling, block scores and their statistics."""
        w = workload
        rows = w.batch * w.heads * w.head_dim * w.num_tokens
        similarity = 6 * rows if options.query_keep < 1 else 0
        scores = w.batch * w.heads * num_blocks(w, options.query_block or options.block) * num_blocks(w, options.block)
        return similarity + rows * (1 + options.query_keep) + scores * (2 * w.head_dim + 5)

    def expected(self, workload: Workload, options: BsaOptions) -> Cost:
        """By the shares that the options ask for."""
        return block_cost(
            workload,
            density=options.query_keep * options.kv_density,
            block=options.block,
            query_block=options.query_block,
            kv_density=options.kv_density,
            selection_flop=self.selection_flop(workload, options),
        )


BSA = Bsa()
