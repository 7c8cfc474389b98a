"""What the attention kernels share: how rows are found and loaded, and how a list item is read.

Rows are found through tables of tokens, so that one kernel serves every layout: natural or tile-major order, any
strides of [B, H, L, D] with a contiguous last dimension. Addresses are 64 bits wide wherever a length enters.
"""
# The types inside jitted functions are Triton's.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import triton
import triton.language as tl

from bsa_kernels.block_sparse.lists import ACTIVITY_SHIFT

_FIRST_FLAG = tl.constexpr(1 << ACTIVITY_SHIFT)
_VALUE = tl.constexpr((1 << ACTIVITY_SHIFT) - 1)


@triton.jit
def item_value(item):
    """The token or block number of a list item."""
    return (item & _VALUE).to(tl.int64)


@triton.jit
def activity_flag(member):
    """The bit of a list item that says whether a member of the group takes part."""
    return _FIRST_FLAG << member


@triton.jit
def item_activity(item, flag):
    """Whether each row's member takes part in a list item."""
    return (item & flag) != 0


@triton.jit
def mask_rule(scores, query, key, before, after):
    """Minus infinity where a query does not see a key by their positions, which broadcast to scores.

    A key below 0 has no position: it is of a prefix, which every query sees. See `ElementRule`; at least one bound is
    not None.
    """
    offset = key - query
    if before is None:
        is_seen = offset <= after
    elif after is None:
        is_seen = offset >= -before
    else:
        is_seen = (offset <= after) & (offset >= -before)
    return tl.where(is_seen | (key < 0), scores, float("-inf"))


@triton.jit
def load_rows(x_ptr, token, stride, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows `token` [R] of x, zero where the token is negative."""
    offs_d = tl.arange(0, BLOCK_D)
    x_ptrs = x_ptr + (token.to(tl.int64) * stride)[:, None] + offs_d[None, :]
    mask = (token >= 0)[:, None] if BLOCK_D == D else (token >= 0)[:, None] & (offs_d < D)[None, :]
    return tl.load(x_ptrs, mask=mask, other=0.0)  # [R, BLOCK_D]


@triton.jit
def load_tile(x_ptr, first, offs_row, stride, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """The rows `offs_row` (in elements) after token `first` of x: a tile of a block without padding."""
    offs_d = tl.arange(0, BLOCK_D)
    x_ptrs = x_ptr + first * stride + offs_row[:, None] + offs_d[None, :]
    return tl.load(x_ptrs) if BLOCK_D == D else tl.load(x_ptrs, mask=(offs_d < D)[None, :], other=0.0)  # [R, BLOCK_D]


@triton.jit
def store_rows(x_ptr, token, stride, x, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write rows [R, BLOCK_D] to the tokens of x that are not negative."""
    offs_d = tl.arange(0, BLOCK_D)
    x_ptrs = x_ptr + (token.to(tl.int64) * stride)[:, None] + offs_d[None, :]
    mask = (token >= 0)[:, None] & (offs_d < D)[None, :]
    tl.store(x_ptrs, x.to(x_ptr.dtype.element_ty), mask=mask)
