"""What `compare` does."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic import JsonValue

from bsa_bench.cli.commands import find_run
from bsa_bench.cli.gate_app import CompareFlags
from bsa_bench.cli.output import command_line, console, progress
from bsa_bench.errors import UsageError
from bsa_bench.gate.compare import compare_implementations, compare_runs, sentence
from bsa_bench.gate.execution import LOGS, ExecutionRequest, run_execution_tier
from bsa_bench.gate.policy import policy_for
from bsa_bench.gate.show.terminal import print_result
from bsa_bench.gate.side_environment import EnvironmentChoice, with_environments
from bsa_bench.gate.sides import describe_side, has_revision, open_pair_side
from bsa_bench.gate.verdict import Check, GateResult, Side, TierResult, exit_code, tier_of
from bsa_bench.static.sides import HERE
from bsa_bench.store.reader import Run, read_run
from bsa_bench.units import parse_duration, parse_share

_Compared = tuple[TierResult, Side, Side, dict[str, JsonValue]]
"""The checks, base, head, and where they were measured."""


def run_compare_command(base_name: str, head_name: str, flags: CompareFlags) -> int:
    """Compare, show it, and end with one line; returns the exit code.

    Raises:
        UsageError: A or B is no run, implementation or revision, or the two do not compare.
    """
    tier, base, head, environment = _compared(base_name, head_name, flags)
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


def _compared(base: str, head: str, flags: CompareFlags) -> _Compared:
    limit = parse_share(flags.limit) if flags.limit else None
    sides = Side(label=base), Side(label=head)
    is_live = flags.run is None and _is_revision(base) and _is_revision(head)
    _check_flags(flags, is_live=is_live)
    if flags.run is not None:
        run = _run(flags.run, flags.results)
        checks = compare_implementations(run, base, head, policy_for(run.environment.device_kind, limit=limit))
        note = f"run {run.run_id}"
        return _tier(checks, note), *sides, run.environment.model_dump(mode="json")
    if is_live:
        return _measured_now(base, head, flags, limit)
    if _is_revision(base) or _is_revision(head):
        live, stored = (base, head) if _is_revision(base) else (head, base)
        raise UsageError(
            f"compare: {live} is measured now, {stored} is not; expected two runs, two revisions (git:REV or `.`), or "
            "two implementations of a --run"
        )
    runs = [_run(name, flags.results) for name in (base, head)]
    checks = compare_runs(
        runs[0],
        runs[1],
        policy_for(runs[1].environment.device_kind, limit=limit),
        allow_other_environment=flags.allow_other_environment,
    )
    note = "runs made one after the other: what the machine did in between is in the ratios (git:REV and . are paired)"
    return _tier(checks, note), *sides, runs[1].environment.model_dump(mode="json")


def _check_flags(flags: CompareFlags, *, is_live: bool) -> None:
    """See that no flag is given that the kind of A and B has no use for."""
    given = [
        *(["--own-bench"] if flags.own_bench else []),
        *(["--own-environment"] if flags.own_environment else []),
        *([f"--base-python {flags.base_python}"] if flags.base_python else []),
        *(f"--path {path}" for path in flags.paths or ()),
        *(flags.overrides or ()),
    ]
    if not is_live and given:
        raise UsageError(
            f"{' '.join(given)}: is for revisions (git:REV or `.`), which are measured now; stored results are as is"
        )
    if flags.allow_other_environment and (is_live or flags.run is not None):
        raise UsageError("--allow-other-environment: is for two runs; what is compared here is of one environment")


def _measured_now(base: str, head: str, flags: CompareFlags, limit: float | None) -> _Compared:
    for name in (base, head):
        if name != HERE and not has_revision(name):
            raise UsageError(f"{name}: no such commit, branch or tag in the repository here")
    if flags.own_environment and base == head == HERE:
        raise UsageError("--own-environment: is for git revisions (git:REV); `.` runs in this environment")
    sides = describe_side(base), describe_side(head)
    paths = flags.paths or ()
    with contextlib.ExitStack() as stack:
        tell = stack.enter_context(progress())
        choice = EnvironmentChoice(own=flags.own_environment, python=flags.base_python, tell=tell)
        base_side, head_side = (
            stack.enter_context(open_pair_side(name, own_bench=flags.own_bench, paths=paths, environment=environment))
            for name, environment in ((base, choice), (head, choice.for_head()))
        )
        request = ExecutionRequest(
            suite=flags.suite,
            overrides=flags.overrides or (),
            device=flags.device,
            base=base_side,
            head=head_side,
            policy=policy_for(flags.device, limit=limit),
            threads=flags.threads,
            budget_s=parse_duration(flags.budget),
            call_limit_s=parse_duration(flags.call_limit),
            # Who compares a revision with itself wants to see the machine's noise.
            measure_unchanged=sides[0].commit == sides[1].commit,
            seed=flags.seed,
            logs=LOGS / f"tier{tier_of(flags.device)}",
        )
        tier, found = run_execution_tier(request, tell)
        tier = with_environments(tier, base_side, head_side)
    return tier, *sides, found.model_dump(mode="json")


def _is_revision(name: str) -> bool:
    return name == HERE or name.startswith("git:")


def _run(name: str, results: Path) -> Run:
    try:
        return read_run(find_run(name, results))
    except UsageError as error:
        raise UsageError(f"{error}; a revision is written git:{name}, an implementation needs --run RUN") from None


def _tier(checks: Sequence[Check], note: str) -> TierResult:
    return TierResult(tier=checks[0].tier, checks=tuple(checks), notes=(note,))
