"""What the kernels execute on a plan: FLOP of their matrix products over (row, key) pairs, padding of tiles included.

What `pack_rows_kernel` multiplies is no such product (a 0/1 matrix, which sums the gradients that a row receives) and
is not counted. Everything here synchronises.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from bsa_kernels.block_sparse.constants import padded_block
from bsa_kernels.block_sparse.groups import choose_groups_reference, union_counts
from bsa_kernels.block_sparse.specialized import KEYS, ROWS, half_members
from bsa_kernels.block_sparse.tables import Layout
from bsa_kernels.block_sparse.tile_table import Tile, padded
from bsa_kernels.plan import BlockPlan

#: Matrix products of a step: scores and output; scores, dweights and dq; scores, dv, dweights and dk; dq with them.
ATTEND, GRAD_Q, GRAD_KV, GRAD_FUSED = 2, 3, 4, 5


def executed_flop(
    plan: BlockPlan, layout: Layout, head_dim: int, which: Literal["forward", "backward", "forward+backward"]
) -> int:
    """FLOP that a pass executes on a plan with the tiles of a layout."""
    total = 0
    if "forward" in which:
        total += forward_flop(plan, layout, head_dim)
    if "backward" in which:
        total += backward_flop(plan, layout, head_dim)
    return total


def forward_flop(plan: BlockPlan, layout: Layout, head_dim: int) -> int:
    """Of `attend_kernel`: each group multiplies the union of its blocks' lists; of the specialised one, each half."""
    tile = layout.tiles.attend
    members = choose_groups_reference(plan.block_bits, plan.q_grid, tile.group)
    if not tile.specialized:
        return _walk_flop(plan, layout, tile, members, head_dim, ATTEND)
    # Both halves of a single block multiply the whole of its list.
    listed = int(union_counts(plan.block_bits, half_members(members)).sum()) * (2 if tile.group == 1 else 1)
    return 2 * ATTEND * head_dim * (ROWS // 2) * KEYS * listed


def backward_flop(plan: BlockPlan, layout: Layout, head_dim: int) -> int:
    """Of the kernels of the form that runs: split, or fused unless torch is to be deterministic."""
    tiles = layout.tiles
    if tiles.backward == "fused" and not torch.are_deterministic_algorithms_enabled():
        return _inverse_flop(plan, layout, tiles.grad_fused, head_dim, GRAD_FUSED)
    members = choose_groups_reference(plan.block_bits, plan.q_grid, tiles.grad_q.group)
    walked = _walk_flop(plan, layout, tiles.grad_q, members, head_dim, GRAD_Q)
    return walked + _inverse_flop(plan, layout, tiles.grad_kv, head_dim, GRAD_KV)


def _walk_flop(plan: BlockPlan, layout: Layout, tile: Tile, members: Tensor, head_dim: int, products: int) -> int:
    """Of a kernel that walks the lists of groups: all rows of their tiles by all slots of the listed blocks."""
    rows = tile.rows if tile.group > 1 else -(-plan.shape[3] // tile.rows) * tile.rows
    listed = int(union_counts(plan.block_bits, members).sum())
    return 2 * products * padded(head_dim) * rows * padded_block(layout) * listed


def _inverse_flop(plan: BlockPlan, layout: Layout, tile: Tile, head_dim: int, products: int) -> int:
    """Of the kernel that walks the query blocks which chose a KV block, `pack` a step."""
    choosing = plan.block_mask.sum(2)  # [B, H, Nk]
    row_tiles = -(-plan.shape[3] // tile.rows) if tile.pack == 1 else 1
    steps = int((-(-choosing // tile.pack)).sum()) * row_tiles
    return 2 * products * padded(head_dim) * tile.rows * padded_block(layout) * steps
