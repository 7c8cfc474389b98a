"""What a profiling worker is asked to do, and what it finds besides the files that it writes.

A worker is started as that of a run (`bsa_bench.run.job`), with a `ProfileJob` in place of a `Job`. It sends progress,
writes its files and one `Findings` into the job's folder, and exits with 0 whatever became of the case.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError

from bsa_bench.errors import BenchError
from bsa_bench.result import Line, NonNegative, Status, Timing, Work
from bsa_bench.run.job import Job

Part = Literal["torch", "proton", "replay"]
"""`torch`: time without a profiler, then trace, memory and host code. `proton`: Triton's profiler, which needs the
device's counters for itself. `replay`: calls with NVTX ranges, for the Nsight tools."""

FINDINGS_FILE = "findings.json"
TRACE_FILE = "trace.json.gz"
MEMORY_TRACE_FILE = "memory-trace.json.gz"
"""Where the memory timeline is read from; not kept."""
SNAPSHOT_FILE = "memory-snapshot.pickle"
HOST_TEXT_FILE, HOST_HTML_FILE = "host.txt", "host.html"
PROTON_NAME = "proton"
"""Proton adds `.hatchet`."""


class PhaseWork(Line):
    """What one phase of a call has to do.

    Args:
        flop: that it executes; null where that is not known.
        bytes: of each tensor that it reads or makes, and of a plan's lists, once; null where that is not known.
    """

    flop: NonNegative | None = None
    bytes: NonNegativeInt | None = None


class ProfileJob(Job):
    """What one worker process is to profile: the first case.

    Args:
        part: by which tools.
        folder: where its files go.
        num_calls: how many calls each profiler records.
        seconds: how long host code is sampled.
        limit_s: the process ends itself after so long.
        phase_work: of each phase, for the scopes of Proton.
    """

    part: Part = "torch"
    folder: str
    num_calls: PositiveInt = 3
    seconds: Annotated[float, Field(gt=0)] = 1.0
    limit_s: PositiveInt = 600
    phase_work: dict[str, PhaseWork] = Field(default_factory=dict)


class Findings(Line):
    """What a worker of the parts `torch` and `proton` found.

    Args:
        status: OK, or why the case was not profiled.
        reason, traceback: of a status that is not OK.
        engine_version: of what computes.
        timing: of calls that no profiler watched, before those that one did.
        work: of the pass.
        phase_work: by phase.
        inputs_bytes: of the tensors that the pass reads.
        notes: what was left out, and why.
    """

    status: Status
    reason: str | None = None
    traceback: str | None = None
    engine_version: str | None = None
    timing: Timing | None = None
    work: Work | None = None
    phase_work: dict[str, PhaseWork] = Field(default_factory=dict)
    inputs_bytes: NonNegativeInt = 0
    notes: tuple[str, ...] = ()


def read_profile_job(path: Path | None) -> ProfileJob:
    """Read the job from a file, or once from stdin."""
    return ProfileJob.model_validate_json(path.read_bytes() if path else sys.stdin.buffer.readline())


def read_findings(folder: Path) -> Findings:
    """Read what a worker left.

    Raises:
        BenchError: it left nothing, or something else.
    """
    path = folder / FINDINGS_FILE
    try:
        return Findings.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise BenchError(f"the profiling worker left no findings in {path.name}: {error}") from error
