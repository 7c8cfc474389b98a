"""Break-even points: from which length, or below which density, a sparse operator overtakes the fastest dense row."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bsa_bench.result import Case
from bsa_bench.store.derive import Row, cohort, scope
from bsa_bench.workload import short_digest


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
                *cohort(row)[2:],
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
            families.setdefault((case.implementation, short_digest(options), *cohort(row)), []).append(row)
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
