"""KV selection: which KV blocks each query block attends to.

Pooled queries meet pooled keys; a row of block scores keeps the blocks that pass a threshold. Source: arXiv 2509.01085
(a statistical threshold per query block, lengths vary); the formula is second-hand, `mean + std * U(1 - k/n)`, and
reading U as the standard normal quantile with the population deviation is this project's decision.

Shape legend: `B` batch, `H` heads, `Nq`/`Nk` query and KV blocks, `M` slots a block, `D` head size.
"""

from __future__ import annotations

from statistics import NormalDist

import torch
from torch import Tensor

from bsa_kernels.grid import BlockGrid
from bsa_kernels.methods.bsa.options import MASS_FLOOR, MASS_TARGET, KvRule, kept_count

# A row whose spread is below this many roundings of its magnitude is constant: the rest is error of the dot products.
_CONSTANT = 16


def pool_kept(q_tiles: Tensor, kept: Tensor, num_kept: Tensor) -> Tensor:
    """Mean of the kept queries of each block: [B, H, N*M, D], [B, H, N, M], [B, H, N] -> [B, H, N, D], fp32 or fp64."""
    n, m = kept.shape[2:]
    q = _wide(q_tiles).unflatten(2, (n, m))
    return (kept.to(q.dtype).unsqueeze(-2) @ q).squeeze(-2) / num_kept.unsqueeze(-1)


def pool_real(k_tiles: Tensor, grid: BlockGrid) -> Tensor:
    """Mean of the real keys of each block: [B, H, N*M, D] (padding zero) -> [B, H, N, D], fp32 or fp64."""
    k = _wide(k_tiles).unflatten(2, (grid.num_blocks, grid.block_size))
    return k.sum(-2) / grid.real_counts(k.device).unsqueeze(-1)


def score_blocks(pooled_q: Tensor, pooled_k: Tensor, *, scale: float) -> tuple[Tensor, Tensor]:
    """Score every pair of blocks: [B, H, Nq, D] and [B, H, Nk, D] -> scores and their magnitude.

    Returns:
        `S` [B, H, Nq, Nk], the scaled products; and the largest that a product in each row could be, |q| max|k| scale
        [B, H, Nq, 1], to which the rounding of all of them is proportional, also where they cancel to near zero.
    """
    length_q, length_k = (torch.linalg.vector_norm(x, dim=-1) for x in (pooled_q, pooled_k))
    magnitude = length_q.unsqueeze(-1) * length_k.amax(-1, keepdim=True).unsqueeze(-1) * abs(scale)
    return (pooled_q @ pooled_k.transpose(-1, -2)) * scale, magnitude


def select_blocks(scores: Tensor, *, kv_density: float, rule: KvRule, magnitude: Tensor | None = None) -> Tensor:
    """Decide for each query block which KV blocks it sees.

    Args:
        scores: [B, H, Nq, Nk], fp32 or fp64, the scaled products of pooled queries and keys, before any softmax.
        kv_density: k/N, the target share of kept blocks, above 0 and at most 1; 1 keeps everything. `mass` ignores it
            below 1.
        rule: `statistical`: keep S >= mean + std * Phi^-1(1 - k/N) over the row. `topk`: the round(k) highest.
            `mass`: the highest until their softmax sums to 0.9, at least 4. `softmax_stat`: `statistical` on the
            softmax of the row.
        magnitude: see `score_blocks`, default the largest score of the row; a row is constant if its spread is within
            16 roundings of it.

    Returns:
        [B, H, Nq, Nk] bool; a constant row keeps all (but under `topk` and `mass`, which keep their number); at least
        one block, the highest, is always kept; ties go to the lowest index.
    """
    n = scores.shape[-1]
    if kv_density == 1:
        return torch.ones_like(scores, dtype=torch.bool)
    if rule == "topk":
        order = scores.argsort(dim=-1, descending=True, stable=True)[..., : kept_count(n, kv_density)]
        return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, True)
    if rule == "mass":
        mass, order = scores.softmax(-1).sort(dim=-1, descending=True, stable=True)
        before = mass.cumsum(-1) - mass
        take = (before < MASS_TARGET) | (torch.arange(n, device=scores.device) < MASS_FLOOR)
        return torch.zeros_like(take).scatter_(-1, order, take)
    values = scores.softmax(-1) if rule == "softmax_stat" else scores
    mean = values.mean(-1, keepdim=True)
    std = (values - mean).square().mean(-1, keepdim=True).sqrt()
    mask = values >= mean + std * NormalDist().inv_cdf(1 - kv_density)
    low, high = scores.aminmax(dim=-1, keepdim=True)
    largest = torch.maximum(low.abs(), high.abs()) if magnitude is None else magnitude
    tolerance = _CONSTANT * torch.finfo(scores.dtype).eps * largest
    best = scores.argmax(-1, keepdim=True)
    return (mask | (high - low <= tolerance)).scatter_(-1, best, True)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
