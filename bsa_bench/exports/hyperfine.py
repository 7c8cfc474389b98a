"""JSON as hyperfine's `--export-json` writes it; seconds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bsa_bench.exports.files import write_json
from bsa_bench.exports.rows import ExportRow
from bsa_bench.store.reader import Run


def write(rows: Sequence[ExportRow], run: Run, target: Path) -> None:  # noqa: ARG001
    """Write the document of `document`."""
    write_json(document(rows), target)


def document(rows: Sequence[ExportRow]) -> dict[str, Any]:
    """Lay out one result a case; its `command` is the case's id.

    `user` and `system` are null: the split of processor time was not measured. A sample's exit code is 0, for only
    calls that ended and were verified have samples. Parameters are text, as hyperfine's are.
    """
    return {"results": [_result(row) for row in rows]}


def _result(row: ExportRow) -> dict[str, Any]:
    samples, pooled = row.samples, row.latency
    return {
        "command": row.name,
        "mean": pooled.mean,
        "stddev": statistics.stdev(samples) if len(samples) > 1 else None,
        "median": statistics.median(samples),
        "user": None,
        "system": None,
        "min": pooled.minimum,
        "max": max(samples),
        "times": samples,
        "exit_codes": [0] * len(samples),
        "parameters": {name: str(value) for name, value in row.axes.items()},
    }
