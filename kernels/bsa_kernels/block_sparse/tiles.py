"""What a launch needs besides q, k and v: the sizes of its tiles, and the plan's tables as the kernels read them.

Shape legend: `B` batch, `H` heads, `Nq`/`Nk` query and KV blocks, `K` kept rows a query block, `M` slots a KV block.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from bsa_kernels.plan import BlockPlan

Kernel = Literal["forward", "grad_q", "grad_kv"]

#: The smallest side of a tile that `tl.dot` takes.
MIN_SIDE = 16
#: The largest head size that `CONFIGS` has tiles for.
MAX_HEAD_DIM = 256


@dataclass(frozen=True)
class Config:
    """The largest tile of a kernel, in kept rows and in keys, and the depth of its software pipeline."""

    max_rows: int
    max_keys: int
    num_stages: int


# By kernel and padded head size, for 16-bit formats. Rows: 128 share one walk of a list where a query block has that
# many. Keys: 64 is a block of (4, 4, 4). Stages: the next block's number is carried through the loops, so that each
# stage is one buffer of K and V. The reasons are compiler resources, not yet times: registers, shared memory and CTAs
# on an SM of sm_90 as compiled by Triton 3.9 in bf16 for 64 rows (32 where 32 is the limit), nothing spilled on sm_80,
# sm_90 or sm_100, and all below the 99 KB that sm_86 and sm_89 have.
CONFIGS: dict[tuple[Kernel, int], Config] = {
    ("forward", 64): Config(128, 64, 2),  # 125 registers, 41 KB, 4 CTAs
    ("forward", 128): Config(128, 64, 2),  # 165, 82 KB, 2; 32 rows: 128, 45 KB, 4, but mma.sync instead of wgmma
    ("forward", 256): Config(64, 32, 2),  # eight warps: 158, 98 KB, 1
    ("grad_q", 64): Config(128, 64, 2),  # 148, 49 KB, 3
    ("grad_q", 128): Config(128, 32, 2),  # 138, 66 KB, 3; 64 keys would take 98 KB
    ("grad_q", 256): Config(32, 32, 1),  # eight warps: 128, 66 KB, 2
    ("grad_kv", 64): Config(64, 64, 2),  # 200, 50 KB, 2
    ("grad_kv", 128): Config(32, 64, 2),  # 229, 66 KB, 2; 64 rows would be at the limit of 255 and spill on sm_80
    ("grad_kv", 256): Config(32, 32, 1),  # eight warps: 166, 82 KB, 1
}
# fp32 is multiplied exactly, without tensor cores, which unrolls into registers: small tiles, for checks, not speed.
CONFIGS_FP32: dict[int, Config] = {64: Config(32, 32, 1), 128: Config(32, 16, 1), 256: Config(16, 16, 1)}


@dataclass(frozen=True)
class Tile:
    """A tile of `rows` kept rows by `keys` keys of `head_dim` numbers, each a power of two of at least 16."""

    rows: int
    keys: int
    head_dim: int
    num_warps: int
    num_stages: int


def tile_for(kernel: Kernel, *, kept_rows: int, block_keys: int, head_dim: int, is_fp32: bool = False) -> Tile:
    """Choose the tile of a kernel: a block of the plan, padded to a power of two, or an even share of a large one."""
    padded = _padded(head_dim)
    width = max(64, padded)
    config = CONFIGS_FP32[width] if is_fp32 else CONFIGS[kernel, width]
    rows = min(config.max_rows, _padded(kept_rows))
    keys = min(config.max_keys, _padded(block_keys))
    # Four warps to 64 rows; eight also where accumulators of 256 columns would not fit the registers of four.
    return Tile(rows, keys, padded, num_warps=8 if rows > 64 or padded > 128 else 4, num_stages=config.num_stages)


def constants_of(
    tile: Tile,
    *,
    block_rows: int,
    block_keys: int,
    kept_rows: int,
    head_dim: int,
    has_partial_blocks: bool,
    is_fp32: bool = False,
) -> dict[str, int | bool | str]:
    """The constants that the three kernels which walk lists are compiled for; they share their names."""
    return {
        "MQ": block_rows,
        "MK": block_keys,
        "K": kept_rows,
        "D": head_dim,
        "ROWS": tile.rows,
        "KEYS": tile.keys,
        "BLOCK_D": tile.head_dim,
        "MASK_KEYS": has_partial_blocks or block_keys % tile.keys != 0,
        # fp32 exactly, not in tf32; 16-bit formats ignore it.
        "PRECISION": "ieee" if is_fp32 else "tf32",
    }


def launch_options(kernel: Kernel, plan: BlockPlan, head_dim: int, dtype: torch.dtype) -> dict[str, Any]:
    """The constants and compiler options of a launch."""
    is_fp32 = dtype == torch.float32
    kept_rows, block_keys = plan.shape[3], plan.kv_grid.block_size
    tile = tile_for(kernel, kept_rows=kept_rows, block_keys=block_keys, head_dim=head_dim, is_fp32=is_fp32)
    constants = constants_of(
        tile,
        block_rows=plan.q_grid.block_size,
        block_keys=block_keys,
        kept_rows=kept_rows,
        head_dim=head_dim,
        has_partial_blocks=not plan.kv_grid.is_even,
        is_fp32=is_fp32,
    )
    return {**constants, "num_warps": tile.num_warps, "num_stages": tile.num_stages}


@dataclass(frozen=True, eq=False)
class PlanTables:
    """A plan's tables as the kernels read them, contiguous and int32.

    `kept_slots` [B, H, Nq, K], -1 past the kept rows; `kv_counts` [B, H, Nq] and `kv_indices` [B, H, Nq, Nk];
    `real_counts` [Nk], the real keys of each KV block.
    """

    plan: BlockPlan
    kept_slots: Tensor
    kv_counts: Tensor
    kv_indices: Tensor
    real_counts: Tensor

    @cached_property
    def inverse(self) -> tuple[Tensor, Tensor]:
        """Counts [B, H, Nk] and numbers [B, H, Nk, Nq] of the query blocks that see a KV block, for the backward."""
        counts, indices = self.plan.inverse
        return _int32(counts), _int32(indices)


def tables_of(plan: BlockPlan) -> PlanTables:
    """Bring a plan's tables into the kernels' form; no copy where they have it."""
    return PlanTables(
        plan=plan,
        kept_slots=_int32(plan.kept_slots),
        kv_counts=_int32(plan.kv_counts),
        kv_indices=_int32(plan.kv_indices),
        real_counts=_int32(plan.kv_grid.real_counts(plan.device)),
    )


def _int32(x: Tensor) -> Tensor:
    return x.to(torch.int32).contiguous()


def _padded(side: int) -> int:
    return max(MIN_SIDE, 1 << (side - 1).bit_length())
