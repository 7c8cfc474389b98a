"""Statistics over processes, each of which took samples of the same call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median, stdev
from typing import Literal

from bsa_bench.stats.samples import median_interval

IntervalMethod = Literal["samples of one process", "order statistics", "hierarchical bootstrap"]
BOOTSTRAP_FROM = 6
"""From how many processes on: with fewer, the extremes of their medians are the exact interval that there is."""
BOOTSTRAP_ROUNDS = 2000
#: Two groups of processes are two modes if the gap between them is this many times the spread inside them.
_GAP_OVER_SPREAD, _LEAST_GAP, _LEAST_IN_MODE = 4.0, 0.02, 2


@dataclass(frozen=True)
class ProcessSummary:
    """What several processes say of one call.

    Attributes:
        num_processes: how many; of one, the interval says nothing of how far another process would be off.
        median: of the processes' medians.
        low, high, interval_level, method: the interval of that median, the coverage that it has, and how it was made.
        within, between: standard deviation over the mean, of the samples in a process (the median over processes), and
            of the processes' medians (0 for one process).
        modes: the centres of two groups of processes where there are two, else empty.
    """

    num_processes: int
    median: float
    low: float
    high: float
    interval_level: float
    method: IntervalMethod
    within: float
    between: float
    modes: tuple[float, ...] = ()


def summarise_processes(processes: Sequence[Sequence[float]], *, level: float = 0.95, seed: int = 0) -> ProcessSummary:
    """Summarise the samples of at least one process; nothing is left out.

    Args:
        processes: the samples of each, in seconds (or any unit), at least one each.
        level: coverage asked of the interval.
        seed: of the bootstrap's random draws.

    Raises:
        ValueError: there is no process, a process has no sample, or a sample is not finite.
    """
    if not processes or not all(processes):
        raise ValueError("processes: expected at least one with at least one sample each")
    if not all(math.isfinite(sample) for process in processes for sample in process):
        raise ValueError("processes: expected finite samples")
    medians = sorted(median(process) for process in processes)
    method: IntervalMethod
    if len(medians) == 1:
        method, (low, high, reached) = "samples of one process", median_interval(sorted(processes[0]), level)
    elif len(medians) < BOOTSTRAP_FROM:
        method, (low, high, reached) = "order statistics", median_interval(medians, level)
    else:
        method, reached = "hierarchical bootstrap", level
        low, high = hierarchical_bootstrap(processes, level=level, seed=seed)
    return ProcessSummary(
        num_processes=len(medians),
        median=median(medians),
        low=low,
        high=high,
        interval_level=reached,
        method=method,
        within=median(variation(process) for process in processes),
        between=variation(medians),
        modes=two_modes(medians),
    )


def hierarchical_bootstrap(
    processes: Sequence[Sequence[float]], *, level: float = 0.95, rounds: int = BOOTSTRAP_ROUNDS, seed: int = 0
) -> tuple[float, float]:
    """Interval of the median of process medians: draw processes, then samples in each, with replacement.

    Args:
        processes: the samples of each.
        level: coverage of the percentile interval.
        rounds: how often the whole is drawn.
        seed: of the draws.
    """
    import numpy as np

    draws = np.random.default_rng(seed)
    arrays = [np.asarray(process, dtype=np.float64) for process in processes]
    # The medians of redrawn samples, for each process: which of them stand in a round is drawn afterwards.
    redrawn = np.stack([np.median(draws.choice(a, size=(rounds, len(a))), axis=1) for a in arrays])
    chosen = draws.integers(len(arrays), size=(rounds, len(arrays)))
    figures = np.median(redrawn[chosen, np.arange(rounds)[:, None]], axis=1)
    low, high = np.quantile(figures, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def variation(values: Sequence[float]) -> float:
    """Standard deviation over mean; 0 for one value."""
    mean = math.fsum(values) / len(values)
    return stdev(values) / mean if len(values) > 1 and mean else 0.0


def two_modes(values: Sequence[float]) -> tuple[float, ...]:
    """The centres of two groups of values if they are clearly two, else nothing.

    Clearly: at least two values in each, and between them a gap of at least 2 % of the median that is four times the
    larger spread inside a group. Few values never show two modes by chance this way, but may hide them.
    """
    ordered = sorted(values)
    if len(ordered) < 2 * _LEAST_IN_MODE:
        return ()
    gaps = [b - a for a, b in pairwise(ordered)]
    places = range(_LEAST_IN_MODE - 1, len(ordered) - _LEAST_IN_MODE)
    cut = max(places, key=lambda place: gaps[place])
    lower, upper = ordered[: cut + 1], ordered[cut + 1 :]
    spread = max(lower[-1] - lower[0], upper[-1] - upper[0])
    is_wide = gaps[cut] > _LEAST_GAP * abs(median(ordered)) and gaps[cut] > _GAP_OVER_SPREAD * spread
    return (median(lower), median(upper)) if is_wide else ()


def geometric_mean(ratios: Sequence[float]) -> float:
    """The geometric mean, taken in logs.

    Raises:
        ValueError: there is no ratio, or one that is not finite and above zero.
    """
    if not ratios or not all(math.isfinite(ratio) and ratio > 0 for ratio in ratios):
        raise ValueError(f"ratios: expected finite ones above zero, got {list(ratios)[:8]}")
    return math.exp(math.fsum(map(math.log, ratios)) / len(ratios))
