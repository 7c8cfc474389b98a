"""What `compare` and `noise` do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import JsonValue

from bsa_bench.cli.commands import find_run
from bsa_bench.cli.output import command_line, console, progress
from bsa_bench.errors import EXIT_OK, UsageError
from bsa_bench.gate.calibration import Calibration, calibrate, calibration_path, check_folder, write_calibration
from bsa_bench.gate.compare import compare_implementations, compare_runs, sentence
from bsa_bench.gate.execution import ExecutionRequest, run_execution_tier, select
from bsa_bench.gate.lockstep import LockstepBench, LockstepSettings
from bsa_bench.gate.policy import policy_for
from bsa_bench.gate.show.terminal import print_result
from bsa_bench.gate.sides import describe_side, has_revision, open_pair_side
from bsa_bench.gate.verdict import Check, GateResult, Side, Tier, TierResult, exit_code
from bsa_bench.run.job import DeviceKind
from bsa_bench.store.reader import Run, read_run
from bsa_bench.units import format_seconds, parse_duration, parse_share

_LOGS = Path("results/gate")


@dataclass(frozen=True, kw_only=True)
class CompareFlags:
    """The flags of `bsa-bench compare`, as they were given."""

    base: str
    head: str
    overrides: Sequence[str]
    run: str | None
    suite: str
    device: DeviceKind
    threads: int
    limit: str | None
    budget: str
    call_limit: str
    own_bench: bool
    paths: Sequence[Path]
    allow_other_environment: bool
    verbose: bool
    results: Path
    seed: int
    as_json: bool


@dataclass(frozen=True, kw_only=True)
class NoiseFlags:
    """The flags of `bsa-bench noise`, as they were given."""

    overrides: Sequence[str]
    suite: str
    pairs: int
    device: DeviceKind
    threads: int
    limit: str | None
    call_limit: str
    max_detectable: str
    noise: Path
    seed: int
    as_json: bool


def run_compare_command(flags: CompareFlags) -> int:
    """Compare, show it, and end with one line; returns the exit code.

    Raises:
        UsageError: A or B is no run, implementation or revision, or the two do not compare.
    """
    tier, base, head, environment = _compared(flags)
    closing = sentence(tier.checks, base.label, head.label)
    result = GateResult(
        utc=datetime.now(UTC).isoformat(timespec="seconds"),
        command=tuple(command_line()),
        base=base,
        head=head,
        tiers=(tier,),
        environment=environment,
        exit_code=exit_code([tier]),
        summary=closing,
    )
    if flags.as_json:
        print(result.model_dump_json(indent=1))
    else:
        print_result(result, console(), verbose=flags.verbose)
    return result.exit_code


def _compared(flags: CompareFlags) -> tuple[TierResult, Side, Side, dict[str, JsonValue]]:
    limit = parse_share(flags.limit) if flags.limit else None
    sides = Side(label=flags.base), Side(label=flags.head)
    _check_flags(flags)
    if flags.run is not None:
        run = _run(flags.run, flags.results)
        checks = compare_implementations(
            run, flags.base, flags.head, policy_for(run.environment.device_kind, limit=limit)
        )
        note = f"run {run.run_id}"
        return _tier(checks, note), *sides, run.environment.model_dump(mode="json")
    are_live = [_is_revision(name) for name in (flags.base, flags.head)]
    if all(are_live):
        return _measured_now(flags, limit)
    if any(are_live):
        live, stored = (flags.base, flags.head) if are_live[0] else (flags.head, flags.base)
        raise UsageError(
            f"compare: {live} is measured now, {stored} is not; expected two runs, two revisions (git:REV or `.`), or "
            "two implementations of a --run"
        )
    runs = [_run(name, flags.results) for name in (flags.base, flags.head)]
    checks = compare_runs(
        runs[0],
        runs[1],
        policy_for(runs[1].environment.device_kind, limit=limit),
        allow_other_environment=flags.allow_other_environment,
    )
    note = "runs made one after the other: what the machine did in between is in the ratios (git:REV and . are paired)"
    return _tier(checks, note), *sides, runs[1].environment.model_dump(mode="json")


def _check_flags(flags: CompareFlags) -> None:
    """See that no flag is given that the kind of A and B has no use for."""
    is_live = flags.run is None and _is_revision(flags.base) and _is_revision(flags.head)
    if not is_live and (flags.overrides or flags.own_bench):
        given = "--own-bench" if flags.own_bench else " ".join(flags.overrides)
        raise UsageError(
            f"{given}: is for revisions (git:REV or `.`), which are measured now; stored results are as is"
        )
    if flags.allow_other_environment and (is_live or flags.run is not None):
        raise UsageError("--allow-other-environment: is for two runs; what is compared here is of one environment")


def _measured_now(flags: CompareFlags, limit: float | None) -> tuple[TierResult, Side, Side, dict[str, JsonValue]]:
    for name in (flags.base, flags.head):
        if name != "." and not has_revision(name.removeprefix("git:")):
            raise UsageError(f"{name}: no such commit, branch or tag in the repository here")
    is_same = describe_side(flags.base).commit == describe_side(flags.head).commit
    with (
        open_pair_side(flags.base, own_bench=flags.own_bench, paths=flags.paths) as base,
        open_pair_side(flags.head, own_bench=flags.own_bench, paths=flags.paths) as head,
    ):
        tier_number: Tier = 2 if flags.device == "cpu" else 3
        request = ExecutionRequest(
            suite=flags.suite,
            overrides=flags.overrides,
            device=flags.device,
            base=base,
            head=head,
            policy=policy_for(flags.device, limit=limit),
            threads=flags.threads,
            budget_s=parse_duration(flags.budget),
            call_limit_s=parse_duration(flags.call_limit),
            # Who compares a revision with itself wants to see the machine's noise.
            measure_unchanged=is_same,
            seed=flags.seed,
            logs=_LOGS / f"tier{tier_number}",
        )
        with progress() as tell:
            tier, environment = run_execution_tier(request, tell)
    return tier, describe_side(flags.base), describe_side(flags.head), environment.model_dump(mode="json")


def run_noise_command(flags: NoiseFlags) -> int:
    """Calibrate this machine and write its limits file; returns the exit code.

    Raises:
        UsageError: a flag is wrong, or nothing can be measured.
        StoreError: the file cannot be written.
    """
    limit = parse_share(flags.limit) if flags.limit else None
    check_folder(flags.noise)
    selection = select(flags.suite, flags.overrides, flags.device, threads=flags.threads)
    cases = selection.timed | selection.controls
    with open_pair_side(".") as side, progress() as tell:
        bench = LockstepBench(
            cases,
            base=side,
            head=side,
            settings=LockstepSettings(
                device=flags.device,
                threads=flags.threads,
                logs=_LOGS / "noise",
                call_limit_s=parse_duration(flags.call_limit),
            ),
            seed=flags.seed,
            tell=tell,
        )
        calibration = calibrate(
            list(cases),
            bench,
            policy_for(flags.device, limit=limit),
            num_pairs=flags.pairs,
            environment=selection.environment,
            suite=flags.suite,
            threads=flags.threads,
            max_detectable=parse_share(flags.max_detectable),
            seed=flags.seed,
            tell=tell,
        )
    path = calibration_path(flags.noise, selection.environment, 2 if flags.device == "cpu" else 3)
    write_calibration(path, calibration)
    if flags.as_json:
        print(calibration.model_dump_json(indent=1))
    else:
        _print_calibration(calibration, path)
    return EXIT_OK


def _print_calibration(calibration: Calibration, path: Path) -> None:
    from rich.table import Table

    out = console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("case", "call", "within", "between", "pair", "bias", "drift", "pairs"):
        table.add_column(header, justify="left" if header == "case" else "right", overflow="fold")
    for case in calibration.cases:
        shares = (case.within, case.between, case.pair_sd)
        signed = (case.bias, case.drift)
        table.add_row(
            case.case_id,
            format_seconds(case.call_s),
            *(f"{100 * share:.1f} %" for share in shares),
            *(f"{100 * share:+.1f} %" for share in signed),
            str(case.num_pairs),
        )
    out.print(table)
    for name, reason in calibration.left_out.items():
        out.print(f"left out: {name}: {reason}", markup=False, highlight=False)
    detectable = ", ".join(f"{100 * share:.1f} % with {count} pairs" for count, share in calibration.detectable.items())
    lines = (
        "",
        "within: samples of a process; between: medians of processes; pair: log ratio of a pair (standard deviations).",
        f"A pair of equal processes comes out {100 * calibration.pair_sd:.1f} % apart.",
        f"Changes below {100 * calibration.limit:.1f} % count as none here.",
        f"Slow-downs found at least 8 times in 10: {detectable}.",
        f"False alarms: {100 * calibration.false_alarm_rate:.1f} % of {calibration.num_trials} trials on these pairs.",
        f"limits file: {path}",
        "This machine may gate."
        if calibration.may_gate
        else f"This machine may not gate: it cannot find a slow-down of {100 * calibration.max_detectable:.0f} %.",
    )
    out.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def _is_revision(name: str) -> bool:
    return name == "." or name.startswith("git:")


def _run(name: str, results: Path) -> Run:
    try:
        return read_run(find_run(name, results))
    except UsageError as error:
        raise UsageError(f"{error}; a revision is written git:{name}, an implementation needs --run RUN") from None


def _tier(checks: Sequence[Check], note: str) -> TierResult:
    return TierResult(tier=checks[0].tier, checks=tuple(checks), notes=(note,))
