"""Selection, second and third launch: second moments of the pooled keys, then thresholds, scores and one bit a pair.

Shape legend: `B` batch, `H` heads, `Nq`/`Nk` query and KV blocks, `D` head size, padded to `BLOCK_D`. Head numbers are
64 bits wide, so that every address that is computed from them is too.

The plain torch twin is `select_blocks` in `blocks`; the host's part, with what the launches cost, is `fused`, the first
launch `triton_pool`, all in this package.
"""
# The types inside jitted functions are Triton's.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bsa_kernels.methods.bsa.fused import (
    CONSTANT_ROUNDINGS,
    WORD,
    FusedSelection,
    bits_options,
    check_pooled,
    check_tokens,
    moments_options,
    quantile,
    unsupported,
)
from bsa_kernels.methods.bsa.options import BsaOptions
from bsa_kernels.methods.bsa.stages import grids
from bsa_kernels.methods.bsa.triton_pool import launch_pool, load_rows

_WORD = tl.constexpr(WORD)


@triton.jit
def power_for(largest):
    """A power of two that brings numbers up to `largest` below 2^15, in the range of fp16."""
    exponent = tl.maximum(largest.to(tl.int32, bitcast=True) >> 23, 14)
    return ((268 - exponent) << 23).to(tl.float32, bitcast=True)


@triton.jit
def split(x):
    """Two fp16 numbers for each fp32 one, which together have 22 of its 24 bits."""
    high = x.to(tl.float16)
    return high, (x - high.to(tl.float32)).to(tl.float16)


@triton.jit
def split_dot(a_high, a_low, b_high, b_low, acc):
    """Add the product of [X, D] and [D, Y] to acc [X, Y], exact to 22 bits: tensor cores have no fp32."""
    acc = tl.dot(a_low, b_high, acc)
    acc = tl.dot(a_high, b_low, acc)
    return tl.dot(a_high, b_high, acc)


@triton.jit(do_not_specialize=["num_kv"])
def moments_kernel(
    k_ptr,  # [B, H, Nk, D]
    mean_ptr,  # [B, H, D]
    moments_ptr,  # [B, H, D, D]
    largest_ptr,  # [B, H]
    num_kv,
    KEYS: tl.constexpr,
    PART: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The mean of a head's pooled keys, `PART` rows of their second moments about it, and the length of the longest.

    Two passes, the second over centred keys, whose remaining mean corrects both: nothing cancels, not even where the
    keys differ by a hundred thousandth of their length.
    """
    PARTS: tl.constexpr = BLOCK_D // PART
    pid = tl.program_id(0)
    head = (pid // PARTS).to(tl.int64)
    k_ptr += head * num_kv * D
    offs_d = tl.arange(0, BLOCK_D)
    offs_part = (pid % PARTS) * PART + tl.arange(0, PART)
    offs_key = tl.arange(0, KEYS)

    total = tl.zeros([KEYS, BLOCK_D], tl.float32)
    total_part = tl.zeros([KEYS, PART], tl.float32)
    longest = tl.zeros([KEYS], tl.float32)
    for start in range(0, num_kv, KEYS):
        row = (start + offs_key).to(tl.int64)[:, None] * D
        mask_key = (start + offs_key < num_kv)[:, None]
        k = tl.load(k_ptr + row + offs_d[None, :], mask=mask_key & (offs_d < D)[None, :], other=0.0)
        total += k
        longest = tl.maximum(longest, tl.sum(k * k, 1))
        total_part += tl.load(k_ptr + row + offs_part[None, :], mask=mask_key & (offs_part < D)[None, :], other=0.0)
    mean = tl.sum(total, 0) / num_kv
    mean_part = tl.sum(total_part, 0) / num_kv
    largest = tl.sqrt_rn(tl.max(longest, 0))
    # Centred keys are at most twice as long as the longest.
    power = power_for(2 * largest)

    left = tl.zeros([KEYS, BLOCK_D], tl.float32)
    left_part = tl.zeros([KEYS, PART], tl.float32)
    acc = tl.zeros([PART, BLOCK_D], tl.float32)
    for start in range(0, num_kv, KEYS):
        row = (start + offs_key).to(tl.int64)[:, None] * D
        mask_key = (start + offs_key < num_kv)[:, None]
        k = tl.load(k_ptr + row + offs_d[None, :], mask=mask_key & (offs_d < D)[None, :], other=0.0)
        part = tl.load(k_ptr + row + offs_part[None, :], mask=mask_key & (offs_part < D)[None, :], other=0.0)
        k = tl.where(mask_key, (k - mean[None, :]) * power, 0.0)
        part = tl.where(mask_key, (part - mean_part[None, :]) * power, 0.0)
        left += k
        left_part += part
        part_high, part_low = split(part)
        k_high, k_low = split(k)
        acc = split_dot(tl.trans(part_high), tl.trans(part_low), k_high, k_low, acc)  # [PART, BLOCK_D]
    left_mean = tl.sum(left, 0) / num_kv
    left_mean_part = tl.sum(left_part, 0) / num_kv
    moments = (acc / num_kv - left_mean_part[:, None] * left_mean[None, :]) / power / power
    moments_ptrs = moments_ptr + head * D * D + offs_part[:, None] * D + offs_d[None, :]
    tl.store(moments_ptrs, moments, mask=(offs_part < D)[:, None] & (offs_d < D)[None, :])
    if pid % PARTS == 0:
        tl.store(mean_ptr + head * D + offs_d, mean + left_mean / power, mask=offs_d < D)
        tl.store(largest_ptr + head, largest)


@triton.jit
def centred_scores(q_high, q_low, mean, power, k_ptr, start, num_kv, KEYS: tl.constexpr, D: tl.constexpr):
    """Products of queries with `power` times the `KEYS` pooled keys from `start`, less their mean over all keys.

    `mean` comes times `power`. Past the last key stands the last key again.
    """
    offs_d = tl.arange(0, q_high.shape[1])
    offs_key = tl.minimum(start + tl.arange(0, KEYS), num_kv - 1)
    k_ptrs = k_ptr + offs_key.to(tl.int64)[:, None] * D + offs_d[None, :]
    k = tl.load(k_ptrs, mask=(offs_d < D)[None, :], other=0.0)  # [KEYS, BLOCK_D]
    k_high, k_low = split(k * power - mean[None, :])
    zero = tl.zeros([q_high.shape[0], KEYS], tl.float32)
    return split_dot(q_high, q_low, tl.trans(k_high), tl.trans(k_low), zero)  # [ROWS, KEYS]


@triton.jit
def valid_bits(word, num_kv):
    """All ones, but for the bits past the last block."""
    left = num_kv - word * _WORD
    return tl.where(left >= _WORD, -1, (1 << (left % _WORD)) - 1)


@triton.jit(do_not_specialize=["num_q", "num_kv", "quantile", "sign", "tolerance"])
def bits_kernel(
    q_ptr,  # [B, H, Nq, D]
    k_ptr,  # [B, H, Nk, D]
    mean_ptr,  # [B, H, D]
    moments_ptr,  # [B, H, D, D]
    largest_ptr,  # [B, H]
    bits_ptr,  # [B, H, Nq, ceil(Nk/32)]
    num_q,
    num_kv,
    quantile,
    sign,  # of the softmax scale, whose size changes nothing: 1, -1 or 0
    tolerance,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PART: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program per tile of pooled queries, which streams the pooled keys of its head and stores one bit a pair.

    A row's mean score is q.mean, its variance q^T C q with the second moments C about the mean; scores are products
    with centred keys, so that score minus mean is what is computed. Rows and keys are scaled by powers of two, which
    changes no decision.
    """
    row_tiles = tl.cdiv(num_q, ROWS)
    num_words = tl.cdiv(num_kv, _WORD)
    pid = tl.program_id(0)
    head = (pid // row_tiles).to(tl.int64)
    offs_row = (pid % row_tiles) * ROWS + tl.arange(0, ROWS)
    mask_row = offs_row < num_q
    offs_d = tl.arange(0, BLOCK_D)
    k_ptr += head * num_kv * D
    bits_ptrs = bits_ptr + (head * num_q + offs_row) * num_words
    q_ptr += head * num_q * D
    q = load_rows(q_ptr, offs_row, mask_row, D, D, BLOCK_D)  # [ROWS, BLOCK_D]
    power_row = sign * power_for(tl.max(tl.abs(q), 1))
    q *= power_row[:, None]
    q_high, q_low = split(q)
    mean = tl.load(mean_ptr + head * D + offs_d, mask=offs_d < D, other=0.0)
    largest = tl.load(largest_ptr + head)
    power = power_for(2 * largest)
    mean *= power
    # A row whose spread is within this is constant: the rest is error of the products.
    tolerance *= tl.sqrt_rn(tl.sum(q * q, 1)) * (largest * power)

    moments_ptr += head * D * D
    diagonal = tl.load(moments_ptr + offs_d * (D + 1), mask=offs_d < D, other=0.0)
    power_moments = power_for(tl.max(diagonal, 0))
    variance = tl.zeros([ROWS], tl.float32)
    for first in range(0, BLOCK_D, PART):
        offs_part = first + tl.arange(0, PART)
        moments = load_rows(moments_ptr, offs_part, offs_part < D, D, D, BLOCK_D)  # [PART, BLOCK_D]
        high, low = split(moments * power_moments)
        zero = tl.zeros([ROWS, PART], tl.float32)
        products = split_dot(q_high, q_low, tl.trans(high), tl.trans(low), zero)  # [ROWS, PART]
        part_ptrs = q_ptr + offs_row.to(tl.int64)[:, None] * D + offs_part[None, :]
        part = tl.load(part_ptrs, mask=mask_row[:, None] & (offs_part < D)[None, :], other=0.0)
        variance += tl.sum(products * part, 1)
    variance *= power_row / power_moments
    threshold = quantile * tl.sqrt_rn(tl.maximum(variance, 0.0)) * power

    low = tl.full([ROWS], float("inf"), tl.float32)
    high = tl.full([ROWS], float("-inf"), tl.float32)
    WORDS: tl.constexpr = KEYS // _WORD
    ones = (1 << (tl.arange(0, KEYS) % _WORD))[None, :]
    for start in range(0, num_kv, KEYS):
        scores = centred_scores(q_high, q_low, mean, power, k_ptr, start, num_kv, KEYS, D)
        low = tl.minimum(low, tl.min(scores, 1))
        high = tl.maximum(high, tl.max(scores, 1))
        seen = tl.where(scores >= threshold[:, None], ones, 0)
        word = start // _WORD + tl.arange(0, WORDS)
        # [ROWS, WORDS]
        words = tl.sum(tl.reshape(seen, (ROWS, WORDS, _WORD)), 2) & valid_bits(word, num_kv)[None, :]
        tl.store(bits_ptrs[:, None] + word[None, :], words, mask=mask_row[:, None] & (word < num_words)[None, :])

    is_constant = high - low <= tolerance
    is_empty = ~(is_constant | (high >= threshold))
    if tl.max((mask_row & (is_constant | is_empty)).to(tl.int32), 0) > 0:
        # Rare: a row that keeps all, or whose highest block is below the threshold and is kept nevertheless.
        best = tl.zeros([ROWS], tl.int32)
        best_score = tl.full([ROWS], float("-inf"), tl.float32)
        for start in range(0, num_kv, KEYS):
            scores = centred_scores(q_high, q_low, mean, power, k_ptr, start, num_kv, KEYS, D)
            # A row without a number keeps the first block.
            top, place = tl.max(tl.where(scores >= float("-inf"), scores, float("-inf")), 1, return_indices=True)
            best = tl.where(top > best_score, tl.minimum(start + place, num_kv - 1), best)
            best_score = tl.maximum(best_score, top)
        # Other threads of the program stored these words before.
        tl.debug_barrier()
        for word in range(num_words):
            tl.store(bits_ptrs + word, valid_bits(word, num_kv), mask=mask_row & is_constant)
        tl.store(bits_ptrs + best // _WORD, 1 << (best % _WORD), mask=mask_row & is_empty)


def select_block_bits(pooled_q: Tensor, pooled_k: Tensor, *, scale: float, kv_density: float) -> Tensor:
    """Decide by the rule `statistical` which KV blocks each query block sees.

    Args:
        pooled_q: [B, H, Nq, D] fp32.
        pooled_k: [B, H, Nk, D] fp32.
        scale: of the scores; only its sign matters, and whether it is zero.
        kv_density: target share of kept blocks, above 0 and at most 1; 1 keeps everything.

    Returns:
        `block_bits` [B, H, Nq, ceil(Nk/32)] int32 as in `BlockPlan`. A row of constant scores keeps all, and the
        highest block is always kept.

    Raises:
        ValueError: the pooled blocks are not what the kernels take.
    """
    check_pooled("pooled_q", pooled_q)
    check_pooled("pooled_k", pooled_k)
    b, h, num_q, d = pooled_q.shape
    num_kv = pooled_k.shape[2]
    device = pooled_q.device
    bits = torch.empty(b, h, num_q, -(-num_kv // WORD), dtype=torch.int32, device=device)
    if kv_density == 1:
        bits.fill_(-1)[..., num_kv // WORD :].fill_((1 << num_kv % WORD) - 1)
        return bits
    mean, moments, largest = key_moments(pooled_k)
    options = bits_options(d)
    with torch.cuda.device_of(pooled_q):
        bits_kernel[(b * h * triton.cdiv(num_q, options["ROWS"]),)](
            pooled_q.contiguous(),
            pooled_k.contiguous(),
            mean,
            moments,
            largest,
            bits,
            num_q,
            num_kv,
            quantile(kv_density),
            float((scale > 0) - (scale < 0)),
            CONSTANT_ROUNDINGS * torch.finfo(torch.float32).eps,
            **options,
        )
    return bits


def key_moments(pooled_k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Describe the pooled keys [B, H, Nk, D] fp32 of each head.

    Returns:
        Their mean [B, H, D], second moments about it [B, H, D, D], and the length of the longest key [B, H], all fp32.
    """
    b, h, num_kv, d = pooled_k.shape
    mean, moments, largest = (torch.empty(b, h, *shape, device=pooled_k.device) for shape in ((d,), (d, d), ()))
    options = moments_options(d)
    with torch.cuda.device_of(pooled_k):
        moments_kernel[(b * h * (options["BLOCK_D"] // options["PART"]),)](
            pooled_k.contiguous(), mean, moments, largest, num_kv, **options
        )
    return mean, moments, largest


def select(q: Tensor, k: Tensor, options: BsaOptions, *, scale: float, tiled: bool = False) -> FusedSelection:
    """Select query rows and KV blocks, in three launches, without a copy of q or k, gradient or host synchronisation.

    Args:
        q, k: as `select_queries` takes q, each in the blocks of its own grid.
        scale: of the logits.

    Raises:
        ValueError: options or inputs that the kernels do not take; see `fused.unsupported`.
    """
    if reason := unsupported(options, head_dim=q.shape[-1], dtype=q.dtype):
        raise ValueError(f"{reason}; use bsa_kernels.methods.bsa.stages.select")
    q_grid, kv_grid = grids(options)
    check_tokens("q", q, q_grid, tiled=tiled)
    check_tokens("k", k, kv_grid, tiled=tiled)
    queries, pooled_k = launch_pool(
        q, q_grid, k, kv_grid, query_keep=options.query_keep, fill=options.fill, tiled=tiled
    )
    bits = select_block_bits(queries.pooled_q, pooled_k, scale=scale, kv_density=options.kv_density)
    return FusedSelection(queries, pooled_k, bits)
