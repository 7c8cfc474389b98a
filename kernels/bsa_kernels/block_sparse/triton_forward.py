"""Forward: each tile of kept query rows walks its list of KV blocks with an online softmax in base 2.

Shape legend: `B` batch, `H` heads, `Nq`/`Nk` query and KV blocks, `MQ`/`MK` slots of each, `K` kept rows a query
block, `D` head size; a tile is `ROWS` kept rows by `KEYS` keys by `BLOCK_D` numbers, powers of two. A block number is
flat over [B, H, Nq] or [B, H, Nk] and 64 bits wide, so that every address that is computed from it is too.

The plain torch twin is `bsa_kernels.engines.reference`.
"""
# The types inside jitted functions are Triton's.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from bsa_kernels.block_sparse.tiles import PlanTables, launch_options

LOG2_E = math.log2(math.e)


@triton.jit
def load_slots(slots_ptr, block, offs_entry, K: tl.constexpr):
    """Slots of the kept rows `offs_entry` of a query block, -1 where there is none."""
    return tl.load(slots_ptr + block * K + offs_entry, mask=offs_entry < K, other=-1)


@triton.jit
def load_rows(x_ptr, row, mask_row, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows of x [.., D], wherever they are; zero where masked."""
    offs_d = tl.arange(0, BLOCK_D)
    x_ptrs = x_ptr + row[:, None] * D + offs_d[None, :]
    mask = mask_row[:, None] if BLOCK_D == D else mask_row[:, None] & (offs_d < D)[None, :]
    return tl.load(x_ptrs, mask=mask, other=0.0)  # [ROWS, BLOCK_D]


@triton.jit
def load_keys(x_ptr, block, offs_key, M: tl.constexpr, D: tl.constexpr, KEYS: tl.constexpr, BLOCK_D: tl.constexpr):
    """The tile `offs_key` of KV block `block` of x [.., M, D]; zero outside the block."""
    offs_d = tl.arange(0, BLOCK_D)
    x_ptrs = x_ptr + block * (M * D) + offs_key[:, None] * D + offs_d[None, :]
    if M % KEYS == 0 and BLOCK_D == D:
        x = tl.load(x_ptrs)
    else:
        x = tl.load(x_ptrs, mask=(offs_key < M)[:, None] & (offs_d < D)[None, :], other=0.0)
    return x  # [KEYS, BLOCK_D]


@triton.jit(do_not_specialize=["num_q", "num_kv"])
def forward_kernel(
    q_ptr,  # [B, H, Nq*MQ, D]
    k_ptr,  # [B, H, Nk*MK, D]
    v_ptr,
    o_ptr,  # [B, H, Nq, K, D]
    lse_ptr,  # [B, H, Nq, K], base 2
    slots_ptr,  # [B, H, Nq, K]
    counts_ptr,  # [B, H, Nq]
    lists_ptr,  # [B, H, Nq, Nk]
    real_ptr,  # [Nk]
    num_q,
    num_kv,
    score_scale,  # softmax scale times log2(e)
    MQ: tl.constexpr,
    MK: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    MASK_KEYS: tl.constexpr,  # some block holds padding, or a tile reaches past its block
    PRECISION: tl.constexpr,
):
    """One program per tile of kept rows, tiles of a head next to each other, so that its K and V stay in L2.

    Cost of a query block with c listed KV blocks: 4*D*K*MK*c FLOP; 2*c*MK*D elements of K and V and 2*K*D of Q and O.
    """
    ROW_TILES: tl.constexpr = (K + ROWS - 1) // ROWS
    KEY_TILES: tl.constexpr = (MK + KEYS - 1) // KEYS
    pid = tl.program_id(0)
    block = (pid // ROW_TILES).to(tl.int64)
    first_kv = block // num_q * num_kv
    offs_entry = (pid % ROW_TILES) * ROWS + tl.arange(0, ROWS)
    slots = load_slots(slots_ptr, block, offs_entry, K)
    mask_row = slots >= 0
    q = load_rows(q_ptr, block * MQ + slots, mask_row, D, BLOCK_D)  # [ROWS, BLOCK_D]

    # Finite, so that a tile without a real key cannot make inf - inf.
    top = tl.full([ROWS], -1.0e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
    list_ptr = lists_ptr + block * num_kv
    num_steps = tl.load(counts_ptr + block) * KEY_TILES
    # The next block's number is a loop variable: the pipeliner then buffers K and V one for each stage.
    upcoming = tl.load(list_ptr)
    for step in range(num_steps):
        kv_block = upcoming
        upcoming = tl.load(list_ptr + tl.minimum((step + 1) // KEY_TILES, num_kv - 1))
        offs_key = (step % KEY_TILES) * KEYS + tl.arange(0, KEYS)
        k = load_keys(k_ptr, first_kv + kv_block, offs_key, MK, D, KEYS, BLOCK_D)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * score_scale  # [ROWS, KEYS]
        if MASK_KEYS:
            scores = tl.where((offs_key < tl.load(real_ptr + kv_block))[None, :], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp2(scores - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(weights, 1)
        v = load_keys(v_ptr, first_kv + kv_block, offs_key, MK, D, KEYS, BLOCK_D)
        acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
        top = new_top

    # A row that sees nothing, and an entry without a row, give zero and -inf.
    is_empty = (total == 0) | (slots < 0)
    divisor = tl.where(is_empty, 1.0, total)
    o = tl.where(is_empty[:, None], 0.0, acc / divisor[:, None])
    lse = tl.where(is_empty, float("-inf"), top + tl.log2(divisor))
    offs_d = tl.arange(0, BLOCK_D)
    mask_entry = offs_entry < K
    o_ptrs = o_ptr + (block * K + offs_entry)[:, None] * D + offs_d[None, :]
    tl.store(o_ptrs, o.to(o_ptr.dtype.element_ty), mask=mask_entry[:, None] & (offs_d < D)[None, :])
    tl.store(lse_ptr + block * K + offs_entry, lse, mask=mask_entry)


def launch_forward(q: Tensor, k: Tensor, v: Tensor, tables: PlanTables, *, scale: float) -> tuple[Tensor, Tensor]:
    """Compute the kept rows [B, H, Nq, K, D] and their log-sum-exp in base 2 [B, H, Nq, K] fp32 (-inf: saw nothing).

    q, k, v are tile-major and contiguous.
    """
    plan = tables.plan
    b, h, num_q, rows = plan.shape
    options = launch_options("forward", plan, q.shape[-1], q.dtype)
    o = torch.empty(*plan.shape, q.shape[-1], dtype=q.dtype, device=q.device)
    lse = torch.empty(plan.shape, dtype=torch.float32, device=q.device)
    with torch.cuda.device_of(q):
        forward_kernel[(b * h * num_q * triton.cdiv(rows, options["ROWS"]),)](
            q,
            k,
            v,
            o,
            lse,
            tables.kept_slots,
            tables.kv_counts,
            tables.kv_indices,
            tables.real_counts,
            num_q,
            plan.kv_grid.num_blocks,
            scale * LOG2_E,
            **options,
        )
    return o, lse
