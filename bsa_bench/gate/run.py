"""Run the gate: the tiers that were asked for, each against its base, and one result of all."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from bsa_bench.errors import BenchError, MachineError, StoreError, UsageError
from bsa_bench.gate.acceptance import ACCEPTED, Acceptance, append_acceptance, read_acceptances
from bsa_bench.gate.calibration import Calibration, calibration_path, read_calibration
from bsa_bench.gate.compiled import run_compiled_tier
from bsa_bench.gate.compiled_baseline import Provenance, write_baseline
from bsa_bench.gate.compiled_figures import CompiledFigures
from bsa_bench.gate.counters import CaseCounters, CountersProvenance, count, run_counters_tier, write_counters
from bsa_bench.gate.execution import LOGS, ExecutionRequest, check_suite, run_execution_tier
from bsa_bench.gate.policy import policy_for
from bsa_bench.gate.side_environment import EnvironmentChoice, with_environments
from bsa_bench.gate.sides import describe_side, has_revision, open_pair_side, revision_of
from bsa_bench.gate.verdict import Check, GateResult, Side, Tier, TierResult, Verdict, exit_code, summarise, tier_of
from bsa_bench.result import Environment
from bsa_bench.run.job import DeviceKind
from bsa_bench.run.probe import probe
from bsa_bench.static.config import ARCH_NAMES, ArchName
from bsa_bench.static.sides import HERE, is_toolchain

BASELINES = Path("results/baselines")
NOISE = Path("results/noise")


@dataclass(frozen=True, kw_only=True)
class GateRequest:
    """What the gate is asked for.

    Args:
        tiers: which, in order.
        base: a git revision, `triton==VERSION` (tier 0 alone), or None for the committed baselines.
        own_bench: take the base's own benchmark code too.
        own_environment: run the base on its own dependencies.
        base_python: run the base on this Python.
        paths: folders of packages of a repository other than bsa-bench's; of these each side imports its own.
        baselines, noise: folders of the committed baselines, and of this machine's limits files.
        archs, kernels, cache, jobs: of tier 0: architectures, patterns of configurations, compiled code, compilers.
        suite, overrides, threads, budget_s, call_limit_s, measure_unchanged, seed: of tiers 2 and 3.
        limit: the least relative change that counts; None for the default of the device.
        max_detectable: a machine that cannot find a slow-down of this size may not gate.
        accepting: what is measured becomes the baselines; then there need be none yet.
        require_gpu, require_calibration: fail where there is none.
        ambiguous: what checks that stay ambiguous come to.
        command: what the user typed.
    """

    tiers: Sequence[Tier] = (0, 1, 2, 3)
    base: str | None = None
    own_bench: bool = False
    own_environment: bool = False
    base_python: Path | None = None
    paths: Sequence[Path] = ()
    baselines: Path = BASELINES
    noise: Path = NOISE
    archs: Sequence[ArchName] = ARCH_NAMES
    kernels: Sequence[str] = ()
    cache: Path | None = None
    jobs: int | None = None
    suite: str = "quick"
    overrides: Sequence[str] = ()
    threads: int = 1
    budget_s: float = 420.0
    call_limit_s: float = 0.5
    measure_unchanged: bool = False
    seed: int = 0
    limit: float | None = None
    max_detectable: float = 0.15
    accepting: bool = False
    require_gpu: bool = False
    require_calibration: bool = False
    ambiguous: Literal["ambiguous", "pass", "fail"] = "pass"
    command: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """A gate run, and what its head could be accepted with."""

    result: GateResult
    compiled: Sequence[CompiledFigures]
    counters: Sequence[CaseCounters]
    environment: Environment | None


def run_gate(request: GateRequest, tell: Callable[[str], None] = lambda _: None) -> Outcome:
    """Run the tiers.

    A tier whose base is not there is not measured, with the reason; what one tier finds ends no other.

    Raises:
        UsageError: what was asked for does not exist or contradicts itself.
        StoreError: a cache, log or baseline cannot be read or written.
    """
    if not request.tiers:
        raise UsageError("--tier: got none, expected at least one of 0, 1, 2, 3")
    if request.base is not None and not is_toolchain(request.base):
        if not has_revision(request.base):
            raise UsageError(f"--base {request.base}: no such commit, branch or tag in the repository here")
        request = replace(request, base=revision_of(request.base))
    if {2, 3} & set(request.tiers):
        check_suite(request.suite, request.overrides)
    if request.accepting:
        _check_acceptable(request, describe_side(HERE))
    runner = _Runner(request, tell)
    tiers = [runner.run(tier) for tier in request.tiers]
    base = describe_side(request.base) if request.base else _baseline_side(request)
    result = GateResult(
        utc=datetime.now(UTC).isoformat(timespec="seconds"),
        command=request.command,
        base=base,
        head=describe_side(HERE),
        tiers=tuple(tiers),
        environment=runner.environment.model_dump(mode="json") if runner.environment else {},
        exit_code=exit_code(tiers, require_gpu=request.require_gpu, ambiguous=request.ambiguous),
        summary=summarise(tiers),
    )
    return Outcome(result, runner.compiled, runner.counters, runner.environment)


def accept(outcome: Outcome, request: GateRequest, reason: str) -> list[Path]:
    """Write the head's figures as the new baselines, for review, and record who may be compared with from now on.

    Only tiers that were run are written. The commit becomes the base of tiers 2 and 3.

    Returns:
        The files that were written.

    Raises:
        UsageError: the sources differ from their commit, are in none, or something came out wrong or not compiled.
        StoreError: a file cannot be written.
    """
    head = outcome.result.head
    _check_acceptable(request, head)
    assert head.commit is not None
    wrong = [c for t in outcome.result.tiers for c in t.checks if c.verdict is Verdict.WRONG]
    if wrong:
        raise UsageError(f"--accept: {wrong[0].name} is wrong ({wrong[0].reason}); no reason makes that a baseline")
    written: dict[Tier, Path] = {}
    utc = outcome.result.utc
    try:
        request.baselines.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"--baselines {request.baselines}: {error.strerror or error}") from error
    if 0 in request.tiers and outcome.compiled:
        path = request.baselines / "compiled.json"
        versions = {each.code.triton for each in outcome.compiled if each.code}
        provenance = Provenance(commit=head.commit, dirty=False, utc=utc, triton=", ".join(versions), reason=reason)
        write_baseline(path, outcome.compiled, provenance)
        written[0] = path
    if 1 in request.tiers and outcome.counters:
        path = request.baselines / "counters.json"
        write_counters(path, outcome.counters, CountersProvenance.now(head.commit, utc=utc, reason=reason))
        written[1] = path
    if not written:
        why = "; ".join(tier.reason for tier in outcome.result.tiers if tier.reason) or "tiers 0 and 1 have no figures"
        raise UsageError(f"--accept: nothing to write: {why}")
    packages = dict(outcome.environment.packages) if outcome.environment else {}
    append_acceptance(
        request.baselines,
        Acceptance(commit=head.commit, utc=utc, reason=reason, packages=packages, tiers=tuple(written)),
    )
    return [*written.values(), request.baselines / ACCEPTED]


def _check_acceptable(request: GateRequest, head: Side) -> None:
    if head.commit is None or head.dirty:
        state = "differ from their commit" if head.commit else "are in no commit"
        raise UsageError(f"--accept: these sources {state}; commit them first, so that the baseline has a revision")
    if not {0, 1} & set(request.tiers):
        raise UsageError("--accept: baselines are of tiers 0 and 1, expected at least one of them among --tier")
    if 0 in request.tiers and (request.kernels or set(request.archs) != set(ARCH_NAMES)):
        raise UsageError("--accept: the baseline has all kernels and architectures, expected no --kernel and no --arch")


class _Runner:
    def __init__(self, request: GateRequest, tell: Callable[[str], None]) -> None:
        self._request, self._tell = request, tell
        self.compiled: Sequence[CompiledFigures] = ()
        self.counters: Sequence[CaseCounters] = ()
        self.environment: Environment | None = None

    def run(self, tier: Tier) -> TierResult:
        """One tier; a fact of the domain that keeps it from being measured is its reason."""
        started = time.monotonic()
        self._tell(f"tier {tier}")
        try:
            result = {0: self._compiled, 1: self._counters, 2: self._cpu, 3: self._gpu}[tier]()
        except _NotCalibratedError as error:
            check = Check(tier=tier, name="calibration", verdict=Verdict.CALIBRATION_NEEDED, reason=str(error))
            result = TierResult(tier=tier, checks=(check,), reason=str(error))
        except _NotMeasuredError as error:
            result = TierResult(tier=tier, reason=str(error), is_absent=isinstance(error, _AbsentError))
        except (StoreError, MachineError) as error:
            # Told with what the other tiers found, which must not be lost with it.
            check = Check(tier=tier, name="machine", verdict=Verdict.INFRA_ERROR, reason=str(error))
            result = TierResult(tier=tier, checks=(check,), reason=str(error))
        except UsageError:
            raise
        except BenchError as error:
            result = TierResult(tier=tier, reason=str(error))
        return result.model_copy(update={"wall_s": time.monotonic() - started})

    def _compiled(self) -> TierResult:
        request = self._request
        base: str | Path = request.base or request.baselines / "compiled.json"
        if isinstance(base, Path) and not base.is_file():
            if not request.accepting:
                raise _NotMeasuredError(f"there is no {base}; give --base REV, or --accept --reason to make one")
            base = HERE
        result, self.compiled = run_compiled_tier(
            base,
            archs=request.archs,
            only=request.kernels,
            cache=request.cache,
            jobs=request.jobs,
            progress=lambda done, total: self._tell(f"compiled {done} of {total}"),
        )
        return result

    def _counters(self) -> TierResult:
        request = self._request
        if request.base is not None and is_toolchain(request.base):
            raise _NotMeasuredError(f"{request.base} is a base for compiled code alone")
        base: str | Path = request.base or request.baselines / "counters.json"
        if isinstance(base, Path) and not base.is_file():
            if not request.accepting:
                raise _NotMeasuredError(f"there is no {base}; give --base REV, or --accept --reason to make one")
            self.counters = count()
            reason = "counted for the first time, there is nothing to compare it with"
            checks = [Check(tier=1, name=c.name, verdict=Verdict.SAME, reason=reason) for c in self.counters]
            return TierResult(tier=1, checks=tuple(checks))
        result, self.counters = run_counters_tier(base)
        return result

    def _cpu(self) -> TierResult:
        return self._execute("cpu")

    def _gpu(self) -> TierResult:
        try:
            probe({}, device="cuda", threads=self._request.threads)
        except UsageError:
            raise _AbsentError("no GPU") from None
        return self._execute("cuda")

    def _execute(self, device: DeviceKind) -> TierResult:
        request = self._request
        calibration = self._calibration(device)
        noise = (calibration.pair_sd, calibration.num_freedoms) if calibration else None
        policy = policy_for(device, limit=request.limit, noise=noise)
        environment = EnvironmentChoice(own=request.own_environment, python=request.base_python, tell=self._tell)
        with (
            open_pair_side(
                self._execution_base(), own_bench=request.own_bench, paths=request.paths, environment=environment
            ) as base,
            open_pair_side(HERE, own_bench=request.own_bench, paths=request.paths) as head,
        ):
            execution = ExecutionRequest(
                suite=request.suite,
                overrides=request.overrides,
                device=device,
                base=base,
                head=head,
                policy=policy,
                threads=request.threads,
                budget_s=request.budget_s,
                call_limit_s=request.call_limit_s,
                measure_unchanged=request.measure_unchanged,
                seed=request.seed,
                max_detectable=request.max_detectable,
                logs=LOGS / f"tier{tier_of(device)}",
            )
            result, self.environment = run_execution_tier(execution, self._tell)
            result = with_environments(result, base, head)
        if calibration is None:
            note = (
                "no limits file of this machine: the noise is that of the run's own pairs (bsa-bench noise makes one)"
            )
        else:
            note = f"noise of a pair as calibrated {calibration.utc}: {100 * calibration.pair_sd:.1f} %"
        return result.model_copy(update={"notes": (*result.notes, note)})

    def _execution_base(self) -> str:
        """The revision that both CPU and GPU are measured against."""
        request = self._request
        if request.base is not None:
            if is_toolchain(request.base):
                raise _NotMeasuredError(f"{request.base} is a base for compiled code alone")
            return request.base
        accepted = read_acceptances(request.baselines)
        if not accepted:
            raise _NotMeasuredError(f"no revision was accepted in {request.baselines} yet; give --base REV")
        commit = accepted[-1].commit
        if not has_revision(commit):
            raise _NotMeasuredError(
                f"the accepted revision {commit[:12]} is not in this clone; fetch its whole history, or give --base REV"
            )
        return commit

    def _calibration(self, device: DeviceKind) -> Calibration | None:
        request = self._request
        if not request.noise.is_dir() and not request.require_calibration:
            return None
        found = probe({}, device=device, threads=request.threads).environment
        calibration = read_calibration(calibration_path(request.noise, found, tier_of(device)))
        if calibration is None and request.require_calibration:
            raise _NotCalibratedError("no limits file of this machine and environment; run bsa-bench noise")
        least = calibration.detectable[max(calibration.detectable)] if calibration else 0.0
        if least > request.max_detectable:
            raise _NotCalibratedError(
                f"this machine finds slow-downs of {100 * least:.0f} % and more, the policy asks for "
                f"{100 * request.max_detectable:.0f} %"
            )
        return calibration


class _NotMeasuredError(Exception):
    """Why a tier cannot be measured."""


class _AbsentError(_NotMeasuredError):
    """What of the machine a tier needs and has not."""


class _NotCalibratedError(_NotMeasuredError):
    """Why a tier may not judge."""


def _baseline_side(request: GateRequest) -> Side:
    accepted = read_acceptances(request.baselines)
    commit = accepted[-1].commit if accepted else None
    return Side(label=f"{request.baselines}", commit=commit, dirty=None)
