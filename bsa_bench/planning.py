"""Run the planning of a case on the CPU, for the picture of a plan: inputs, selection, plan; nothing is attended."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bsa_bench.errors import UsageError
from bsa_bench.report.plan_plot import PlanPicture
from bsa_bench.result import Case, Result
from bsa_bench.run.estimate import available_memory_bytes
from bsa_bench.workload import Workload

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bsa_kernels import BlockPlan

ENGINE = "gather"
"""It runs every block plan, on every CPU; who attends does not change the plan."""
PICTURE_SIDE = 480
"""The longer side of a frame in a picture, in pixels; more is left out."""


def picture_of_plan(
    results: Sequence[Result], label: str, *, head: int = 0, query_block: int | None = None
) -> PlanPicture:
    """Plan the case of some results, the first of them the one whose plan is compared, and describe one query block.

    Args:
        results: of one case, at least one.
        label: how the case is called.
        head: of the first element of the batch.
        query_block: its number; None: that in the middle of the grid.

    Raises:
        UsageError: the method has no block plan, there is no such head or query block, or memory does not suffice.
        InputError: the input of the case is not here.
    """
    import torch

    case, workload = results[0].case, results[0].case.workload
    if not 0 <= head < workload.heads:
        raise UsageError(f"--head: got {head}, expected 0 to {workload.heads - 1}")
    plan = plan_of(case)
    if query_block is None:
        query_block = _middle(plan)
    if not 0 <= query_block < plan.q_grid.num_blocks:
        raise UsageError(f"--query-block: got {query_block}, expected 0 to {plan.q_grid.num_blocks - 1}")
    grid, device = workload.token_grid, torch.device("cpu")
    kv_block = plan.kv_grid.slot_of_token(device) // plan.kv_grid.block_size
    seen_blocks = plan.block_mask[0, head, query_block, : plan.kv_grid.num_blocks]
    slot = plan.q_grid.slot_of_token(device)
    in_block = slot // plan.q_grid.block_size == query_block
    kept = in_block & (plan.kept_rank[0, head].flatten()[slot] >= 0)
    stored = next((r.work.plan_digest for r in results if r.work and r.work.plan_digest), None)
    seen = seen_blocks[kv_block]
    return PlanPicture(
        case_id=case.case_id,
        label=label,
        grid=grid,
        head=head,
        query_block=query_block,
        num_query_blocks=plan.q_grid.num_blocks,
        num_seen=int(seen_blocks.sum()),
        num_kv_blocks=plan.kv_grid.num_blocks,
        seen=seen.view(grid).numpy(),
        kv_block=kv_block.view(grid).numpy(),
        in_block=in_block.view(grid).numpy(),
        kept=kept.view(grid).numpy(),
        frames=frames_of(workload),
        source=workload.input.label,
        is_cut=not plan.rule.is_full
        and bool(plan.cut_blocks[query_block, : plan.kv_grid.num_blocks][seen_blocks].any()),
        is_measured=None if stored is None else plan.digest() == stored,
    )


def plan_of(case: Case) -> BlockPlan:
    """The plan that the method of a case makes of its inputs.

    Raises:
        UsageError: the method has no block plan, or memory does not suffice.
        InputError: the input of the case is not here.
    """
    from bsa_bench.catalog import build_operator, implementations, load_method, options_of
    from bsa_bench.inputs import draw_tensors, make_qkv

    workload = case.workload
    implementation = f"{case.method}@{ENGINE}"
    if case.claims.is_dense or implementation not in implementations():
        raise UsageError(f"plan: {case.method} attends by no block plan, expected a case of a block method")
    # q, k and v, in fp32 while they are made, and the selection's own.
    numbers = workload.batch * workload.heads * workload.num_tokens * workload.head_dim
    needed, free = 6 * 4 * numbers, available_memory_bytes()
    if needed > free:
        raise UsageError(
            f"plan: the inputs of {case.case_id} need about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free; "
            "choose a shorter case with --case"
        )
    planned = case.model_copy(update={"implementation": implementation})
    operator = build_operator(planned, scale=workload.head_dim**-0.5)
    state: dict[str, Any] = make_qkv(workload, device="cpu").tensors
    state |= draw_tensors(workload, load_method(case.method).tensors(workload, options_of(case)), device="cpu")
    for stage in operator.stages:
        stage(state)
        if "plan" in state:
            plan: BlockPlan = state["plan"]
            return plan
    raise UsageError(f"plan: {case.method} attends by no block plan, expected a case of a block method")


def frames_of(workload: Workload) -> NDArray[np.uint8] | None:
    """[T, h, w, 3] uint8: the first picture of each latent frame; None where the input is no video.

    Raises:
        InputError: the clip is not here.
    """
    import numpy as np

    from bsa_bench.inputs.clip import find_sample_clip, load_clip

    spec = workload.input
    if spec.kind != "video":
        return None
    path = find_sample_clip(spec.clip) if spec.clip else Path(str(spec.path)).expanduser()
    num_frames, height, width = workload.video_size
    clip = load_clip(path, num_frames=num_frames, height=height, width=width)
    stride = max(1, max(height, width) // PICTURE_SIDE)
    step = workload.vae[0] * workload.patch[0]
    first = [max(0, (t - 1) * step + 1) for t in range(workload.token_grid[0])]
    return np.stack([clip.frame(at)[:, ::stride, ::stride].permute(1, 2, 0).numpy() for at in first])


def _middle(plan: BlockPlan) -> int:
    """The query block in the middle of the grid."""
    t, h, w = (side // 2 for side in plan.q_grid.blocks)
    _, num_h, num_w = plan.q_grid.blocks
    return (t * num_h + h) * num_w + w
