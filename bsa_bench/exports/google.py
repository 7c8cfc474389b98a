"""JSON as Google Benchmark writes it (json_schema_version 1): a repetition is a process, its time the median.

That way the U test of its `compare.py` is one of processes, not of the samples in them.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bsa_bench.exports.files import write_json
from bsa_bench.exports.rows import ExportRow
from bsa_bench.stats.processes import variation
from bsa_bench.store.reader import Run

JSON_SCHEMA_VERSION = 1


def write(rows: Sequence[ExportRow], run: Run, target: Path) -> None:
    """Write the document of `document`."""
    write_json(document(rows, run), target)


def document(rows: Sequence[ExportRow], run: Run) -> dict[str, Any]:
    """Lay out the repetitions of each case and, of several, their mean, median, standard deviation and variation.

    `cpu_time` repeats `real_time`, for `compare.py` passes over a benchmark without one, and none was measured.
    """
    environment = run.environment
    cores = environment.cpu.get("usable_cores")
    context: dict[str, Any] = {
        "date": run.run_lines[-1].utc,
        "executable": "bsa-bench",
        **({"num_cpus": cores} if cores is not None else {}),
        "caches": [],
        "json_schema_version": JSON_SCHEMA_VERSION,
        "device": environment.device_name,
        "env_hash": environment.hash,
        "run_id": run.run_id,
        "cpu_time": "repeats real_time; not measured",
    }
    return {"context": context, "benchmarks": [entry for i, row in enumerate(rows) for entry in _entries(i, row)]}


def _entries(family: int, row: ExportRow) -> list[dict[str, Any]]:
    medians = [median * 1e9 for median in row.latency.medians.values()]
    shared = {
        "family_index": family,
        "per_family_instance_index": 0,
        "run_name": row.name,
        "repetitions": len(medians),
        "threads": 1,
    }
    entries = [
        {
            "name": row.name,
            **shared,
            "run_type": "iteration",
            "repetition_index": i,
            "iterations": len(row.processes[i]),
            "real_time": time,
            "cpu_time": time,
            "time_unit": "ns",
            **_counters(row),
        }
        for i, time in enumerate(medians)
    ]
    if len(medians) == 1:
        return entries
    aggregates = {
        "mean": statistics.fmean(medians),
        "median": statistics.median(medians),
        "stddev": statistics.stdev(medians),
        "cv": variation(medians),
    }
    return entries + [
        {
            "name": f"{row.name}_{name}",
            **shared,
            "run_type": "aggregate",
            "aggregate_name": name,
            "aggregate_unit": "percentage" if name == "cv" else "time",
            "iterations": len(medians),
            "real_time": value,
            "cpu_time": value,
            "time_unit": "ns",
        }
        for name, value in aggregates.items()
    ]


def _counters(row: ExportRow) -> dict[str, float]:
    """User counters, flat in an entry as the library writes them; what was not counted is left out."""
    work, rate, speedup = row.row.result.work, row.executed_tflop_per_s, row.speedup
    counters = {
        "flops_executed": work.flops_executed if work else None,
        "flops_nominal": work.flops_nominal if work else None,
        "flops_dense_equiv": work.flops_dense_equiv if work else None,
        "density_realised": row.row.density,
        "executed_tflop_per_s": rate.value if rate else None,
        "speedup_over_dense": speedup.value if speedup else None,
    }
    return {name: value for name, value in counters.items() if value is not None}
