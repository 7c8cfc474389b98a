"""A results folder of airspeed velocity (asv), api version 2: benchmarks.json, and a file a machine and commit.

A benchmark is what has one name but several lengths: an implementation with its options, a pass, a shape, an input. Its
one parameter is the length; its version a digest of the rest, so that asv compares only what was measured alike. The
folder holds a history: a run is added to what is there, cell by cell. The date in a results file, for asv that of the
commit, is that of the last case: a run knows its commit's name and no more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from bsa_bench.errors import StoreError, UsageError
from bsa_bench.exports.files import write_json
from bsa_bench.exports.rows import ExportRow
from bsa_bench.result import IDENTITY_VERSION, Environment
from bsa_bench.stats import quantile
from bsa_bench.stats.processes import summarise_processes
from bsa_bench.store.derive import scope
from bsa_bench.store.reader import Run
from bsa_bench.workload import short_digest

API_VERSION = 2
MACHINE_API_VERSION = 1
CI_LEVEL = 0.99
LENGTH = "length"
_STATS = ("stats_ci_99_a", "stats_ci_99_b", "stats_q_25", "stats_q_75", "stats_number", "stats_repeat")
#: Columns with a value a length; the others have one a benchmark.
_CELLS = ("result", *_STATS, "samples")
COLUMNS = ("result", "params", "version", "started_at", "duration", *_STATS, "samples")

Cell = dict[str, Any]
Document = dict[str, Any]


def write(rows: Sequence[ExportRow], run: Run, target: Path) -> None:  # noqa: ARG001
    """Add the rows to the results folder `target`, made if missing.

    Raises:
        UsageError: a row was measured outside a checkout, so that there is no commit to file it under.
        StoreError: what is in the folder is not a results folder that this can add to.
    """
    places: dict[Path, list[ExportRow]] = {}
    for row in rows:
        places.setdefault(_place(row), []).append(row)
    benchmarks = _read(target / "benchmarks.json", API_VERSION)
    documents: dict[Path, Document] = {}
    for place, here in places.items():
        environment = here[0].environment
        documents[target / place.parent / "machine.json"] = _machine(environment)
        documents[target / place] = _results(here, _read(target / place, API_VERSION), target / place)
    for row in rows:
        _describe(row, benchmarks)
    documents[target / "benchmarks.json"] = {**benchmarks, "version": API_VERSION}
    for path, document in documents.items():
        write_json(document, path)


def benchmark_name(row: ExportRow) -> str:
    """Name a case but for its length: `forward.bsa@gather.2x64-float32.video:bikes.d0.1-k0.5`."""
    case = row.case
    _, shape, source = case.workload.slugs
    return ".".join([case.passes, case.implementation, shape, source, *([case.label] if case.label else [])])


def machine_name(environment: Environment) -> str:
    """Name a machine for asv: what was measured, of a CPU with its threads."""
    threads = environment.cpu.get("threads") or environment.cpu.get("usable_cores")
    parts = [environment.device_name, *([f"{threads} threads"] if environment.device_kind == "cpu" and threads else [])]
    return re.sub(r"[^a-z0-9]+", "-", " ".join(parts).lower()).strip("-")


def _place(row: ExportRow) -> Path:
    """Where asv looks for a row: `<machine>/<commit, 8 digits>-<environment>.json`."""
    environment = row.environment
    if environment.git_commit is None:
        raise UsageError(
            "asv: files results by commit, and this run was made by an installed bsa-bench, outside a checkout; "
            "run it from a checkout, or export to another format"
        )
    return Path(machine_name(environment)) / f"{environment.git_commit[:8]}-{_env_name(environment)}.json"


def _env_name(environment: Environment) -> str:
    return f"bsa-bench-{environment.hash}"


def _version(row: ExportRow) -> str:
    """The case hash but for the length, which is the parameter."""
    case = row.case
    return short_digest([IDENTITY_VERSION, scope(case.workload), case.implementation, case.options, case.passes])


def _length(row: ExportRow) -> str:
    """The parameter's value as asv keeps it, a Python literal."""
    return repr(row.case.workload.slugs[0])


def _machine(environment: Environment) -> Document:
    cpu = environment.cpu
    facts = {
        "machine": machine_name(environment),
        "os": environment.os,
        "cpu": cpu.get("model"),
        "num_cpu": cpu.get("usable_cores"),
        "ram": cpu.get("memory_bytes"),
        "device": environment.device_name,
    }
    known = {name: str(value) for name, value in facts.items() if value is not None}
    return {**known, "version": MACHINE_API_VERSION}


def _results(rows: Sequence[ExportRow], before: Document, path: Path) -> Document:
    environment = rows[0].environment
    versions = {name: environment.packages.get(name) for name in ("torch", "triton")}
    requirements = {name: version for name, version in versions.items() if version}
    machine = {name: value for name, value in _machine(environment).items() if name != "version"}
    results = dict(before.get("results", {}))
    if before and before.get("result_columns") != list(COLUMNS):
        raise StoreError(f"{path}: was not written by bsa-bench, so nothing is added to it; choose another folder")
    families: dict[str, list[ExportRow]] = {}
    for row in rows:
        families.setdefault(benchmark_name(row), []).append(row)
    for name, family in families.items():
        results[name] = _merged(family, results.get(name))
    return {
        "commit_hash": environment.git_commit,
        "env_name": _env_name(environment),
        "date": _milliseconds(max(row.row.result.utc for row in rows)),
        "params": {**machine, **requirements, "python": environment.python},
        "python": environment.python,
        "requirements": requirements,
        "env_vars": environment.variables,
        "result_columns": list(COLUMNS),
        "results": results,
        "durations": {},
        "version": API_VERSION,
    }


def _merged(family: Sequence[ExportRow], before: Sequence[Any] | None) -> list[Any]:
    """One benchmark's row of the results file: the cells that were there and are of the same version, and ours."""
    version = _version(family[0])
    old = dict(zip(COLUMNS, before or (), strict=False))
    cells: dict[str, Cell] = {}
    if old.get("version") == version:
        (lengths,) = old["params"]
        cells = {length: {name: old[name][i] for name in _CELLS if old.get(name)} for i, length in enumerate(lengths)}
    cells |= {_length(row): _cell(row) for row in family}
    walls = [row.row.result.wall_s for row in family]
    columns: dict[str, Any] = {
        "params": [list(cells)],
        "version": version,
        "started_at": _milliseconds(min(row.row.result.utc for row in family)),
        "duration": sum(wall for wall in walls if wall is not None) if None not in walls else None,
    }
    for name in _CELLS:
        values = [cell.get(name) for cell in cells.values()]
        columns[name] = values if any(value is not None for value in values) else None
    return [columns[name] for name in COLUMNS]


def _cell(row: ExportRow) -> Cell:
    """One length's figures. Several processes are the samples by their medians: a process is the replicate.

    Where no interval reaches 99 %, there are no statistics, and asv compares by its factor alone.
    """
    summary = summarise_processes(row.processes, level=CI_LEVEL)
    replicates = list(row.latency.medians.values()) if len(row.processes) > 1 else row.samples
    cell: Cell = {"result": summary.median, "samples": replicates}
    if summary.interval_level >= CI_LEVEL:
        ordered = sorted(replicates)
        cell |= {"stats_ci_99_a": summary.low, "stats_ci_99_b": summary.high}
        cell |= {"stats_q_25": quantile(ordered, 0.25), "stats_q_75": quantile(ordered, 0.75)}
        cell |= {"stats_number": 1, "stats_repeat": len(replicates)}
    return cell


def _describe(row: ExportRow, benchmarks: Document) -> None:
    """Add the row to the descriptions, with its length behind those that are known of the same version."""
    name, version = benchmark_name(row), _version(row)
    known = benchmarks.get(name)
    lengths: list[str] = known["params"][0] if known and known.get("version") == version else []
    if _length(row) not in lengths:
        lengths = [*lengths, _length(row)]
    benchmarks[name] = {
        "name": name,
        "pretty_name": name,
        "code": f"bsa-bench run --suite {row.case.suite}",
        "param_names": [LENGTH],
        "params": [lengths],
        "type": "time",
        "unit": "seconds",
        "number": 1,
        "version": version,
    }


def _read(path: Path, version: int) -> Document:
    if not path.is_file():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StoreError(f"{path}: is not JSON, so nothing is added to it: {error}") from error
    if not isinstance(document, dict) or document.pop("version", None) != version:
        raise StoreError(
            f"{path}: expected an asv file of version {version}; choose another folder, or `asv update` it"
        )
    return document


def _milliseconds(utc: str) -> int:
    return int(datetime.fromisoformat(utc).timestamp() * 1000)
