"""The fused selection's host part: what it supports, what its kernels are compiled for, and what they cost.

The kernels are in `triton_pool` and `triton_select` beside it; nothing here imports Triton. Shape legend: `B` batch,
`H` heads, `Nq`/`Nk` query and KV blocks, `M` slots a block, `K` kept rows a query block, `D` head size.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from bsa_kernels.grid import BlockGrid
from bsa_kernels.methods.bsa.options import BsaOptions, Triple, kept_count

#: Block decisions in a word.
WORD = 32
#: Slots of a block: a side of a matrix product, and what a program holds in registers.
MIN_SLOTS = 16
MAX_SLOTS = 128
MAX_HEAD_DIM = 256
#: A row of scores is constant if its spread is within so many roundings of |q| max|k|, as in `select_blocks`.
CONSTANT_ROUNDINGS = 16
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class _BitsTile:
    """Pooled queries and keys of a step, rows of the moments of a step."""

    rows: int
    keys: int
    part: int
    num_warps: int


# By padded head size. 64 rows are what wgmma needs; split keys lie in shared memory. As compiled by Triton 3.9 for
# sm_90: 114 registers, 32 KB, 4 CTAs on an SM; 158, 64 KB, 3; 170, 96 KB, 1. Nothing spills on sm_80, sm_90 or sm_100.
_BITS = {64: _BitsTile(64, 64, 32, 4), 128: _BitsTile(64, 64, 32, 4), 256: _BitsTile(64, 32, 16, 8)}


@dataclass(frozen=True)
class FusedQueries:
    """What is kept of each query block.

    `kept_slots` [B, H, Nq, K], `num_kept` [B, H, Nq], `fill` [B, H, Nq, M] as in `BlockPlan`; `kept_tokens`
    [B, H, Nq, K] the token of each kept row in the layout of q, -1 past `num_kept`; all int32. `pooled_q`
    [B, H, Nq, D] fp32, the mean of the kept rows.
    """

    kept_slots: Tensor
    num_kept: Tensor
    fill: Tensor
    kept_tokens: Tensor
    pooled_q: Tensor


@dataclass(frozen=True)
class FusedSelection:
    """The queries; `pooled_k` [B, H, Nk, D] fp32; `block_bits` [B, H, Nq, ceil(Nk/32)] int32 as in `BlockPlan`."""

    queries: FusedQueries
    pooled_k: Tensor
    block_bits: Tensor


def unsupported(options: BsaOptions, *, head_dim: int, dtype: torch.dtype) -> str | None:
    """Why the fused selection cannot make these choices, or None; what it cannot do, `stages.select` can."""
    if options.query_rule != "window" and options.query_keep < 1:
        return f"the fused selection has the query_rule 'window', not {options.query_rule!r}"
    if options.fill not in {"nearest", "zero"} and options.query_keep < 1:
        return f"the fused selection has the fills 'nearest' and 'zero', not {options.fill!r}"
    if options.kv_rule != "statistical" and options.kv_density < 1:
        return f"the fused selection has the kv_rule 'statistical', not {options.kv_rule!r}"
    for name, block in (("block", options.block), ("query_block", options.query_block or options.block)):
        if reason := _block_fault(name, block):
            return reason
    if dtype not in _DTYPES:
        return f"the fused selection takes float16, bfloat16 and float32, not {str(dtype).removeprefix('torch.')}"
    if head_dim > MAX_HEAD_DIM:
        return f"the fused selection takes head sizes up to {MAX_HEAD_DIM}, got {head_dim}"
    return None


def _block_fault(name: str, block: Triple) -> str | None:
    if not MIN_SLOTS <= math.prod(block) <= MAX_SLOTS or any(side & (side - 1) for side in block):
        return (
            f"the fused selection takes blocks of {MIN_SLOTS} to {MAX_SLOTS} tokens whose sides are powers of two, got "
            f"{name} {block}"
        )
    return None


def check_tokens(name: str, x: Tensor, grid: BlockGrid, *, tiled: bool) -> None:
    """Check that the kernels can read x where it lies: [B, H, L, D], or [B, H, N*M, D] where `tiled`.

    Raises:
        ValueError: names x, what was expected and what was given.
    """
    tokens = grid.num_slots if tiled else grid.num_tokens
    if x.dim() != 4 or x.shape[2] != tokens:
        order = "tile-major" if tiled else "natural"
        raise ValueError(f"{name}: expected [B, H, {tokens}, D] in {order} order of {grid}, got {list(x.shape)}")
    if x.dtype not in _DTYPES or x.shape[3] > MAX_HEAD_DIM:
        raise ValueError(
            f"{name}: expected float16, bfloat16 or float32 with D up to {MAX_HEAD_DIM}, got {x.dtype} {list(x.shape)}"
        )
    if x.stride(3) != 1 and x.shape[3] > 1:
        raise ValueError(f"{name}: expected a contiguous last dimension, got strides {x.stride()}; call contiguous()")
    if reason := _block_fault("block", grid.block):
        raise ValueError(f"{name}: {reason}")


def check_pooled(name: str, x: Tensor) -> None:
    """Check that x is what the kernels of pooled blocks read.

    Raises:
        ValueError: names x, what was expected and what was given.
    """
    if x.dim() != 4 or x.dtype != torch.float32 or x.shape[3] > MAX_HEAD_DIM:
        raise ValueError(
            f"{name}: expected [B, H, N, D] in float32 with D up to {MAX_HEAD_DIM}, got {x.dtype} {list(x.shape)}"
        )


def kept_rows(grid: BlockGrid, query_keep: float) -> int:
    """K: the kept rows of the block that keeps most, which is the first, for padding lies at the end of each axis."""
    if query_keep == 1:
        return grid.block_size
    windows = ([min(2, real - first) for first in range(0, real, 2)] for real in map(min, grid.grid, grid.block))
    return sum(kept_count(math.prod(window), query_keep) for window in itertools.product(*windows))


def quantile(kv_density: float) -> float:
    """The threshold of a row of scores, in standard deviations above its mean: Phi^-1(1 - kv_density)."""
    # By symmetry: 1 - 1e-20 is 1, which has no quantile.
    return -NormalDist().inv_cdf(kv_density)


def pool_options(
    q_grid: BlockGrid,
    kv_grid: BlockGrid,
    *,
    query_keep: float,
    zero_fill: bool,
    tiled: bool,
    head_dim: int,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """What the pooling kernel is compiled for: constants and compiler options."""
    slots = max(q_grid.block_size, kv_grid.block_size)
    sides = dict(zip(("QT", "QH", "QW", "KT", "KH", "KW"), (*q_grid.block, *kv_grid.block), strict=True))
    width = _padded(head_dim)
    return {
        **sides,
        "K": kept_rows(q_grid, query_keep),
        **{f"KEEP_{m}": kept_count(m, query_keep) for m in (1, 2, 4, 8)},
        "KEEPS_ALL": query_keep == 1,
        "ZERO_FILL": zero_fill,
        "TILED": tiled,
        "EVEN_Q": q_grid.is_even,
        "EVEN_K": kv_grid.is_even,
        "D": head_dim,
        "BLOCK_D": width,
        "WITH_DOTS": dtype != torch.float32,
        # A block of (4, 4, 4) by D 128 on sm_90 (Triton 3.9, bf16): 80 registers, 16 KB, 6 CTAs on an SM.
        "num_warps": 8 if slots > 64 or slots * width > 64 * 128 else 4,
        "num_stages": 1,
    }


def moments_options(head_dim: int) -> dict[str, Any]:
    """What the kernel of the pooled keys' second moments is compiled for."""
    width = _padded(head_dim)
    return {
        # Eight warps, so that sums and products fit their registers: 140 on sm_90 at D 128 (Triton 3.9), one CTA.
        "KEYS": 64 if width <= 128 else 32,
        "PART": 16,
        "D": head_dim,
        "BLOCK_D": width,
        "num_warps": 8,
        "num_stages": 2,
    }


def bits_options(head_dim: int) -> dict[str, Any]:
    """What the kernel of the block decisions is compiled for."""
    width = _padded(head_dim)
    tile = _BITS[max(64, width)]
    part = min(tile.part, width)
    return {
        "ROWS": tile.rows,
        "KEYS": tile.keys,
        "PART": part,
        "D": head_dim,
        "BLOCK_D": width,
        "num_warps": tile.num_warps,
        "num_stages": 1,
    }


@dataclass(frozen=True)
class LaunchCost:
    """One launch: its programs, what it must move from and to HBM (each tensor once), what its programs load from
    L2 in all, and the FLOP of its matrix products as executed.
    """

    kernel: str
    programs: int
    bytes_read: int
    bytes_written: int
    bytes_loaded: int
    flop: int


def selection_cost(
    options: BsaOptions, *, batch: int, heads: int, head_dim: int, element_bytes: int = 2
) -> tuple[LaunchCost, ...]:
    """Count what the launches of a whole selection move and compute, for a shape on even grids."""
    q_grid = BlockGrid(options.grid, options.query_block or options.block)
    kv_grid = BlockGrid(options.grid, options.block)
    num_q, num_kv, m = q_grid.num_blocks, kv_grid.num_blocks, q_grid.block_size
    bh, d, width = batch * heads, head_dim, _padded(head_dim)
    kept = kept_rows(q_grid, options.query_keep)
    tokens = 2 * bh * q_grid.num_tokens * d * element_bytes
    tables = 4 * bh * num_q * (2 * kept + m + 1)
    pooled_q, pooled_k, moments = (4 * bh * n * d for n in (num_q, num_kv, d))
    similar = 0 if options.query_keep == 1 else 2 * m * m * width
    pool = LaunchCost(
        kernel="pool",
        programs=bh * (num_q + num_kv),
        bytes_read=tokens,
        bytes_written=tables + pooled_q + pooled_k,
        bytes_loaded=tokens,
        flop=bh * num_q * (similar + 2 * 16 * m * width),
    )
    if options.kv_density == 1:
        return (pool,)
    tile, other = bits_options(d), moments_options(d)
    parts, row_tiles, key_tiles = width // other["PART"], -(-num_q // tile["ROWS"]), -(-num_kv // tile["KEYS"])
    describe = LaunchCost(
        kernel="moments",
        programs=bh * parts,
        bytes_read=pooled_k,
        bytes_written=moments + 4 * bh * (d + 1),
        bytes_loaded=2 * parts * pooled_k + 2 * pooled_k,
        flop=3 * 2 * bh * num_kv * width * width,
    )
    decide = LaunchCost(
        kernel="bits",
        programs=bh * row_tiles,
        bytes_read=pooled_q + pooled_k + moments,
        bytes_written=4 * bh * num_q * -(-num_kv // WORD),
        bytes_loaded=2 * pooled_q + row_tiles * (pooled_k + moments),
        flop=3 * 2 * bh * row_tiles * tile["ROWS"] * width * (width + key_tiles * tile["KEYS"]),
    )
    return pool, describe, decide


def _padded(side: int) -> int:
    return max(16, 1 << (side - 1).bit_length())
