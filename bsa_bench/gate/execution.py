"""Tiers 2 and 3: is a case slower than at the base? Both revisions run here and now, in pairs of processes.

No figure is compared with one of another time or machine. What runs no code of this project is a control: it is
measured with the others, and if it moves, the machine did.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bsa_bench.catalog import check_implementations, unsupported_case
from bsa_bench.child_process import module_command
from bsa_bench.errors import StoreError
from bsa_bench.gate.host_cases import HOST_CASES
from bsa_bench.gate.lockstep import CPU_VARIABLES, HostOperation, LockstepBench, LockstepSettings, PairSide
from bsa_bench.gate.pair_job import Reply
from bsa_bench.gate.policy import Policy
from bsa_bench.gate.sides import compute_the_same, not_held, own_packages, run_the_same
from bsa_bench.gate.two_stage import decide
from bsa_bench.gate.verdict import Check, Tier, TierResult, Verdict, tier_of
from bsa_bench.inputs import check_inputs
from bsa_bench.result import Case, Environment, Status
from bsa_bench.run.estimate import compiles_at_first_call, is_interpreted
from bsa_bench.run.job import DeviceKind
from bsa_bench.run.probe import probe, question_of
from bsa_bench.suite import load_suite, override

CONTROL_ENGINES = ("sdpa-flash", "sdpa-cudnn", "sdpa-efficient", "sdpa-math", "flash-attn", "xformers")
"""Engines that run no kernel of this project, the best control first."""
NUM_CONTROLS = 2
DEVICES: tuple[DeviceKind, ...] = ("cpu", "cuda")
LOGS = Path("results/gate")
"""Where workers write, in a folder for each use."""


@dataclass(frozen=True, kw_only=True)
class ExecutionRequest:
    """What is measured, and against what.

    Args:
        suite, overrides: as for `bsa-bench run`; its sparse cases are measured, and of its dense ones the controls.
        device: `cpu` for tier 2, `cuda` for tier 3.
        base, head: the sides.
        policy: when a change counts.
        threads: of a CPU worker.
        budget_s: after which no pair is started any more.
        call_limit_s: a case whose call takes longer is left out, and said to be.
        turns_s: how long a pair samples a case.
        max_detectable: where the noise hides slow-downs of this size, a case is not called the same; None: it is.
        measure_unchanged: measure although both sides run the same sources, which is an A/A test of the machine.
        seed: of the orders.
        logs: a folder for what the workers write.
    """

    suite: str
    overrides: Sequence[str] = ()
    device: DeviceKind = "cpu"
    base: PairSide
    head: PairSide
    policy: Policy
    threads: int = 1
    budget_s: float = 420.0
    call_limit_s: float = 0.5
    turns_s: float = 1.0
    max_detectable: float | None = None
    measure_unchanged: bool = False
    seed: int = 0
    logs: Path

    @property
    def tier(self) -> Tier:
        """2 or 3."""
        return tier_of(self.device)


@dataclass
class Selection:
    """What a suite comes to here.

    Attributes:
        timed: cases whose code may have changed.
        controls: cases of which nothing of ours runs.
        host: operations on the host.
        verified: cases that can be checked here but not timed.
        left_out: names, and why nothing of them is measured.
        refused: of those, cases that the head's engines refuse on this machine.
    """

    environment: Environment
    timed: dict[str, Case] = field(default_factory=dict)
    controls: dict[str, Case] = field(default_factory=dict)
    host: dict[str, HostOperation] = field(default_factory=dict)
    verified: dict[str, Case] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    refused: dict[str, Case] = field(default_factory=dict)

    @property
    def cases(self) -> dict[str, Case | HostOperation]:
        """All that is measured or verified."""
        return {**self.timed, **self.controls, **self.host, **self.verified}

    def leave_out(self, reasons: Mapping[str, str]) -> None:
        """Measure nothing of these cases, for these reasons."""
        for name in reasons:
            self.timed.pop(name, None)
            self.verified.pop(name, None)
        self.left_out |= reasons


def check_suite(suite: str, overrides: Sequence[str]) -> None:
    """See that a suite and what overrides it are right, on either kind of device, before anything is measured.

    Raises:
        UsageError: the suite, an override or an implementation is wrong.
    """
    for device in DEVICES:
        _cases(suite, overrides, device)


def _cases(suite: str, overrides: Sequence[str], device: DeviceKind) -> list[Case]:
    chosen = override(load_suite(suite, device_kind=device), overrides)
    check_implementations(chosen.implementations)
    return chosen.cases()


def select(suite: str, overrides: Sequence[str], device: DeviceKind, *, threads: int) -> Selection:
    """Sort the cases of a suite into what is timed, what is a control, what is only verified, and what is left out.

    Raises:
        UsageError: the suite, an override, an implementation or an input is wrong, or the device is not here.
    """
    cases = _cases(suite, overrides, device)
    check_inputs(cases)
    found = probe({device: [question_of(case) for case in cases]}, device=device, threads=threads)
    selection = Selection(found.environment)
    dense: list[Case] = []
    is_asked, is_asked_for_passes = (
        any(each.startswith(key) for each in overrides) for key in ("implementation=", "passes=")
    )
    whole = {case.group for case in cases if case.passes == "forward+backward"}
    for case in cases:
        reason = unsupported_case(case) or found.unavailable(case)
        if reason is not None:
            # Which engines a machine has not is no news of a revision.
            if not case.claims.is_dense:
                selection.left_out[case.case_id] = reason
                if unsupported_case(case) is None:
                    selection.refused[case.case_id] = case
        elif case.claims.is_dense:
            dense.append(case)
        elif not case.claims.timed or (device == "cpu" and is_interpreted(case.engine)):
            _add_verified(selection.verified, case)
        elif case.passes == "backward" and case.group in whole and not is_asked_for_passes:
            selection.left_out[case.case_id] = "a backward is timed within forward+backward; passes= names it alone"
        elif device == "cpu" and compiles_at_first_call(case.engine) and not is_asked:
            selection.left_out[case.case_id] = (
                f"{case.base_engine} compiles for seconds in each process; name it with implementation= to measure it"
            )
        else:
            selection.timed[case.case_id] = case
    selection.controls = {case.case_id: case for case in _controls(dense)}
    if device == "cpu" and not (is_asked or is_asked_for_passes):
        selection.host = {f"host/{name}": HostOperation(name) for name in HOST_CASES}
    return selection


def run_execution_tier(
    request: ExecutionRequest, tell: Callable[[str], None] = lambda _: None
) -> tuple[TierResult, Environment]:
    """Measure the cases of a suite at both sides, in pairs, until each is decided or the time is up.

    Raises:
        UsageError: as `select`; or none of the cases runs a package of a side's folders.
        BenchError: a side cannot be started at all, of the base for whatever reason.
        StoreError: the logs cannot be written.
    """
    started = time.monotonic()
    sides = request.base, request.head
    selection = select(request.suite, request.overrides, request.device, threads=request.threads)
    for side in sides:
        selection.leave_out(not_held(side, selection.timed | selection.verified))
    if not selection.timed and not selection.verified:
        reason = f"suite {request.suite}: none of its sparse cases can be measured here"
        result = TierResult(tier=request.tier, reason=reason, notes=tuple(_left_out(selection)))
        return result, selection.environment
    packages = own_packages(sides)
    selection.host = {name: each for name, each in selection.host.items() if HOST_CASES[each.name].package in packages}
    deadline = started + request.budget_s
    bench = LockstepBench(
        selection.cases,
        base=request.base,
        head=request.head,
        settings=LockstepSettings(
            device=request.device,
            threads=request.threads,
            logs=request.logs,
            turns_s=request.turns_s,
            turn_error=request.policy.turn_error,
            call_limit_s=request.call_limit_s,
        ),
        seed=request.seed,
        out_of_time=lambda: time.monotonic() > deadline,
        tell=tell,
    )
    told = bench.probe()
    is_measured = False
    if told[1].status is not Status.OK:
        reason = f"{request.head.label} cannot be started: {told[1].reason}"
        checks = _all(selection, request, Verdict.FAILED, reason)
    elif run_the_same(sides, told) and not request.measure_unchanged:
        checks = _unchanged(selection, request, bench, tell)
    else:
        is_measured = True
        checks = _measured(selection, request, bench, deadline, tell)
    result = TierResult(
        tier=request.tier,
        checks=tuple(checks),
        notes=(*(_notes(request) if is_measured else ()), *_left_out(selection)),
        wall_s=time.monotonic() - started,
    )
    return result, selection.environment


def _unchanged(
    selection: Selection, request: ExecutionRequest, bench: LockstepBench, tell: Callable[[str], None]
) -> list[Check]:
    """What runs the same kernels is as fast as it was; what the benchmark makes of them is verified if it changed."""
    if compute_the_same((request.base, request.head)):
        reason = "both sides run the same sources (comments and docstrings aside); --measure-unchanged times it"
        return _all(selection, request, Verdict.UNCHANGED, reason)
    tell("the kernels are the same, methods or engines of the benchmark are not: verifying")
    reason = "the kernels are the same at both sides, methods or engines of the benchmark are not"
    checks = _verified_checks(bench.verify([*selection.timed, *selection.verified]), request.tier)
    return [
        check.model_copy(update={"reason": reason}) if check.verdict is Verdict.VERIFIED else check for check in checks
    ]


def _measured(
    selection: Selection,
    request: ExecutionRequest,
    bench: LockstepBench,
    deadline: float,
    tell: Callable[[str], None],
) -> list[Check]:
    checks = _lost(selection, request)
    if selection.verified:
        # First, and without a deadline of its own: what is wrong counts more than what is slow.
        tell("verifying what cannot be timed here")
        checks += _verified_checks(bench.verify(list(selection.verified)), request.tier)
    decided = decide(
        [*selection.timed, *selection.host],
        bench,
        request.policy,
        tier=request.tier,
        controls=list(selection.controls),
        seed=request.seed,
        time_left_s=lambda: deadline - time.monotonic(),
        tell=tell,
    )
    return [*(_judged_by_noise(check, request.max_detectable) for check in decided), *checks]


def _lost(selection: Selection, request: ExecutionRequest) -> list[Check]:
    """Cases that the head refuses on this machine and the base does not."""
    if not selection.refused:
        return []
    side = request.base
    asked = {request.device: [question_of(case) for case in selection.refused.values()]}
    command = module_command("bsa_bench.worker", python=side.command[0])
    try:
        found = probe(
            asked,
            device=request.device,
            threads=request.threads,
            command=command,
            environment=side.environment(),
            package=side.package,
        )
    except StoreError as error:
        reason = f"whether {side.label} runs what the head refuses is not known: {error}"
        return [Check(tier=request.tier, name="refused cases", verdict=Verdict.NOT_MEASURED, reason=reason)]
    lost = [name for name, case in selection.refused.items() if found.unavailable(case) is None]
    why = {name: selection.left_out.pop(name) for name in lost}
    return [
        Check(
            tier=request.tier,
            name=name,
            verdict=Verdict.FAILED,
            reason=f"{side.label} runs it, {request.head.label} does not: {reason}",
        )
        for name, reason in why.items()
    ]


def _judged_by_noise(check: Check, max_detectable: float | None) -> Check:
    """The check, unless it was called the same on a machine that could not have told a slow-down that matters."""
    found = check.pairs.detectable if check.pairs else None
    if check.verdict is not Verdict.SAME or max_detectable is None or found is None or found <= max_detectable:
        return check
    reason = (
        f"the noise here hides slow-downs below {100 * found:.0f} %, the policy asks for {100 * max_detectable:.0f} %"
    )
    return check.model_copy(update={"verdict": Verdict.CALIBRATION_NEEDED, "reason": reason})


def _add_verified(verified: dict[str, Case], case: Case) -> None:
    """One pass of each group is enough, one that has gradients where there is one."""
    for name, other in verified.items():
        if other.group == case.group:
            if other.passes != "forward" or case.passes == "forward":
                return
            del verified[name]
            break
    verified[case.case_id] = case


def _controls(dense: Sequence[Case]) -> list[Case]:
    for engine in CONTROL_ENGINES:
        found = [case for case in dense if case.base_engine == engine and case.passes == "forward"]
        if found:
            return sorted(found, key=lambda case: case.workload.num_tokens)[:NUM_CONTROLS]
    return []


def _verified_checks(replies: dict[str, Reply], tier: Tier) -> list[Check]:
    found = []
    for name, reply in replies.items():
        if reply.status in {Status.OK, Status.VERIFIED_ONLY, Status.COUNTED}:
            verdict = Verdict.VERIFIED
        else:
            verdict = Verdict.WRONG if reply.status is Status.WRONG else Verdict.FAILED
        reason = reply.reason if verdict is not Verdict.FAILED else f"came to {reply.status}: {reply.reason}"
        found.append(Check(tier=tier, name=name, verdict=verdict, reason=reason))
    return found


def _all(selection: Selection, request: ExecutionRequest, verdict: Verdict, why: str) -> list[Check]:
    names = (*selection.timed, *selection.verified)
    return [Check(tier=request.tier, name=name, verdict=verdict, reason=why) for name in names]


def _left_out(selection: Selection) -> list[str]:
    """What is not measured on this machine at all, which is no news of a revision: a line for each reason."""
    return [
        f"{number} of the suite's cases are not measured here: {reason}"
        for reason, number in Counter(selection.left_out.values()).items()
    ]


def _notes(request: ExecutionRequest) -> list[str]:
    notes = [
        f"{request.base.label} against {request.head.label}, in pairs of live processes that call in turn",
        "both sides are verified before the first timing of a case, the head after it too",
    ]
    if request.device == "cpu":
        variables = ", ".join(f"{name}={value}" for name, value in CPU_VARIABLES.items())
        notes.append(f"{request.threads} thread{'' if request.threads == 1 else 's'}, pinned; {variables}")
    return notes
