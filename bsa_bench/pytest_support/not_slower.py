"""`assert_not_slower`: a case against a git revision, by pairs of processes and the two-stage rule of the gate."""

from __future__ import annotations

import time
import warnings

import pytest

from bsa_bench.catalog import make_case
from bsa_bench.gate.execution import CONTROL_ENGINES
from bsa_bench.gate.lockstep import LockstepBench, LockstepSettings
from bsa_bench.gate.policy import LEAST_CHANGE, policy_for
from bsa_bench.gate.show.words import pairs_text
from bsa_bench.gate.two_stage import decide
from bsa_bench.gate.verdict import Check, Tier, Verdict
from bsa_bench.pytest_support.declare import NAME
from bsa_bench.pytest_support.session import Choices, Session, infra
from bsa_bench.pytest_support.settings import BsaTimingWarning, Comparison, OnDoubt, OnInfra, one_of
from bsa_bench.pytest_support.sides import Sides, open_sides
from bsa_bench.result import Case
from bsa_bench.run.estimate import is_interpreted
from bsa_bench.run.job import DeviceKind
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


def compare(
    session: Session, case: Case, control: Case | None, sides: Sides, comparison: Comparison, *, kind: DeviceKind
) -> list[Check]:
    """Measure a case at both sides until it is decided; its check, and that of the control if there is one."""
    tier: Tier = 2 if kind == "cpu" else 3
    started = time.monotonic()
    cases = {each.case_id: each for each in (case, *([control] if control else []))}
    bench = LockstepBench(
        cases,
        base=sides.base,
        head=sides.head,
        settings=LockstepSettings(
            device=kind,
            threads=session.settings.threads or 1,
            logs=session.settings.results / "pairs" / case.case_hash,
        ),
    )
    told = sides.own_sources
    if told is None or told[0] != told[1]:
        base, head = bench.probe()  # a side that cannot be started is an error, not a case without a verdict
        told = told or (str(base.sources), str(head.sources))
    if told[0] == told[1]:
        reason = "both sides run the same sources, comments and docstrings aside, so nothing was timed"
        return [Check(tier=tier, name=case.case_id, verdict=Verdict.UNCHANGED, reason=reason)]
    return decide(
        [case.case_id],
        bench,
        policy_for(kind, limit=comparison.limit),
        tier=tier,
        controls=[control.case_id] if control else [],
        out_of_time=lambda: time.monotonic() - started > comparison.budget_s,
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
