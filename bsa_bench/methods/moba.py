"""MoBA, a causal method of language models: a query attends to its own chunk and the earlier ones it resembles."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field, model_validator

from bsa_bench.block_method import BlockMethod
from bsa_bench.contract import BLOCKS, ELEMENT_RULES, Cost, MethodOptions
from bsa_bench.result import Claims
from bsa_bench.workload import Tokens, Workload

if TYPE_CHECKING:
    from torch import Tensor

    from bsa_bench.contract import BlockEngine
    from bsa_kernels.operator import Operator

#: Chunks of a query where neither `topk` nor `kv_density` says it. Source: the paper, at 8K tokens.
TOPK = 3


class MobaOptions(MethodOptions):
    """`chunk` tokens; `topk` chunks of a query, its own counted, or as many as come nearest to `kv_density`.

    The density is a share of the pairs of the dense attention that it is compared with, causal or not.

    `causal = false` is an adaptation of this project; see docs/methods/moba.md.
    """

    chunk: Tokens = 512
    topk: Tokens | None = None
    kv_density: Annotated[float, Field(gt=0, le=1)] | None = None
    causal: bool = True

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.topk is not None and self.kv_density is not None:
            raise ValueError(f"expected topk or kv_density, got both: {self.topk} and {self.kv_density}")
        return self

    def chunks(self, num_tokens: int) -> int:
        """How many chunks a query attends to."""
        if self.kv_density is None:
            return self.topk or TOPK
        from bsa_kernels.methods.moba.cost import expected

        dense = (1 + 1 / num_tokens) / 2 if self.causal else 1.0

        def density(topk: int) -> float:
            sizes = {"tokens": num_tokens, "chunk": self.chunk, "topk": topk}
            return expected(**sizes, head_dim=1, causal=self.causal).density / dense

        choices = range(1, -(-num_tokens // self.chunk) + 1)
        above = bisect_left(choices, self.kv_density, key=density)  # it grows with topk
        near = choices[max(above - 1, 0) : above + 1]
        return min(near, key=lambda topk: abs(density(topk) - (self.kv_density or 0)))


class Moba(BlockMethod):
    """Every query has a list of its own; the rule "causal" cuts its own chunk."""

    name = "moba"
    Options = MobaOptions
    needs = (BLOCKS, ELEMENT_RULES)

    def claims(self, options: MobaOptions) -> Claims:
        """Causal, unless adapted."""
        return Claims(
            causal=options.causal,
            adapted=not options.causal,
            source="arXiv 2502.13189 and the authors' code; see docs/methods/moba.md",
        )

    def is_causal(self, options: MobaOptions) -> bool:
        """As its options say."""
        return options.causal

    def operator(self, workload: Workload, options: MobaOptions, engine: BlockEngine, *, scale: float) -> Operator:
        """Select, plan, attend, over the sequence of tokens."""
        from bsa_kernels.methods import moba
        from bsa_kernels.operator import Operator
        from bsa_kernels.stages import block_stages

        q_grid, kv_grid = moba.grids(workload.num_tokens, options.chunk)
        topk = options.chunks(workload.num_tokens)

        def select(q: Tensor, k: Tensor, *, is_tiled: bool) -> Tensor:
            scores = moba.score(q, k, kv_grid, is_tiled=is_tiled)
            return moba.select(scores, kv_grid, topk=topk, causal=options.causal)

        return Operator(
            block_stages(
                engine,
                q_grid,
                kv_grid,
                select,
                lambda mask: moba.build_plan(mask, q_grid, kv_grid, causal=options.causal),
                scale=scale,
            )
        )

    def expected(self, workload: Workload, options: MobaOptions) -> Cost:
        """Exact where it is causal."""
        from bsa_kernels.methods.moba.cost import expected

        heads, length = workload.batch * workload.heads, workload.num_tokens
        one = expected(
            tokens=length,
            chunk=options.chunk,
            topk=options.chunks(length),
            head_dim=workload.head_dim,
            causal=options.causal,
        )
        num_chunks = -(-length // options.chunk)
        return Cost(
            flop=4 * workload.head_dim * heads * one.pairs,
            selection_flop=heads * one.selection_flop,
            scores=heads * length * num_chunks,
            listed_tokens=heads * one.pairs,
            padding=num_chunks * options.chunk / length,
            sparsity=1 - heads * one.pairs / workload.dense_pairs(causal=options.causal),
        )

    def expected_sparsity(self, workload: Workload, options: MobaOptions) -> float | None:
        """By the chunks of a query."""
        return self.expected(workload, options).sparsity

    def selection_flop(self, workload: Workload, options: MobaOptions) -> float:
        """Mean keys, and the scores of all chunks."""
        return self.expected(workload, options).selection_flop


MOBA = Moba()
