"""Forward of the attention in Gluon for sm_90: warps that load, warps that multiply. Twin of `triton_attend`.

One program takes 128 kept rows: a group of two or four query blocks that share a list, or one block of 128 rows. One
warp fetches the listed KV blocks by TMA, in the natural order of a video too: a block is a box of five dimensions. Two
warpgroups of 64 rows each multiply; each skips the blocks that none of its rows asked for. So K and V are read once for
128 rows, while only the union of *half* the group is multiplied.

Shape legend: as `triton_attend`; `S` slots of a KV block, always 64.
"""
# The types inside jitted functions are Triton's.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from bsa_kernels.block_sparse.constants import specialized_constants
from bsa_kernels.block_sparse.lists import ACTIVITY_SHIFT
from bsa_kernels.block_sparse.tables import KernelTables, Layout
from bsa_kernels.block_sparse.triton_attend import LOG2_E
from bsa_kernels.grid import BlockGrid

# Triton 3.6 has the second name.
tma_load = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared

_SHIFT = gl.constexpr(ACTIVITY_SHIFT)
_VALUE = gl.constexpr((1 << ACTIVITY_SHIFT) - 1)
#: Rows of a warpgroup, and keys of a KV block.
_ROWS = gl.constexpr(64)
_KEYS = gl.constexpr(64)


@gluon.jit
def load_blocks(
    k_desc, v_desc, walked, head, height, width, tiles,
    STAGES: gl.constexpr, TILE_BYTES: gl.constexpr, HAS_PARTIAL: gl.constexpr,
):  # fmt: skip
    """The warp that loads: K and V of each listed block, as soon as both warpgroups have left a place for it."""
    item_ptr, kv_tokens_ptr, num_full, count = walked
    k_tiles, v_tiles, k_full, k_empty, v_full, v_empty = tiles
    stage = 0
    phase = 1  # of a fresh barrier the phase before has passed: the first round waits for nobody
    for step in range(count):
        token = gl.load(item_ptr + step) & _VALUE
        if HAS_PARTIAL:
            if step >= num_full:
                token = gl.load(kv_tokens_ptr + token * _KEYS)
        w = token % width
        h = token // width % height
        t = token // (width * height)
        mbarrier.wait(k_empty.index(stage), phase)
        mbarrier.expect(k_full.index(stage), TILE_BYTES)
        tma_load(k_desc, [head, t, h, w, 0], k_full.index(stage), k_tiles.index(stage))
        mbarrier.wait(v_empty.index(stage), phase)
        mbarrier.expect(v_full.index(stage), TILE_BYTES)
        tma_load(v_desc, [head, t, h, w, 0], v_full.index(stage), v_tiles.index(stage))
        stage += 1
        if stage == STAGES:
            stage = 0
            phase ^= 1


@gluon.jit
def rows_of(
    members_ptr, kept_tokens_ptr, group, PART: gl.constexpr, K: gl.constexpr, GROUP: gl.constexpr, LAYOUT: gl.constexpr
):
    """Of each row of a warpgroup: its member, its entry in the head's [Nq*K] and its token, both -1 past kept rows."""
    EACH: gl.constexpr = 2 * _ROWS // GROUP
    row = PART * _ROWS + gl.arange(0, _ROWS, LAYOUT)
    member = row // EACH
    entry = row % EACH
    block = gl.load(members_ptr + group * GROUP + member)
    is_entry = (entry < K) & (block >= 0)
    index = block * K + entry
    token = gl.load(kept_tokens_ptr + index, mask=is_entry, other=-1)
    return member, gl.where(is_entry, index, -1), token


@gluon.jit
def soften(
    scores, top, total, item, is_partial, flag, kv_tokens_ptr, score_scale,
    GROUP: gl.constexpr, HAS_PARTIAL: gl.constexpr, SCORES: gl.constexpr,
):  # fmt: skip
    """One step of the online softmax in base 2: the new top and total, the weights, and what older sums shrink by."""
    if HAS_PARTIAL:
        if is_partial:
            slot = gl.arange(0, _KEYS, gl.SliceLayout(0, SCORES))
            kv_token = gl.load(kv_tokens_ptr + (item & _VALUE) * _KEYS + slot)
            scores = gl.where((kv_token >= 0)[None, :], scores, float("-inf"))
    new_top = gl.maximum(top, gl.max(scores, 1) * score_scale)
    subtrahend = new_top
    if GROUP > 2:
        is_active = ((item >> _SHIFT) & flag) != 0
        new_top = gl.where(is_active, new_top, top)
        subtrahend = gl.where(is_active, new_top, float("inf"))
    shrink = gl.exp2(top - new_top)
    weights = gl.exp2(scores * score_scale - subtrahend[:, None])
    return new_top, total * shrink + gl.sum(weights, 1), weights, shrink


@gluon.jit
def walk(
    q, top, total, acc, flag, walked, score_scale, tiles,
    PART: gl.constexpr, STAGES: gl.constexpr, GROUP: gl.constexpr, D: gl.constexpr, HAS_PARTIAL: gl.constexpr,
    SCORES: gl.constexpr, OUTPUT: gl.constexpr,
):  # fmt: skip
    """Attend to the items of a list.

    In a run of blocks that these rows asked for, the softmax of each is made while the product of the one before with
    V is under way.
    """
    item_ptr, kv_tokens_ptr, num_full, count = walked
    k_tiles, v_tiles, k_full, k_empty, v_full, v_empty = tiles
    # A list of single blocks has no activity in its items.
    MINE: gl.constexpr = ((1 << (GROUP // 2)) - 1) << (PART * GROUP // 2)
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(0, OUTPUT, 2)
    zero = gl.full([_ROWS, _KEYS], 0.0, gl.float32, SCORES)
    step = gl.to_tensor(0)
    stage = gl.to_tensor(0)
    phase = gl.to_tensor(0)
    while step < count:
        item = gl.load(item_ptr + step)
        mbarrier.wait(k_full.index(stage), phase)
        if GROUP == 1 or ((item >> _SHIFT) & MINE) != 0:
            k = k_tiles.index(stage).reshape([_KEYS, D])
            scores = warpgroup_mma(q, k.permute([1, 0]), zero, use_acc=False, is_async=True)
            scores = warpgroup_mma_wait(0, deps=[scores])
            mbarrier.arrive(k_empty.index(stage))
            top, total, weights, shrink = soften(
                scores, top, total, item, step >= num_full, flag, kv_tokens_ptr, score_scale, GROUP, HAS_PARTIAL, SCORES
            )
            acc = acc * gl.convert_layout(shrink, gl.SliceLayout(1, OUTPUT))[:, None]
            weights = gl.convert_layout(weights.to(q.dtype), WEIGHTS)
            step += 1
            item = gl.load(item_ptr + step)  # a list has an entry to spare
            while step < count and (GROUP == 1 or ((item >> _SHIFT) & MINE) != 0):
                old_stage = stage
                old_phase = phase
                stage += 1
                if stage == STAGES:
                    stage = 0
                    phase ^= 1
                mbarrier.wait(k_full.index(stage), phase)
                k = k_tiles.index(stage).reshape([_KEYS, D])
                scores = warpgroup_mma(q, k.permute([1, 0]), zero, use_acc=False, is_async=True)
                mbarrier.wait(v_full.index(old_stage), old_phase)
                v = v_tiles.index(old_stage).reshape([_KEYS, D])
                acc = warpgroup_mma(weights, v, acc, is_async=True)
                scores = warpgroup_mma_wait(1, deps=[scores])
                mbarrier.arrive(k_empty.index(stage))
                top, total, new_weights, shrink = soften(
                    scores,
                    top,
                    total,
                    item,
                    step >= num_full,
                    flag,
                    kv_tokens_ptr,
                    score_scale,
                    GROUP,
                    HAS_PARTIAL,
                    SCORES,
                )
                new_weights = gl.convert_layout(new_weights.to(q.dtype), WEIGHTS)
                # It is past long since; but ptxas moves no arithmetic over its branch, so that the weights are made
                # while the product is under way, not when it has been waited for.
                mbarrier.wait(v_full.index(old_stage), old_phase)
                acc, weights, new_weights = warpgroup_mma_wait(0, deps=[acc, weights, new_weights])
                mbarrier.arrive(v_empty.index(old_stage))
                acc = acc * gl.convert_layout(shrink, gl.SliceLayout(1, OUTPUT))[:, None]
                weights = new_weights
                step += 1
                item = gl.load(item_ptr + step)
            mbarrier.wait(v_full.index(stage), phase)
            acc = warpgroup_mma(weights, v_tiles.index(stage).reshape([_KEYS, D]), acc, is_async=True)
            acc = warpgroup_mma_wait(0, deps=[acc])
            mbarrier.arrive(v_empty.index(stage))
        else:
            # Not before it has come: an earlier arrival would count for the block that still stands in this place.
            mbarrier.arrive(k_empty.index(stage))
            mbarrier.wait(v_full.index(stage), phase)
            mbarrier.arrive(v_empty.index(stage))
            step += 1
        stage += 1
        if stage == STAGES:
            stage = 0
            phase ^= 1
    return top, total, acc


@gluon.jit
def attend_rows(
    rows, walked, tiles,
    PART: gl.constexpr, STAGES: gl.constexpr, MQ: gl.constexpr, K: gl.constexpr, D: gl.constexpr, SLOTS: gl.constexpr,
    GROUP: gl.constexpr, HAS_PARTIAL: gl.constexpr, FILL: gl.constexpr,
):  # fmt: skip
    """A warpgroup that multiplies: rows 64 * PART to 64 * PART + 63 of the group."""
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])
    OUTPUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    # 16 bytes a thread, whole rows.
    MEMORY: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    EACH: gl.constexpr = 2 * _ROWS // GROUP
    q_ptr, o_ptr, lse_ptr, kept_tokens_ptr, fill_ptr, q_tokens_ptr, members_ptr, group, q_l, o_l, score_scale = rows

    columns = gl.arange(0, D, gl.SliceLayout(0, MEMORY))
    _, _, token = rows_of(members_ptr, kept_tokens_ptr, group, PART, K, GROUP, gl.SliceLayout(1, MEMORY))
    q_ptrs = q_ptr + (token.to(gl.int64) * q_l)[:, None] + columns[None, :]
    q = gl.load(q_ptrs, mask=(token >= 0)[:, None], other=0.0)
    q = gl.convert_layout(q, gl.DotOperandLayout(0, SCORES, 2))
    # Finite, so that a tile without a real key cannot make inf - inf.
    top = gl.full([_ROWS], -1.0e30, gl.float32, gl.SliceLayout(1, SCORES))
    total = gl.full([_ROWS], 0.0, gl.float32, gl.SliceLayout(1, SCORES))
    acc = gl.full([_ROWS, D], 0.0, gl.float32, OUTPUT)
    flag = 1 << ((PART * _ROWS + gl.arange(0, _ROWS, gl.SliceLayout(1, SCORES))) // EACH)
    top, total, acc = walk(
        q, top, total, acc, flag, walked, score_scale, tiles, PART, STAGES, GROUP, D, HAS_PARTIAL, SCORES, OUTPUT
    )

    # A row that sees nothing, and an entry without a row, give zero; infinity makes their weights zero in the backward.
    _, entry, token = rows_of(members_ptr, kept_tokens_ptr, group, PART, K, GROUP, gl.SliceLayout(1, SCORES))
    is_empty = (total == 0) | (token < 0)
    divisor = gl.where(is_empty, 1.0, total)
    lse = gl.where(is_empty, float("inf"), top + gl.log2(divisor))
    gl.store(lse_ptr + entry, lse, mask=entry >= 0)
    factor = gl.where(is_empty, 0.0, 1.0 / divisor)
    o = (acc * gl.convert_layout(factor, gl.SliceLayout(1, OUTPUT))[:, None]).to(q.dtype)
    o = gl.convert_layout(o, MEMORY)
    if FILL:
        SLOT_TILES: gl.constexpr = (MQ + SLOTS - 1) // SLOTS
        MEMBERS: gl.constexpr = 1 if GROUP == 1 else GROUP // 2
        # Of one block of 128 rows each warpgroup writes the slots that take one of its rows, the first also the zeros.
        FIRST: gl.constexpr = PART * _ROWS if GROUP == 1 else 0
        for part in gl.static_range(MEMBERS * SLOT_TILES):
            member = part // SLOT_TILES
            block = gl.load(members_ptr + group * GROUP + PART * (GROUP // 2) + member)
            slot = part % SLOT_TILES * SLOTS + gl.arange(0, SLOTS, gl.SliceLayout(1, MEMORY))
            is_slot = (slot < MQ) & (block >= 0)
            o_token = gl.load(q_tokens_ptr + block * MQ + slot, mask=is_slot, other=-1)
            source = gl.load(fill_ptr + block * MQ + slot, mask=is_slot, other=-1)
            local = source - FIRST
            is_local = (local >= 0) & (local < _ROWS)
            index = member * EACH + gl.where(is_local, local, 0)
            index = gl.full([SLOTS, D], 0, gl.int32, MEMORY) + index[:, None]
            filled = gl.gather(o, index, 0)
            filled = gl.where(is_local[:, None], filled, 0.0).to(q.dtype)
            is_mine = (is_local | ((source < 0) & (FIRST == 0))) & (o_token >= 0)
            o_ptrs = o_ptr + (o_token.to(gl.int64) * o_l)[:, None] + columns[None, :]
            gl.store(o_ptrs, filled, mask=is_mine[:, None])
    else:
        _, _, token = rows_of(members_ptr, kept_tokens_ptr, group, PART, K, GROUP, gl.SliceLayout(1, MEMORY))
        o_ptrs = o_ptr + (token.to(gl.int64) * o_l)[:, None] + columns[None, :]
        gl.store(o_ptrs, o, mask=(token >= 0)[:, None])


@gluon.jit
def attend_kernel(
    k_desc,  # of one batch entry: [H, T, H', W, D], boxes of a KV block
    v_desc,
    q_ptr,  # of one batch entry: [H, L, D], strides below
    o_ptr,
    lse_ptr,  # [B, H, Nq, K], base 2
    kept_tokens_ptr,  # [B, H, Nq, K]
    fill_ptr,  # [B, H, Nq, MQ]
    q_tokens_ptr,  # [Nq, MQ]
    kv_tokens_ptr,  # [Nk, S], in the order of the box
    members_ptr,  # [B, H, R, GROUP]
    order_ptr,  # [B, H, R]
    items_ptr,
    starts_ptr,  # [B, H, R]
    num_full_ptr,
    counts_ptr,
    num_q,
    num_groups,
    first_head,  # of this batch entry, among all heads
    height,
    width,
    q_h,
    q_l,
    o_h,
    o_l,
    score_scale,  # softmax scale times log2(e), positive
    MQ: gl.constexpr,
    K: gl.constexpr,
    D: gl.constexpr,
    SLOTS: gl.constexpr,
    GROUP: gl.constexpr,
    HAS_PARTIAL: gl.constexpr,
    FILL: gl.constexpr,
    STAGES: gl.constexpr,
    REGISTERS: gl.constexpr,  # a thread of the second warpgroup; the first has what is left
):
    """One program a group of query blocks; heads one after another, so that their K and V stay in L2.

    Cost of a group with c listed KV blocks of which its halves see a and b: 4*D*64*64*(a + b) FLOP; 2*c*64*D elements
    of K and V, 128*D of Q and GROUP*MQ*D of O.
    """
    pid = gl.program_id(0)
    local_head = pid // num_groups
    head = (first_head + local_head).to(gl.int64)
    group = gl.load(order_ptr + head * num_groups + pid % num_groups)
    row = head * num_groups + group
    item_ptr = items_ptr + gl.load(starts_ptr + row)
    num_full = gl.load(num_full_ptr + row)
    count = gl.load(counts_ptr + row)
    q_ptr += local_head.to(gl.int64) * q_h
    o_ptr += local_head.to(gl.int64) * o_h
    lse_ptr += head * num_q * K
    kept_tokens_ptr += head * num_q * K
    fill_ptr += head * num_q * MQ
    members_ptr += head * num_groups * GROUP

    k_tiles = gl.allocate_shared_memory(k_desc.dtype, [STAGES] + k_desc.block_type.shape, k_desc.layout)
    v_tiles = gl.allocate_shared_memory(v_desc.dtype, [STAGES] + v_desc.block_type.shape, v_desc.layout)
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(k_full.index(stage), 1)
        mbarrier.init(v_full.index(stage), 1)
        mbarrier.init(k_empty.index(stage), 2)
        mbarrier.init(v_empty.index(stage), 2)
    fence_async_shared()
    TILE_BYTES: gl.constexpr = _KEYS * D * k_desc.dtype.primitive_bitwidth // 8
    tiles = (k_tiles, v_tiles, k_full, k_empty, v_full, v_empty)
    walked = (item_ptr, kv_tokens_ptr, num_full, count)
    rows = (
        q_ptr, o_ptr, lse_ptr, kept_tokens_ptr, fill_ptr, q_tokens_ptr, members_ptr, group, q_l, o_l, score_scale
    )  # fmt: skip
    gl.warp_specialize(
        [
            (attend_rows, (rows, walked, tiles, 0, STAGES, MQ, K, D, SLOTS, GROUP, HAS_PARTIAL, FILL)),
            (attend_rows, (rows, walked, tiles, 1, STAGES, MQ, K, D, SLOTS, GROUP, HAS_PARTIAL, FILL)),
            (load_blocks, (k_desc, v_desc, walked, local_head, height, width, tiles, STAGES, TILE_BYTES, HAS_PARTIAL)),
        ],
        [4, 1],
        [REGISTERS, 24],
    )


def launch_specialized(q: Tensor, k: Tensor, v: Tensor, tables: KernelTables, *, scale: float) -> tuple[Tensor, Tensor]:
    """Attend and fill: what `triton_attend.launch_attend` does, one launch for each entry of the batch.

    k and v are copied where TMA cannot read them as they lie (an address or a stride that is no multiple of 16 bytes).
    """
    layout, device = tables.layout, q.device
    tile, members = layout.tiles.attend, tables.members
    b, h, num_q, kept = tables.shape
    k, v = (x if _is_aligned(x) else x.contiguous() for x in (k, v))
    make = torch.zeros if layout.pads_q else torch.empty  # padding belongs to no slot that is written
    o = make(q.shape, dtype=q.dtype, device=device)
    lse = torch.empty(tables.shape, dtype=torch.float32, device=device)
    (_, height, width), _ = box_of(layout.kv_grid, is_tiled=layout.is_tiled)
    num_groups = members.shape[2]
    constants = specialized_constants(layout, tile, kept_rows=kept, head_dim=q.shape[-1])
    with torch.cuda.device_of(q):
        for entry in range(b):
            attend_kernel[(h * num_groups,)](
                *(_describe(k[entry], layout), _describe(v[entry], layout), q[entry], o[entry], lse),
                *(tables.kept_tokens, tables.fill, layout.q_tokens(device)),
                *(box_tokens(layout.kv_grid, is_tiled=layout.is_tiled, device=device), members, tables.order),
                *(tables.items, tables.starts, tables.num_full, tables.counts),
                *(num_q, num_groups, entry * h, height, width),
                *(*q.stride()[1:3], *o.stride()[1:3], scale * LOG2_E),
                **constants,
                num_warps=tile.num_warps,
            )
    return o, lse


Sides = tuple[int, int, int]


def box_of(grid: BlockGrid, *, is_tiled: bool) -> tuple[Sides, Sides]:
    """The axes (t, h, w) of the tokens as TMA sees them, and the box of a block: one axis for tile-major order."""
    return ((1, 1, grid.num_slots), (1, 1, grid.block_size)) if is_tiled else (grid.grid, grid.block)


@lru_cache(maxsize=64)
def box_tokens(grid: BlockGrid, *, is_tiled: bool, device: torch.device) -> Tensor:
    """[N, M] int32: the token of each place of a block's box, -1 beyond the grid; cached.

    In natural order a box keeps its shape at the end of an axis, where `BlockGrid` closes the ranks.
    """
    if device.type != "cpu":
        return box_tokens(grid, is_tiled=is_tiled, device=torch.device("cpu")).to(device)
    if is_tiled:
        slots = torch.arange(grid.num_slots).view(grid.num_blocks, -1)
        return torch.where(grid.token_of_slot(device) >= 0, slots, -1).int()
    whole = torch.full([n * side for n, side in zip(grid.blocks, grid.block, strict=True)], -1, dtype=torch.int32)
    whole[: grid.grid[0], : grid.grid[1], : grid.grid[2]] = torch.arange(grid.num_tokens).view(grid.grid)
    (nt, nh, nw), (t, h, w) = grid.blocks, grid.block
    return whole.view(nt, t, nh, h, nw, w).permute(0, 2, 4, 1, 3, 5).reshape(grid.num_blocks, -1)


def _describe(x: Tensor, layout: Layout) -> TensorDescriptor:
    """What TMA needs of k or v [H, L, D]."""
    axes, box = box_of(layout.kv_grid, is_tiled=layout.is_tiled)
    heads, _, head_dim = x.shape
    by_head, by_token, _ = x.stride()
    strides = [by_head, axes[1] * axes[2] * by_token, axes[2] * by_token, by_token, 1]
    block = [1, *box, head_dim]
    shared = gl.NVMMASharedLayout.get_default_for(block, gl.bfloat16)
    return TensorDescriptor(x, [heads, *axes, head_dim], strides, block, shared)


def _is_aligned(x: Tensor) -> bool:
    return x.data_ptr() % 16 == 0 and all(step * x.element_size() % 16 == 0 for step in x.stride()[:3])
