"""What follows from stored results: medians, the dense baseline, speed-ups, break-even points.

The one place of that arithmetic; the table, the report and the terminal all take it from here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bsa_bench.result import Case, Result, Status
from bsa_bench.stats import Summary, summarise
from bsa_bench.workload import Workload, short_digest

LENGTH_FIELDS = {"frames", "height", "width", "grid", "tokens"}


#: Above this share of processor time taken by others a CPU time is called disturbed; judged, not derived.
DISTURBED_SHARE = 0.05


@dataclass(frozen=True)
class Ratio:
    """A ratio of two medians. Low and high divide the far ends of their intervals, so the true range is narrower."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """A result, the statistics of its samples (seconds), and the dense row that it is compared with.

    `dense` is the fastest correct dense row of the same workload, pass, environment, timer and cache state, causal for
    a causal row; null where there is none, or where this row is itself not verified: a ratio is a claim.
    """

    result: Result
    whole: Summary | None
    attend_only: Summary | None
    attend_select: Summary | None
    phases: dict[str, float]
    dense: Row | None

    @property
    def is_correct(self) -> bool:
        """Measured, and proved within its error budget."""
        r = self.result
        return r.status is Status.OK and self.whole is not None and r.correctness is not None and r.correctness.passed

    @property
    def is_unverified(self) -> bool:
        """Measured, but never compared with an oracle."""
        return self.result.status is Status.OK and self.result.correctness is None

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
    def is_disturbed(self) -> bool:
        """Whether others took the processor while a CPU case was timed, so that its times are not its own."""
        state, timing = self.result.state, self.result.timing
        share = state.other_cpu_share if state else None
        return timing is not None and timing.timer == "host" and (share or 0.0) > DISTURBED_SHARE

    @property
    def num_tokens(self) -> int:
        """L."""
        return self.result.case.workload.num_tokens

    @property
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
        """The checked output that comes nearest to its budget (or passes it farthest)."""
        checks = self.result.correctness
        if checks is None or not checks.checked:
            return None
        errors = [
            WorstError(name, figures.relative_l2, checks.budget.get(name)) for name, figures in checks.checked.items()
        ]
        return max(errors, key=lambda e: e.relative_l2 / e.budget if e.budget else e.relative_l2)

    def _over_dense(self, own: Summary | None) -> Ratio | None:
        if self.dense is None or self.dense.whole is None or own is None or own.low <= 0:
            return None
        dense = self.dense.whole
        return Ratio(dense.median / own.median, dense.low / own.high, dense.high / own.low)


@dataclass(frozen=True)
class WorstError:
    """Relative L2 error of one checked output against the masked oracle, and what it may be."""

    output: str
    relative_l2: float
    budget: float | None


@dataclass(frozen=True)
class BreakEven:
    """Where the whole operator overtakes the fastest dense row, along one axis (tokens, or 1/density).

    `at` is null when it is not reached in the measured range. It equals the smallest measured point when all points are
    faster; otherwise it is interpolated, log-log, between `below` (not faster) and `above` (faster from here on).
    """

    rows: tuple[Row, ...]
    at: float | None
    below: float | None
    above: float | None

    @property
    def is_interpolated(self) -> bool:
        """Whether `at` lies between two measured points."""
        return self.below is not None and self.above is not None


def derive(results: Iterable[Result]) -> list[Row]:
    """Derive a row from each result, in the same order."""
    rows = [_alone(result) for result in results]
    baselines: dict[tuple[str, ...], Row] = {}
    for row in rows:
        if row.is_dense and row.is_correct:
            best = baselines.get(_cohort(row))
            if best is None or _median(row) < _median(best):
                baselines[_cohort(row)] = row
    return [
        Row(row.result, row.whole, row.attend_only, row.attend_select, row.phases, baselines.get(_cohort(row)))
        if row.is_correct
        else row
        for row in rows
    ]


def scope(workload: Workload) -> str:
    """Digest of everything in a workload but its length."""
    return short_digest(workload.model_dump(mode="json", exclude=LENGTH_FIELDS))


def break_even_lengths(rows: Iterable[Row]) -> list[BreakEven]:
    """Find the break-even length of each sparse family: all is the same but the length."""
    families: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if not row.is_dense and row.speedup:
            case = row.result.case
            key = (
                scope(case.workload),
                case.implementation,
                case.passes,
                short_digest(case.options),
                *_cohort(row)[2:],
            )
            families.setdefault(key, []).append(row)
    return [_crossing([(float(row.num_tokens), row) for row in family]) for family in families.values()]


def break_even_densities(rows: Iterable[Row]) -> list[BreakEven]:
    """Find the break-even point along 1/density of each sparse family with several densities at one workload."""
    rows = list(rows)
    densities = density_options(row.result.case for row in rows)
    families: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if not row.is_dense and row.speedup and row.density:
            case = row.result.case
            options = {name: value for name, value in case.options.items() if name != densities.get(case.method)}
            families.setdefault((case.implementation, short_digest(options), *_cohort(row)), []).append(row)
    return [
        _crossing([(row.ideal_speedup or 1.0, row) for row in family])
        for family in families.values()
        if len({row.density for row in family}) > 1
    ]


def density_options(cases: Iterable[Case]) -> dict[str, str]:
    """Of each method the option that a run varies as its density: the number with most values, the last of equals."""
    values: dict[str, dict[str, set[float]]] = {}
    for case in cases:
        found = values.setdefault(case.method, {})
        for name, value in case.options.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                found.setdefault(name, set()).add(value)
    chosen = {}
    for method, options in values.items():
        varying = [
            (len(numbers), place, name) for place, (name, numbers) in enumerate(options.items()) if len(numbers) > 1
        ]
        if varying:
            chosen[method] = max(varying)[2]
    return chosen


def _alone(result: Result) -> Row:
    timing = result.timing
    if timing is None:
        return Row(result, None, None, None, {}, None)
    return Row(
        result,
        whole=summarise(timing.samples),
        attend_only=summarise(timing.attend_only) if timing.attend_only else None,
        attend_select=summarise(timing.attend_select) if timing.attend_select else None,
        phases={name: summarise(samples).median for name, samples in timing.phases.items() if samples},
        dense=None,
    )


def _cohort(row: Row) -> tuple[str, ...]:
    """Name what two rows must share before one may be divided by the other."""
    result = row.result
    assert result.timing is not None or not row.is_correct
    timer, cache = (result.timing.timer, result.timing.cache) if result.timing else ("", "")
    is_causal = "causal" if result.case.claims.causal else ""
    return (result.case.workload.digest, result.case.passes, result.env_hash, timer, cache, is_causal)


def _median(row: Row) -> float:
    return row.whole.median if row.whole else math.inf


def _crossing(points: Sequence[tuple[float, Row]]) -> BreakEven:
    ordered = sorted(points, key=lambda point: point[0])
    rows = tuple(row for _, row in ordered)
    slowest: dict[float, float] = {}
    for x, row in ordered:
        assert row.speedup is not None
        slowest[x] = min(row.speedup.value, slowest.get(x, math.inf))
    xs = list(slowest)
    first_faster = next((i for i in range(len(xs)) if all(slowest[x] > 1 for x in xs[i:])), None)
    if first_faster is None:
        return BreakEven(rows, None, xs[-1], None)
    above = xs[first_faster]
    if first_faster == 0:
        return BreakEven(rows, above, None, above)
    below = xs[first_faster - 1]
    rise = math.log(slowest[above]) - math.log(slowest[below])
    share = -math.log(slowest[below]) / rise
    return BreakEven(rows, math.exp(math.log(below) + share * (math.log(above) - math.log(below))), below, above)
