"""Profile a case: a worker process for each profiler that wants the device for itself, then the files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from bsa_bench.errors import BenchError
from bsa_bench.profiling import document as doc
from bsa_bench.profiling.job import (
    FINDINGS_FILE,
    HOST_HTML_FILE,
    HOST_TEXT_FILE,
    MEMORY_TRACE_FILE,
    PROTON_NAME,
    SNAPSHOT_FILE,
    TRACE_FILE,
    Findings,
    Part,
    PhaseWork,
    ProfileJob,
    read_findings,
)
from bsa_bench.profiling.tables import (
    MEMORY_FILE,
    MEMORY_PLOT,
    OPERATORS_FILE,
    draw_memory,
    write_memory,
    write_operators,
)
from bsa_bench.profiling.tools import PROTON, PYTHON_WORKER, TOOLS, Tool, missing, missing_proton
from bsa_bench.profiling.trace import allocations_of, read_events, times_of
from bsa_bench.report.labels import workload_label
from bsa_bench.result import Case, Ceiling, Environment, Status
from bsa_bench.run.estimate import DeviceModel
from bsa_bench.run.job import ProgressEvent, ResultEvent
from bsa_bench.run.worker_process import Ending, judge, run_worker
from bsa_bench.store.whole_file import write_whole

LOG_FILE, DOCUMENT_FILE, SUMMARY_FILE = "worker.log", "profile.json", "summary.md"
_LOG_LINES = 12
_FILES = {
    TRACE_FILE: "trace of torch.profiler, for ui.perfetto.dev or chrome://tracing",
    OPERATORS_FILE: "operators and kernels by phase",
    f"{MEMORY_PLOT}.png": "allocated memory over the time of a call",
    f"{MEMORY_PLOT}.svg": "the same",
    MEMORY_FILE: "every allocation and release",
    SNAPSHOT_FILE: "history of the CUDA allocator, for pytorch.org/memory_viz",
    HOST_HTML_FILE: "Python code by pyinstrument, interactive",
    HOST_TEXT_FILE: "the same as text",
    f"{PROTON_NAME}.hatchet": "scopes and kernels by Triton Proton, for proton-viewer",
    **{tool.file: f"recorded by {tool.title}" for tool in TOOLS},
    LOG_FILE: "what the workers wrote",
}


class NotProfiledError(BenchError):
    """The case came to something else than a profile; `status` says to what."""

    def __init__(self, case: Case, status: Status, reason: str, details: str = "") -> None:
        super().__init__(f"{case.case_id} is not profiled, {status}: {reason}" + (f"\n{details}" if details else ""))
        self.status = status


@dataclass(frozen=True, kw_only=True)
class ProfileSettings:
    """How a case is profiled.

    Args:
        device: what predictions assume.
        environment, ceilings: of this machine.
        threads: of a CPU worker; null leaves the choice to the worker.
        num_calls: how many calls each profiler records.
        limit_s: the time limit of each worker.
        command: what the user typed.
        worker_command: starts a worker; an argument so that failures are tested.
    """

    device: DeviceModel
    environment: Environment
    ceilings: Sequence[Ceiling] = ()
    threads: int | None = None
    num_calls: int = 3
    limit_s: float = 600.0
    command: tuple[str, ...] = ()
    worker_command: tuple[str, ...] = PYTHON_WORKER


def profile_case(
    case: Case, settings: ProfileSettings, folder: Path, tell: Callable[[str], None]
) -> doc.ProfileDocument:
    """Profile into a folder that is there.

    Raises:
        NotProfiledError: the case is wrong, cannot run here, or its worker died.
        BenchError: a worker cannot be started, or left no trace.
    """
    names, findings = _by_torch(case, settings, folder, tell)
    left_out = list(findings.notes)
    if settings.device.kind == "cuda":
        left_out += _by_gpu_tools(case, settings, folder, findings.phase_work, tell)
    else:
        tools = " and ".join(tool.title for tool in TOOLS)
        left_out.append(f"{PROTON}, {tools}: of GPUs only, and this was profiled on a CPU")
    tell("reading the trace")
    made = _document(case, settings, folder, findings, names, left_out)
    write_whole(folder / DOCUMENT_FILE, made.model_dump_json(indent=1) + "\n")
    return made


def _by_torch(
    case: Case, settings: ProfileSettings, folder: Path, tell: Callable[[str], None]
) -> tuple[list[str], Findings]:
    """The phases of the pass, and what the worker found."""
    job = _job(case, settings, folder, part="torch")
    ending = _run(settings.worker_command, job, settings, tell)
    if ending.cause != "exited" or ending.exit_code != 0:
        status, reason = judge(ending, limit_s=settings.limit_s, memory_bytes=settings.device.memory_bytes)
        raise NotProfiledError(case, status, reason, _last_lines(ending.log_tail))
    findings = read_findings(folder)
    (folder / FINDINGS_FILE).unlink()
    if findings.status is not Status.OK:
        details = findings.traceback if findings.status is Status.CRASHED else None
        raise NotProfiledError(case, findings.status, findings.reason or findings.status.meaning, details or "")
    return list(findings.phase_work), findings


def _by_gpu_tools(
    case: Case,
    settings: ProfileSettings,
    folder: Path,
    phase_work: dict[str, PhaseWork],
    tell: Callable[[str], None],
) -> list[str]:
    """Run what is installed; says what is not there or went wrong, none of which costs the rest of the profile."""
    notes = [note for tool in TOOLS if (note := missing(tool))]
    if note := missing_proton():
        notes.append(note)
    else:
        job = _job(case, settings, folder, part="proton", phase_work=phase_work)
        ending = _run(settings.worker_command, job, settings, tell)
        found = read_findings(folder) if ending.exit_code == 0 else None
        (folder / FINDINGS_FILE).unlink(missing_ok=True)
        if found is None or found.status is not Status.OK:
            notes.append(f"{PROTON}: {found.reason if found else _ended(ending)}")
    notes += [note for tool in TOOLS if not missing(tool) and (note := _by_tool(tool, case, settings, folder, tell))]
    return notes


def _by_tool(
    tool: Tool, case: Case, settings: ProfileSettings, folder: Path, tell: Callable[[str], None]
) -> str | None:
    job = _job(case, settings, folder, part="replay", num_calls=tool.num_calls)
    path = folder / f"{tool.program}-job.json"
    write_whole(path, job.model_dump_json())
    tell(f"recording by {tool.title}")
    command = tool.command(folder, [*settings.worker_command, "--job", str(path)])
    try:
        ending = _run(command, job, settings, tell)
    except BenchError as error:
        return f"{tool.title}: {error}"
    finally:
        path.unlink()
    if (folder / tool.file).is_file():
        return None
    return f"{tool.title}: {_ended(ending)}"


def _ended(ending: Ending) -> str:
    last = ending.log_tail.splitlines()[-1:] or ["it wrote nothing"]
    what = ending.exit_text if ending.cause == "exited" else ending.cause
    return f"left no file, it ended with {what}: {last[0]}"


def _job(
    case: Case,
    settings: ProfileSettings,
    folder: Path,
    *,
    part: Part,
    num_calls: int | None = None,
    phase_work: dict[str, PhaseWork] | None = None,
) -> ProfileJob:
    return ProfileJob(
        run_id="profile",
        env_hash=settings.environment.hash,
        cases=[case],
        first_seq=0,
        profile="quick",
        device=settings.device.kind,
        threads=settings.threads,
        memory_limit_bytes=settings.device.memory_bytes,
        part=part,
        folder=str(folder.absolute()),
        num_calls=num_calls or settings.num_calls,
        limit_s=max(1, round(settings.limit_s) + 5),
        phase_work=phase_work or {},
    )


def _run(command: Sequence[str], job: ProfileJob, settings: ProfileSettings, tell: Callable[[str], None]) -> Ending:
    def on_event(event: ProgressEvent | ResultEvent) -> None:
        if not isinstance(event, ProgressEvent):
            raise ValueError("a result, of a worker that measures nothing")  # noqa: TRY004  # as `run_worker` has it
        tell(event.text)

    return run_worker(
        command,
        job,
        log_path=Path(job.folder) / LOG_FILE,
        limit_s=settings.limit_s,
        on_event=on_event,
        should_stop=lambda: False,  # Ctrl-C raises
    )


def _document(
    case: Case,
    settings: ProfileSettings,
    folder: Path,
    findings: Findings,
    names: Sequence[str],
    left_out: list[str],
) -> doc.ProfileDocument:
    assert findings.timing is not None
    times = times_of(read_events(folder / TRACE_FILE), names)
    memory = folder / MEMORY_TRACE_FILE
    allocations, spans = allocations_of(read_events(memory), is_cuda=settings.device.kind == "cuda")
    memory.unlink()
    write_operators(times.operators, folder)
    write_memory(allocations, folder)
    named = " ".join(filter(None, (case.implementation, case.label)))
    draw_memory(allocations, spans, folder, title=f"{named}, {case.passes}: {workload_label(case)}")
    gemm = doc.gemm_ceiling(settings.ceilings, case)
    copy_rate = next((each for each in settings.ceilings if each.unit == "B/s"), None)
    peak_bytes, peak_phase = doc.peak_of(allocations)
    timed = findings.timing.phases
    return doc.ProfileDocument(
        case=case,
        case_id=case.case_id,
        utc=datetime.now(UTC).isoformat(timespec="seconds"),
        command=list(settings.command),
        environment=settings.environment,
        engine_version=findings.engine_version,
        unprofiled_s=median(findings.timing.samples),
        staged_s=sum(median(timed[name]) for name in names) if timed.keys() >= set(names) else None,
        profiled_s=times.whole_s,
        phases_s=times.phases_s,
        host_share=times.host_share,
        num_traced=times.num_calls,
        phases=doc.phase_rows(times, findings, gemm, copy_rate),
        operators=[doc.OperatorRow(**vars(each)) for each in times.operators],
        prediction=doc.prediction_of(case, settings.device, findings, peak_bytes),
        gemm=gemm,
        copy_rate=copy_rate,
        peak_bytes=peak_bytes,
        peak_phase=peak_phase,
        tools=left_out,
        files={name: about for name, about in _FILES.items() if (folder / name).is_file()},
    )


def _last_lines(text: str) -> str:
    return "\n".join(text.splitlines()[-_LOG_LINES:])
