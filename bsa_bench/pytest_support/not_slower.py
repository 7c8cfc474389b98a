"""`assert_not_slower`: a case against a git revision, by pairs of processes and the two-stage rule of the gate."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from bsa_bench.catalog import make_case
from bsa_bench.gate.execution import CONTROL_ENGINES
from bsa_bench.gate.lockstep import LockstepBench, LockstepSettings, PairSide
from bsa_bench.gate.policy import LEAST_CHANGE, policy_for
from bsa_bench.gate.show.words import pairs_text
from bsa_bench.gate.sides import not_held, open_pair_side, run_the_same
from bsa_bench.gate.two_stage import decide
from bsa_bench.gate.verdict import Check, Verdict, tier_of
from bsa_bench.pytest_support.declare import NAME
from bsa_bench.pytest_support.session import Choices, Session, infra
from bsa_bench.pytest_support.settings import PATHS, BsaTimingWarning, Comparison, OnDoubt, OnInfra, one_of
from bsa_bench.result import Case, Status
from bsa_bench.run.estimate import is_interpreted
from bsa_bench.run.job import DeviceKind
from bsa_bench.static.sides import HERE
from bsa_bench.workload import InputSpec, Workload

CONTROL_TOKENS: dict[DeviceKind, int] = {"cpu": 4096, "cuda": 16384}
"""Of the control at most: dense attention of a long video takes longer than what it controls."""


def judge(
    session: Session, choices: Choices, comparison: Comparison, *, on_ambiguous: OnDoubt, on_infra: OnInfra
) -> Check:
    """Compare a case with a revision and end the test by the verdict, if that is none to pass on.

    Raises:
        UsageError: there is no such revision, or an argument is wrong.
        BenchError: a process of a side cannot be started.
    """
    __tracebackhide__ = True
    one_of("on_ambiguous", on_ambiguous, ("fail", "skip", "pass"))
    one_of("on_infra", on_infra, ("fail", "skip"))
    session.check_alone(on_infra)
    controls = {kind: _controls(declared.case, kind) for kind, declared in choices.items()}
    kind = session.environment({kind: [choices[kind].case, *found] for kind, found in controls.items()}).device_kind
    case = choices[kind].case
    if reason := session.unavailable(case):
        pytest.skip(f"{case.case_id} is UNSUPPORTED here: {reason}")
    if not case.claims.timed or (kind == "cpu" and is_interpreted(case.engine)):
        pytest.skip(f"{case.case_id} has no time here that could be compared")
    key = (case.case_hash, comparison)
    if key not in session.checks:
        control = next((each for each in controls[kind] if session.unavailable(each) is None), None)
        with open_sides(comparison.than, session.settings.paths, case) as sides:
            session.checks[key] = compare(session, case, control, sides, comparison, kind=kind)
        session.lines.append(describe(session.checks[key][0], comparison.than).splitlines()[0])
    check, *others = session.checks[key]
    message = "\n".join([describe(check, comparison.than), *(describe(each, comparison.than) for each in others)])
    if check.verdict.is_worse:
        pytest.fail(message)
    if check.verdict is Verdict.INFRA_ERROR:
        infra(message, on_infra)
    if check.verdict is Verdict.NOT_MEASURED or (check.verdict is Verdict.AMBIGUOUS and on_ambiguous == "skip"):
        pytest.skip(message)
    if check.verdict is Verdict.AMBIGUOUS and on_ambiguous == "fail":
        pytest.fail(message)
    if check.verdict is Verdict.WARNING:
        warnings.warn(message, BsaTimingWarning, stacklevel=3)
    asked = comparison.limit or LEAST_CHANGE[kind]
    if check.pairs and check.pairs.limit > asked:
        why = "the machine is too noisy for less, or a call too short"
        limits = f"the limit came to {check.pairs.limit:.1%}, asked for was {asked:.1%}"
        warnings.warn(f"{case.case_id}: {limits}: {why}", BsaTimingWarning, stacklevel=3)
    return check


@contextlib.contextmanager
def open_sides(than: str, paths: Sequence[Path], case: Case) -> Iterator[tuple[PairSide, PairSide]]:
    """Base and head of a case, for as long as the context lasts; as `open_pair_side` of the gate has them.

    Raises:
        UsageError: there is no such revision, it or the working tree has not these folders, or none of them holds the
            package that the case's method or engine is from.
    """
    with (
        open_pair_side(than, paths=paths, flag=PATHS) as base,
        open_pair_side(HERE, paths=paths, flag=PATHS) as head,
    ):
        for side in (base, head):
            not_held(side, {case.case_id: case}, flag=PATHS)
        yield base, head


def compare(
    session: Session,
    case: Case,
    control: Case | None,
    sides: tuple[PairSide, PairSide],
    comparison: Comparison,
    *,
    kind: DeviceKind,
) -> list[Check]:
    """Measure a case at both sides until it is decided; its check, and that of the control if there is one."""
    tier = tier_of(kind)
    started = time.monotonic()
    cases = {each.case_id: each for each in (case, *([control] if control else []))}
    policy = policy_for(kind, limit=comparison.limit)
    bench = LockstepBench(
        cases,
        base=sides[0],
        head=sides[1],
        settings=LockstepSettings(
            device=kind,
            threads=session.settings.threads or 1,
            logs=session.settings.results / "pairs" / case.case_hash,
            turn_error=policy.turn_error,
        ),
    )
    told = bench.probe()
    if told[1].status is not Status.OK:
        reason = f"{sides[1].label} cannot be started: {told[1].reason}"
        return [Check(tier=tier, name=case.case_id, verdict=Verdict.FAILED, reason=reason)]
    if run_the_same(sides, told):
        reason = "both sides run the same sources, comments and docstrings aside, so nothing was timed"
        return [Check(tier=tier, name=case.case_id, verdict=Verdict.UNCHANGED, reason=reason)]
    return decide(
        [case.case_id],
        bench,
        policy,
        tier=tier,
        controls=[control.case_id] if control else [],
        time_left_s=lambda: started + comparison.budget_s - time.monotonic(),
    )


def describe(check: Check, than: str) -> str:
    """A check in words: the verdict, the ratio with its interval, the pairs, and what so many of them find."""
    control = "control " * check.is_control
    what = f"{control}{check.name} is {check.verdict} against {than}"
    lines = [f"{what}: {pairs_text(check.pairs)}" if check.pairs else f"{what}: {check.reason}"]
    if check.pairs and check.reason:
        lines.append(f"  {check.reason}")
    if check.pairs and check.pairs.detectable is not None and not check.is_control:
        lines.append(
            f"  at this machine's noise, slow-downs from {check.pairs.detectable:.1%} on are found 8 times in 10"
        )
    return "\n".join([*lines, *(f"  {line}" for line in check.detail)])


def _controls(case: Case, kind: DeviceKind) -> list[Case]:
    """Dense attention by engines that run no code of either side, the best control first."""
    workload = Workload(
        tokens=min(case.workload.num_tokens, CONTROL_TOKENS[kind]),
        heads=case.workload.heads,
        head_dim=case.workload.head_dim,
        dtype=case.workload.dtype,
        input=InputSpec(kind="gaussian"),
    )
    return [
        make_case(suite=NAME, workload=workload, implementation=f"full@{engine}", passes="forward")
        for engine in CONTROL_ENGINES
        if case.engine != engine
    ]
