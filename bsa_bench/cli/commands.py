"""What the verbs do, but `run`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bsa_bench.catalog import FORMED, implementations, is_dense, plugins
from bsa_bench.engines.forms import FORMS
from bsa_bench.errors import EXIT_NOTHING_MEASURED, EXIT_OK, InputError, StoreError, UsageError
from bsa_bench.exports import FORMATS, FormatName, export_run
from bsa_bench.run.job import DeviceKind
from bsa_bench.run.probe import Probe, Question, probe
from bsa_bench.text import visible
from bsa_bench.units import format_bytes
from bsa_bench.workload import PRESETS

if TYPE_CHECKING:
    from bsa_bench.report import ReportFormat


def doctor(results: Path, *, as_json: bool) -> int:
    """Report the environment, every implementation with its reason, and what else a run needs.

    Returns:
        0 where at least one dense and one sparse implementation run, else `EXIT_NOTHING_MEASURED`.
    """
    shapes: dict[DeviceKind, tuple[str, int]] = {"cpu": ("float32", 64), "cuda": ("bfloat16", 128)}
    questions: dict[DeviceKind, list[Question]] = {
        kind: [(name, dtype, head_dim, backward) for name in implementations() for backward in (False, True)]
        for kind, (dtype, head_dim) in shapes.items()
    }
    found = probe(questions, device=None, threads=None, must_be_ready=False)
    checks = {
        "results folder": _writable(results),
        "sample clips": _sample_clips(),
        "cache of compiled code": _cache(),
    }
    usable = [name for name, reason in _forward(found).items() if reason is None]
    ok = {True, False} <= {is_dense(name) for name in usable}
    if as_json:
        _print_json(
            {
                "environment": found.environment.model_dump(mode="json"),
                "implementations": [
                    {"implementation": q[0], "dtype": q[1], "head_dim": q[2], "backward": q[3], "reason": reason}
                    for q, reason in found.reasons.items()
                ],
                "checks": checks,
                "plugins": [
                    {"group": each.group, "name": each.name, "where": each.where, "remark": each.remark}
                    for each in plugins()
                ],
                "troubles": list(found.troubles),
                "notes": list(found.notes),
            }
        )
        return EXIT_OK if ok else EXIT_NOTHING_MEASURED
    environment = found.environment
    print(f"device    {environment.device_name} ({environment.device_kind})")
    cpu = environment.cpu
    memory = format_bytes(_number(cpu["memory_bytes"]))
    print(f"cpu       {cpu['model']}, {cpu['usable_cores']} cores, {memory}{_limits(cpu)}")
    print(f"system    {environment.os}, Python {environment.python}")
    settings = environment.device_details if environment.device_kind == "cuda" else environment.cpu
    print("settings  " + ", ".join(_settings(settings, environment.device_kind)))
    print("packages  " + ", ".join(f"{k} {v}" for k, v in environment.packages.items() if v))
    dtype, head_dim = shapes[environment.device_kind]
    print(f"\nimplementations, asked with {dtype} and head size {head_dim}:")
    forward = _forward(found)
    backward = {q[0]: reason for q, reason in found.reasons.items() if q[3]}
    for name, reason in forward.items():
        if reason:
            print(f"  no   {name:22} {reason}")
        elif backward[name]:
            print(f"  fwd  {name:22} forward only: {backward[name]}")
        else:
            print(f"  yes  {name}")
    print()
    for name, trouble in checks.items():
        print(f"  {'no ' if trouble else 'yes'}  {name}" + (f": {trouble}" if trouble else ""))
    for each in plugins():
        word = "no " if each.reason else "?  " if each.remark else "yes"
        print(f"  {word}  {each.group} {each.name}" + (f": {visible(each.remark)}" if each.remark else ""))
    for trouble in found.troubles:
        print(f"  no   ready to be measured: {trouble}")
    for note in found.notes:
        print(f"  ?    {note}")
    return EXIT_OK if ok else EXIT_NOTHING_MEASURED


def _limits(cpu: Mapping[str, str | float | None]) -> str:
    """What control groups or `ulimit` allow of that, where it is less."""
    quota, memory = _number(cpu.get("cpu_quota_cores")), _number(cpu.get("memory_limit_bytes"))
    text = f"; a quota of {quota:g} cores, {cpu['threads']} threads" if quota is not None else ""
    return text + (f"; a limit of {format_bytes(memory)}" if memory is not None else "")


def _forward(found: Probe) -> dict[str, str | None]:
    return {q[0]: reason for q, reason in found.reasons.items() if not q[3]}


#: What `doctor` shows of the settings that change timings.
_SETTINGS: dict[DeviceKind, tuple[str, ...]] = {
    "cpu": (
        "governor",
        "turbo",
        "smt",
        "cpu_quota_cores",
        "aslr",
        "transparent_huge_pages",
        "virtual_machine",
        "load_average",
        "steal_share",
    ),
    "cuda": (
        "driver",
        "persistence_mode",
        "ecc",
        "mig",
        "mps",
        "compute_mode",
        "power_limit_w",
        "default_power_limit_w",
        "application_sm_clock_hz",
        "application_memory_clock_hz",
        "max_sm_clock_hz",
        "nvml_error",
    ),
}


def _settings(values: Mapping[str, object], kind: DeviceKind) -> list[str]:
    """`governor performance, turbo unknown, ...`; one that is an error only where there was one."""
    return [f"{name} {_shown(values.get(name))}" for name in _SETTINGS[kind] if name in values or name != "nvml_error"]


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "unknown" if value is None else str(value)


def _number(value: str | float | None) -> float | None:
    return value if isinstance(value, (int, float)) else None


def _writable(results: Path) -> str | None:
    from bsa_bench.store.writer import check_writable

    was_there = results.exists()
    try:
        check_writable(results)
    except StoreError as error:
        return str(error)
    if not was_there:
        results.rmdir()
    return None


def _cache() -> str | None:
    """Why `static`, `gate` and `tune` cannot keep what they compile; makes no folder."""
    from bsa_bench.static.compile import default_cache

    try:
        folder = default_cache()
    except UsageError as error:
        return str(error)
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return None
    return f"{folder} cannot be written, as {there} cannot; set XDG_CACHE_HOME, or give --cache to those that take it"


def _sample_clips() -> str | None:
    from bsa_bench.inputs import SAMPLE_CLIPS, find_sample_clip

    try:
        for name in SAMPLE_CLIPS:
            find_sample_clip(name)
    except InputError as error:
        return str(error)
    return None


def list_all(what: Literal["all", "suites", "implementations", "forms", "models"], *, as_json: bool) -> None:
    """List what there is, without asking whether it runs here (`doctor` does)."""
    from bsa_bench.suite import list_suites

    content: dict[str, Any] = {
        "suites": [
            {"name": s.name, "title": s.title, "cpu_cases": s.num_cases, "description": " ".join(s.description.split())}
            for s in list_suites()
        ],
        "implementations": implementations(),
        "forms": [
            {"name": name, "engines": sorted(FORMED), "aspect": form.aspect, "meaning": form.meaning}
            for name, form in FORMS.items()
        ],
        "models": [
            {"name": name, "heads": p.heads, "head_dim": p.head_dim, "layers": p.layers, "source": p.source}
            for name, p in PRESETS.items()
        ],
    }
    if what != "all":
        content = {what: content[what]}
    if as_json:
        _print_json(content)
        return
    for suite in content.get("suites", []):
        print(f"suite  {suite['name']:12} {suite['title']} ({suite['cpu_cases']} cases on a CPU)")
    for name in content.get("implementations", []):
        print(f"implementation  {name}")
    for form in content.get("forms", []):
        print(f"form  {form['name']:14} {form['aspect']}: {form['meaning']} (of {' and '.join(form['engines'])})")
    for model in content.get("models", []):
        print(f"model  {model['name']:14} {model['heads']} heads x {model['head_dim']}  [{model['source']}]")


def report(
    runs: Sequence[str],
    results: Path,
    out: Path | None,
    published: Sequence[Path],
    *,
    formats: Sequence[ReportFormat],
    as_json: bool,
) -> None:
    """Write the report of one run, or of several side by side, with a section of what others published if given."""
    from bsa_bench.report import write_reports

    folders = [find_run(run, results) for run in runs]
    if again := next((folder for i, folder in enumerate(folders) if folder in folders[:i]), None):
        raise UsageError(f"run {again}: given twice, expected each run once")
    written = write_reports(folders, out, formats=formats, published=published)
    if as_json:
        _print_json(
            {
                "markdown": [str(files.markdown) for files in written.markdown],
                "plots": [str(plot) for files in written.markdown for plot in files.plots],
                "html": str(written.page) if written.page else None,
            }
        )
        return
    for path in written.texts:
        print(f"report: {path}")


def export(run: str, results: Path, to: FormatName, out: Path | None) -> None:
    """Export a run; what is left out is said on stderr, by status."""
    folder = find_run(run, results)
    exported = export_run(folder, to=to, out=out or Path(f"{folder.name}{FORMATS[to].suffix}"))
    print(exported.target)
    if exported.note:
        print(exported.note, file=sys.stderr)


def find_run(run: str, results: Path) -> Path:
    """Resolve `latest`, a name under the results folder, or a path.

    Raises:
        UsageError: there is no such run; the message lists those that there are.
    """
    from bsa_bench.files import is_regular, user_path
    from bsa_bench.store.find import latest_run, results_files

    if run == "latest":
        latest = latest_run(results)
        if latest is None:
            raise UsageError(f"there is no run in {results}; make one with: bsa-bench run --suite quick")
        return latest
    path = user_path(run)
    for candidate in (results / path, path):
        if is_regular(candidate / "results.jsonl"):
            return candidate
        if candidate.suffix == ".jsonl" and is_regular(candidate):
            return candidate.parent
    there = [file.parent.name for file in results_files(results)]
    raise UsageError(f"run {run!r}: not found under {results} nor as a path; there are: {', '.join(there) or 'none'}")


def _print_json(value: Any) -> None:
    json.dump(value, sys.stdout, indent=2)
    sys.stdout.write("\n")
