"""The engine of the warp-specialised forward for Hopper, `bsa_kernels.block_sparse.gluon_attend`; backward as `triton`.

A second implementation of the same attention over the same lists, to be measured against the first. **No GPU has run it
yet.** For compute capability 9.0, fp16 and bf16, head sizes 64 and 128, and KV blocks of 64 tokens whose sides are
powers of two.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from bsa_kernels.block_sparse.groups import choose_groups_reference, union_counts
from bsa_kernels.block_sparse.tables import KernelTables, tables_of
from bsa_kernels.block_sparse.tile_table import Tile, Tiles, padded, tiles_for
from bsa_kernels.engines import triton
from bsa_kernels.engines.triton import attend_tokens
from bsa_kernels.grid import BlockGrid
from bsa_kernels.plan import BlockPlan

__all__ = ["attend_tokens", "choose_tiles", "executed_flop", "prepare", "specialized_tiles", "unsupported"]

#: Rows of a program, in two halves.
ROWS = 128
KEYS = 64
#: Places for KV blocks, by head size: what fits into the shared memory of an SM beside the epilogue.
_STAGES = {64: 8, 128: 5}


def unsupported(device: torch.device, dtype: torch.dtype, head_dim: int, *, backward: bool) -> str | None:
    """Why this kernel cannot run here, or None."""
    if dtype not in {torch.float16, torch.bfloat16}:
        name = str(dtype).removeprefix("torch.")
        return f"the kernel takes float16 and bfloat16, not {name}; convert, or use the engine triton."
    if head_dim not in _STAGES:
        return f"the kernel takes head sizes {' and '.join(map(str, _STAGES))}, got {head_dim}; use the engine triton."
    if device.type != "cuda":
        return f"the kernel runs on NVIDIA GPUs of compute capability 9.0, not on {device.type}; use the engine triton."
    capability = torch.cuda.get_device_capability(device)
    if capability[0] != 9:
        return "the kernel needs compute capability 9.0, this GPU has {}.{}; use the engine triton.".format(*capability)
    return triton.unsupported(device, dtype, head_dim, backward=backward)


def choose_tiles(plan: BlockPlan, *, head_dim: int, dtype: torch.dtype) -> Tiles:
    """The tiles for a plan, see `specialized_tiles`."""
    return specialized_tiles(plan.kv_grid, kept_rows=plan.shape[3], head_dim=head_dim, dtype=dtype)


def specialized_tiles(kv_grid: BlockGrid, *, kept_rows: int, head_dim: int, dtype: torch.dtype) -> Tiles:
    """The table's tiles for the backward, in the groups of this forward.

    Raises:
        ValueError: these blocks are not what the kernel takes.
    """
    if kv_grid.block_size != KEYS or any(side & (side - 1) for side in kv_grid.block):
        raise ValueError(
            f"engine 'gluon': expected KV blocks of {KEYS} tokens whose sides are powers of two, got block "
            f"{kv_grid.block}; use the engine triton"
        )
    if kept_rows > ROWS:
        raise ValueError(
            f"engine 'gluon': expected at most {ROWS} kept rows in a query block, got {kept_rows}; use the engine "
            "triton"
        )
    group = 4 if kept_rows <= ROWS // 4 else 2 if kept_rows <= ROWS // 2 else 1
    found = tiles_for(arch="sm_90", head_dim=head_dim, kept_rows=kept_rows, block_keys=KEYS, dtype=dtype)
    attend = Tile(ROWS, KEYS, num_warps=4, num_stages=_STAGES[head_dim], group=group, specialized=True)
    rows = group * padded(kept_rows)
    grad_q = replace(found.grad_q, rows=rows, num_warps=8 if rows > 64 else 4, group=group, maxnreg=None)
    return replace(found, attend=attend, grad_q=grad_q)


def prepare(
    plan: BlockPlan, *, head_dim: int, dtype: torch.dtype, is_tiled: bool = False, tiles: Tiles | None = None
) -> KernelTables:
    """Bring the plan into the kernels' form; arguments as `engines.triton.prepare`."""
    return tables_of(plan, tiles or choose_tiles(plan, head_dim=head_dim, dtype=dtype), is_tiled=is_tiled)


def executed_flop(plan: BlockPlan, head_dim: int, tiles: Tiles | None = None) -> int:
    """FLOP of the forward's matrix products: each half of a group multiplies the union of its own blocks.

    Synchronises.
    """
    tile = (tiles or choose_tiles(plan, head_dim=head_dim, dtype=torch.bfloat16)).attend
    members = half_members(choose_groups_reference(plan.block_bits, plan.q_grid, tile.group))
    listed = int(union_counts(plan.block_bits, members).sum()) * (2 if tile.group == 1 else 1)
    return 4 * head_dim * (ROWS // 2) * KEYS * listed


def half_members(members: torch.Tensor) -> torch.Tensor:
    """[B, H, R', G'] of groups [B, H, R, G]: what a half multiplies for; both halves of a single block are it."""
    return members.reshape(*members.shape[:2], -1, max(members.shape[-1] // 2, 1))
