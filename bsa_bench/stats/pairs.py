"""Statistics of pairs: two processes measured side by side, and the log ratio of what they took.

A pair's log ratio is log(head / base): above zero the head is slower. scipy has the tests; nothing here re-makes one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist, fmean, median

from bsa_bench.stats.samples import median_interval

_RANK_EFFICIENCY = 0.955
"""Of the signed-rank test against the t test, on normal values."""
_LEAST_TURNS = 8
_OUTLIER_SHARE = 1e-3
"""A group is noisier than the others if chance makes one in so many as noisy."""


@dataclass(frozen=True)
class PairSummary:
    """What pairs say: the median log ratio and its interval.

    `low` and `high` are the median +- the t quantile times the standard error of a median of normal values, with the
    standard deviation `sd`, which may come from more cases than this one, or from calibration; `num_freedoms` says from
    how many values. Infinite where the pairs are too few to say.
    """

    log_ratios: tuple[float, ...]
    log_ratio: float
    low: float
    high: float
    sd: float
    num_freedoms: int

    @property
    def num_pairs(self) -> int:
        """How many pairs there are."""
        return len(self.log_ratios)

    @cached_property
    def p_slower(self) -> float:
        """One-sided p of the signed-rank test that the head is slower."""
        return signed_rank_p(self.log_ratios)

    @cached_property
    def p_faster(self) -> float:
        """One-sided p of the signed-rank test that the head is faster."""
        return signed_rank_p([-ratio for ratio in self.log_ratios])

    @property
    def p_of_noise(self) -> float:
        """One-sided p of the median by `sd`: how often pairs of equal sides are as far off, and on this side."""
        from scipy.special import stdtr

        error = median_error(self.sd, len(self.log_ratios))
        if not error:
            return float(not self.log_ratio)
        return float(stdtr(self.num_freedoms, -abs(self.log_ratio) / error)) if self.num_freedoms else 0.5

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


def lockstep_error(base: Sequence[float], head: Sequence[float]) -> float:
    """The standard error of `lockstep_log_ratio`, from the median absolute deviation.

    Args:
        base, head: seconds, sampled in turn.

    Returns:
        Infinity below 8 turns, or where a time is not finite and above zero.
    """
    if len(base) < _LEAST_TURNS or not all(math.isfinite(sample) and sample > 0 for sample in (*base, *head)):
        return math.inf
    ratios = [math.log(after / before) for before, after in zip(base, head, strict=True)]
    middle = median(ratios)
    sd = median(abs(ratio - middle) for ratio in ratios) / NormalDist().inv_cdf(0.75)
    return median_error(sd, len(ratios))


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
        ValueError: there is no pair, a log ratio that is not finite, or `sd` comes without its degrees of freedom.
    """
    _refuse_unusable(log_ratios)
    if sd is None:
        sd, num_freedoms = pooled_sd([log_ratios]) or (math.inf, 0)
    elif not num_freedoms or num_freedoms < 1 or not sd >= 0:
        raise ValueError(f"sd: expected one from 0 with at least 1 degree of freedom, got {sd} with {num_freedoms}")
    num_freedoms = num_freedoms or 0
    half = _t_quantile(num_freedoms, (1 + level) / 2) * median_error(sd, len(log_ratios)) if sd else 0.0
    middle = median(log_ratios)
    return PairSummary(
        log_ratios=tuple(log_ratios),
        log_ratio=middle,
        low=middle - half,
        high=middle + half,
        sd=sd,
        num_freedoms=num_freedoms,
    )


def median_error(sd: float, number: int) -> float:
    """Standard error of the median of so many normal values; the fit is within 0.7 % of the exact figure."""
    if number <= 2:
        return sd / math.sqrt(number)
    return sd * math.sqrt(math.pi / 2 / (number + (0.48 if number % 2 else 1.3)))


def signed_rank_p(log_ratios: Sequence[float]) -> float:
    """One-sided exact p of Wilcoxon's signed-rank test: how likely log ratios so far above zero are by chance.

    Ratios of exactly 1 say nothing and are left out, as Wilcoxon did.

    Raises:
        ValueError: there is no pair, or a log ratio that is not finite.
    """
    from scipy.stats import wilcoxon

    _refuse_unusable(log_ratios)
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
    return _pool([_spread(group) for group in groups])


def shared_sd(groups: Sequence[Sequence[float]]) -> tuple[float, int] | None:
    """As `pooled_sd`, without groups that are far noisier than the most.

    The pool says how much the machine disturbs a pair of any case. One case with two modes, or one pair that something
    else ran into, would otherwise widen what is called the same for all cases.
    """
    from scipy.special import chdtri

    spreads = [spread for group in groups if (spread := _spread(group))[1]]
    if not spreads:
        return None
    # A group's sum of squares over the true variance is chi-squared distributed; its median is not moved by a few.
    variance = median(squares / float(chdtri(freedoms, 0.5)) for squares, freedoms in spreads)
    return _pool([s for s in spreads if s[0] <= variance * float(chdtri(s[1], _OUTLIER_SHARE))])


def is_noisier(own: tuple[float, int], known: tuple[float, int], *, share: float = 0.01) -> bool:
    """Whether a standard deviation is larger than the known one by more than chance, by the F test.

    Args:
        own, known: standard deviations and their degrees of freedom.
        share: how often equal ones may be called different.
    """
    from scipy.special import fdtri

    return own[0] > known[0] * math.sqrt(float(fdtri(own[1], known[1], 1 - share)))


def detectable_effect(sd: float, num_pairs: int, *, limit: float, significance: float, power: float = 0.8) -> float:
    """The smallest true log ratio that is called a change at least 8 times in 10, or as often as `power` says.

    A change is called when the median of the pairs passes `limit` and the test reaches `significance`; the larger of
    what the two need.

    Args:
        sd: standard deviation between pairs.
        num_pairs: how many are measured.
        limit: a log ratio.
        significance: one-sided.
        power: how often.
    """
    by_limit = limit + NormalDist().inv_cdf(power) * median_error(sd, num_pairs)
    error = sd / math.sqrt(_RANK_EFFICIENCY * num_pairs)
    # The test knows the spread from these very pairs, as a t test does.
    needed = _t_quantile(num_pairs - 1, 1 - significance) + _t_quantile(num_pairs - 1, power)
    return max(by_limit, needed * error) if sd else limit


def median_log_ratio_interval(log_ratios: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Low, high and coverage of the exact interval of the median from order statistics; it assumes no shape.

    Raises:
        ValueError: there is no pair, or a log ratio that is not finite.
    """
    _refuse_unusable(log_ratios)
    return median_interval(sorted(log_ratios), level)


def _spread(group: Sequence[float]) -> tuple[float, int]:
    """The sum of squares around the mean, and its degrees of freedom."""
    if not group:
        return 0.0, 0
    _refuse_unusable(group)
    centre = fmean(group)
    return math.fsum((value - centre) ** 2 for value in group), len(group) - 1


def _pool(spreads: Sequence[tuple[float, int]]) -> tuple[float, int] | None:
    freedoms = sum(spread[1] for spread in spreads)
    return (math.sqrt(math.fsum(spread[0] for spread in spreads) / freedoms), freedoms) if freedoms else None


def _refuse_unusable(log_ratios: Sequence[float]) -> None:
    if not log_ratios or not all(map(math.isfinite, log_ratios)):
        raise ValueError(f"log ratios: expected at least one finite value, got {list(log_ratios)[:8]}")


def _t_quantile(num_freedoms: int, share: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(num_freedoms, share)) if num_freedoms else math.inf
