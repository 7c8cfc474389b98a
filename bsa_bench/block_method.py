"""What all methods share whose operator attends by a block plan: their oracle, their work, their expected cost.

A method of this kind is a subclass with its options, its claims, its operator (by `bsa_kernels.stages.block_stages`)
and the density that it expects. Importing this loads no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bsa_bench.contract import BLOCKS, PASS_FACTOR, Cost, MethodWork, Reference, TensorSpec
from bsa_bench.result import PassName
from bsa_bench.workload import Triple, Workload

if TYPE_CHECKING:
    from torch import Tensor

    from bsa_bench.verify.sample import RowSample
    from bsa_kernels import BlockPlan


class BlockMethod:
    """Base of methods that attend by a block plan. `causal` says with which dense attention its work is compared."""

    needs: tuple[str, ...] = (BLOCKS,)

    def unsupported(self, workload: Workload, options: Any) -> str | None:  # noqa: ARG002
        """Return None: defined on every workload."""
        return None

    def tensors(self, workload: Workload, options: Any) -> dict[str, TensorSpec]:  # noqa: ARG002
        """Return none beside q, k and v."""
        return {}

    def is_causal(self, options: Any) -> bool:  # noqa: ARG002
        """Whether its plans are causal."""
        return False

    def expected_sparsity(self, workload: Workload, options: Any) -> float | None:  # noqa: ARG002
        """1 - the share of dense attention's pairs that the options ask for; None where only the run tells."""
        return None

    def reference(
        self,
        workload: Workload,  # noqa: ARG002
        options: Any,
        tensors: Mapping[str, Tensor],
        state: Mapping[str, Any],
        rows: RowSample,
        head: tuple[int, int],
        *,
        scale: float,
    ) -> Reference:
        """Masked attention by the plan."""
        from bsa_bench.verify.oracle import plan_reference

        return plan_reference(tensors, state["plan"], rows, head, scale=scale, causal=self.is_causal(options))

    def work(self, workload: Workload, options: Any, state: Mapping[str, Any], which: PassName) -> MethodWork:
        """Count the pairs of the plan."""
        pairs = float(num_pairs(state["plan"]))
        return MethodWork(
            nominal_flop=4 * workload.head_dim * pairs * PASS_FACTOR[which],
            selection_flop=0 if which == "backward" else self.selection_flop(workload, options),
            density=pairs / workload.dense_pairs(causal=self.is_causal(options)),
            sparsity=self.expected_sparsity(workload, options),
        )

    def selection_flop(self, workload: Workload, options: Any) -> float:  # noqa: ARG002
        """FLOP of choosing what is attended; none by default."""
        return 0.0


def num_pairs(plan: BlockPlan) -> int:
    """Computed query rows times the keys that each sees, over all heads; synchronises."""
    return int(plan.num_pairs().sum())


def num_blocks(workload: Workload, block: Triple) -> int:
    """Blocks of a grid, padded at its ends."""
    return math.prod(-(-side // size) for side, size in zip(workload.token_grid, block, strict=True))


def block_cost(
    workload: Workload,
    *,
    density: float,
    block: Triple,
    query_block: Triple | None = None,
    kv_density: float | None = None,
    selection_flop: float = 0.0,
    own_flop: float = 0.0,
    sparsity: float | None = None,
    causal: bool = False,
) -> Cost:
    """The expected cost of a block method.

    Args:
        workload: what is attended.
        density: expected share of the dense pairs.
        block, query_block: of keys, and of queries where those differ.
        kv_density: share of the KV blocks in an average list; the density by default.
        selection_flop: of choosing.
        own_flop: of the forward, outside of the engine.
        sparsity: as the options ask for it; 1 - density by default.
        causal: whether the density is a share of causal dense attention.
    """
    heads = workload.batch * workload.heads
    scores = heads * num_blocks(workload, query_block or block) * num_blocks(workload, block)
    share = density if kv_density is None else kv_density
    return Cost(
        flop=4 * workload.head_dim * density * workload.dense_pairs(causal=causal) + own_flop,
        selection_flop=selection_flop,
        scores=scores,
        listed_tokens=share * scores * math.prod(block),
        padding=workload.padded_tokens(block) / workload.num_tokens,
        sparsity=1 - density if sparsity is None else sparsity,
    )
