"""What follows from stored results: a row for each case over its processes, the dense baseline, speed-ups.

The one place of that arithmetic; the table, the report and the terminal all take it from here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from statistics import median

from bsa_bench.result import QUOTA, Result, Status, Timing, worst_status
from bsa_bench.store.latency import Latency, Ratio, latency, over
from bsa_bench.workload import Workload, short_digest

__all__ = ["Latency", "Ratio", "Row", "WorstError", "cohort", "derive", "scope"]

LENGTH_FIELDS = {"frames", "height", "width", "grid", "tokens"}
#: Above this share of processor time taken by others a CPU time is called disturbed; judged, not derived.
DISTURBED_SHARE = 0.05
#: An interval that covers less than this is called short; that of five processes covers 94%.
SHORT_LEVEL = 0.9


@dataclass(frozen=True)
class Row:
    """A case over its processes: their results, the statistics of their samples (seconds), and the dense row.

    Attributes:
        result: what the case came to: the result of the process that ended worst, of several the first.
        whole, attend_only, attend_select: latencies over all processes; null where the case is not OK.
        phases: median of the process medians, by phase.
        dense: the fastest correct dense row of the same workload, pass, environment, timer and cache state, causal for
            a causal row; null where there is none, or where this row is itself not verified: a ratio is a claim.
        processes: the results of all processes that were measured, by index; those that were not reached are left out,
            unless there are no others.
    """

    result: Result
    whole: Latency | None
    attend_only: Latency | None
    attend_select: Latency | None
    phases: dict[str, float]
    dense: Row | None
    processes: tuple[Result, ...]

    @property
    def num_processes(self) -> int:
        """In how many processes the case was measured."""
        return self.whole.num_processes if self.whole else 0

    @property
    def timings(self) -> tuple[Timing, ...]:
        """Of all processes, by index; none where the case is not OK."""
        return tuple(each.timing for each in self.processes if each.timing) if self.whole else ()

    @property
    def is_correct(self) -> bool:
        """Measured, and proved within its error budget in each of its processes."""
        return self.whole is not None and not self.is_unverified

    @property
    def is_unverified(self) -> bool:
        """Measured, but in some process never compared with an oracle."""
        return self.result.status is Status.OK and any(each.correctness is None for each in self.processes)

    @property
    def is_counted(self) -> bool:
        """Verified and counted; there is no time to expect of it."""
        return self.result.status is Status.COUNTED

    @property
    def is_dense(self) -> bool:
        """Whether it computes dense attention."""
        return self.result.case.claims.is_dense

    @property
    def is_baseline(self) -> bool:
        """Whether it is the dense row that the others of its workload are compared with."""
        return self.dense is not None and self.dense.result is self.result

    @property
    def status_word(self) -> str:
        """The status, or `unverified`."""
        return "unverified" if self.is_unverified else self.result.status.value

    @property
    def other_cpu_share(self) -> float | None:
        """The share of processor time that others took, in the process where it was largest; null where unknown."""
        shares = [each.state.other_cpu_share for each in self.processes if each.state] if self.whole else []
        return max((share for share in shares if share is not None), default=None)

    @property
    def is_disturbed(self) -> bool:
        """Whether others took the processor while a CPU case was timed, so that its times are not its own."""
        timing = self.result.timing
        return timing is not None and timing.timer == "host" and (self.other_cpu_share or 0.0) > DISTURBED_SHARE

    @property
    def quota_wait_s(self) -> float:
        """For how long a CPU quota kept the process from running while it was timed, in the process of the longest."""
        states = [each.state for each in self.processes if each.state] if self.whole else []
        return max(((state.throttle_ns or {}).get(QUOTA, 0) for state in states), default=0) / 1e9

    @property
    def is_settled(self) -> bool:
        """Whether the warm-up settled before its cap in all processes."""
        return all(timing.settled for timing in self.timings)

    @property
    def is_throttled(self) -> bool:
        """Whether the device throttled, or a CPU quota held it back, while one of the processes was timed."""
        states = [each.state for each in self.processes if each.state] if self.whole else []
        return any(any((state.throttle_ns or {}).values()) for state in states)

    @property
    def host_gaps(self) -> bool | None:
        """Whether the device waited for the host in most samples of a process; null where no timer could tell."""
        known = [timing.host_gaps for timing in self.timings if timing.host_gaps is not None]
        return any(known) if known else None

    @property
    def timers_disagree(self) -> bool | None:
        """Whether another timer said something else in a process; null where none was compared."""
        known = [timing.timers_disagree for timing in self.timings if timing.timer_disagreement is not None]
        return any(known) if known else None

    @property
    def warm_median_s(self) -> float | None:
        """Seconds with a warm L2, the median of the processes' medians, where both states were measured."""
        medians = [median(timing.warm) for timing in self.timings if timing.warm]
        return median(medians) if medians else None

    @property
    def is_interval_short(self) -> bool:
        """Whether the samples, or the processes, are too few for an interval that covers `SHORT_LEVEL`."""
        return self.whole is not None and self.whole.interval_level < SHORT_LEVEL

    @property
    def is_bimodal(self) -> bool:
        """Whether the processes fall into two groups, so that the median is of one of them or between."""
        return self.whole is not None and bool(self.whole.modes)

    @property
    def doubts(self) -> tuple[str, ...]:
        """`disturbed`, `held back` by a CPU quota, `bimodal`: why its figures are no headline."""
        held_back = ("held back",) * (self.quota_wait_s > 0)
        return ("disturbed",) * self.is_disturbed + held_back + ("bimodal",) * self.is_bimodal

    @property
    def num_tokens(self) -> int:
        """L."""
        return self.result.case.workload.num_tokens

    @cached_property
    def speedup(self) -> Ratio | None:
        """Of the whole operator over the fastest dense row."""
        return self._over_dense(self.whole)

    @property
    def speedup_attend_only(self) -> Ratio | None:
        """Of the attend phase alone over the whole of the fastest dense row."""
        return self._over_dense(self.attend_only)

    @property
    def speedup_attend_select(self) -> Ratio | None:
        """Of the attend and select phases over the whole of the fastest dense row."""
        return self._over_dense(self.attend_select)

    @property
    def density(self) -> float | None:
        """Pairs computed / all pairs, from the plan in use."""
        return self.result.work.density_realised if self.result.work else None

    @property
    def ideal_speedup(self) -> float | None:
        """1 / density; null where the method has none."""
        return self.result.work.ideal_speedup if self.result.work else None

    @property
    def achieved_share(self) -> float | None:
        """Speed-up / ideal speed-up."""
        return self.speedup.value / self.ideal_speedup if self.speedup and self.ideal_speedup else None

    @property
    def executed_flop_per_s(self) -> float | None:
        """FLOP of the tiles that the engine visits, over the median latency."""
        work = self.result.work
        if work is None or work.flops_executed is None or self.whole is None or not self.whole.median:
            return None
        return work.flops_executed / self.whole.median

    @property
    def worst_error(self) -> WorstError | None:
        """The checked output that comes nearest to its budget (or passes it farthest), of all processes."""
        errors = [
            WorstError(name, figures.relative_l2, checks.budget.get(name))
            for checks in (each.correctness for each in self.processes)
            if checks
            for name, figures in checks.checked.items()
        ]
        return max(errors, key=lambda e: e.relative_l2 / e.budget if e.budget else e.relative_l2, default=None)

    @property
    def inputs_unchanged(self) -> bool | None:
        """Whether the call left its inputs alone in all processes that looked; null where none did."""
        return _all(each.correctness.inputs_unchanged for each in self.processes if each.correctness)

    @property
    def repeat_identical(self) -> bool | None:
        """Whether a second call gave the same bits in all processes that looked; null where none did."""
        return _all(each.correctness.repeat_identical for each in self.processes if each.correctness)

    def _over_dense(self, own: Latency | None) -> Ratio | None:
        return over(self.dense.whole, own) if self.dense and self.dense.whole and own else None


@dataclass(frozen=True)
class WorstError:
    """Relative L2 error of one checked output against the masked oracle, and what it may be."""

    output: str
    relative_l2: float
    budget: float | None


def derive(results: Iterable[Result]) -> list[Row]:
    """Derive a row for each case, in the order of their first results.

    Args:
        results: at most one for each process of a case in an environment, as `Run.latest` gives them.

    Raises:
        ValueError: two results are of the same process of a case.
    """
    cases: dict[tuple[str, str], dict[int, Result]] = {}
    for result in results:
        processes = cases.setdefault((result.case_hash, result.env_hash), {})
        if result.process_index in processes:
            raise ValueError(
                f"results: expected one for each process of a case, got two of {result.case_id}, process "
                f"{result.process_index}"
            )
        processes[result.process_index] = result
    rows = [_alone(processes) for processes in cases.values()]
    baselines: dict[tuple[str, ...], Row] = {}
    for row in rows:
        if row.is_dense and row.is_correct:
            best = baselines.get(cohort(row))
            if best is None or _median(row) < _median(best):
                baselines[cohort(row)] = row
    return [replace(row, dense=baselines.get(cohort(row))) if row.is_correct else row for row in rows]


@lru_cache(maxsize=65536)
def scope(workload: Workload) -> str:
    """Digest of everything in a workload but its length."""
    return short_digest(workload.model_dump(mode="json", exclude=LENGTH_FIELDS))


def _alone(by_index: Mapping[int, Result]) -> Row:
    """A row without its dense row."""
    ordered = [by_index[index] for index in sorted(by_index)]
    processes = tuple(result for result in ordered if result.status.is_final) or tuple(ordered)
    status = worst_status(result.status for result in processes)
    worst = next(result for result in processes if result.status is status)
    if status is not Status.OK:
        if len(processes) > 1:
            where = f"in process {worst.process_index + 1}"
            worst = worst.model_copy(update={"reason": f"{where}: {worst.reason}" if worst.reason else where})
        return Row(worst, None, None, None, {}, None, processes)
    timings = {result.process_index: result.timing for result in processes if result.timing}
    names = dict.fromkeys(name for timing in timings.values() for name in timing.phases)
    return Row(
        worst,
        whole=latency({index: timing.samples for index, timing in timings.items()}),
        attend_only=latency({index: timing.attend_only for index, timing in timings.items()}),
        attend_select=latency({index: timing.attend_select for index, timing in timings.items()}),
        phases={
            name: median(median(samples) for timing in timings.values() if (samples := timing.phases.get(name)))
            for name in names
            if any(timing.phases.get(name) for timing in timings.values())
        },
        dense=None,
        processes=processes,
    )


def cohort(row: Row) -> tuple[str, ...]:
    """Name what two rows must share before one may be divided by the other."""
    result = row.result
    assert result.timing is not None or not row.is_correct
    timer, cache = (result.timing.timer, result.timing.cache) if result.timing else ("", "")
    is_causal = "causal" if result.case.claims.causal else ""
    return (result.case.workload.digest, result.case.passes, result.env_hash, timer, cache, is_causal)


def _median(row: Row) -> float:
    return row.whole.median if row.whole else math.inf


def _all(values: Iterable[bool | None]) -> bool | None:
    """Whether all of those that are known hold; null where none is."""
    known = [value for value in values if value is not None]
    return all(known) if known else None
