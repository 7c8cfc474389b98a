"""JSON for github-action-benchmark: an array of name, value, unit, range and extra.

The action's chart has one line for each name, so a name holds no version and no device; it compares only values of one
direction, so that what is better smaller and what is better bigger are two files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bsa_bench.exports.files import write_json
from bsa_bench.exports.rows import ExportRow
from bsa_bench.store.derive import Ratio
from bsa_bench.store.reader import Run
from bsa_bench.units import three_digits


def write_smaller(rows: Sequence[ExportRow], run: Run, target: Path) -> None:  # noqa: ARG001
    """Write latency (ms) and peak memory (MiB), for the tool `customSmallerIsBetter`."""
    write_json(smaller(rows), target)


def write_bigger(rows: Sequence[ExportRow], run: Run, target: Path) -> None:  # noqa: ARG001
    """Write TFLOP/s executed and speed-up over dense, for the tool `customBiggerIsBetter`."""
    write_json(bigger(rows), target)


def smaller(rows: Sequence[ExportRow]) -> list[dict[str, Any]]:
    """Lay out latency and, where it was measured, peak memory above the inputs."""
    entries = []
    for row in rows:
        own = row.latency
        ends = (own.median * 1e3, own.low * 1e3, own.high * 1e3)
        entries.append(_entry(row, "latency", "ms", Ratio(*ends, own.num_processes, own.interval_level)))
        if row.peak_bytes is not None:
            entries.append(_entry(row, "peak memory above inputs", "MiB", row.peak_bytes / 2**20))
    return entries


def bigger(rows: Sequence[ExportRow]) -> list[dict[str, Any]]:
    """Lay out TFLOP/s executed and speed-up; the dense row that the others are compared with has no speed-up."""
    entries = []
    for row in rows:
        if row.executed_tflop_per_s:
            entries.append(_entry(row, "executed", "TFLOP/s exec", row.executed_tflop_per_s))
        if row.speedup:
            entries.append(_entry(row, "speed-up over fastest dense", "x", row.speedup))
    return entries


def _entry(row: ExportRow, what: str, unit: str, figure: Ratio | float) -> dict[str, Any]:
    value = figure.value if isinstance(figure, Ratio) else figure
    entry: dict[str, Any] = {"name": f"{row.name} {what}", "unit": unit, "value": value}
    lines = [f"device: {row.environment.device_name}"]
    if row.row.density is not None:
        lines.append(f"realised density: {three_digits(row.row.density)}")
    if isinstance(figure, Ratio):
        # The action converts a range between units only if it is one number behind a sign.
        entry["range"] = f"± {max(figure.high - figure.value, figure.value - figure.low):.6g}"
        coverage = f" at {figure.interval_level:.1%}" if figure.interval_level is not None else ""
        lines.append(f"interval{coverage}: {figure.low:.6g} to {figure.high:.6g} {unit}")
        lines.append(f"samples: {len(row.samples)} of {len(row.processes)} process{'es' * (len(row.processes) != 1)}")
        lines += [f"doubt: {words}" for words in row.doubts]
    return entry | {"extra": "\n".join(lines)}
