"""What a profile comes to: `profile.json`. Everything is per call, in seconds, bytes and FLOP."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from pydantic import NonNegativeInt, PositiveInt

from bsa_bench.profiling.job import Findings, PhaseWork
from bsa_bench.profiling.trace import Allocation, TraceTimes
from bsa_bench.result import Case, Ceiling, Environment, Line, NonNegative
from bsa_bench.run.estimate import DeviceModel, predict

NOT_A_RESULT = (
    "Times under a profiler are longer than those of a run and never a result: of them only shares are meant."
)


class PhaseRow(Line):
    """A phase.

    Args:
        profiled_s: in the trace.
        share: of the traced call.
        host_s: of `profiled_s`, outside of torch's operators; on a GPU without any kernel running.
        unprofiled_s: median by the timer of a run, stage by stage; null where that has no phases.
        flop, bytes: see `PhaseWork`.
        floor_s: the least that the ceilings allow for `flop` and `bytes`, whichever takes longer; null where neither
            is known or no ceiling is.
    """

    name: str
    profiled_s: NonNegative
    share: NonNegative
    host_s: NonNegative
    unprofiled_s: NonNegative | None = None
    flop: NonNegative | None = None
    bytes: NonNegativeInt | None = None
    floor_s: NonNegative | None = None

    @property
    def flop_per_s(self) -> float | None:
        """Achieved, without a profiler."""
        return self.flop / self.unprofiled_s if self.flop and self.unprofiled_s else None

    @property
    def bytes_per_s(self) -> float | None:
        """Achieved, without a profiler: at least so much, as each byte is counted once."""
        return self.bytes / self.unprofiled_s if self.bytes and self.unprofiled_s else None


class OperatorRow(Line):
    """An operator or kernel of a phase, see `OperatorTime`."""

    phase: str
    kind: str
    name: str
    num_calls: NonNegative
    self_s: NonNegative


class Prediction(Line):
    """What `run --dry-run` predicts of the case, next to what it came to here; null where that is not known."""

    call_s: NonNegative
    flop: NonNegative
    peak_bytes: NonNegativeInt
    here_flop: NonNegative | None
    here_peak_bytes: NonNegativeInt


class ProfileDocument(Line):
    """A whole profile.

    Args:
        note: what these figures are not.
        unprofiled_s: median of the whole call, timed before the profilers.
        staged_s: the sum of the phases, timed without a profiler; null where that has no phases.
        profiled_s: the traced call.
        phases_s: the sum of the traced phases.
        host_share: of the traced call, see `PhaseRow.host_s`.
        num_traced: calls in the trace.
        gemm, copy: ceilings of this machine, measured before the case; null where none fits the dtype.
        peak_bytes, peak_phase: most memory allocated above the inputs, and when.
        tools: what was left out, and why.
        files: in the folder.
    """

    schema_version: int = 1
    note: str = NOT_A_RESULT
    case: Case
    case_id: str
    utc: str
    command: list[str]
    environment: Environment
    engine_version: str | None
    unprofiled_s: NonNegative
    staged_s: NonNegative | None
    profiled_s: NonNegative
    phases_s: NonNegative
    host_share: NonNegative
    num_traced: PositiveInt
    phases: list[PhaseRow]
    operators: list[OperatorRow]
    prediction: Prediction
    gemm: Ceiling | None
    copy_rate: Ceiling | None
    peak_bytes: NonNegativeInt
    peak_phase: str
    tools: list[str]
    files: dict[str, str]

    @property
    def slowdown(self) -> float | None:
        """How many times as long the traced call took as the same without a profiler."""
        plain_s = self.staged_s or self.unprofiled_s
        return self.profiled_s / plain_s if plain_s else None


def gemm_ceiling(ceilings: Sequence[Ceiling], case: Case) -> Ceiling | None:
    """The matrix product in the case's format; of float16 that of bfloat16, which tensor cores multiply as fast."""
    by_name = {ceiling.name: ceiling for ceiling in ceilings}
    dtype = case.workload.dtype
    return by_name.get(f"GEMM {'bfloat16' if dtype == 'float16' else dtype}")


def phase_rows(
    times: TraceTimes, findings: Findings, gemm: Ceiling | None, copy_rate: Ceiling | None
) -> list[PhaseRow]:
    """The phases with what they did and what the ceilings allow."""
    timed = findings.timing.phases if findings.timing else {}
    return [
        PhaseRow(
            name=phase.name,
            profiled_s=phase.seconds,
            share=phase.seconds / times.whole_s if times.whole_s else 0.0,
            host_s=phase.host_s,
            unprofiled_s=median(timed[phase.name]) if phase.name in timed else None,
            flop=work.flop,
            bytes=work.bytes,
            floor_s=_floor_s(work, gemm, copy_rate),
        )
        for phase in times.phases
        for work in [findings.phase_work.get(phase.name, PhaseWork())]
    ]


def prediction_of(case: Case, device: DeviceModel, findings: Findings, peak_bytes: int) -> Prediction:
    """What was predicted, and what it came to."""
    estimate, work = predict(case, device), findings.work
    executed = None if work is None or work.flops_executed is None else work.flops_executed + work.flops_selection
    return Prediction(
        call_s=estimate.call_s,
        flop=estimate.flop,
        peak_bytes=estimate.bytes,
        here_flop=executed,
        here_peak_bytes=findings.inputs_bytes + peak_bytes,
    )


def peak_of(allocations: Sequence[Allocation]) -> tuple[int, str]:
    """The most memory allocated, and in which phase."""
    top = max(allocations, key=lambda each: each.allocated_bytes, default=None)
    return (max(top.allocated_bytes, 0), top.phase) if top else (0, "")


def _floor_s(work: PhaseWork, gemm: Ceiling | None, copy_rate: Ceiling | None) -> float | None:
    parts = []
    if work.flop and gemm:
        parts.append(work.flop / gemm.value)
    if work.bytes and copy_rate:
        parts.append(work.bytes / copy_rate.value)
    return max(parts, default=None)
