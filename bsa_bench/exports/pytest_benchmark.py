"""JSON as pytest-benchmark 5 stores it; seconds, one benchmark a case, one round a sample."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bsa_bench.exports.files import write_json
from bsa_bench.exports.rows import ExportRow
from bsa_bench.result import DeviceState, Environment
from bsa_bench.store.derive import Ratio
from bsa_bench.store.reader import Run

LAYOUT_VERSION = "5.0.0"
"""The release of pytest-benchmark whose layout this is."""


def write(rows: Sequence[ExportRow], run: Run, target: Path) -> None:
    """Write the document of `document`."""
    write_json(document(rows, run), target)


def document(rows: Sequence[ExportRow], run: Run) -> dict[str, Any]:
    """Lay out the document that `pytest-benchmark compare` and `--benchmark-compare` read.

    The tool has one machine and one commit for a file: those of the last start of the run.
    """
    environment = run.environment
    return {
        "machine_info": _machine(environment),
        "commit_info": {
            "id": environment.git_commit or "unversioned",
            "time": None,
            "author_time": None,
            "dirty": environment.git_dirty,
            "project": "bsa-bench",
            "branch": "(unknown)",
        },
        "benchmarks": [_benchmark(row) for row in rows],
        "datetime": run.run_lines[-1].utc,
        "version": LAYOUT_VERSION,
    }


def _machine(environment: Environment) -> dict[str, Any]:
    return {
        "node": None,
        "processor": environment.cpu.get("model"),
        "machine": None,
        "python_version": environment.python,
        "release": environment.os,
        "system": environment.os.partition("-")[0],
        "cpu": {"brand_raw": environment.cpu.get("model"), "count": environment.cpu.get("usable_cores")},
        "device": environment.device_name,
        "device_kind": environment.device_kind,
        "device_details": environment.device_details,
        "packages": environment.packages,
        "variables": environment.variables,
        "env_hash": environment.hash,
    }


def _benchmark(row: ExportRow) -> dict[str, Any]:
    case, timing = row.case, row.row.result.timing
    assert timing is not None
    causal = ["causal"] * case.claims.causal
    return {
        "group": "/".join([*case.workload.slugs, *causal, case.passes]),
        "name": "/".join([case.implementation, *([case.label] if case.label else [])]),
        "fullname": row.name,
        "params": row.axes,
        "param": None,
        "extra_info": _extra(row),
        "options": {"timer": timing.timer, "warmup": timing.warmup_s > 0},
        "stats": _stats(row),
    }


def _stats(row: ExportRow) -> dict[str, Any]:
    samples, pooled = row.samples, row.latency
    spread = statistics.stdev(samples) if len(samples) > 1 else 0.0
    iqr = pooled.q3 - pooled.q1
    inner = [s for s in samples if pooled.q1 - 1.5 * iqr <= s <= pooled.q3 + 1.5 * iqr]
    far = sum(abs(s - pooled.mean) > spread for s in samples)
    return {
        "min": pooled.minimum,
        "max": max(samples),
        "mean": pooled.mean,
        "stddev": spread,
        "rounds": len(samples),
        "median": statistics.median(samples),
        "iqr": iqr,
        "q1": pooled.q1,
        "q3": pooled.q3,
        "iqr_outliers": len(samples) - len(inner),
        "stddev_outliers": far,
        "outliers": f"{far};{len(samples) - len(inner)}",
        "ld15iqr": min(inner),
        "hd15iqr": max(inner),
        "ops": 1 / pooled.mean if pooled.mean else 0.0,
        "total": sum(samples),
        "data": samples,
        "iterations": 1,
    }


def _extra(row: ExportRow) -> dict[str, Any]:
    result, latency = row.row.result, row.latency
    assert result.timing is not None
    work, dense = result.work, row.row.dense
    return {
        "case_hash": result.case_hash,
        "env_hash": result.env_hash,
        "device": row.environment.device_name,
        "backend": result.backend,
        "status": row.row.status_word,
        "timer": result.timing.timer,
        "cache": result.timing.cache,
        "num_processes": latency.num_processes,
        "process_medians_s": list(latency.medians.values()),
        "median_s": latency.median,
        "interval_s": [latency.low, latency.high],
        "interval_level": latency.interval_level,
        "flops_executed": work.flops_executed if work else None,
        "flops_nominal": work.flops_nominal if work else None,
        "flops_dense_equiv": work.flops_dense_equiv if work else None,
        "executed_tflop_per_s": _ratio(row.executed_tflop_per_s),
        "density_realised": row.row.density,
        "peak_above_inputs_bytes": row.peak_bytes,
        "dense_baseline": dense.result.case.implementation if dense else None,
        "speedup_over_dense": _ratio(row.speedup),
        **_clocks(result.state),
        **row.flags,
    }


def _ratio(ratio: Ratio | None) -> dict[str, float] | None:
    return {"value": ratio.value, "low": ratio.low, "high": ratio.high} if ratio else None


def _clocks(state: DeviceState | None) -> dict[str, Any]:
    names = ("sm_clock_hz", "memory_clock_hz", "power_w", "temperature_c")
    return {name: getattr(state, name) if state else None for name in names}
