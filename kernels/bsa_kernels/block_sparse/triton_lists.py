"""Lists from bits: transpose the bits, count those of each list, and write the items, each in one pass over the mask.

No sort, no atomics, no scores: every place is a count of the bits before it, so that the order is fixed. Shape legend:
`B` batch, `H` heads, `Nq`/`Nk` query and KV blocks, `W` words of 32 KV blocks, `R` lists a head, each of `G` query
blocks. A list number is flat over [B, H, R] and 64 bits wide.

The plain torch twins are in `bsa_kernels.block_sparse.lists`.
"""
# The types inside jitted functions are Triton's.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bsa_kernels.block_sparse.groups import MAX_GROUPS_OF_CELL, GroupTables

# By registers and instructions as compiled by Triton 3.9 for sm_90, not by time. Words of a list in a step: 16 waste
# less of a last step than 32 do, in as many instructions a bit. Words in a program: emitting 8 bits a thread takes 55
# registers for single rows, 72 for pairs and 78 for four; rows that share a program cost more, so only short ones do.
_MAX_WORDS = 16
_COUNT_WORDS = 256
_EMIT_WORDS = 16
_NUM_WARPS = 2
_CHOOSE_ROWS = 128
# A whole sector of 32 bytes is written for each KV block.
_CHUNKS = 8


@triton.jit
def popcount(x):
    """The number of ones of each uint32."""
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return (x * 0x01010101) >> 24


@triton.jit
def load_words(
    bits_ptr, members_ptr, members_h, row, row_mask, offs_word, num_rows, num_q, num_words, g, G: tl.constexpr
):
    """Words `offs_word` of member `g` of each list; zero where there is no such member."""
    member_ptrs = members_ptr + row // num_rows * members_h + row % num_rows * G + g
    member = tl.load(member_ptrs, mask=row_mask, other=-1)
    block = row // num_rows * num_q + member
    mask = (row_mask & (member >= 0))[:, None] & (offs_word < num_words)[None, :]
    words = tl.load(bits_ptr + block[:, None] * num_words + offs_word[None, :], mask=mask, other=0)
    return words.to(tl.uint32, bitcast=True)  # [ROWS, WORDS]


@triton.jit
def load_union(
    bits_ptr,
    members_ptr,
    members_h,
    full_ptr,
    row,
    row_mask,
    offs_word,
    num_rows,
    num_q,
    num_words,
    G: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
    BY_QUERY: tl.constexpr,
):
    """The KV blocks that any member of a list sees: those that need no mask, and those that do.

    Whether a block needs one is the same for all query blocks, or, `BY_QUERY`, each member that sees it has a say.
    """
    seen = tl.zeros([ROWS, WORDS], tl.uint32)
    clear = ~seen
    for g in tl.static_range(G):
        words = load_words(bits_ptr, members_ptr, members_h, row, row_mask, offs_word, num_rows, num_q, num_words, g, G)
        seen |= words
        if BY_QUERY:  # of all heads the same
            full = load_words(full_ptr, members_ptr, members_h, row, row_mask, offs_word, num_rows, 0, num_words, g, G)
            clear &= full | ~words
    if BY_QUERY:
        full = seen & clear
    else:
        full = tl.load(full_ptr + offs_word, mask=offs_word < num_words, other=0).to(tl.uint32, bitcast=True)
        full = seen & full[None, :]
    return full, seen ^ full


@triton.jit(do_not_specialize=["num_lists", "members_h", "num_rows", "num_q", "num_words"])
def count_kernel(
    bits_ptr,  # [B, H, Nq, W]
    members_ptr,  # [R, G], -1 for none; of each head `members_h` further
    full_ptr,  # [W] bits: KV blocks that need no mask; [Nq, W] if BY_QUERY
    num_full_ptr,  # [B, H, R]
    counts_ptr,  # [B, H, R]
    num_lists,  # B * H * R
    members_h,
    num_rows,
    num_q,
    num_words,
    G: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
    BY_QUERY: tl.constexpr,
):
    """One program per ROWS lists. Cost: all bits read once, two numbers a list written."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row_mask = row < num_lists
    num_full = tl.zeros([ROWS], tl.int32)
    num_partial = tl.zeros([ROWS], tl.int32)
    for first in range(0, num_words, WORDS):
        offs_word = first + tl.arange(0, WORDS)
        full, partial = load_union(
            bits_ptr, members_ptr, members_h, full_ptr, row, row_mask, offs_word, num_rows, num_q, num_words,
            G, ROWS, WORDS, BY_QUERY,
        )  # fmt: skip
        num_full += tl.sum(popcount(full).to(tl.int32), 1)
        num_partial += tl.sum(popcount(partial).to(tl.int32), 1)
    tl.store(num_full_ptr + row, num_full, mask=row_mask)
    tl.store(counts_ptr + row, num_full + num_partial, mask=row_mask)


@triton.jit(do_not_specialize=["num_lists", "members_h", "num_rows", "num_q", "num_words", "num_columns"])
def emit_kernel(
    bits_ptr,  # [B, H, Nq, W]
    members_ptr,  # [R, G], -1 for none; of each head `members_h` further
    full_ptr,  # [W] bits: KV blocks that need no mask; [Nq, W] if BY_QUERY
    origins_ptr,  # [Nk]: the item of a KV block without padding
    starts_ptr,  # [B, H, R] int64
    num_full_ptr,  # [B, H, R]
    items_ptr,
    num_lists,  # B * H * R
    members_h,
    num_rows,
    num_q,
    num_words,
    num_columns,
    G: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
    BY_QUERY: tl.constexpr,
):
    """One program per ROWS lists. Cost: all bits read once, the items written, about 20 operations a bit of the mask.

    The place of an item is the number of bits before it: of earlier chunks, of earlier words, of lower bits.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row_mask = row < num_lists
    list_ptr = items_ptr + tl.load(starts_ptr + row, mask=row_mask, other=0)  # [ROWS]
    full_at = tl.zeros([ROWS], tl.int32)
    partial_at = tl.load(num_full_ptr + row, mask=row_mask, other=0)
    offs_bit = tl.arange(0, 32).to(tl.uint32)[None, None, :]
    lower = (tl.full([1, 1, 32], 1, tl.uint32) << offs_bit) - 1
    for first in range(0, num_words, WORDS):
        offs_word = first + tl.arange(0, WORDS)
        full, partial = load_union(
            bits_ptr, members_ptr, members_h, full_ptr, row, row_mask, offs_word, num_rows, num_q, num_words,
            G, ROWS, WORDS, BY_QUERY,
        )  # fmt: skip
        ones_full, ones_partial = popcount(full).to(tl.int32), popcount(partial).to(tl.int32)
        word_full = full_at[:, None] + tl.cumsum(ones_full, 1) - ones_full
        word_partial = partial_at[:, None] + tl.cumsum(ones_partial, 1) - ones_partial
        is_full = ((full[:, :, None] >> offs_bit) & 1) != 0  # [ROWS, WORDS, 32]
        is_partial = ((partial[:, :, None] >> offs_bit) & 1) != 0
        same_kind = tl.where(is_full, full[:, :, None], partial[:, :, None])
        at = tl.where(is_full, word_full[:, :, None], word_partial[:, :, None])
        at += popcount(same_kind & lower).to(tl.int32)
        column = offs_word[None, :, None] * 32 + offs_bit.to(tl.int32)  # [1, WORDS, 32]
        origin = tl.load(origins_ptr + column, mask=column < num_columns, other=0)
        item = tl.where(is_full, origin, column)
        if G > 1:
            for g in tl.static_range(G):
                words = load_words(
                    bits_ptr, members_ptr, members_h, row, row_mask, offs_word, num_rows, num_q, num_words, g, G
                )
                activity = ((words[:, :, None] >> offs_bit) & 1) << (28 + g)
                item |= activity.to(tl.int32, bitcast=True)
        tl.store(list_ptr[:, None, None] + at, item, mask=is_full | is_partial)
        full_at += tl.sum(ones_full, 1)
        partial_at += tl.sum(ones_partial, 1)


@triton.jit(do_not_specialize=["num_lists", "num_rows"])
def choose_kernel(
    counts_ptr,  # [B, H, C, R]: the length of each group's list, in each way to group
    candidates_ptr,  # [C, R, G]
    first_ptr,  # [R]
    size_ptr,  # [R]
    members_ptr,  # [B, H, R, G]
    num_lists,  # B * H * R
    num_rows,
    C: tl.constexpr,
    G: tl.constexpr,
    CELL: tl.constexpr,
    ROWS: tl.constexpr,
):
    """One program per ROWS groups: of each, the members in the way whose lists are shortest in its cell."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row_mask = row < num_lists
    group = row % num_rows
    first = tl.load(first_ptr + group, mask=row_mask, other=0)
    size = tl.load(size_ptr + group, mask=row_mask, other=0)
    least = tl.full([ROWS], 0x7FFFFFFF, tl.int32)
    best = tl.zeros([ROWS], tl.int32)
    for way in tl.static_range(C):
        cost = tl.zeros([ROWS], tl.int32)
        for each in tl.static_range(CELL):
            at = (row // num_rows * C + way) * num_rows + first + each
            cost += tl.load(counts_ptr + at, mask=row_mask & (each < size), other=0)
        best = tl.where(cost < least, way, best)
        least = tl.minimum(cost, least)
    for g in tl.static_range(G):
        member = tl.load(candidates_ptr + (best * num_rows + group) * G + g, mask=row_mask, other=-1)
        tl.store(members_ptr + row * G + g, member, mask=row_mask)


@triton.jit(do_not_specialize=["num_q", "num_words", "num_columns", "num_out"])
def transpose_kernel(
    bits_ptr,  # [B, H, Nq, W]
    out_ptr,  # [B, H, Nk, WQ]: WQ words of 32 query blocks
    num_q,
    num_words,
    num_columns,
    num_out,  # WQ
    CHUNKS: tl.constexpr,
):
    """One program per word of KV blocks and CHUNKS * 32 query blocks. Cost: the bits read once and written once.

    A written word is a sum of bits over 32 query blocks; these lie along the first axis, in one thread each.
    """
    chunks = tl.cdiv(num_out, CHUNKS)
    pid = tl.program_id(0).to(tl.int64)
    head = pid // (chunks * num_words)
    word = pid // chunks % num_words
    offs_out = (pid % chunks).to(tl.int32) * CHUNKS + tl.arange(0, CHUNKS)
    offs_query = tl.arange(0, 32)[:, None] + offs_out[None, :] * 32
    offs_bits = (head * num_q + offs_query) * num_words + word
    words = tl.load(bits_ptr + offs_bits, mask=offs_query < num_q, other=0).to(tl.uint32, bitcast=True)  # [32, CHUNKS]
    offs_bit = tl.arange(0, 32)
    shift = offs_bit.to(tl.uint32)
    ones = ((words[:, :, None] >> shift[None, None, :]) & 1) << shift[:, None, None]  # [32, CHUNKS, 32]
    out = tl.sum(ones, 0).to(tl.int32, bitcast=True)  # [CHUNKS, 32]
    column = word * 32 + offs_bit
    out_ptrs = out_ptr + (head * num_columns + column)[None, :] * num_out + offs_out[:, None]
    tl.store(out_ptrs, out, mask=(offs_out < num_out)[:, None] & (column < num_columns)[None, :])


def launch_count(bits: Tensor, members: Tensor, full_bits: Tensor) -> tuple[Tensor, Tensor]:
    """Count the union of each group's KV blocks: those that need no mask, and all; both [B, H, R] int32."""
    b, h, num_q, num_words = bits.shape
    num_rows, size = members.shape[-2:]
    num_full, counts = (torch.empty(b, h, num_rows, dtype=torch.int32, device=bits.device) for _ in range(2))
    tile = _tile(num_words, _COUNT_WORDS)
    with torch.cuda.device_of(bits):
        count_kernel[(triton.cdiv(counts.numel(), tile["ROWS"]),)](
            *(bits, members, full_bits, num_full, counts, counts.numel(), _head_stride(members)),
            *(num_rows, num_q, num_words),
            G=size,
            BY_QUERY=full_bits.dim() == 2,
            **tile,
        )
    return num_full, counts


def launch_choose(counts: Tensor, tables: GroupTables) -> Tensor:
    """The members [B, H, R, G] of the ways whose lists are shortest; `counts` [B, H, C * R] of all ways."""
    ways, num_rows, size = tables.candidates.shape
    members = torch.empty(*counts.shape[:2], num_rows, size, dtype=torch.int32, device=counts.device)
    num_lists = members.numel() // size
    with torch.cuda.device_of(counts):
        choose_kernel[(triton.cdiv(num_lists, _CHOOSE_ROWS),)](
            *(counts, tables.candidates, tables.first, tables.size, members, num_lists, num_rows),
            C=ways,
            G=size,
            CELL=MAX_GROUPS_OF_CELL,
            ROWS=_CHOOSE_ROWS,
        )
    return members


def _head_stride(members: Tensor) -> int:
    """Entries from the members of one head to those of the next: none where all heads have the same."""
    return members[0, 0].numel() if members.dim() == 4 else 0


def launch_emit(
    bits: Tensor,
    members: Tensor,
    full_bits: Tensor,
    origins: Tensor,
    starts: Tensor,
    num_full: Tensor,
    items: Tensor,
) -> None:
    """Write all lists into `items`, which holds them."""
    _, _, num_q, num_words = bits.shape
    num_rows, size = members.shape[-2:]
    tile = _tile(num_words, _EMIT_WORDS)
    with torch.cuda.device_of(bits):
        emit_kernel[(triton.cdiv(starts.numel(), tile["ROWS"]),)](
            bits,
            members,
            full_bits,
            origins,
            starts,
            num_full,
            items,
            starts.numel(),
            _head_stride(members),
            num_rows,
            num_q,
            num_words,
            origins.numel(),
            G=size,
            BY_QUERY=full_bits.dim() == 2,
            **tile,
        )


def launch_transpose(bits: Tensor, num_columns: int) -> Tensor:
    """Transpose bits [B, H, Nq, W] of `num_columns` KV blocks to [B, H, Nk, ceil(Nq/32)]."""
    b, h, num_q, num_words = bits.shape
    out = torch.empty(b, h, num_columns, triton.cdiv(num_q, 32), dtype=torch.int32, device=bits.device)
    chunks = triton.cdiv(out.shape[-1], _CHUNKS)
    with torch.cuda.device_of(bits):
        transpose_kernel[(b * h * num_words * chunks,)](
            bits, out, num_q, num_words, num_columns, out.shape[-1], CHUNKS=_CHUNKS
        )
    return out


def _tile(num_words: int, program_words: int) -> dict[str, int]:
    """The lists of a program, and their words in a step."""
    words = min(_MAX_WORDS, triton.next_power_of_2(num_words))
    return {"ROWS": program_words // words, "WORDS": words, "num_warps": _NUM_WARPS}
