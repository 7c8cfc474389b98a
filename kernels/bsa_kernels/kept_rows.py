"""Differentiable moves of rows between blocks: kept rows out of query tiles, and tokens filled from kept rows.

Shape legend: `B` batch, `H` heads, `N` blocks, `M` slots of each, `K` kept rows a block, `L` tokens, `D` head size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bsa_kernels.grid import take_rows

if TYPE_CHECKING:
    from bsa_kernels.plan import BlockPlan


class GatherKept(torch.autograd.Function):
    """The kept rows [B, H, N, K, D] of tile-major queries [B, H, N*M, D]."""

    @staticmethod
    def forward(ctx, q_tiles: Tensor, plan: BlockPlan) -> Tensor:  # type: ignore[no-untyped-def]  # noqa: ANN001
        ctx.plan = plan
        return take_block_rows(q_tiles.unflatten(2, (plan.q_grid.num_blocks, -1)), plan.kept_slots.clamp(min=0))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]  # noqa: ANN001
        rank = ctx.plan.kept_rank
        rows = take_block_rows(grad, rank.clamp(min=0))
        return rows.masked_fill_((rank < 0).unsqueeze(-1), 0).flatten(2, 3), None


class Fill(torch.autograd.Function):
    """Every token [B, H, L, D] from the outputs of kept rows [B, H, N, K, D]."""

    @staticmethod
    def forward(ctx, o_kept: Tensor, plan: BlockPlan) -> Tensor:  # type: ignore[no-untyped-def]  # noqa: ANN001
        ctx.plan = plan
        slot_of_token = plan.q_grid.slot_of_token(plan.device)
        entry = plan.fill.flatten(2).index_select(2, slot_of_token)  # [B, H, L]
        first = (slot_of_token // plan.q_grid.block_size) * plan.shape[3]
        out = take_rows(o_kept.flatten(2, 3), entry.clamp(min=0) + first)
        return out.masked_fill_((entry < 0).unsqueeze(-1), 0) if plan.has_zero_fill else out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]  # noqa: ANN001
        plan: BlockPlan = ctx.plan
        _, _, nq, k = plan.shape
        tiles = plan.q_grid._to_tiles(grad).unflatten(2, (nq, -1))  # noqa: SLF001  # [B, H, Nq, Mq, D]
        # The segment sum as a product with the 0/1 matrix [K, Mq]: no atomics, fp32 accumulation in half precision.
        takes = plan.fill.unsqueeze(-2) == torch.arange(k, device=plan.device).unsqueeze(-1)
        return takes.to(grad.dtype) @ tiles, None


def take_block_rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows `index` [B, H, N, R] of blocks x [B, H, N, S, D] -> [B, H, N, R, D]."""
    n, s = x.shape[2:4]
    first = torch.arange(n, device=x.device).unsqueeze(-1) * s
    return take_rows(x.flatten(2, 3), (index + first).flatten(2)).unflatten(2, (n, -1))
