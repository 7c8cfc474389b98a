"""Which rows are compared: all of a short workload; of a long one the first, the last and random query blocks.

They are the same in every head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bsa_kernels import BlockGrid, BlockPlan

#: Scores (rows x keys of one head) that the oracle holds at once in fp64: 2^24 is 128 MiB a tensor.
MAX_SCORES = 1 << 24


@dataclass(frozen=True)
class RowSample:
    """The tokens compared, and for a plan the query blocks that they fill.

    `tokens` [R] natural token numbers, ascending by block; `blocks` the query blocks they come from.
    """

    tokens: Tensor
    blocks: Tensor


def sample_rows(
    grid: BlockGrid,
    *,
    seed: int,
    device: torch.device,
    max_scores: int = MAX_SCORES,
    suspects: Tensor | None = None,
    with_ends: bool = True,
) -> RowSample:
    """Draw whole query blocks until rows x keys reaches `max_scores`; all of them where they fit.

    One that is drawn, `suspects`, and the first and the last if `with_ends`, are in the sample however many those are.
    """
    num = max(1, max_scores // (grid.num_tokens * grid.block_size))
    if num >= grid.num_blocks:
        blocks = torch.arange(grid.num_blocks)
    else:
        order = torch.randperm(grid.num_blocks, generator=torch.Generator().manual_seed(seed))
        ends = torch.tensor([0, grid.num_blocks - 1] if with_ends else [], dtype=torch.long)
        always = torch.cat([ends] if suspects is None else [ends, suspects.cpu()]).unique()
        others = order[~torch.isin(order, always)]
        blocks = torch.cat([always, others[: max(1, num - len(always))]]).unique()
    slots = grid.token_of_slot(torch.device("cpu"))[blocks].flatten()
    return RowSample(slots[slots >= 0].to(device), blocks.to(device))


@dataclass(frozen=True)
class HeadRows:
    """The oracle's view of one (batch, head): computed rows, what they see, and which row each token takes.

    `rows` [R'] tokens whose query is computed; `mask` [R', L] or None for all; `source` [R] the row of `rows` whose
    output each sampled token takes, -1 for zero.
    """

    rows: Tensor
    mask: Tensor | None
    source: Tensor


def head_rows(plan: BlockPlan, sample: RowSample, batch: int, head: int) -> HeadRows:
    """Read one head of a plan by its token-level tables, never by its lists of indices."""
    device = plan.device
    token_of_slot = plan.q_grid.token_of_slot(device)[sample.blocks]  # [S, M]
    kept = plan.kept_slots[batch, head, sample.blocks].long()  # [S, K]
    is_kept = kept >= 0
    rows = token_of_slot.gather(1, kept.clamp(min=0))[is_kept]
    position = is_kept.flatten().cumsum(0).view_as(kept) - 1  # row number of each kept entry
    fill = plan.fill[batch, head, sample.blocks].long()
    source = torch.where(fill >= 0, position.gather(1, fill.clamp(min=0)), -1)[token_of_slot >= 0]
    block_of_key = plan.kv_grid.slot_of_token(device) // plan.kv_grid.block_size
    sees = plan.block_mask[batch, head, sample.blocks][:, block_of_key]  # [S, L]
    owner = torch.arange(len(sample.blocks), device=device).unsqueeze(1).expand_as(kept)[is_kept]
    mask = sees[owner]
    if not plan.rule.is_full:
        mask &= plan.rule.sees(rows.unsqueeze(1), torch.arange(mask.shape[1], device=device))
    return HeadRows(rows, mask, source)
