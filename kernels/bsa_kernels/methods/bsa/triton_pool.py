"""Selection, first launch: prune the queries of each block, and pool what is kept and the keys, in one read of each.

Shape legend: `B` batch, `H` heads, `L` tokens, `Nq`/`Nk` query and KV blocks, `M` slots a block, `G` windows a block of
`WINDOW` tokens, `K` kept rows a block, `D` head size, padded to `BLOCK_D`. A block number that is flat over [B, H, N]
is 64 bits wide, so that every address that is computed from it is too.

The plain torch twins are `bsa_kernels.methods.bsa.queries.select_queries` and `pool_kept`, `pool_real` of
`bsa_kernels.methods.bsa.blocks`; what the launch costs is in `bsa_kernels.methods.bsa.fused`.
"""
# The types inside jitted functions are Triton's.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bsa_kernels.grid import BlockGrid
from bsa_kernels.methods.bsa.fused import FusedQueries, check_tokens, pool_options
from bsa_kernels.methods.bsa.options import Fill


@triton.jit
def block_corner(
    block, grid_t, grid_h, grid_w, BT: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, EVEN: tl.constexpr
):
    """Number of the first token of a block, and how many tokens it really has along each axis."""
    blocks_h = tl.cdiv(grid_h, BH)
    blocks_w = tl.cdiv(grid_w, BW)
    row = block // blocks_w
    t = row // blocks_h * BT
    h = (row - row // blocks_h * blocks_h) * BH
    w = (block - row * blocks_w) * BW
    first = (t * grid_h + h) * grid_w + w
    if EVEN:
        real_t, real_h, real_w = BT, BH, BW
    else:
        real_t, real_h, real_w = tl.minimum(grid_t - t, BT), tl.minimum(grid_h - h, BH), tl.minimum(grid_w - w, BW)
    return first, real_t, real_h, real_w


@triton.jit
def load_rows(x_ptr, row, mask_row, stride, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows of x, `stride` apart; zero where masked."""
    offs_d = tl.arange(0, BLOCK_D)
    x_ptrs = x_ptr + (row.to(tl.int64) * stride)[:, None] + offs_d[None, :]
    # [M, BLOCK_D]
    return tl.load(x_ptrs, mask=mask_row[:, None] & (offs_d < D)[None, :], other=0.0)


@triton.jit
def prune_block(
    x_ptr,  # the tokens of a head
    flat,  # the block's number in [B, H, N]
    block,
    stride,
    kept_slots_ptr,
    kept_tokens_ptr,
    num_kept_ptr,
    fill_ptr,
    pooled_ptr,
    grid_t,
    grid_h,
    grid_w,
    BT: tl.constexpr,
    BH: tl.constexpr,
    BW: tl.constexpr,
    K: tl.constexpr,
    KEEP_1: tl.constexpr,
    KEEP_2: tl.constexpr,
    KEEP_4: tl.constexpr,
    KEEP_8: tl.constexpr,
    KEEPS_ALL: tl.constexpr,
    ZERO_FILL: tl.constexpr,
    TILED: tl.constexpr,
    EVEN: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WITH_DOTS: tl.constexpr,
):
    """Choose the kept rows of one block, their mean, and whose output each slot takes.

    Tokens stand in the order of their windows, so that a reshape brings the members of a window together. Since padding
    lies at the end of each axis, what is real of a block or window is a box; its centre is the corner that is farthest
    from the origin and at most (1, 1, 1).
    """
    M: tl.constexpr = BT * BH * BW
    WT: tl.constexpr = 2 if BT > 1 else 1
    WH: tl.constexpr = 2 if BH > 1 else 1
    WW: tl.constexpr = 2 if BW > 1 else 1
    WINDOW: tl.constexpr = WT * WH * WW
    G: tl.constexpr = M // WINDOW
    first, real_t, real_h, real_w = block_corner(block, grid_t, grid_h, grid_w, BT, BH, BW, EVEN)
    offs = tl.arange(0, M)
    member = offs % WINDOW
    window = offs // WINDOW
    corner_t = window // (BH // WH * (BW // WW)) * WT
    corner_h = window // (BW // WW) % (BH // WH) * WH
    corner_w = window % (BW // WW) * WW
    t = corner_t + member // (WH * WW)
    h = corner_h + member // WW % WH
    w = corner_w + member % WW
    is_real = (t < real_t) & (h < real_h) & (w < real_w)
    slot = (t * real_h + h) * real_w + w
    token = block * M + slot if TILED else first + (t * grid_h + h) * grid_w + w
    q = load_rows(x_ptr, token, is_real, stride, D, BLOCK_D)

    if KEEPS_ALL:
        kept = is_real
        entry = slot
    else:
        centre_t = tl.minimum(real_t - corner_t, WT) - 1
        centre_h = tl.minimum(real_h - corner_h, WH) - 1
        centre_w = tl.minimum(real_w - corner_w, WW) - 1
        if WITH_DOTS:
            # Tensor cores multiply all pairs of rows, of which the squares and those with a centre are taken.
            centre = window * WINDOW + (centre_t * WH + centre_h) * WW + centre_w
            products = tl.dot(q, tl.trans(q))  # [M, M]
            squares = tl.sum(tl.where(offs[None, :] == offs[:, None], products, 0.0), 1)
            dots = tl.sum(tl.where(offs[None, :] == centre[:, None], products, 0.0), 1)
        else:
            t, h, w = corner_t + centre_t, corner_h + centre_h, corner_w + centre_w
            slot_centre = (t * real_h + h) * real_w + w
            centre = block * M + slot_centre if TILED else first + (t * grid_h + h) * grid_w + w
            # A window without a real token has no centre.
            has_centre = (centre_t >= 0) & (centre_h >= 0) & (centre_w >= 0)
            c = load_rows(x_ptr, centre, has_centre, stride, D, BLOCK_D)  # [M, BLOCK_D]
            squares = tl.sum(q * q, 1)
            dots = tl.sum(q * c, 1)
        lengths = tl.sqrt_rn(squares)
        # The cosine times the length of the centre, which all members share. NaN comes last.
        similarity = tl.div_rn(dots, tl.where(lengths == 0, 1.0, lengths))
        similarity = tl.where(similarity >= float("-inf"), similarity, float("inf"))
        mine = tl.reshape(similarity, (G, WINDOW))
        real = tl.reshape(is_real, (G, WINDOW))
        index = tl.arange(0, WINDOW)
        is_lower = (index[None, :] < index[:, None])[None, :, :]
        is_before = (mine[:, None, :] < mine[:, :, None]) | ((mine[:, None, :] == mine[:, :, None]) & is_lower)
        rank = tl.sum((is_before & real[:, None, :]).to(tl.int32), 2)  # [G, WINDOW]
        num_real = tl.sum(real.to(tl.int32), 1)[:, None]
        share = tl.where(
            num_real == 8, KEEP_8, tl.where(num_real == 4, KEEP_4, tl.where(num_real == 2, KEEP_2, KEEP_1))
        )
        kept_member = real & (rank < share)
        # Slots ascend in (t, h, w) order: there and back again.
        by_axis = tl.reshape(kept_member.to(tl.int32), (BT // WT, BH // WH, BW // WW, WT, WH, WW))
        in_order = tl.cumsum(tl.reshape(tl.permute(by_axis, (0, 3, 1, 4, 2, 5)), (M,)), 0) - 1
        by_axis = tl.reshape(in_order, (BT // WT, WT, BH // WH, WH, BW // WW, WW))
        entry_member = tl.reshape(tl.permute(by_axis, (0, 2, 4, 1, 3, 5)), (G, WINDOW))
        kept = tl.reshape(kept_member, (M,))
        entry = tl.reshape(entry_member, (M,))
    num_kept = tl.sum(kept.to(tl.int32), 0)
    tl.store(num_kept_ptr + flat, num_kept)
    tl.store(kept_slots_ptr + flat * K + entry, slot, mask=kept)
    tl.store(kept_tokens_ptr + flat * K + entry, token, mask=kept)
    if not EVEN:
        tl.store(kept_slots_ptr + flat * K + offs, -1, mask=(offs >= num_kept) & (offs < K))
        tl.store(kept_tokens_ptr + flat * K + offs, -1, mask=(offs >= num_kept) & (offs < K))
        tl.store(fill_ptr + flat * M + offs, -1, mask=offs >= real_t * real_h * real_w)
    if KEEPS_ALL:
        source = entry
    elif ZERO_FILL:
        source = tl.where(kept, entry, -1)
    else:
        # The nearest kept member: as many steps away as bits differ; entries ascend with the index, which breaks ties.
        apart = index[:, None] ^ index[None, :]
        steps = ((apart & 1) + ((apart >> 1) & 1) + (apart >> 2))[None, :, :]
        far = tl.where(kept_member[:, None, :], steps * M + entry_member[:, None, :], 4 * M)
        source = tl.reshape(tl.min(far, 2) % M, (M,))
    tl.store(fill_ptr + flat * M + slot, source, mask=is_real)
    offs_d = tl.arange(0, BLOCK_D)
    if WITH_DOTS:
        weights = tl.where((tl.arange(0, 16) == 0)[:, None] & kept[None, :], 1.0, 0.0).to(q.dtype)
        total = tl.sum(tl.dot(weights, q), 0)  # [BLOCK_D]
    else:
        total = tl.sum(tl.where(kept[:, None], q, 0.0), 0)
    tl.store(pooled_ptr + flat * D + offs_d, total / num_kept, mask=offs_d < D)


@triton.jit
def pool_block(
    x_ptr,
    flat,
    block,
    stride,
    pooled_ptr,
    grid_t,
    grid_h,
    grid_w,
    BT: tl.constexpr,
    BH: tl.constexpr,
    BW: tl.constexpr,
    TILED: tl.constexpr,
    EVEN: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write the mean of the real tokens of one block."""
    M: tl.constexpr = BT * BH * BW
    first, real_t, real_h, real_w = block_corner(block, grid_t, grid_h, grid_w, BT, BH, BW, EVEN)
    num_real = real_t * real_h * real_w
    offs = tl.arange(0, M)
    if TILED:
        token = block * M + offs
        is_real = offs < num_real
    else:
        t, h, w = offs // (BH * BW), offs // BW % BH, offs % BW
        token = first + (t * grid_h + h) * grid_w + w
        is_real = (t < real_t) & (h < real_h) & (w < real_w)
    total = tl.sum(load_rows(x_ptr, token, is_real, stride, D, BLOCK_D).to(tl.float32), 0)  # [BLOCK_D]
    offs_d = tl.arange(0, BLOCK_D)
    tl.store(pooled_ptr + flat * D + offs_d, total / num_real, mask=offs_d < D)


@triton.jit(do_not_specialize=["grid_t", "grid_h", "grid_w", "num_q"])
def pool_kernel(
    q_ptr,  # [B, H, L or Nq*M, D], any strides but the last
    k_ptr,
    kept_slots_ptr,  # [B, H, Nq, K]
    kept_tokens_ptr,  # [B, H, Nq, K]
    num_kept_ptr,  # [B, H, Nq]
    fill_ptr,  # [B, H, Nq, M]
    pooled_q_ptr,  # [B, H, Nq, D]
    pooled_k_ptr,  # [B, H, Nk, D]
    q_stride_b,
    q_stride_h,
    q_stride_l,
    k_stride_b,
    k_stride_h,
    k_stride_l,
    grid_t,
    grid_h,
    grid_w,
    num_q,  # query blocks, the first programs of a head; the others pool keys
    QT: tl.constexpr,
    QH: tl.constexpr,
    QW: tl.constexpr,
    KT: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    K: tl.constexpr,
    KEEP_1: tl.constexpr,
    KEEP_2: tl.constexpr,
    KEEP_4: tl.constexpr,
    KEEP_8: tl.constexpr,
    KEEPS_ALL: tl.constexpr,
    ZERO_FILL: tl.constexpr,
    TILED: tl.constexpr,
    EVEN_Q: tl.constexpr,  # no query block holds padding
    EVEN_K: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WITH_DOTS: tl.constexpr,  # tensor cores multiply 16-bit rows exactly, and fp32 not at all
):
    """One program a query block or KV block, each of whose rows is read once from HBM."""
    block = tl.program_id(0)
    h = tl.program_id(1).to(tl.int64)
    b = tl.program_id(2).to(tl.int64)
    head = b * tl.num_programs(1) + h
    if block < num_q:
        prune_block(
            q_ptr + b * q_stride_b + h * q_stride_h,
            head * num_q + block,
            block,
            q_stride_l,
            kept_slots_ptr,
            kept_tokens_ptr,
            num_kept_ptr,
            fill_ptr,
            pooled_q_ptr,
            grid_t,
            grid_h,
            grid_w,
            QT,
            QH,
            QW,
            K,
            KEEP_1,
            KEEP_2,
            KEEP_4,
            KEEP_8,
            KEEPS_ALL,
            ZERO_FILL,
            TILED,
            EVEN_Q,
            D,
            BLOCK_D,
            WITH_DOTS,
        )
    else:
        block -= num_q
        pool_block(
            k_ptr + b * k_stride_b + h * k_stride_h,
            head * (tl.num_programs(0) - num_q) + block,
            block,
            k_stride_l,
            pooled_k_ptr,
            grid_t,
            grid_h,
            grid_w,
            KT,
            KH,
            KW,
            TILED,
            EVEN_K,
            D,
            BLOCK_D,
        )


def select_queries(
    q: Tensor, grid: BlockGrid, *, query_keep: float, fill: Fill = "nearest", tiled: bool = False
) -> FusedQueries:
    """Choose the kept rows of each query block by the rule `window`, their mean, and the fill of all others.

    Args:
        q: [B, H, L, D] in natural order, or [B, H, N*M, D] tile-major where `tiled`; any strides but a contiguous last
            dimension, which nothing copies.
        grid: the query blocks.
        query_keep: share of each window's real tokens that is kept, above 0 and at most 1.
        fill: `nearest` or `zero`.

    No gradient, and no host synchronisation.

    Raises:
        ValueError: q, the block or the fill is not what the kernels take.
    """
    check_tokens("q", q, grid, tiled=tiled)
    if fill not in {"nearest", "zero"}:
        raise ValueError(f"fill: expected 'nearest' or 'zero', got {fill!r}")
    queries, _ = launch_pool(q, grid, None, grid, query_keep=query_keep, fill=fill, tiled=tiled)
    return queries


def pool_keys(k: Tensor, grid: BlockGrid, *, tiled: bool = False) -> Tensor:
    """Mean of the real keys of each block [B, H, N, D] fp32, of k as `select_queries` takes q.

    Raises:
        ValueError: k or the block is not what the kernel takes.
    """
    check_tokens("k", k, grid, tiled=tiled)
    _, pooled = launch_pool(None, grid, k, grid, query_keep=1, fill="nearest", tiled=tiled)
    return pooled


def launch_pool(
    q: Tensor | None,
    q_grid: BlockGrid,
    k: Tensor | None,
    kv_grid: BlockGrid,
    *,
    query_keep: float,
    fill: Fill,
    tiled: bool,
) -> tuple[FusedQueries, Tensor]:
    """Prune q and pool k in one launch; without one of them, its outputs are empty."""
    x = q if q is not None else k
    assert x is not None
    b, h, _, d = x.shape
    num_q, num_kv = (0 if x is None else grid.num_blocks for x, grid in ((q, q_grid), (k, kv_grid)))
    options = pool_options(
        q_grid, kv_grid, query_keep=query_keep, zero_fill=fill == "zero", tiled=tiled, head_dim=d, dtype=x.dtype
    )

    def empty(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty(b, h, *shape, dtype=dtype, device=x.device)

    queries = FusedQueries(
        kept_slots=empty(num_q, options["K"]),
        num_kept=empty(num_q),
        fill=empty(num_q, q_grid.block_size),
        kept_tokens=empty(num_q, options["K"]),
        pooled_q=empty(num_q, d, dtype=torch.float32),
    )
    pooled_k = empty(num_kv, d, dtype=torch.float32)
    q, k = x if q is None else q, x if k is None else k
    with torch.cuda.device_of(x):
        pool_kernel[(num_q + num_kv, h, b)](
            q,
            k,
            queries.kept_slots,
            queries.kept_tokens,
            queries.num_kept,
            queries.fill,
            queries.pooled_q,
            pooled_k,
            *q.stride()[:3],
            *k.stride()[:3],
            *q_grid.grid,
            num_q,
            **options,
        )
    return queries, pooled_k
