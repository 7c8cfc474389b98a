"""Cells from rows: figures with their intervals, what casts doubt on them, and words where there is no figure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from bsa_bench.report.labels import one_line, percent
from bsa_bench.report.table_model import NOTHING, Cell, Contest
from bsa_bench.result import CHECKED_WITHIN, Status
from bsa_bench.store.derive import DISTURBED_SHARE, SHORT_LEVEL, Latency, Ratio, Row
from bsa_bench.store.latency import latency, over
from bsa_bench.units import format_seconds

UNVERIFIED = "unverified: never compared with an oracle"


class Unit(NamedTuple):
    """What figures of a column are printed in: its name, and what values in the base unit are multiplied by."""

    name: str
    scale: float


SECONDS = (Unit("s", 1.0), Unit("ms", 1e3), Unit("us", 1e6))
BYTES = (Unit("GiB", 2.0**-30), Unit("MiB", 2.0**-20), Unit("KiB", 2.0**-10))
FLOPS = (Unit("PFLOP", 1e-15), Unit("TFLOP", 1e-12), Unit("GFLOP", 1e-9), Unit("MFLOP", 1e-6))
FLOP_RATES = (Unit("TFLOP/s", 1e-12), Unit("GFLOP/s", 1e-9))


def pick_unit(values: Iterable[float | None], units: tuple[Unit, ...]) -> Unit:
    """The largest unit in which the geometric middle of the values' range is at least one, else the smallest."""
    known = [value for value in values if value]
    middle = math.sqrt(min(known) * max(known)) if known else 0.0
    return next((unit for unit in units if middle * unit.scale >= 1), units[-1])


def doubts(row: Row) -> tuple[str, ...]:
    """Why the times of a row are no headline, as footnotes."""
    found = []
    if row.is_unverified:
        found.append(UNVERIFIED)
    if row.is_disturbed:
        found.append(f"disturbed: others took more than {percent(DISTURBED_SHARE)} of the CPU time while it was timed")
    if row.quota_wait_s:
        found.append(f"held back: a CPU quota kept it from running for {format_seconds(row.quota_wait_s)}")
    elif row.is_throttled:
        found.append("throttled: the device lowered its clocks while it was timed")
    if row.is_bimodal:
        found.append("bimodal: its processes fall into two groups")
    if not row.is_settled:
        found.append("the warm-up did not settle before its cap")
    if row.num_processes > 1 and row.is_interval_short:
        found.append(f"too few processes: the interval covers less than {percent(SHORT_LEVEL)}")
    if any(timing.timers_disagree for timing in row.timings):
        found.append(f"the medians of two timers are more than {percent(CHECKED_WITHIN)} apart")
    return tuple(found)


def latency_cell(row: Row | None) -> Cell:
    """Median seconds of the whole operator."""
    if row is None or row.whole is None:
        return no_figure(row)
    return duration_cell(row, row.whole)


def duration_cell(row: Row, own: Latency | None) -> Cell:
    """Median seconds of the whole or a part of a row."""
    if own is None:
        return NOTHING
    notes = doubts(row)
    return Cell(
        value=own.median,
        low=own.low,
        high=own.high,
        contest=_contest(row, own.num_processes, own.interval_level, has_doubts=bool(notes)),
        footnotes=notes,
    )


def speedup_cell(row: Row | None, base: Row | None = None) -> Cell:
    """Speed-up over the fastest dense row, or over another one; of that row itself exactly 1."""
    base = base or (row.dense if row else None)
    if row is None or row.whole is None or base is None or base.whole is None:
        return no_figure(row)
    is_itself = base.result is row.result
    ratio = (
        Ratio(1.0, 1.0, 1.0, row.num_processes, row.whole.interval_level) if is_itself else over(base.whole, row.whole)
    )
    return ratio_cell(ratio, row, base)


def ratio_cell(ratio: Ratio | None, row: Row, base: Row) -> Cell:
    """A ratio of a row and its baseline, with the doubts of both."""
    if ratio is None:
        return NOTHING
    notes = doubts(row)
    if base.result is not row.result and doubts(base):
        notes += (f"its baseline `{base.result.case.implementation}` is in doubt: {doubts(base)[0].partition(':')[0]}",)
    level = ratio.interval_level or 0.0
    return Cell(
        value=ratio.value,
        low=ratio.low,
        high=ratio.high,
        printed="1" if base.result is row.result else "",
        contest=_contest(row, ratio.num_processes, level, has_doubts=bool(notes)),
        footnotes=notes,
    )


def no_figure(row: Row | None) -> Cell:
    """A dash; where the case was tried, its status with the reason as a footnote."""
    if row is None:
        return NOTHING
    if row.is_unverified:
        return Cell("-", footnotes=(UNVERIFIED,))
    if row.whole is not None:
        return Cell("-", footnotes=("no correct dense row of the same timer, cache state and environment",))
    if row.is_counted:
        return Cell("counted", footnotes=("simulates hardware: verified and counted, never timed",))
    status = row.result.status
    if status is Status.NOT_MEASURED:
        return Cell("-", footnotes=(f"not measured: {status.meaning.partition(': ')[2]}",))
    word = "-" if status is Status.UNSUPPORTED else status.value
    return Cell(word, footnotes=(one_line(row.result.reason),))


def number_cell(value: float | None, *footnotes: str) -> Cell:
    """A figure without an interval; a dash for none."""
    return NOTHING if value is None else Cell(value=value, footnotes=footnotes)


def phase_latency(row: Row, name: str) -> Latency | None:
    """Of one phase over all processes; null where some process has none."""
    timed = [each for each in row.processes if each.timing] if row.whole else []
    return latency({each.process_index: each.timing.phases.get(name) for each in timed if each.timing})


def _contest(row: Row, num_processes: int, level: float, *, has_doubts: bool) -> Contest:
    if not row.is_correct or not row.result.case.claims.approximates_dense:
        return Contest.OUT
    if num_processes == 1 or level < SHORT_LEVEL:
        return Contest.UNBOUNDED
    return Contest.DOUBTFUL if has_doubts else Contest.OPEN
