"""What each attention kernel is compiled for; one place for launches and for tools that compile without launching."""

from __future__ import annotations

import torch

from bsa_kernels.block_sparse.tables import Layout
from bsa_kernels.block_sparse.tile_table import Tile, padded

Constants = dict[str, int | bool | str]

#: Slots of a query block that an epilogue handles at a time.
MAX_SLOTS = 64
#: Registers a thread of the warpgroups that multiply: two of them and one that loads share the 64 Ki of an SM.
MULTIPLIER_REGISTERS = 240


def walk_constants(layout: Layout, tile: Tile, *, kept_rows: int, head_dim: int, dtype: torch.dtype) -> Constants:
    """Of the kernels that walk the lists of groups: `attend_kernel` and `grad_q_kernel`."""
    slots = layout.q_grid.block_size
    return {
        "MQ": slots,
        "MK": padded_block(layout),
        "K": kept_rows,
        "D": head_dim,
        "ROWS": tile.rows,
        "KEYS": tile.keys,
        "BLOCK_D": padded(head_dim),
        "SLOTS": min(MAX_SLOTS, padded(slots)),
        "GROUP": tile.group,
        "HAS_FULL": layout.has_full,
        "HAS_PARTIAL": layout.has_partial,
        "FILL": layout.fills,
        "PRECISION": precision_of(dtype),
    }


def specialized_constants(layout: Layout, tile: Tile, *, kept_rows: int, head_dim: int) -> Constants:
    """Of the kernel whose warps load or multiply."""
    slots = layout.q_grid.block_size
    return {
        "MQ": slots,
        "K": kept_rows,
        "D": head_dim,
        "SLOTS": min(MAX_SLOTS, padded(slots)),
        "GROUP": tile.group,
        "HAS_PARTIAL": layout.has_partial,
        "FILL": layout.fills,
        "STAGES": tile.num_stages,
        "REGISTERS": MULTIPLIER_REGISTERS,
    }


def grad_kv_constants(
    layout: Layout, tile: Tile, *, kept_rows: int, head_dim: int, dtype: torch.dtype, is_fused: bool
) -> Constants:
    """Of `grad_kv_kernel`."""
    return {
        "MK": padded_block(layout),
        "K": kept_rows,
        "D": head_dim,
        "ROWS": tile.rows,
        "KEYS": tile.keys,
        "BLOCK_D": padded(head_dim),
        "PACK": tile.pack,
        # Rows of padding are never stored; only sums of dq must be kept from them.
        "HAS_PARTIAL": layout.has_partial and is_fused,
        "FUSED": is_fused,
        "PRECISION": precision_of(dtype),
    }


def block_constants(layout: Layout, *, kept_rows: int, head_dim: int) -> Constants:
    """Of the kernels with a program for each query block: `pack_rows_kernel` and `spread_grad_q_kernel`."""
    slots = layout.q_grid.block_size
    return {
        "MQ": slots,
        "K": kept_rows,
        "D": head_dim,
        "ENTRIES": min(MAX_SLOTS, padded(kept_rows)),
        "SLOTS": min(MAX_SLOTS, padded(slots)),
        "BLOCK_D": padded(head_dim),
        "FILL": layout.fills,
    }


def padded_block(layout: Layout) -> int:
    """Slots of a KV block, padded to key tiles."""
    keys, size = layout.tiles.max_keys, layout.kv_grid.block_size
    return -(-size // keys) * keys


def precision_of(dtype: torch.dtype) -> str:
    """fp32 is multiplied exactly, not in tf32; 16-bit formats ignore it."""
    return "ieee" if dtype == torch.float32 else "tf32"
