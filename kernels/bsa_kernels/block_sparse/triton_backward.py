"""Backward: the gradients of q over the lists of the plan, those of k and v over the inverse lists. Deterministic.

Three kernels, no atomics, each output written once. Scores are recomputed as in the forward: raw operands, the scale
applied to their fp32 products, never folded into a 16-bit operand. Shape legend and helpers as in `triton_forward`.

The plain torch twin is autograd through `bsa_kernels.engines.reference`.
"""
# The types inside jitted functions are Triton's.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bsa_kernels.block_sparse.tiles import PlanTables, launch_options
from bsa_kernels.block_sparse.triton_forward import LOG2_E, load_keys, load_rows, load_slots

_DELTA_ROWS = 64


@triton.jit
def delta_kernel(
    o_ptr,  # [R, D]: all kept rows of all query blocks
    do_ptr,
    delta_ptr,  # [R]
    slots_ptr,  # [R]
    num_rows,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """delta = rowsum(o * do), zero where there is no row. Cost: 2*R*D FLOP, 2*R*D elements read."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    mask = row < num_rows
    mask_row = tl.load(slots_ptr + row, mask=mask, other=-1) >= 0
    o = load_rows(o_ptr, row, mask_row, D, BLOCK_D).to(tl.float32)  # [ROWS, BLOCK_D]
    do = load_rows(do_ptr, row, mask_row, D, BLOCK_D).to(tl.float32)  # [ROWS, BLOCK_D]
    tl.store(delta_ptr + row, tl.sum(o * do, 1), mask=mask)


@triton.jit(do_not_specialize=["num_q", "num_kv"])
def grad_q_kernel(
    q_ptr,  # [B, H, Nq*MQ, D]
    k_ptr,  # [B, H, Nk*MK, D]
    v_ptr,
    do_ptr,  # [B, H, Nq, K, D]
    lse_ptr,  # [B, H, Nq, K], base 2
    delta_ptr,
    dq_ptr,  # [B, H, Nq*MQ, D], zeros
    slots_ptr,  # [B, H, Nq, K]
    counts_ptr,  # [B, H, Nq]
    lists_ptr,  # [B, H, Nq, Nk]
    real_ptr,  # [Nk]
    num_q,
    num_kv,
    scale,
    score_scale,
    MQ: tl.constexpr,
    MK: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    MASK_KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program per tile of kept rows; writes dq in the slots of these rows.

    Cost of a query block with c listed KV blocks: 6*D*K*MK*c FLOP; 2*c*MK*D elements of K and V and 3*K*D of rows.
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
    do = load_rows(do_ptr, block * K + offs_entry, mask_row, D, BLOCK_D)  # [ROWS, BLOCK_D]
    lse = tl.load(lse_ptr + block * K + offs_entry, mask=mask_row, other=0.0)
    delta = tl.load(delta_ptr + block * K + offs_entry, mask=mask_row, other=0.0)

    dq = tl.zeros([ROWS, BLOCK_D], tl.float32)
    list_ptr = lists_ptr + block * num_kv
    num_steps = tl.load(counts_ptr + block) * KEY_TILES
    upcoming = tl.load(list_ptr)
    for step in range(num_steps):
        kv_block = upcoming
        upcoming = tl.load(list_ptr + tl.minimum((step + 1) // KEY_TILES, num_kv - 1))
        offs_key = (step % KEY_TILES) * KEYS + tl.arange(0, KEYS)
        k = load_keys(k_ptr, first_kv + kv_block, offs_key, MK, D, KEYS, BLOCK_D)
        v = load_keys(v_ptr, first_kv + kv_block, offs_key, MK, D, KEYS, BLOCK_D)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * score_scale  # [ROWS, KEYS]
        if MASK_KEYS:
            scores = tl.where((offs_key < tl.load(real_ptr + kv_block))[None, :], scores, float("-inf"))
        weights = tl.exp2(scores - lse[:, None])
        dweights = tl.dot(do, tl.trans(v), input_precision=PRECISION)  # [ROWS, KEYS]
        dscores = weights * (dweights - delta[:, None])
        dq = tl.dot(dscores.to(k.dtype), k, dq, input_precision=PRECISION)

    offs_d = tl.arange(0, BLOCK_D)
    dq_ptrs = dq_ptr + (block * MQ + slots)[:, None] * D + offs_d[None, :]
    tl.store(dq_ptrs, (dq * scale).to(dq_ptr.dtype.element_ty), mask=mask_row[:, None] & (offs_d < D)[None, :])


@triton.jit(do_not_specialize=["num_q", "num_kv"])
def grad_kv_kernel(
    q_ptr,  # [B, H, Nq*MQ, D]
    k_ptr,  # [B, H, Nk*MK, D]
    v_ptr,
    do_ptr,  # [B, H, Nq, K, D]
    lse_ptr,  # [B, H, Nq, K], base 2
    delta_ptr,
    dk_ptr,  # [B, H, Nk*MK, D]
    dv_ptr,
    slots_ptr,  # [B, H, Nq, K]
    counts_ptr,  # [B, H, Nk]
    lists_ptr,  # [B, H, Nk, Nq]
    real_ptr,  # [Nk]
    num_q,
    num_kv,
    scale,
    score_scale,
    MQ: tl.constexpr,
    MK: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    MASK_KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program per tile of keys; a tile that nobody chose, and padding, get zeros.

    Cost of a KV block that c query blocks chose: 8*D*K*MK*c FLOP; 2*c*K*D elements of q and do and 4*MK*D of keys.
    """
    ROW_TILES: tl.constexpr = (K + ROWS - 1) // ROWS
    KEY_TILES: tl.constexpr = (MK + KEYS - 1) // KEYS
    pid = tl.program_id(0)
    block = (pid // KEY_TILES).to(tl.int64)
    first_q = block // num_kv * num_q
    offs_key = (pid % KEY_TILES) * KEYS + tl.arange(0, KEYS)
    k = load_keys(k_ptr, block, offs_key, MK, D, KEYS, BLOCK_D)
    v = load_keys(v_ptr, block, offs_key, MK, D, KEYS, BLOCK_D)
    mask_key = offs_key < tl.load(real_ptr + block % num_kv)

    dk = tl.zeros([KEYS, BLOCK_D], tl.float32)
    dv = tl.zeros([KEYS, BLOCK_D], tl.float32)
    list_ptr = lists_ptr + block * num_q
    num_steps = tl.load(counts_ptr + block) * ROW_TILES
    upcoming = tl.load(list_ptr)
    for step in range(num_steps):
        q_block = first_q + upcoming
        upcoming = tl.load(list_ptr + tl.minimum((step + 1) // ROW_TILES, num_q - 1))
        offs_entry = (step % ROW_TILES) * ROWS + tl.arange(0, ROWS)
        slots = load_slots(slots_ptr, q_block, offs_entry, K)
        mask_row = slots >= 0
        # An entry without a row has q = do = lse = delta = 0: its weights are 1 and all it adds is 0.
        q = load_rows(q_ptr, q_block * MQ + slots, mask_row, D, BLOCK_D)  # [ROWS, BLOCK_D]
        do = load_rows(do_ptr, q_block * K + offs_entry, mask_row, D, BLOCK_D)  # [ROWS, BLOCK_D]
        lse = tl.load(lse_ptr + q_block * K + offs_entry, mask=mask_row, other=0.0)
        delta = tl.load(delta_ptr + q_block * K + offs_entry, mask=mask_row, other=0.0)
        scores = tl.dot(k, tl.trans(q), input_precision=PRECISION) * score_scale  # [KEYS, ROWS]
        if MASK_KEYS:
            scores = tl.where(mask_key[:, None], scores, float("-inf"))
        weights = tl.exp2(scores - lse[None, :])
        dv = tl.dot(weights.to(do.dtype), do, dv, input_precision=PRECISION)
        dweights = tl.dot(v, tl.trans(do), input_precision=PRECISION)  # [KEYS, ROWS]
        dscores = weights * (dweights - delta[None, :])
        dk = tl.dot(dscores.to(q.dtype), q, dk, input_precision=PRECISION)

    offs_d = tl.arange(0, BLOCK_D)
    offs = block * (MK * D) + offs_key[:, None] * D + offs_d[None, :]
    mask = (offs_key < MK)[:, None] & (offs_d < D)[None, :]
    tl.store(dk_ptr + offs, (dk * scale).to(dk_ptr.dtype.element_ty), mask=mask)
    tl.store(dv_ptr + offs, dv.to(dv_ptr.dtype.element_ty), mask=mask)


def launch_delta(o: Tensor, do: Tensor, tables: PlanTables) -> Tensor:
    """rowsum(o * do) [B, H, Nq, K] fp32 of contiguous o and do [B, H, Nq, K, D]."""
    head_dim = o.shape[-1]
    delta = torch.empty(o.shape[:-1], dtype=torch.float32, device=o.device)
    with torch.cuda.device_of(o):
        delta_kernel[(triton.cdiv(delta.numel(), _DELTA_ROWS),)](
            o,
            do,
            delta,
            tables.kept_slots,
            delta.numel(),
            D=head_dim,
            ROWS=_DELTA_ROWS,
            BLOCK_D=triton.next_power_of_2(head_dim),
        )
    return delta


def launch_grad_q(
    q: Tensor, k: Tensor, v: Tensor, do: Tensor, lse: Tensor, delta: Tensor, tables: PlanTables, *, scale: float
) -> Tensor:
    """The gradient of tile-major q [B, H, Nq*Mq, D]; exact zeros at pruned rows and padding."""
    plan = tables.plan
    b, h, num_q, rows = plan.shape
    options = launch_options("grad_q", plan, q.shape[-1], q.dtype)
    dq = torch.empty_like(q) if plan.keeps_every_row else torch.zeros_like(q)
    with torch.cuda.device_of(q):
        grad_q_kernel[(b * h * num_q * triton.cdiv(rows, options["ROWS"]),)](
            q,
            k,
            v,
            do,
            lse,
            delta,
            dq,
            tables.kept_slots,
            tables.kv_counts,
            tables.kv_indices,
            tables.real_counts,
            num_q,
            plan.kv_grid.num_blocks,
            scale,
            scale * LOG2_E,
            **options,
        )
    return dq


def launch_grad_kv(
    q: Tensor, k: Tensor, v: Tensor, do: Tensor, lse: Tensor, delta: Tensor, tables: PlanTables, *, scale: float
) -> tuple[Tensor, Tensor]:
    """The gradients of tile-major k and v [B, H, Nk*Mk, D]; exact zeros in blocks nobody chose and in padding."""
    plan = tables.plan
    b, h, num_q, _ = plan.shape
    num_kv = plan.kv_grid.num_blocks
    options = launch_options("grad_kv", plan, q.shape[-1], q.dtype)
    dk, dv = torch.empty_like(k), torch.empty_like(v)
    with torch.cuda.device_of(q):
        grad_kv_kernel[(b * h * num_kv * triton.cdiv(plan.kv_grid.block_size, options["KEYS"]),)](
            q,
            k,
            v,
            do,
            lse,
            delta,
            dk,
            dv,
            tables.kept_slots,
            *tables.inverse,
            tables.real_counts,
            num_q,
            num_kv,
            scale,
            scale * LOG2_E,
            **options,
        )
    return dk, dv
