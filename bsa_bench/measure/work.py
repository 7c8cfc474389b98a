"""Work counts of a pass: FLOP executed, nominal, dense-equivalent and of the selection; realised density."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bsa_bench.result import BsaOptions, PassName, Work
from bsa_bench.workload import Workload

if TYPE_CHECKING:
    from torch import Tensor

    from bsa_kernels import BlockPlan

#: FLOP of a pass over those of the forward: 2 matrix products forward, 5 backward with recomputation.
PASS_FACTOR: dict[PassName, float] = {"forward": 1.0, "backward": 2.5, "forward+backward": 3.5}


def executed_factor(which: PassName, backward_factor: float) -> float:
    """`PASS_FACTOR` with what an engine's backward really executes, in units of its forward."""
    return {"forward": 1.0, "backward": backward_factor, "forward+backward": 1.0 + backward_factor}[which]


def dense_work(workload: Workload, which: PassName, *, backward_factor: float) -> Work:
    """Work of dense attention: every pair."""
    return Work(
        flops_executed=workload.dense_flop * executed_factor(which, backward_factor),
        flops_nominal=workload.dense_flop * PASS_FACTOR[which],
        flops_dense_equiv=workload.dense_flop * PASS_FACTOR[which],
        flops_selection=0,
        sparsity_nominal=0,
        density_realised=1,
    )


def plan_work(
    workload: Workload,
    plan: BlockPlan,
    options: BsaOptions,
    which: PassName,
    *,
    executed_forward: float,
    backward_factor: float,
    list_members: Tensor | None = None,
    work_members: Tensor | None = None,
) -> Work:
    """Work of a plan (synchronises).

    Args:
        workload, plan, options, which: what is attended, and in which pass.
        executed_forward: FLOP that the engine's tiles compute in a forward.
        backward_factor: what its backward executes over that.
        list_members: [B, H, R, G], query blocks that share a list in it; each by itself if None.
        work_members: [B, H, R, G], those multiplied with the union of what they listed; `list_members` if None.
    """
    from bsa_kernels.block_sparse.groups import choose_groups_reference, union_counts
    from bsa_kernels.block_sparse.lists import list_lengths, union_efficiency

    walked = choose_groups_reference(plan.block_bits, plan.q_grid, 1) if list_members is None else list_members
    lists = list_lengths(union_counts(plan.block_bits, walked))
    counts = plan.kv_counts.double()
    listed = plan.block_mask.double() @ plan.kv_grid.real_counts(plan.device).double()  # real keys a row sees
    pairs = float((listed * plan.num_kept).sum())
    w = workload
    per_head = counts.flatten(2).sum(-1)
    nq, nk = plan.q_grid.num_blocks, plan.kv_grid.num_blocks
    q_rows = w.batch * w.heads * w.head_dim * w.num_tokens
    similarity = 6 * q_rows if options.query_keep < 1 else 0
    selection = similarity + q_rows * (1 + options.query_keep) + w.batch * w.heads * nq * nk * (2 * w.head_dim + 5)
    return Work(
        flops_executed=executed_forward * executed_factor(which, backward_factor),
        flops_nominal=4 * w.head_dim * pairs * PASS_FACTOR[which],
        flops_dense_equiv=w.dense_flop * PASS_FACTOR[which],
        flops_selection=0 if which == "backward" else selection,
        sparsity_nominal=1 - options.query_keep * options.kv_density,
        density_realised=pairs / (w.batch * w.heads * w.num_tokens**2),
        kv_density_realised=float(counts.mean()) / nk,
        query_keep_realised=float(plan.num_kept.double().sum()) / (w.batch * w.heads * w.num_tokens),
        row_imbalance=float(counts.max() / counts.mean()),
        head_imbalance=float(per_head.max() / per_head.mean()),
        list_length_min=int(counts.min()),
        list_length_mean=float(counts.mean()),
        list_length_max=int(counts.max()),
        union_efficiency=float(union_efficiency(plan.block_bits, walked if work_members is None else work_members)),
        list_mean=float(lists.mean),
        list_max=int(lists.longest),
        num_dead_blocks=int((plan.inverse[0] == 0).sum()),
        plan_digest=plan.digest(),
    )
