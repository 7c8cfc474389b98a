"""Sliding-window attention over the sequence: each query sees the tokens of a window that ends with it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field, model_validator

from bsa_bench.block_method import BlockMethod
from bsa_bench.contract import BLOCKS, ELEMENT_RULES, Cost, MethodOptions
from bsa_bench.result import Claims
from bsa_bench.workload import Tokens, Workload

if TYPE_CHECKING:
    from torch import Tensor

    from bsa_bench.contract import BlockEngine
    from bsa_kernels import BlockPlan
    from bsa_kernels.operator import Operator

#: Source: InfiniteVL, its first version.
WINDOW = 8192
#: Tokens of a block of the plan; the rule cuts those at the edges of the window.
_BLOCK = 64


class SwaOptions(MethodOptions):
    """`window` tokens, the query's own counted, or such a one that `kv_density` of dense attention's pairs are seen.

    `causal = false` centres the window on the query, an adaptation of this project: half of it on either side.
    """

    window: Tokens | None = None
    kv_density: Annotated[float, Field(gt=0, le=1)] | None = None
    causal: bool = True

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.window is not None and self.kv_density is not None:
            raise ValueError(f"expected window or kv_density, got both: {self.window} and {self.kv_density}")
        return self

    def reach(self, num_tokens: int) -> tuple[int, int]:
        """How many tokens before the query it sees, and after it."""
        width = self.window or WINDOW
        if self.kv_density is not None:
            # Causal: L*w - w^2/2 of L^2/2 pairs.
            share = 1 - math.sqrt(1 - self.kv_density) if self.causal else self.kv_density
            width = max(1, int(share * num_tokens + 0.5))
        return (width - 1, 0) if self.causal else (width // 2, (width - 1) // 2)


class Swa(BlockMethod):
    """The plan lists the blocks that the window touches; its rule is the window."""

    name = "swa"
    Options = SwaOptions
    needs = (BLOCKS, ELEMENT_RULES)

    def claims(self, options: SwaOptions) -> Claims:
        """Causal, unless adapted."""
        return Claims(
            causal=options.causal,
            adapted=not options.causal,
            source="arXiv 2512.08829 (InfiniteVL, its sliding-window layers); see docs/methods/swa.md",
        )

    def is_causal(self, options: SwaOptions) -> bool:
        """As its options say."""
        return options.causal

    def operator(self, workload: Workload, options: SwaOptions, engine: BlockEngine, *, scale: float) -> Operator:
        """Make the mask, plan, attend."""
        from bsa_kernels import BlockGrid, BlockPlan
        from bsa_kernels.operator import Operator
        from bsa_kernels.rules import ElementRule
        from bsa_kernels.stages import block_stages

        grid = BlockGrid((1, 1, workload.num_tokens), (1, 1, _BLOCK))
        rule = ElementRule.band(*options.reach(workload.num_tokens))

        def select(q: Tensor, *, is_tiled: bool) -> Tensor:  # noqa: ARG001
            return rule.touches(grid, grid, q.device).expand(*q.shape[:2], -1, -1)

        def plan(mask: Tensor) -> BlockPlan:
            return BlockPlan.from_mask(grid, grid, mask, rule=rule)

        return Operator(block_stages(engine, grid, grid, select, plan, scale=scale, reads=("q",)))

    def expected(self, workload: Workload, options: SwaOptions) -> Cost:
        """Exact."""
        heads, length = workload.batch * workload.heads, workload.num_tokens
        before, after = (min(n, length - 1) for n in options.reach(length))
        # Of all L queries, less what the ends of the sequence cut off.
        pairs = length * (before + 1 + after) - before * (before + 1) // 2 - after * (after + 1) // 2
        num_blocks = -(-length // _BLOCK)
        return Cost(
            flop=4.0 * workload.head_dim * heads * pairs,
            scores=heads * num_blocks**2,
            listed_tokens=heads * (pairs / _BLOCK + length),
            padding=num_blocks * _BLOCK / length,
            sparsity=1 - heads * pairs / workload.dense_pairs(causal=options.causal),
        )

    def expected_sparsity(self, workload: Workload, options: SwaOptions) -> float | None:
        """By the window."""
        return self.expected(workload, options).sparsity


SWA = Swa()
