"""Statistics of pairs: two processes measured side by side, and the log ratio of what they took.

A pair's log ratio is log(head / base): above zero the head is slower. scipy has the tests; nothing here re-makes one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median, stdev

from bsa_bench.stats.samples import median_interval

_POWER_QUANTILE = 0.8416
"""Of the normal distribution at 80 %: the power for which a detectable effect is stated."""
_MEDIAN_OVER_MEAN = 1.2533
"""How much wider the median of normal values spreads than their mean."""


@dataclass(frozen=True)
class PairSummary:
    """What pairs say: the median log ratio, its interval, and one-sided p values of the signed-rank test.

    `low` and `high` are the median +- the t interval of a mean with the standard deviation `sd`, which comes from more
    cases than this one where it was pooled (`num_freedoms` of them), or from calibration.
    """

    num_pairs: int
    log_ratio: float
    low: float
    high: float
    sd: float
    num_freedoms: int
    p_slower: float
    p_faster: float

    @property
    def ratio(self) -> float:
        """Head over base."""
        return math.exp(self.log_ratio)


def lockstep_log_ratio(base: Sequence[float], head: Sequence[float]) -> float:
    """The log ratio of two processes that sampled in turn: the median over the turns.

    Raises:
        ValueError: the sides have no or not as many samples, or one that is not finite and above zero.
    """
    if not base or len(base) != len(head):
        raise ValueError(f"samples: expected as many of both sides, got {len(base)} and {len(head)}")
    if not all(math.isfinite(sample) and sample > 0 for sample in (*base, *head)):
        raise ValueError("samples: expected finite times above zero")
    return median(math.log(h / b) for b, h in zip(base, head, strict=True))


def summarise_pairs(
    log_ratios: Sequence[float], *, sd: float | None = None, num_freedoms: int | None = None, level: float = 0.95
) -> PairSummary:
    """Summarise the log ratios of at least one pair.

    Args:
        log_ratios: one for each pair of processes.
        sd: the standard deviation between pairs, where more is known of it than these say; else their own.
        num_freedoms: degrees of freedom behind `sd`.
        level: coverage of the interval.

    Raises:
        ValueError: there is no pair, or a log ratio that is not finite.
    """
    if not log_ratios or not all(map(math.isfinite, log_ratios)):
        raise ValueError(f"log ratios: expected at least one finite value, got {list(log_ratios)[:8]}")
    if sd is None:
        sd, num_freedoms = (stdev(log_ratios) if len(log_ratios) > 1 else math.inf), len(log_ratios) - 1
    half = _t_quantile(num_freedoms or 0, (1 + level) / 2) * sd / math.sqrt(len(log_ratios)) if sd else 0.0
    middle = median(log_ratios)
    return PairSummary(
        num_pairs=len(log_ratios),
        log_ratio=middle,
        low=middle - half,
        high=middle + half,
        sd=sd,
        num_freedoms=num_freedoms or 0,
        p_slower=signed_rank_p(log_ratios),
        p_faster=signed_rank_p([-ratio for ratio in log_ratios]),
    )


def signed_rank_p(log_ratios: Sequence[float]) -> float:
    """One-sided exact p of Wilcoxon's signed-rank test: how likely log ratios so far above zero are by chance."""
    from scipy.stats import wilcoxon

    moved = [ratio for ratio in log_ratios if ratio]
    if not moved:
        return 1.0
    has_ties = len({abs(ratio) for ratio in moved}) < len(moved)
    # Ranks that tie have no table; the permutation test of the same statistic is exact for so few.
    if has_ties:
        return _signed_rank_by_signs(moved)
    return float(wilcoxon(moved, alternative="greater", method="exact").pvalue)


def _signed_rank_by_signs(values: Sequence[float]) -> float:
    from scipy.stats import rankdata

    doubled = [round(2 * rank) for rank in rankdata([abs(value) for value in values])]
    seen = sum(rank for rank, value in zip(doubled, values, strict=True) if value > 0)
    ways = [1] + [0] * sum(doubled)
    for rank in doubled:
        for total in range(len(ways) - 1, rank - 1, -1):
            ways[total] += ways[total - rank]
    return sum(ways[seen:]) / 2 ** len(values)


def pooled_sd(groups: Sequence[Sequence[float]]) -> tuple[float, int] | None:
    """The standard deviation inside groups, pooled over them, and its degrees of freedom; None where there are none."""
    squares, freedoms = 0.0, 0
    for group in groups:
        centre = mean(group) if group else 0.0
        squares += math.fsum((value - centre) ** 2 for value in group)
        freedoms += max(len(group) - 1, 0)
    return (math.sqrt(squares / freedoms), freedoms) if freedoms else None


def detectable_effect(sd: float, num_pairs: int, *, limit: float, significance: float) -> float:
    """The smallest true log ratio that is called a change at least 8 times in 10.

    A change is called when the median of the pairs passes `limit` and the test reaches `significance`; the larger of
    what the two need.

    Args:
        sd: standard deviation between pairs.
        num_pairs: how many are measured.
        limit: a log ratio.
        significance: one-sided.
    """
    from scipy.stats import norm

    error = sd / math.sqrt(num_pairs)
    by_limit = limit + _POWER_QUANTILE * _MEDIAN_OVER_MEAN * error
    by_test = (float(norm.ppf(1 - significance)) + _POWER_QUANTILE) * error
    return max(by_limit, by_test)


def median_log_ratio_interval(log_ratios: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Low, high and coverage of the exact interval of the median from order statistics; it assumes no shape."""
    return median_interval(sorted(log_ratios), level)


def _t_quantile(num_freedoms: int, share: float) -> float:
    from scipy.stats import t

    return float(t.ppf(share, num_freedoms)) if num_freedoms else math.inf
