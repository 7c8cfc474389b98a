"""What a resumed run need not repeat, and whether it may be resumed here at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from bsa_bench.errors import MachineError, UsageError
from bsa_bench.measure.choice import TimerSetting, timer_of_run
from bsa_bench.measure.process_start import is_hashed
from bsa_bench.result import VOLATILE, Case, Environment, Status
from bsa_bench.run.settings import RunSettings
from bsa_bench.store.reader import Run

_GPU_SETTINGS = {
    f"device_details.{name}"
    for name in (
        "persistence_mode",
        "ecc",
        "mig",
        "mps",
        "compute_mode",
        "application_sm_clock_hz",
        "application_memory_clock_hz",
        "default_power_limit_w",
        "power_limit_w",
        "max_sm_clock_hz",
    )
}


def already_done(
    previous: Run | None,
    environment: Environment,
    profile: str,
    *,
    timing: TimerSetting | None = None,
    allow_other_environment: bool = False,
) -> dict[tuple[str, int], Status]:
    """Return the final status by case hash and process index of what was measured in this environment.

    Timings of two environments or profiles must not stand in one table unmarked, so that is refused. Where it is
    allowed, what was measured elsewhere is measured again here, and results say by their `env_hash` which is which.

    Raises:
        UsageError: the run was measured in another environment, with another profile, or by another timer or cache
            state than `timing` (null: any).
        MachineError: nothing but settings of the GPU differs: ECC, MIG, MPS, clocks, power limit.
    """
    if previous is None:
        return {}
    last = previous.run_lines[-1]
    if not allow_other_environment:
        remedy = "start a new run without --resume, or add --allow-other-environment to have both in one run"
        if last.profile != profile:
            raise UsageError(
                f"run {last.run_id}: measured with profile {last.profile!r}, asked for {profile!r}; {remedy}"
            )
        before = timer_of_run(last)
        if timing is not None and timing != before:
            raise UsageError(f"run {last.run_id}: measured with {before}, asked for {timing}; {remedy}")
        if last.environment.hash != environment.hash:
            raise _error_of(last.environment, environment)(
                f"run {last.run_id}: measured in another environment, "
                f"{environment_changes(last.environment, environment)}; {remedy}"
            )
    return {
        (result.case_hash, result.process_index): result.status
        for result in previous.results
        if result.status.is_final and result.env_hash == environment.hash
    }


def files_of(cases: Iterable[Case]) -> dict[str, str]:
    """The SHA-256 of each input file of the cases, by its path."""
    specs = (case.workload.input for case in cases)
    return {spec.path: spec.sha256 for spec in specs if spec.path is not None and spec.sha256 is not None}


def check_files(previous: Run | None, cases: Iterable[Case], settings: RunSettings) -> None:
    """See that the suite and the input files are those that the run was measured with; older runs do not say.

    What was measured of another file under the same path would stand in one table with what is measured now.

    Raises:
        UsageError: one is not; names it.
    """
    now = files_of(cases)
    for line in previous.run_lines if previous else ():
        pairs: list[tuple[str, str | None, str | None]] = [
            (path, digest, now.get(path)) for path, digest in line.files.items()
        ]
        if line.suite == settings.suite:
            pairs.insert(0, (f"suite {settings.suite_source or line.suite}", line.suite_sha256, settings.suite_sha256))
        for name, before, after in pairs:
            if before is not None and after is not None and before != after:
                raise UsageError(
                    f"run {line.run_id}: {name} is not the file that was measured, its SHA-256 is {after[:12]}..., "
                    f"expected {before[:12]}...; put that one back, or start a new run without --resume"
                )


def _error_of(before: Environment, now: Environment) -> type[MachineError | UsageError]:
    """Settings of the GPU that an administrator changed are the machine's fault, all else is the user's choice."""
    changed = set(_changed(_flat(before), _flat(now)))
    return MachineError if changed and changed <= _GPU_SETTINGS else UsageError


def environment_changes(before: Environment, now: Environment) -> str:
    """Say what differs, without what never matters to a timing: `package torch 2.12.0 -> 2.13.0, device_name ...`."""
    left, right = _flat(before), _flat(now)
    keys = _changed(left, right)
    if not keys:
        return f"{before.hash} -> {now.hash}"
    shown = [f"{key}: {left.get(key)} -> {right.get(key)}" for key in keys[:6]]
    return ", ".join(shown) + f", and {len(keys) - 6} more" * (len(keys) > 6)


def _changed(left: Mapping[str, object], right: Mapping[str, object]) -> list[str]:
    return [key for key in sorted(left.keys() | right.keys()) if left.get(key) != right.get(key)]


def _flat(environment: Environment) -> dict[str, object]:
    fields = environment.model_dump(exclude={"hash", "git_commit", "git_dirty"})
    flat: dict[str, object] = {}
    for name, value in fields.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": inner for key, inner in value.items() if _is_compared(name, key)}
        else:
            flat[name] = value
    return flat


def _is_compared(field: str, key: str) -> bool:
    return key not in VOLATILE if field == "cpu" else field != "variables" or is_hashed(key)
