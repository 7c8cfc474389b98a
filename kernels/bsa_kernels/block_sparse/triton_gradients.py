"""Backward: gradients of q over the lists of query groups, of k and v over the inverse lists.

Two forms. *Split*: `grad_q_kernel` and `grad_kv_kernel`, no atomics, each output written once: deterministic.
*Fused*: `grad_kv_kernel` also adds to an fp32 buffer of dq what each of its tiles contributes, `spread_grad_q_kernel`
converts it. Before either, `pack_rows_kernel` brings kept rows together: the KV-stationary kernel reads each of them
many times, and rows that lie together need no gather, no mask and few registers. Scores are recomputed as in the
forward: raw operands, the scale applied to their fp32 products, never folded into a 16-bit operand.

Shape legend and helpers as in `triton_attend`.

The plain torch twin is autograd through `bsa_kernels.engines.reference`.
"""
# The types inside jitted functions are Triton's.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from bsa_kernels.block_sparse.constants import (
    block_constants,
    grad_kv_constants,
    padded_block,
    precision_of,
    walk_constants,
)
from bsa_kernels.block_sparse.tables import KernelTables
from bsa_kernels.block_sparse.triton_attend import LOG2_E, kv_offsets, rows_of, rule_arguments
from bsa_kernels.block_sparse.triton_common import (
    activity_flag,
    item_activity,
    item_value,
    load_rows,
    load_tile,
    mask_rule,
    store_rows,
)


@triton.jit
def pack_rows_kernel(
    q_ptr,  # [B, H, L, D], strides below
    o_ptr,
    do_ptr,
    q_kept_ptr,  # [B, H, Nq, K, D]
    do_kept_ptr,
    delta_ptr,  # [B, H, Nq, K]
    kept_tokens_ptr,
    fill_ptr,
    q_tokens_ptr,
    num_q,
    num_heads,
    q_b,
    q_h,
    q_l,
    o_b,
    o_h,
    o_l,
    do_b,
    do_h,
    do_l,
    MQ: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    ENTRIES: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    FILL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Bring kept rows of q together; sum dO over all tokens that took a row's output; delta = rowsum(O * that sum).

    One program `ENTRIES` rows of a query block; entries without a row get zeros. The sum is a product with a 0/1
    matrix: fp32, no atomics. Cost of a block: 2*MQ*K*D FLOP; MQ*D of dO, K*D of q and O read, 2*K*D written.
    """
    TILES: tl.constexpr = (K + ENTRIES - 1) // ENTRIES
    pid = tl.program_id(0)
    block = (pid // TILES).to(tl.int64)
    head = block // num_q
    b, h = head // num_heads, head % num_heads
    entry = pid % TILES * ENTRIES + tl.arange(0, ENTRIES)
    row = tl.where(entry < K, entry, -1)
    token = tl.load(kept_tokens_ptr + block * K + entry, mask=entry < K, other=-1)
    q = load_rows(q_ptr + b * q_b + h * q_h, token, q_l, D, BLOCK_D)  # [ENTRIES, BLOCK_D]
    store_rows(q_kept_ptr + block * K * D, row, D, q, D, BLOCK_D)
    o = load_rows(o_ptr + b * o_b + h * o_h, token, o_l, D, BLOCK_D).to(tl.float32)  # [ENTRIES, BLOCK_D]
    do_ptr += b * do_b + h * do_h
    if FILL:
        total = tl.zeros([ENTRIES, BLOCK_D], tl.float32)
        for first in tl.static_range(0, MQ, SLOTS):
            slot = first + tl.arange(0, SLOTS)
            q_token = tl.load(q_tokens_ptr + block % num_q * MQ + slot, mask=slot < MQ, other=-1)
            do = load_rows(do_ptr, q_token, do_l, D, BLOCK_D)  # [SLOTS, BLOCK_D]
            source = tl.load(fill_ptr + block * MQ + slot, mask=slot < MQ, other=-1)
            takes = (source[None, :] == entry[:, None]).to(do.dtype)
            total = tl.dot(takes, do, total, input_precision=PRECISION)
        do_kept = total.to(do_kept_ptr.dtype.element_ty)
    else:
        do_kept = load_rows(do_ptr, token, do_l, D, BLOCK_D)  # [ENTRIES, BLOCK_D]
    store_rows(do_kept_ptr + block * K * D, row, D, do_kept, D, BLOCK_D)
    tl.store(delta_ptr + block * K + entry, tl.sum(o * do_kept.to(tl.float32), 1), mask=entry < K)


@triton.jit
def zero_pruned(
    dq_ptr, dq_l, q_tokens_ptr, fill_ptr, kept_tokens_ptr, block,
    MQ: tl.constexpr, K: tl.constexpr, D: tl.constexpr, SLOTS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write zeros to the tokens of a block whose queries were pruned: those that take another's output, or none."""
    zeros = tl.zeros([SLOTS, BLOCK_D], tl.float32)
    for first in tl.static_range(0, MQ, SLOTS):
        slot = first + tl.arange(0, SLOTS)
        is_slot = slot < tl.where(block >= 0, MQ, 0)
        q_token = tl.load(q_tokens_ptr + block * MQ + slot, mask=is_slot, other=-1)
        source = tl.load(fill_ptr + block * MQ + slot, mask=is_slot, other=-1)
        kept = tl.load(kept_tokens_ptr + block * K + source, mask=source >= 0, other=-1)
        store_rows(dq_ptr, tl.where(kept == q_token, -1, q_token), dq_l, zeros, D, BLOCK_D)


@triton.jit
def grad_q_step(
    q, do, k, v, lse, delta, dq, is_active, is_real, row_at, key_at, before, after, score_scale,
    MASK_KEYS: tl.constexpr, MASK_RULE: tl.constexpr, GROUP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add what one tile of keys contributes to dq."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)  # [ROWS, KEYS]
    if MASK_KEYS:
        scores = tl.where(is_real[None, :], scores, float("-inf"))
    if MASK_RULE:
        scores = mask_rule(scores, row_at[:, None], key_at[None, :], before, after)
    if GROUP > 1:
        lse = tl.where(is_active, lse, float("inf"))
    weights = tl.exp2(scores * score_scale - lse[:, None])
    dweights = tl.dot(do, tl.trans(v), input_precision=PRECISION)  # [ROWS, KEYS]
    dscores = weights * (dweights - delta[:, None])
    return tl.dot(dscores.to(k.dtype), k, dq, input_precision=PRECISION)


@triton.jit
def grad_q_kernel(
    q_kept_ptr,  # [B, H, Nq, K, D]
    k_ptr,  # [B, H, L, D], strides below
    v_ptr,
    do_kept_ptr,  # [B, H, Nq, K, D]
    lse_ptr,  # [B, H, Nq, K], base 2
    delta_ptr,
    dq_ptr,  # [B, H, L, D]
    kept_tokens_ptr,  # [B, H, Nq, K]
    fill_ptr,  # [B, H, Nq, MQ]
    q_tokens_ptr,  # [Nq, MQ]
    kv_offsets_ptr,  # [MK]
    kv_tokens_ptr,  # [Nk, MK]
    members_ptr,  # [B, H, R, GROUP]
    order_ptr,  # [B, H, R]
    items_ptr,
    starts_ptr,  # [B, H, R]
    num_full_ptr,
    counts_ptr,
    num_q,
    num_groups,
    num_heads,
    part_offset,
    k_b,
    k_h,
    k_l,
    v_b,
    v_h,
    v_l,
    dq_b,
    dq_h,
    dq_l,
    scale,
    score_scale,
    MQ: tl.constexpr,
    MK: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SLOTS: tl.constexpr,
    GROUP: tl.constexpr,
    HAS_FULL: tl.constexpr,
    HAS_PARTIAL: tl.constexpr,
    FILL: tl.constexpr,
    PRECISION: tl.constexpr,
    before=None,  # as in `attend_kernel`
    after=None,
    positions_ptr=None,
    kv_positions_ptr=None,
):
    """One program a tile of kept rows, over the forward's lists; writes dq of all tokens of its blocks.

    Cost of a group with c listed KV blocks: 6*D*ROWS*MK*c FLOP; 2*c*MK*D elements of K and V, 3*ROWS*D of rows.
    """
    ROW_TILES: tl.constexpr = (K + ROWS - 1) // ROWS if GROUP == 1 else 1
    KEY_TILES: tl.constexpr = MK // KEYS
    HAS_RULE: tl.constexpr = positions_ptr is not None
    pid = tl.program_id(0)
    head = (pid // (num_groups * ROW_TILES)).to(tl.int64)
    tile = pid % ROW_TILES
    group = tl.load(order_ptr + head * num_groups + pid // ROW_TILES % num_groups)
    row = head * num_groups + group
    b, h = head // num_heads, head % num_heads
    k_ptr += b * k_b + h * k_h
    v_ptr += b * v_b + h * v_h
    dq_ptr += b * dq_b + h * dq_h

    kept_tokens_ptr += head * num_q * K
    lse_ptr += head * num_q * K
    delta_ptr += head * num_q * K
    members_ptr += head * num_groups * GROUP
    member, entry, token = rows_of(members_ptr, kept_tokens_ptr, group, tile, K, ROWS, GROUP)
    q = load_rows(q_kept_ptr + head * num_q * K * D, entry, D, D, BLOCK_D)  # [ROWS, BLOCK_D]
    do = load_rows(do_kept_ptr + head * num_q * K * D, entry, D, D, BLOCK_D)  # [ROWS, BLOCK_D]
    lse = tl.load(lse_ptr + entry, mask=entry >= 0, other=float("inf"))
    delta = tl.load(delta_ptr + entry, mask=entry >= 0, other=0.0)
    dq = tl.zeros([ROWS, BLOCK_D], tl.float32)
    flag = activity_flag(member)
    item_ptr = items_ptr + tl.load(starts_ptr + row)
    full_steps = tl.load(num_full_ptr + row) * KEY_TILES
    all_steps = tl.load(counts_ptr + row) * KEY_TILES
    offs_key = tl.arange(0, KEYS)
    row_at = entry
    if HAS_RULE:
        row_at = tl.load(positions_ptr + head * num_q * K + entry, mask=entry >= 0, other=0)
    upcoming = tl.load(item_ptr)
    if HAS_FULL:
        offset = tl.load(kv_offsets_ptr + offs_key)
        offs_k, offs_v = offset * k_l, offset * v_l
        for step in range(full_steps):
            item = upcoming
            upcoming = tl.load(item_ptr + (step + 1) // KEY_TILES)
            first = item_value(item) + step % KEY_TILES * part_offset
            k = load_tile(k_ptr, first, offs_k, k_l, D, BLOCK_D)  # [KEYS, BLOCK_D]
            v = load_tile(v_ptr, first, offs_v, v_l, D, BLOCK_D)  # [KEYS, BLOCK_D]
            dq = grad_q_step(
                q, do, k, v, lse, delta, dq, item_activity(item, flag), offs_key >= 0, row_at, offs_key, before, after,
                score_scale, False, False, GROUP, PRECISION,
            )  # fmt: skip
    if HAS_PARTIAL:
        for step in tl.range(full_steps, all_steps, num_stages=1):
            item = tl.load(item_ptr + step // KEY_TILES)
            kv_token = tl.load(kv_tokens_ptr + item_value(item) * MK + step % KEY_TILES * KEYS + offs_key)
            key_at = kv_token
            if HAS_RULE:
                key_at = tl.load(kv_positions_ptr + item_value(item) * MK + step % KEY_TILES * KEYS + offs_key)
            k = load_rows(k_ptr, kv_token, k_l, D, BLOCK_D)  # [KEYS, BLOCK_D]
            v = load_rows(v_ptr, kv_token, v_l, D, BLOCK_D)  # [KEYS, BLOCK_D]
            dq = grad_q_step(
                q, do, k, v, lse, delta, dq, item_activity(item, flag), kv_token >= 0, row_at, key_at, before, after,
                score_scale, True, HAS_RULE, GROUP, PRECISION,
            )  # fmt: skip

    store_rows(dq_ptr, token, dq_l, dq * scale, D, BLOCK_D)
    if FILL and tile == 0:
        fill_ptr += head * num_q * MQ
        for m in tl.static_range(GROUP):
            block = tl.load(members_ptr + group * GROUP + m)
            zero_pruned(dq_ptr, dq_l, q_tokens_ptr, fill_ptr, kept_tokens_ptr, block, MQ, K, D, SLOTS, BLOCK_D)


@triton.jit
def grad_kv_kernel(
    q_kept_ptr,  # [B, H, Nq, K, D]
    k_ptr,  # [B, H, L, D], strides below
    v_ptr,
    do_kept_ptr,  # [B, H, Nq, K, D]
    lse_ptr,  # [B, H, Nq, K], base 2
    delta_ptr,
    dk_ptr,  # [B, H, L, D]
    dv_ptr,
    dq_kept_ptr,  # [B, H, Nq, D, K] fp32, added to if FUSED
    kv_tokens_ptr,  # [Nk, MK]
    order_ptr,  # [B, H, Nk]
    items_ptr,
    starts_ptr,  # [B, H, Nk]
    counts_ptr,
    num_q,
    num_kv,
    num_heads,
    k_b,
    k_h,
    k_l,
    v_b,
    v_h,
    v_l,
    dk_b,
    dk_h,
    dk_l,
    dv_b,
    dv_h,
    dv_l,
    scale,
    score_scale,
    MK: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PACK: tl.constexpr,  # listed query blocks a step
    HAS_PARTIAL: tl.constexpr,
    FUSED: tl.constexpr,
    PRECISION: tl.constexpr,
    before=None,  # as in `attend_kernel`
    after=None,
    positions_ptr=None,
    kv_positions_ptr=None,
):
    """One program a tile of keys; a tile that nobody chose gets zeros.

    Cost of a KV block that c query blocks chose: 8*D*K*MK*c FLOP (10 fused); 2*c*K*D elements of q and do, 4*MK*D of
    keys, fused also c*K*D fp32 additions. An element rule is applied in every step, cut or not.
    """
    ROW_TILES: tl.constexpr = (K + ROWS - 1) // ROWS if PACK == 1 else 1
    KEY_TILES: tl.constexpr = MK // KEYS
    ROWS_EACH: tl.constexpr = ROWS // PACK
    HAS_RULE: tl.constexpr = positions_ptr is not None
    pid = tl.program_id(0)
    head = (pid // (num_kv * KEY_TILES)).to(tl.int64)
    block = tl.load(order_ptr + head * num_kv + pid // KEY_TILES % num_kv)
    b, h = head // num_heads, head % num_heads
    kv_token = tl.load(kv_tokens_ptr + block.to(tl.int64) * MK + pid % KEY_TILES * KEYS + tl.arange(0, KEYS))
    if HAS_RULE:
        key_at = tl.load(kv_positions_ptr + block.to(tl.int64) * MK + pid % KEY_TILES * KEYS + tl.arange(0, KEYS))
        positions_ptr += head * num_q * K
    k = load_rows(k_ptr + b * k_b + h * k_h, kv_token, k_l, D, BLOCK_D)  # [KEYS, BLOCK_D]
    v = load_rows(v_ptr + b * v_b + h * v_h, kv_token, v_l, D, BLOCK_D)  # [KEYS, BLOCK_D]

    dk = tl.zeros([KEYS, BLOCK_D], tl.float32)
    dv = tl.zeros([KEYS, BLOCK_D], tl.float32)
    first_row = head * num_q * K
    q_kept_ptr += first_row * D
    do_kept_ptr += first_row * D
    dq_kept_ptr += first_row * D
    lse_ptr += first_row
    delta_ptr += first_row
    offs_d = tl.arange(0, BLOCK_D)
    part = 0 if PACK == 1 else tl.arange(0, ROWS) // ROWS_EACH
    offs_entry = tl.arange(0, ROWS) % ROWS_EACH
    count = tl.load(counts_ptr + head * num_kv + block)
    item_ptr = items_ptr + tl.load(starts_ptr + head * num_kv + block)
    # The next query block is a loop variable: the pipeliner then keeps q and dO for as many stages as it is asked for.
    upcoming = tl.load(item_ptr + part, mask=part < count, other=0)
    for step in range((count + PACK - 1) // PACK * ROW_TILES):
        q_block = upcoming
        at = (step + 1) // ROW_TILES * PACK + part
        upcoming = tl.load(item_ptr + at, mask=at < count, other=0)
        entry = step % ROW_TILES * ROWS + offs_entry
        row = q_block * K + entry
        # A last step of one block instead of two, and a last tile of fewer rows; else nothing is masked.
        is_row = entry < K if PACK == 1 else (entry < K) & (step * PACK + part < count)
        if PACK == 1 and K % ROWS == 0:
            first = q_block.to(tl.int64) * K + step % ROW_TILES * ROWS
            q = load_tile(q_kept_ptr, first, offs_entry * D, D, D, BLOCK_D)  # [ROWS, BLOCK_D]
            do = load_tile(do_kept_ptr, first, offs_entry * D, D, D, BLOCK_D)  # [ROWS, BLOCK_D]
            lse = tl.load(lse_ptr + first + offs_entry)
            delta = tl.load(delta_ptr + first + offs_entry)
        else:
            q = load_rows(q_kept_ptr, tl.where(is_row, row, -1), D, D, BLOCK_D)  # [ROWS, BLOCK_D]
            do = load_rows(do_kept_ptr, tl.where(is_row, row, -1), D, D, BLOCK_D)  # [ROWS, BLOCK_D]
            lse = tl.load(lse_ptr + row, mask=is_row, other=float("inf"))
            delta = tl.load(delta_ptr + row, mask=is_row, other=0.0)
        scores = tl.dot(k, tl.trans(q), input_precision=PRECISION)  # [KEYS, ROWS]
        if FUSED and HAS_PARTIAL:
            # Rows of padding are not stored, but must not reach dq.
            scores = tl.where((kv_token >= 0)[:, None], scores, float("-inf"))
        if HAS_RULE:
            row_at = tl.load(positions_ptr + row, mask=is_row, other=0)
            scores = mask_rule(scores, row_at[None, :], key_at[:, None], before, after)
        weights = tl.exp2(scores * score_scale - lse[None, :])
        dv = tl.dot(weights.to(do.dtype), do, dv, input_precision=PRECISION)
        dweights = tl.dot(v, tl.trans(do), input_precision=PRECISION)  # [KEYS, ROWS]
        dscores = (weights * (dweights - delta[None, :])).to(q.dtype)
        dk = tl.dot(dscores, q, dk, input_precision=PRECISION)
        if FUSED:
            # [BLOCK_D, ROWS]: so few rows still fill a wgmma; and its rows of K numbers are what lies together.
            dq = tl.dot(tl.trans(k), dscores, input_precision=PRECISION)
            dq_ptrs = dq_kept_ptr + (q_block.to(tl.int64) * (K * D) + entry)[None, :] + offs_d[:, None] * K
            tl.atomic_add(dq_ptrs, dq, mask=is_row[None, :] & (offs_d < D)[:, None], sem="relaxed")

    store_rows(dk_ptr + b * dk_b + h * dk_h, kv_token, dk_l, dk * scale, D, BLOCK_D)
    store_rows(dv_ptr + b * dv_b + h * dv_h, kv_token, dv_l, dv, D, BLOCK_D)


@triton.jit
def spread_grad_q_kernel(
    dq_kept_ptr,  # [B, H, Nq, D, K] fp32
    dq_ptr,  # [B, H, L, D]
    kept_tokens_ptr,
    fill_ptr,
    q_tokens_ptr,
    num_q,
    num_heads,
    dq_b,
    dq_h,
    dq_l,
    scale,
    MQ: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    ENTRIES: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    FILL: tl.constexpr,
):
    """dq of all tokens of a query block from the sums of its kept rows.

    One program a block; K*D fp32 read, MQ*D written.
    """
    block = tl.program_id(0).to(tl.int64)
    head = block // num_q
    dq_ptr += head // num_heads * dq_b + head % num_heads * dq_h
    for first in tl.static_range(0, K, ENTRIES):
        entry = first + tl.arange(0, ENTRIES)
        token = tl.load(kept_tokens_ptr + block * K + entry, mask=entry < K, other=-1)
        offs_d = tl.arange(0, BLOCK_D)
        dq_ptrs = dq_kept_ptr + block * K * D + offs_d[:, None] * K + entry[None, :]
        dq = tl.load(dq_ptrs, mask=(offs_d < D)[:, None] & (entry < K)[None, :], other=0.0)  # [BLOCK_D, ENTRIES]
        store_rows(dq_ptr, token, dq_l, tl.trans(dq) * scale, D, BLOCK_D)
    if FILL:
        kept_tokens_ptr += head * num_q * K
        fill_ptr += head * num_q * MQ
        zero_pruned(dq_ptr, dq_l, q_tokens_ptr, fill_ptr, kept_tokens_ptr, block % num_q, MQ, K, D, SLOTS, BLOCK_D)


@dataclass(frozen=True, eq=False)
class KeptRows:
    """What the backward needs of kept rows, together: `q` and `do` [B, H, Nq, K, D], `delta` [B, H, Nq, K] fp32."""

    q: Tensor
    do: Tensor
    delta: Tensor


def launch_pack_rows(q: Tensor, o: Tensor, do: Tensor, tables: KernelTables) -> KeptRows:
    """Bring kept rows together; `do` is the gradient of their outputs, summed over all tokens that took them."""
    b, h, num_q, kept = tables.shape
    head_dim = o.shape[-1]
    constants = block_constants(tables.layout, kept_rows=kept, head_dim=head_dim)
    rows = KeptRows(
        q=torch.empty(*tables.shape, head_dim, dtype=q.dtype, device=q.device),
        do=torch.empty(*tables.shape, head_dim, dtype=do.dtype, device=do.device),
        delta=torch.empty(tables.shape, dtype=torch.float32, device=o.device),
    )
    with torch.cuda.device_of(o):
        pack_rows_kernel[(b * h * num_q * triton.cdiv(kept, constants["ENTRIES"]),)](
            *(
                q,
                o,
                do,
                rows.q,
                rows.do,
                rows.delta,
                tables.kept_tokens,
                tables.fill,
                tables.layout.q_tokens(q.device),
                num_q,
                h,
            ),
            *(*q.stride()[:3], *o.stride()[:3], *do.stride()[:3]),
            **constants,
            PRECISION=precision_of(o.dtype),
        )
    return rows


def launch_backward(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    tables: KernelTables,
    *,
    scale: float,
    dlse: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v, in the form that the tiles ask for; split if torch is to be deterministic.

    `dlse` is the gradient of the log-sum-exp in base 2. Where that of a score is its weight times (dweight - delta),
    the log-sum-exp adds its own to dweight.
    """
    do = do if do.stride(-1) == 1 else do.contiguous()
    is_fused = tables.layout.tiles.backward == "fused" and not torch.are_deterministic_algorithms_enabled()
    rows = launch_pack_rows(q, o, do, tables)
    if dlse is not None:
        rows.delta.sub_(dlse, alpha=LOG2_E)
    dk, dv, dq = launch_grad_kv(q, k, v, rows, lse, tables, scale=scale, is_fused=is_fused)
    return (launch_grad_q(q, k, v, rows, lse, tables, scale=scale) if dq is None else dq), dk, dv


def launch_grad_q(
    q: Tensor, k: Tensor, v: Tensor, rows: KeptRows, lse: Tensor, tables: KernelTables, *, scale: float
) -> Tensor:
    """The gradient of q, like q; exact zeros at pruned rows and padding."""
    layout, device = tables.layout, q.device
    tile, kv, members = layout.tiles.grad_q, layout.kv_tables(device), tables.members
    b, h, num_q, kept = tables.shape
    dq = _empty_like(q, tables.layout.pads_q)
    num_groups = members.shape[2]
    row_tiles = triton.cdiv(kept, tile.rows) if tile.group == 1 else 1
    with torch.cuda.device_of(q):
        grad_q_kernel[(b * h * num_groups * row_tiles,)](
            *(rows.q, k, v, rows.do, lse, rows.delta, dq),
            *(tables.kept_tokens, tables.fill, layout.q_tokens(device)),
            *(kv_offsets(tables, k, v), kv.tokens, members, tables.order),
            *(tables.items, tables.starts, tables.num_full, tables.counts),
            *(num_q, num_groups, h, layout.part_offset(tile)),
            *(*k.stride()[:3], *v.stride()[:3], *dq.stride()[:3]),
            *(scale, scale * LOG2_E),
            **walk_constants(layout, tile, kept_rows=kept, head_dim=q.shape[-1], dtype=q.dtype),
            **rule_arguments(tables),
            **tile.options,
        )
    return dq


def launch_grad_kv(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: KeptRows,
    lse: Tensor,
    tables: KernelTables,
    *,
    scale: float,
    is_fused: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradients of k and v, like k and v; exact zeros in blocks nobody chose and in padding.

    Returns:
        dk, dv, and, if fused, dq like q, whose sums were added in no certain order.
    """
    layout = tables.layout
    tile = layout.tiles.grad_fused if is_fused else layout.tiles.grad_kv
    b, h, num_q, kept = tables.shape
    num_kv, head_dim = tables.layout.keys.num_blocks, q.shape[-1]
    dk, dv = _empty_like(k, tables.layout.pads_kv), _empty_like(v, tables.layout.pads_kv)
    sums = torch.zeros(*tables.shape, head_dim, dtype=torch.float32, device=q.device) if is_fused else rows.delta
    inverse, key_tiles = tables.inverse, padded_block(layout) // tile.keys
    with torch.cuda.device_of(q):
        grad_kv_kernel[(b * h * num_kv * key_tiles,)](
            *(rows.q, k, v, rows.do, lse, rows.delta, dk, dv, sums),
            *(tables.layout.kv_tables(q.device).tokens, tables.inverse_order),
            *(inverse.items, inverse.starts, inverse.counts, num_q, num_kv, h),
            *(*k.stride()[:3], *v.stride()[:3], *dk.stride()[:3], *dv.stride()[:3], scale, scale * LOG2_E),
            **grad_kv_constants(layout, tile, kept_rows=kept, head_dim=head_dim, dtype=q.dtype, is_fused=is_fused),
            **rule_arguments(tables),
            **tile.options,
        )
        if not is_fused:
            return dk, dv, None
        dq = _empty_like(q, tables.layout.pads_q)
        spread_grad_q_kernel[(b * h * num_q,)](
            *(
                sums,
                dq,
                tables.kept_tokens,
                tables.fill,
                tables.layout.q_tokens(q.device),
                num_q,
                h,
                *dq.stride()[:3],
                scale,
            ),
            **block_constants(layout, kept_rows=kept, head_dim=head_dim),
        )
    return dk, dv, dq


def _empty_like(x: Tensor, pads: bool) -> Tensor:
    """A tensor for a gradient, contiguous; zeros where padding is part of it."""
    make = torch.zeros if pads else torch.empty
    return make(x.shape, dtype=x.dtype, device=x.device)
