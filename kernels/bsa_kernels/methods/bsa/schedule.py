"""The sparsity schedule of training: dense first, sparser step by step."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Sparsity:
    """`kv_density` and `query_keep` for `make_bsa_plan`; `sparsity` is the KV target before rounding to blocks."""

    sparsity: float
    kv_density: float
    query_keep: float


def sparsity_at(step: int, num_blocks: int, *, every: int = 30, rise: float = 0.03, limit: float = 0.9) -> Sparsity:
    """Sparsity at a training step: `min(limit, rise * floor(step / every))`, k = ceil((1 - sparsity) * N).

    The query keep ratio is max(0.5, 1 - sparsity). Source: second-hand notes on arXiv 2509.01085 for the steps; reading
    the 0.9 as the KV target, and the query schedule, are this project's decisions.

    Raises:
        ValueError: `step` is negative or `num_blocks` below one.
    """
    if step < 0 or num_blocks < 1:
        raise ValueError(f"expected step >= 0 and num_blocks >= 1, got step={step}, num_blocks={num_blocks}")
    sparsity = min(limit, rise * (step // every))
    # 1e-9: (1 - 0.9) * 10 is 0.9999999999999998, and must not cost a block when it comes out the other side.
    kept = max(1, math.ceil((1 - sparsity) * num_blocks - 1e-9))
    return Sparsity(sparsity, min(1.0, kept / num_blocks), max(0.5, 1 - sparsity))
