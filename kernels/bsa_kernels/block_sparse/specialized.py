"""What the warp-specialised forward of `gluon_attend` takes: its shapes, its tiles, what each half of it multiplies."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from bsa_kernels.block_sparse.tile_table import Tile, Tiles, padded, tiles_for
from bsa_kernels.grid import BlockGrid

#: Rows of a program, in two halves.
ROWS = 128
KEYS = 64
#: Places for KV blocks, by head size: what fits into the shared memory of an SM beside the epilogue.
STAGES = {64: 8, 128: 5}


def specialized_fault(kv_grid: BlockGrid, *, kept_rows: int) -> str | None:
    """Why the kernel cannot take these blocks, or None."""
    if kv_grid.block_size != KEYS or any(side & (side - 1) for side in kv_grid.block):
        return (
            f"expected KV blocks of {KEYS} tokens whose sides are powers of two, got block {kv_grid.block}; use the "
            "engine triton"
        )
    if kept_rows > ROWS:
        return f"expected at most {ROWS} kept rows in a query block, got {kept_rows}; use the engine triton"
    return None


def specialized_tiles(kv_grid: BlockGrid, *, kept_rows: int, head_dim: int, dtype: torch.dtype) -> Tiles:
    """The table's tiles for the backward, in the groups of this forward.

    Raises:
        ValueError: these blocks are not what the kernel takes.
    """
    if fault := specialized_fault(kv_grid, kept_rows=kept_rows):
        raise ValueError(f"engine 'gluon': {fault}")
    group = 4 if kept_rows <= ROWS // 4 else 2 if kept_rows <= ROWS // 2 else 1
    found = tiles_for(arch="sm_90", head_dim=head_dim, kept_rows=kept_rows, block_keys=KEYS, dtype=dtype)
    attend = Tile(ROWS, KEYS, num_warps=4, num_stages=STAGES[head_dim], group=group, specialized=True)
    rows = group * padded(kept_rows)
    grad_q = replace(found.grad_q, rows=rows, num_warps=8 if rows > 64 else 4, group=group, maxnreg=None)
    return replace(found, attend=attend, grad_q=grad_q)


def half_members(members: Tensor) -> Tensor:
    """[B, H, R', G'] of groups [B, H, R, G]: what a half multiplies for; both halves of a single block are it."""
    return members.reshape(*members.shape[:2], -1, max(members.shape[-1] // 2, 1))
