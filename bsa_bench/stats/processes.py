"""Statistics over processes, each of which took samples of the same call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Literal

from bsa_bench.stats.samples import median_interval

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]

IntervalMethod = Literal["samples of one process", "order statistics", "hierarchical bootstrap"]
BOOTSTRAP_FROM = 9
"""From how many processes on. The bootstrap of 6 to 8 covers 89 to 93 % where 95 % were asked for (simulated), and
the order statistics of so few cover what they say."""
BOOTSTRAP_ROUNDS = 2000
#: Two groups are two modes if the gap between them is this many times the larger spread inside them, the second figure
#: for fewer than `_FEW` values, whose spread is too small by chance more often.
_GAP_OVER_SPREAD, _GAP_OVER_SPREAD_OF_FEW, _FEW = 4.0, 8.0, 6
_LEAST_GAP, _LEAST_IN_MODE = 0.02, 2


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
    _refuse_unusable(processes)
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

    Raises:
        ValueError: there is no process, a process has no sample, or a sample is not finite.
    """
    import numpy as np

    figures = _redrawn(processes, rounds, np.random.default_rng(seed))
    low, high = np.quantile(figures, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_ratio(
    base: Sequence[Sequence[float]],
    head: Sequence[Sequence[float]],
    *,
    level: float = 0.95,
    rounds: int = BOOTSTRAP_ROUNDS,
    seed: int = 0,
) -> tuple[float, float]:
    """Interval of head over base, each the median of process medians, of processes that are no pairs.

    Args and errors as of `hierarchical_bootstrap`.
    """
    import numpy as np

    draws = np.random.default_rng(seed)
    ratios = _redrawn(head, rounds, draws) / _redrawn(base, rounds, draws)
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _redrawn(processes: Sequence[Sequence[float]], rounds: int, draws: np.random.Generator) -> FloatArray:
    """The median of process medians in each of `rounds` draws of processes, and of samples in them."""
    _refuse_unusable(processes)
    import numpy as np

    chosen = draws.integers(len(processes), size=(rounds, len(processes)))
    medians = np.empty(chosen.shape)
    for place, process in enumerate(processes):
        is_here = chosen == place
        medians[is_here] = _redrawn_medians(np.sort(np.asarray(process, dtype=np.float64)), is_here.sum(), draws)
    return np.asarray(np.median(medians, axis=1))


def _redrawn_medians(ordered: FloatArray, number: int, draws: np.random.Generator) -> FloatArray:
    """Medians of `number` samples, each as large as `ordered` (ascending) and drawn from it with replacement.

    A draw is `ordered[floor(n * u)]` with uniform u, and rises with u: so the order statistics of the draws are those
    of n uniform numbers, which are beta distributed, and none but the middle ones need be drawn.
    """
    import numpy as np

    size = len(ordered)
    upper = size // 2 + 1
    below = draws.beta(size - upper + 1, upper, size=number)  # the middle one of an odd number, else the lower
    first = ordered[(below * size).astype(int).clip(max=size - 1)]
    if size % 2:
        return first
    # Of the size / 2 uniform numbers above the lower middle one, the least.
    above = below + (1 - below) * draws.beta(1, size // 2, size=number)
    return np.asarray((first + ordered[(above * size).astype(int).clip(max=size - 1)]) / 2)


def _refuse_unusable(processes: Sequence[Sequence[float]]) -> None:
    if not processes or not all(len(process) for process in processes):
        raise ValueError("processes: expected at least one with at least one sample each")
    if not all(math.isfinite(sample) for process in processes for sample in process):
        raise ValueError("processes: expected finite samples")


def variation(values: Sequence[float]) -> float:
    """Standard deviation over mean; 0 for one value."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2 or not mean:
        return 0.0
    # Not statistics.stdev, whose exact fractions take most of the time in which a large run is read.
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)) / mean


def two_modes(values: Sequence[float]) -> tuple[float, ...]:
    """The centres of two groups of values if they are clearly two, else nothing.

    Clearly: at least two values in each, and between them a gap of at least 2 % of the median that is four times the
    larger spread inside a group (eight times, of fewer than six values). Normal values show two modes by chance less
    than once in 80 times; a mode that fewer than two values are in stays hidden.

    Raises:
        ValueError: a value is not finite.
    """
    if not all(map(math.isfinite, values)):
        raise ValueError(f"values: expected finite ones, got {list(values)[:8]}")
    ordered = sorted(values)
    if len(ordered) < 2 * _LEAST_IN_MODE:
        return ()
    gaps = [b - a for a, b in pairwise(ordered)]
    places = range(_LEAST_IN_MODE - 1, len(ordered) - _LEAST_IN_MODE)
    cut = max(places, key=lambda place: gaps[place])
    lower, upper = ordered[: cut + 1], ordered[cut + 1 :]
    spread = max(lower[-1] - lower[0], upper[-1] - upper[0])
    factor = _GAP_OVER_SPREAD_OF_FEW if len(ordered) < _FEW else _GAP_OVER_SPREAD
    is_wide = gaps[cut] > _LEAST_GAP * abs(median(ordered)) and gaps[cut] > factor * spread
    return (median(lower), median(upper)) if is_wide else ()


def geometric_mean(ratios: Sequence[float]) -> float:
    """The geometric mean, taken in logs.

    Raises:
        ValueError: there is no ratio, or one that is not finite and above zero.
    """
    if not ratios or not all(math.isfinite(ratio) and ratio > 0 for ratio in ratios):
        raise ValueError(f"ratios: expected finite ones above zero, got {list(ratios)[:8]}")
    return math.exp(math.fsum(map(math.log, ratios)) / len(ratios))
