"""Statistics of the samples of one process."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class Summary:
    """Order statistics of one sample; the interval is the exact one of the median.

    `interval_level` is the coverage really reached, for few samples less than what was asked for.
    """

    num_samples: int
    median: float
    low: float
    high: float
    interval_level: float
    q1: float
    q3: float
    p95: float
    minimum: float
    mean: float
    variation: float


def quantile(ordered: Sequence[float], share: float) -> float:
    """Linear interpolation between the two nearest order statistics of an ascending, non-empty sequence."""
    position = share * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def median_interval(ordered: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Distribution-free interval of the median from order statistics (binomial(n, 1/2)).

    Returns:
        Low, high and the coverage that this pair of order statistics has: the narrowest symmetric pair that reaches
        `level`, or the extremes where none does.
    """
    rank, coverage = _median_rank(len(ordered), level)
    return ordered[rank], ordered[-1 - rank], coverage


@lru_cache(maxsize=4096)
def _median_rank(n: int, level: float) -> tuple[int, float]:
    """Which order statistics bound the median of `n` samples, counted from either end, and their coverage."""
    tail = 0.0
    outer = 0
    for k in range(n // 2):
        tail_next = tail + math.comb(n, k) / 2**n
        if 1 - 2 * tail_next < level:
            break
        tail, outer = tail_next, k + 1
    rank = max(outer - 1, 0)
    coverage = 1 - 2 * sum(math.comb(n, i) for i in range(rank + 1)) / 2**n
    return rank, max(coverage, 0.0)


def summarise(samples: Sequence[float]) -> Summary:
    """Summarise at least one finite sample.

    Raises:
        ValueError: `samples` is empty or holds a value that is not finite.
    """
    if not samples or not all(math.isfinite(s) for s in samples):
        raise ValueError(f"samples: expected at least one finite value, got {list(samples)[:8]}")
    ordered = sorted(samples)
    low, high, level = median_interval(ordered)
    mean = math.fsum(ordered) / len(ordered)
    spread = math.sqrt(math.fsum((s - mean) ** 2 for s in ordered) / (len(ordered) - 1)) if len(ordered) > 1 else 0.0
    return Summary(
        num_samples=len(ordered),
        median=quantile(ordered, 0.5),
        low=low,
        high=high,
        interval_level=level,
        q1=quantile(ordered, 0.25),
        q3=quantile(ordered, 0.75),
        p95=quantile(ordered, 0.95),
        minimum=ordered[0],
        mean=mean,
        variation=spread / mean if mean else 0.0,
    )
