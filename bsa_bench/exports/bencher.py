"""Bencher Metric Format, version 0: benchmark -> measure -> value, lower_value, upper_value. One unit a measure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bsa_bench.errors import UsageError
from bsa_bench.exports.files import write_json
from bsa_bench.exports.rows import ExportRow
from bsa_bench.store.reader import Run

IGNORE = "-bencher-ignore"
"""Bencher strips this end from a name, stores the figures under the rest, and raises no alert for them."""
MAX_NAME = 1024

Metric = dict[str, float]


def write(rows: Sequence[ExportRow], run: Run, target: Path) -> None:  # noqa: ARG001
    """Write the document of `document`."""
    write_json(document(rows), target)


def document(rows: Sequence[ExportRow]) -> dict[str, dict[str, Metric]]:
    """Lay out `latency` (ns), `memory` (bytes above the inputs) and `tflops_exec` (1e12 FLOP/s) of each case.

    A row whose latency is to be doubted is stored without an alert.

    Raises:
        UsageError: a case's name is longer than Bencher takes.
    """
    return {_name(row): _measures(row) for row in rows}


def _name(row: ExportRow) -> str:
    if len(row.name) > MAX_NAME:
        raise UsageError(f"bencher: takes names of at most {MAX_NAME} characters, got {len(row.name)}: {row.name}")
    return row.name + IGNORE * bool(row.doubts)


def _measures(row: ExportRow) -> dict[str, Metric]:
    s, rate = row.latency, row.executed_tflop_per_s
    measures = {"latency": {"value": s.median * 1e9, "lower_value": s.low * 1e9, "upper_value": s.high * 1e9}}
    if row.peak_bytes is not None:
        measures["memory"] = {"value": row.peak_bytes}
    if rate:
        measures["tflops_exec"] = {"value": rate.value, "lower_value": rate.low, "upper_value": rate.high}
    return measures
