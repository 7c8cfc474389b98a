"""Work counts of a pass: what a method asks for, what an engine executes, and what the lists of a plan look like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bsa_bench.contract import PASS_FACTOR, Engine, Method
from bsa_bench.result import Case, Work
from bsa_kernels import BlockPlan

if TYPE_CHECKING:
    from torch import Tensor

    from bsa_bench.contract import MethodOptions


def work_of(case: Case, method: Method, options: MethodOptions, engine: Engine, state: Mapping[str, Any]) -> Work:
    """Count the work of a case's pass (synchronises).

    Args:
        case: what was run.
        method, options, engine: of the case.
        state: what its operator left behind; every `BlockPlan` in it is one that the engine attended by.
    """
    workload, which = case.workload, case.passes
    counted = method.work(workload, options, state, which)
    plans = [value for value in state.values() if isinstance(value, BlockPlan)]
    views: list[Mapping[str, Any]] = [{**state, "plan": plan} for plan in plans] or [state]
    executed = [engine.executed_flop(method.needs[0], view, which) for view in views]
    known = [flop for flop in executed if flop is not None]
    dense = 4 * workload.head_dim * workload.dense_pairs(causal=case.claims.causal) * PASS_FACTOR[which]
    lists = list_statistics(plans[0], engine, state["q"]) if len(plans) == 1 else {}
    return Work(
        flops_executed=sum(known) + counted.own_flop if len(known) == len(executed) else None,
        flops_nominal=counted.nominal_flop,
        flops_dense_equiv=dense,
        flops_selection=counted.selection_flop,
        sparsity_nominal=counted.sparsity,
        density_realised=counted.density,
        counters=dict(counted.counters),
        **lists,
    )


def list_statistics(plan: BlockPlan, engine: Engine, like: Tensor) -> dict[str, Any]:
    """Describe the lists of a plan, and those that the engine walks (synchronises).

    An engine whose query blocks share lists says which by `list_members(plan, like)` [B, H, R, G], and by
    `work_members` those that are multiplied with the union of what they listed; without, each block has its own.
    """
    from bsa_kernels.block_sparse.groups import choose_groups_reference, union_counts
    from bsa_kernels.block_sparse.lists import list_lengths, union_efficiency

    walked = _members(engine, "list_members", plan, like)
    if walked is None:
        walked = choose_groups_reference(plan.block_bits, plan.q_grid, 1)
    worked = _members(engine, "work_members", plan, like)
    lists = list_lengths(union_counts(plan.block_bits, walked))
    counts = plan.kv_counts.double()
    per_head = counts.flatten(2).sum(-1)
    b, h = plan.shape[:2]
    return {
        "kv_density_realised": float(counts.mean()) / plan.num_kv_blocks,
        "query_keep_realised": float(plan.num_kept.double().sum()) / (b * h * plan.q_grid.num_tokens),
        "row_imbalance": float(counts.max() / counts.mean()),
        "head_imbalance": float(per_head.max() / per_head.mean()),
        "list_length_min": int(counts.min()),
        "list_length_mean": float(counts.mean()),
        "list_length_max": int(counts.max()),
        "union_efficiency": float(union_efficiency(plan.block_bits, walked if worked is None else worked)),
        "list_mean": float(lists.mean),
        "list_max": int(lists.longest),
        "num_dead_blocks": int((plan.inverse[0] == 0).sum()),
        "plan_digest": plan.digest(),
    }


def _members(engine: Engine, name: str, plan: BlockPlan, like: Tensor) -> Tensor | None:
    ask = getattr(engine, name, None)
    return None if ask is None else ask(plan, like)
