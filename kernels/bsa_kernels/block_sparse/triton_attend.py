"""Forward: tiles of kept query rows walk lists of KV blocks with an online softmax in base 2, then fill pruned rows.

Shape legend: `B` batch, `H` heads, `L` tokens, `D` head size, `Nq`/`Nk` query and KV blocks, `MQ`/`MK` slots of each
(`MK` padded to key tiles), `K` kept rows a query block, `R` groups of `GROUP` query blocks that share a list; a tile is
`ROWS` kept rows by `KEYS` keys by `BLOCK_D` numbers, powers of two.

The plain torch twin is `bsa_kernels.engines.reference`.
"""
# The types inside jitted functions are Triton's.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bsa_kernels.block_sparse.constants import walk_constants
from bsa_kernels.block_sparse.tables import KernelTables
from bsa_kernels.block_sparse.triton_common import (
    activity_flag,
    item_activity,
    item_value,
    load_rows,
    load_tile,
    mask_rule,
    store_rows,
)

LOG2_E = math.log2(math.e)


@triton.jit
def rows_of(members_ptr, kept_tokens_ptr, group, tile, K: tl.constexpr, ROWS: tl.constexpr, GROUP: tl.constexpr):
    """Of each row of a tile: its member, its entry in the head's [Nq*K] and its token, both -1 past the kept rows."""
    offs = tile * ROWS + tl.arange(0, ROWS)
    if GROUP == 1:
        member = tl.zeros([ROWS], tl.int32)
        block = tl.load(members_ptr + group)
        entry = offs
        is_entry = offs < K
    else:
        member = offs // (ROWS // GROUP)
        entry = offs % (ROWS // GROUP)
        block = tl.load(members_ptr + group * GROUP + member)
        is_entry = (entry < K) & (block >= 0)
    index = block * K + entry
    token = tl.load(kept_tokens_ptr + index, mask=is_entry, other=-1)
    return member, tl.where(is_entry, index, -1), token


@triton.jit
def attend(
    q,
    k,
    v,
    top,
    total,
    acc,
    is_active,
    is_real,
    row_at,
    key_at,
    before,
    after,
    score_scale,
    MASK_KEYS: tl.constexpr,
    MASK_RULE: tl.constexpr,
    GROUP: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One step of the online softmax. Scores are [ROWS, KEYS], or [KEYS, ROWS] when transposed, as acc is.

    A row whose block does not take part subtracts infinity: its weights are zero, at no cost a score.
    """
    rows: tl.constexpr = 0 if TRANSPOSED else 1  # the axis of the keys
    if TRANSPOSED:
        scores = tl.dot(k, tl.trans(q), input_precision=PRECISION)
        if MASK_KEYS:
            scores = tl.where(is_real[:, None], scores, float("-inf"))
        if MASK_RULE:
            scores = mask_rule(scores, row_at[None, :], key_at[:, None], before, after)
    else:
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if MASK_KEYS:
            scores = tl.where(is_real[None, :], scores, float("-inf"))
        if MASK_RULE:
            scores = mask_rule(scores, row_at[:, None], key_at[None, :], before, after)
    new_top = tl.maximum(top, tl.max(scores, rows) * score_scale)
    subtrahend = new_top
    if GROUP > 1:
        new_top = tl.where(is_active, new_top, top)
        subtrahend = tl.where(is_active, new_top, float("inf"))
    shrink = tl.exp2(top - new_top)
    if TRANSPOSED:
        weights = tl.exp2(scores * score_scale - subtrahend[None, :])
        acc = tl.dot(tl.trans(v), weights.to(v.dtype), acc * shrink[None, :], input_precision=PRECISION)
    else:
        weights = tl.exp2(scores * score_scale - subtrahend[:, None])
        acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
    total = total * shrink + tl.sum(weights, rows)
    return new_top, total, acc


@triton.jit
def attend_kernel(
    q_ptr,  # [B, H, L, D], strides below
    k_ptr,
    v_ptr,
    o_ptr,
    lse_ptr,  # [B, H, Nq, K], base 2
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
    part_offset,  # tokens from one key tile of a block to the next
    q_b,
    q_h,
    q_l,
    k_b,
    k_h,
    k_l,
    v_b,
    v_h,
    v_l,
    o_b,
    o_h,
    o_l,
    score_scale,  # softmax scale times log2(e), positive
    MQ: tl.constexpr,
    MK: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SLOTS: tl.constexpr,  # of a query block that are filled at a time
    GROUP: tl.constexpr,
    HAS_FULL: tl.constexpr,  # blocks that need no mask
    HAS_PARTIAL: tl.constexpr,  # blocks with padding, or cut by a rule
    FILL: tl.constexpr,  # pruned rows take the output of kept ones
    TRANSPOSED: tl.constexpr,
    PRECISION: tl.constexpr,
    # Under an element rule, see `rule_arguments`; all None otherwise, so that nothing of it is compiled.
    before=None,
    after=None,
    positions_ptr=None,  # [B, H, Nq, K]
    kv_positions_ptr=None,  # [Nk, MK]
):
    """One program a tile of kept rows; heads one after another, so that their K and V stay in L2.

    Cost of a group with c listed KV blocks: 4*D*ROWS*MK*c FLOP; 2*c*MK*D elements of K and V, ROWS*D of Q and
    GROUP*MQ*D of O.
    """
    ROW_TILES: tl.constexpr = (K + ROWS - 1) // ROWS if GROUP == 1 else 1
    KEY_TILES: tl.constexpr = MK // KEYS
    SLOT_TILES: tl.constexpr = (MQ + SLOTS - 1) // SLOTS
    HAS_RULE: tl.constexpr = positions_ptr is not None
    pid = tl.program_id(0)
    head = (pid // (num_groups * ROW_TILES)).to(tl.int64)
    tile = pid % ROW_TILES
    group = tl.load(order_ptr + head * num_groups + pid // ROW_TILES % num_groups)
    row = head * num_groups + group
    b, h = head // num_heads, head % num_heads
    k_ptr += b * k_b + h * k_h
    v_ptr += b * v_b + h * v_h
    o_ptr += b * o_b + h * o_h

    kept_tokens_ptr += head * num_q * K
    members_ptr += head * num_groups * GROUP
    member, entry, token = rows_of(members_ptr, kept_tokens_ptr, group, tile, K, ROWS, GROUP)
    q = load_rows(q_ptr + b * q_b + h * q_h, token, q_l, D, BLOCK_D)  # [ROWS, BLOCK_D]
    # Finite, so that a tile without a real key cannot make inf - inf.
    top = tl.full([ROWS], -1.0e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([BLOCK_D, ROWS] if TRANSPOSED else [ROWS, BLOCK_D], tl.float32)
    flag = activity_flag(member)
    item_ptr = items_ptr + tl.load(starts_ptr + row)
    full_steps = tl.load(num_full_ptr + row) * KEY_TILES
    all_steps = tl.load(counts_ptr + row) * KEY_TILES
    offs_key = tl.arange(0, KEYS)
    row_at = entry
    if HAS_RULE:
        row_at = tl.load(positions_ptr + head * num_q * K + entry, mask=entry >= 0, other=0)
    # The next item is a loop variable: the pipeliner then keeps K and V for as many stages as it is asked for.
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
            is_active = item_activity(item, flag)
            top, total, acc = attend(
                q, k, v, top, total, acc, is_active, offs_key >= 0, row_at, offs_key, before, after, score_scale,
                False, False, GROUP, TRANSPOSED, PRECISION,
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
            is_active = item_activity(item, flag)
            top, total, acc = attend(
                q, k, v, top, total, acc, is_active, kv_token >= 0, row_at, key_at, before, after, score_scale,
                True, HAS_RULE, GROUP, TRANSPOSED, PRECISION,
            )  # fmt: skip

    # A row that sees nothing, and an entry without a row, give zero; infinity makes their weights zero in the backward.
    is_empty = (total == 0) | (token < 0)
    divisor = tl.where(is_empty, 1.0, total)
    lse = tl.where(is_empty, float("inf"), top + tl.log2(divisor))
    tl.store(lse_ptr + head * num_q * K + entry, lse, mask=entry >= 0)
    if TRANSPOSED:
        acc = tl.trans(acc)
    o = tl.where(is_empty[:, None], 0.0, acc / divisor[:, None]).to(o_ptr.dtype.element_ty)
    if FILL:
        rows_each: tl.constexpr = ROWS // GROUP
        fill_ptr += head * num_q * MQ
        for part in tl.static_range(GROUP * SLOT_TILES):
            member = part // SLOT_TILES
            block = tl.load(members_ptr + group * GROUP + member)
            slot = part % SLOT_TILES * SLOTS + tl.arange(0, SLOTS)
            is_slot = slot < tl.where(block >= 0, MQ, 0)
            o_token = tl.load(q_tokens_ptr + block * MQ + slot, mask=is_slot, other=-1)
            source = tl.load(fill_ptr + block * MQ + slot, mask=is_slot, other=-1)
            # Of a block in several tiles, each writes the slots that take one of its rows; the first also the zeros.
            local = source - tile * rows_each
            is_local = (local >= 0) & (local < rows_each)
            index = member * rows_each + tl.where(is_local, local, 0)
            filled = tl.gather(o, tl.broadcast_to(index[:, None], [SLOTS, BLOCK_D]), 0)
            filled = tl.where(is_local[:, None], filled, 0.0)
            is_mine = is_local | (source + tile < 0)
            store_rows(o_ptr, tl.where(is_mine, o_token, -1), o_l, filled, D, BLOCK_D)
    else:
        store_rows(o_ptr, token, o_l, o, D, BLOCK_D)


def launch_attend(q: Tensor, k: Tensor, v: Tensor, tables: KernelTables, *, scale: float) -> tuple[Tensor, Tensor]:
    """Attend and fill: o like q, and the log-sum-exp of kept rows in base 2 [B, H, Nq, K] fp32 (inf: saw nothing).

    q, k, v are in the layout of the tables, with a contiguous last dimension; `scale` is positive.
    """
    layout, device = tables.layout, q.device
    tile, kv, members = layout.tiles.attend, layout.kv_tables(device), tables.members
    b, h, num_q, kept = tables.shape
    make = torch.zeros if layout.pads_q else torch.empty  # padding belongs to no slot that is written
    o = make(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(tables.shape, dtype=torch.float32, device=q.device)
    num_groups = members.shape[2]
    row_tiles = triton.cdiv(kept, tile.rows) if tile.group == 1 else 1
    with torch.cuda.device_of(q):
        attend_kernel[(b * h * num_groups * row_tiles,)](
            *(q, k, v, o, lse),
            *(tables.kept_tokens, tables.fill, layout.q_tokens(device)),
            *(kv_offsets(tables, k, v), kv.tokens, members, tables.order),
            *(tables.items, tables.starts, tables.num_full, tables.counts),
            *(num_q, num_groups, h, layout.part_offset(tile)),
            *(*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *o.stride()[:3]),
            scale * LOG2_E,
            **walk_constants(layout, tile, kept_rows=kept, head_dim=q.shape[-1], dtype=q.dtype),
            TRANSPOSED=tile.transposed,
            **rule_arguments(tables),
            **tile.options,
        )
    return o, lse


def rule_arguments(tables: KernelTables) -> dict[str, Any]:
    """The bounds of the plan's element rule, and where rows and keys stand in natural order; none without a rule."""
    rule = tables.layout.rule
    if rule.is_full:
        return {}
    return {
        "before": rule.before,
        "after": rule.after,
        "positions_ptr": tables.kept_positions,
        "kv_positions_ptr": tables.layout.kv_tables(tables.kept_tokens.device).positions,
    }


def kv_offsets(tables: KernelTables, k: Tensor, v: Tensor) -> Tensor:
    """Tokens of a block from its first, as wide as their products with the strides of k and v need."""
    offsets = tables.layout.kv_tables(k.device).offsets
    furthest = tables.layout.furthest_offset * max(k.stride(2), v.stride(2))
    return offsets.long() if furthest > torch.iinfo(torch.int32).max else offsets
