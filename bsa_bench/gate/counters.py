"""Tier 1 of the gate: deterministic counters of small fixed cases. Needs torch and Triton, and no GPU.

Counted are FLOP, bytes and lists (`bsa_bench.measure.work`, `count_traffic`), the launches of the compiled kernels, and
what a call costs the host (`count_host`). The cases are those of the suite `counters.toml` beside this file.
"""

from __future__ import annotations

import importlib.util
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from pydantic import ValidationError

import bsa_bench
from bsa_bench.child_process import check_package, child_environment, module_command
from bsa_bench.errors import EXIT_INFRASTRUCTURE, BenchError, UsageError
from bsa_bench.gate.counters_baseline import CountersProvenance, read_counters, write_counters
from bsa_bench.gate.counters_record import CaseCounters, Counted, Request, Versions, name_of
from bsa_bench.gate.counters_rules import compare_counters
from bsa_bench.gate.verdict import TierResult
from bsa_bench.result import Case
from bsa_bench.static.sides import fits
from bsa_bench.static.toolchain import revision_sources
from bsa_bench.suite import load_suite

__all__ = [
    "CaseCounters",
    "CountersProvenance",
    "CountingError",
    "count",
    "counter_cases",
    "read_counters",
    "run_counters_tier",
    "write_counters",
]

SUITE = Path(__file__).with_name("counters.toml")
LIMIT_S = 600.0
"""How long a counting process may take; it takes half a minute on two slow cores."""
_DROPPED = ("TRITON_", "TORCH_", "BSA_KERNELS_TILES", "PYTHONOPTIMIZE")
"""Starts of environment variables that change what is counted."""
_LOG_LINES = 3


class CountingError(BenchError):
    """The counting process failed."""

    exit_code: ClassVar[int] = EXIT_INFRASTRUCTURE


def counter_cases(only: Sequence[str] = ()) -> list[Case]:
    """The cases that are counted.

    Args:
        only: patterns of their names, such as `bsa@triton:*`; all without one.

    Raises:
        UsageError: a pattern fits no case.
    """
    cases = load_suite(str(SUITE), device_kind="cpu").cases()
    for pattern in only:
        if not any(fits(name_of(case), [pattern]) for case in cases):
            known = ", ".join(dict.fromkeys(case.implementation for case in cases))
            raise UsageError(
                f"counters: {pattern!r} fits no case, expected a pattern of names such as 'bsa@triton/*'; of {known}"
            )
    return [case for case in cases if fits(name_of(case), only)]


def count(
    sources: Sequence[Path] | None = None, *, cases: Sequence[Case] | None = None, limit_s: float = LIMIT_S
) -> list[CaseCounters]:
    """Count in a process of its own.

    Args:
        sources: folders of packages that come before all others, another revision's `kernels` among them; by default
            these kernels. The benchmark's code is this one's in any case.
        cases: what to count, by default all of `counter_cases`.
        limit_s: how long it may take.

    Raises:
        UsageError: no folder of `sources` has the package `bsa_kernels`, or one has a `bsa_bench`; or the process
            imported another `bsa_bench` than this one.
        CountingError: the process ended without an answer, or did not end.
    """
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("triton") is None:
        raise CountingError("counting needs torch and Triton; on Linux: pip install bsa-bench")
    folders = [_own_kernels()] if sources is None else list(sources)
    kernels = _kernels_of(folders)
    chosen = counter_cases() if cases is None else cases
    request = Request(cases=tuple(case.model_dump(mode="json") for case in chosen), kernels=str(kernels))
    try:
        done = subprocess.run(
            module_command("bsa_bench.gate.count_worker"),
            input=request.model_dump_json(),
            env=_environment(folders),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CountingError(f"the counting process was not done within {limit_s:.0f} s") from None
    if done.returncode != 0:
        raise CountingError(f"the counting process ended with exit code {done.returncode}: {_last_words(done.stderr)}")
    try:
        counted = Counted.model_validate_json(done.stdout)
    except ValidationError as error:
        what = error.errors()[0]["msg"]
        raise CountingError(f"the counting process answered otherwise than expected: {what}") from error
    check_package(counted.package, who="the counting process")
    if counted.versions != Versions.installed():
        raise CountingError(f"the counting process has {counted.versions}, expected {Versions.installed()} as here")
    return list(counted.cases)


def run_counters_tier(
    base: Path | str,
    *,
    sources: Sequence[Path] | None = None,
    only: Sequence[str] = (),
    limit_s: float = LIMIT_S,
) -> tuple[TierResult, list[CaseCounters]]:
    """Count the cases and compare them with the base.

    Args:
        base: a baseline file (a Path), or a git revision (a str) whose kernels are counted now as the head's are.
        sources: of the head, as `count` takes them.
        only: patterns of names of cases; all without one.
        limit_s: how long one counting process may take.

    Returns:
        The tier, not measured where a counting process failed, with the reason; and the head's counters, to accept as a
        baseline; none where there are none.

    Raises:
        UsageError: the baseline, the revision, a pattern or `sources` are wrong.
    """
    started = time.monotonic()
    cases = counter_cases(only)
    baseline = read_counters(base) if isinstance(base, Path) else None
    head: list[CaseCounters] = []
    try:
        head = count(sources, cases=cases, limit_s=limit_s)
        before = _count_revision(base, cases, limit_s) if isinstance(base, str) else []
    except CountingError as error:
        return TierResult(tier=1, reason=str(error), wall_s=time.monotonic() - started), head
    others: list[str] = []
    if baseline is not None:
        before = [case for case in baseline.cases if fits(case.name, only)]
        others = baseline.provenance.versions.differing(Versions.installed())
    notes = (f"host costs are not compared: base and head have {'; '.join(others)}",) if others else ()
    checks = compare_counters(before, head, with_host=not others)
    return TierResult(tier=1, checks=tuple(checks), notes=notes, wall_s=time.monotonic() - started), head


def _environment(folders: Sequence[Path]) -> dict[str, str]:
    """Of the counting process: these folders first, no GPU, one order of hashes, no setting of torch or Triton."""
    environment = child_environment(first=[folder.resolve() for folder in folders])
    kept = {key: value for key, value in environment.items() if not key.startswith(_DROPPED)}
    return kept | {"PYTHONHASHSEED": "0", "CUDA_VISIBLE_DEVICES": ""}


def _own_kernels() -> Path:
    spec = importlib.util.find_spec("bsa_kernels")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parents[1]


def _kernels_of(folders: Sequence[Path]) -> Path:
    """The folder that the kernels will be imported from."""
    own = Path(bsa_bench.__file__).parents[1].resolve()
    for folder in folders:
        if (folder / "bsa_bench").is_dir() and folder.resolve() != own:
            raise UsageError(f"sources: {folder}: expected another revision's kernels alone, got its bsa_bench too")
    found = next((folder for folder in folders if (folder / "bsa_kernels" / "__init__.py").is_file()), None)
    if found is None:
        raise UsageError(f"sources: expected a folder with the package bsa_kernels, got {', '.join(map(str, folders))}")
    return found.resolve()


def _count_revision(revision: str, cases: Sequence[Case], limit_s: float) -> list[CaseCounters]:
    """Count by the kernels of a git revision of the repository that the working directory is in."""
    with revision_sources(revision, Path.cwd()) as folder:
        try:
            return count([folder / "kernels"], cases=cases, limit_s=limit_s)
        except CountingError as error:
            raise CountingError(f"revision {revision}: {error}") from error


def _last_words(log: str) -> str:
    lines = [line for line in log.splitlines() if line.strip() and not line.startswith("USDT:")]
    return " | ".join(lines[-_LOG_LINES:]) or "it wrote nothing"
