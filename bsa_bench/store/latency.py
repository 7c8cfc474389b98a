"""Latencies over processes, and ratios of them: an interval says how far the figure would move if measured again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from bsa_bench.stats import Summary, summarise
from bsa_bench.stats.pairs import median_log_ratio_interval
from bsa_bench.stats.processes import summarise_processes


@dataclass(frozen=True)
class Latency(Summary):
    """What the processes of a case say of one latency.

    `median`, `low`, `high` and `interval_level` are of the median of the processes' medians; of one process, of its
    samples, which says nothing of how far another process would be off. The other figures of the summary are of all
    samples together, outliers included.

    Attributes:
        medians: of each process, by its index.
        within, between: standard deviation / mean, of the samples in a process (the median over processes), and of the
            processes' medians (0 for one process).
        modes: the centres of two groups of processes where there are two, else empty.
    """

    medians: Mapping[int, float]
    within: float
    between: float
    modes: tuple[float, ...]

    @property
    def num_processes(self) -> int:
        """How many processes there are."""
        return len(self.medians)


@dataclass(frozen=True)
class Ratio:
    """A ratio of two latencies and its interval.

    Of several processes: the median of the ratios within rounds, for a round's processes ran nearest to each other, and
    the order-statistic interval of that median, at a coverage of `interval_level`. Of one process: the ratio of the
    medians; low and high divide the far ends of their intervals, so the range is wider than the samples alone would
    have it, and still says nothing of another process.
    """

    value: float
    low: float
    high: float
    num_processes: int = 1
    interval_level: float | None = None


def latency(samples: Mapping[int, Sequence[float] | None]) -> Latency | None:
    """Summarise the samples of each process, by its index; null where a process has none.

    Raises:
        ValueError: a sample is not finite.
    """
    processes = {index: own for index, own in samples.items() if own}
    if not processes or len(processes) < len(samples):
        return None
    if len(processes) == 1:
        [(index, own)] = processes.items()
        alone = summarise(own)
        return Latency(
            **vars(alone) | {"median": median(own)},
            medians={index: median(own)},
            within=alone.variation,
            between=0.0,
            modes=(),
        )
    over_processes = summarise_processes(list(processes.values()))
    pooled = summarise([sample for own in processes.values() for sample in own])
    return Latency(
        **vars(pooled)
        | {
            "median": over_processes.median,
            "low": over_processes.low,
            "high": over_processes.high,
            "interval_level": over_processes.interval_level,
        },
        medians={index: median(own) for index, own in processes.items()},
        within=over_processes.within,
        between=over_processes.between,
        modes=over_processes.modes,
    )


def over(base: Latency, own: Latency) -> Ratio | None:
    """How many times faster `own` is than `base`; null where its latency is not above zero."""
    if min(own.low, base.low, *own.medians.values(), *base.medians.values()) <= 0:
        return None
    rounds = sorted(base.medians.keys() & own.medians.keys())
    if len(rounds) < 2:
        return Ratio(base.median / own.median, base.low / own.high, base.high / own.low)
    logs = [math.log(base.medians[index] / own.medians[index]) for index in rounds]
    low, high, level = median_log_ratio_interval(logs)
    return Ratio(math.exp(median(logs)), math.exp(low), math.exp(high), len(rounds), level)
