"""Compare what was measured: two runs, or two implementations of one run. Live revisions are compared by pairs instead.

Processes of two runs are no pairs: they were measured one after the other, and what the machine did in between is in
their ratio. So a verdict needs several processes of each side, and the exact rank test of their medians.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from bsa_bench.errors import UsageError
from bsa_bench.gate.policy import Policy
from bsa_bench.gate.verdict import Check, Pairs, Tier, Verdict, tier_of
from bsa_bench.result import Case, Result, Status, worst_status
from bsa_bench.run.resume import environment_changes
from bsa_bench.stats.pairs import detectable_effect
from bsa_bench.stats.processes import bootstrap_ratio, geometric_mean, summarise_processes
from bsa_bench.store.derive import Row, derive
from bsa_bench.store.reader import Run
from bsa_bench.units import format_seconds

LEAST_PROCESSES = 5
"""Of each side: with fewer, no exact rank test reaches p < 0.01."""
_VERIFIED = (Status.VERIFIED_ONLY, Status.COUNTED)


@dataclass(frozen=True)
class Measured:
    """One case over its processes: the samples of each, or why there are none, and in which environment.

    `trouble` says what disturbed the measurement, where something did.
    """

    case: Case
    status: Status
    env_hash: str
    processes: tuple[tuple[float, ...], ...]
    trouble: str | None = None


def measured_of(run: Run) -> dict[str, Measured]:
    """The cases of a run by their hash; of a case that any process failed, the worst failure.

    A process that was not reached says nothing of the others.
    """
    results: dict[str, list[Result]] = {}
    for result in run.latest():
        results.setdefault(result.case_hash, []).append(result)
    found = {}
    for name, each in results.items():
        worst = worst_status(r.status for r in each) or Status.NOT_MEASURED
        samples = tuple(tuple(r.timing.samples) for r in each if r.timing) if worst is Status.OK else ()
        found[name] = Measured(each[0].case, worst, each[0].env_hash, samples)
    for row in derive(run.latest()):
        if trouble := _trouble(row):
            found[row.result.case_hash] = replace(found[row.result.case_hash], trouble=trouble)
    return found


def _trouble(row: Row) -> str | None:
    if row.quota_wait_s:
        return f"a CPU quota kept it from running for {format_seconds(row.quota_wait_s)} meanwhile"
    if row.is_throttled:
        return "the device throttled meanwhile"
    if row.is_disturbed:
        return f"others took {100 * (row.other_cpu_share or 0):.0f} % of the processor's time meanwhile"
    return None


def compare_runs(base: Run, head: Run, policy: Policy, *, allow_other_environment: bool = False) -> list[Check]:
    """Compare the cases that two runs have in common, and name those that only one has.

    Raises:
        UsageError: the runs were made in different environments or by different profiles, and that was not allowed; or
            they have no case in common.
    """
    before, after = base.environment, head.environment
    differences = []
    if before.hash != after.hash:
        differences.append(f"different environments, {environment_changes(before, after)}")
    profiles = [run.run_lines[-1].profile for run in (base, head)]
    if profiles[0] != profiles[1]:
        differences.append(f"different profiles, {profiles[0]} and {profiles[1]}")
    if differences and not allow_other_environment:
        raise UsageError(
            f"{base.run_id} and {head.run_id}: measured in {' and '.join(differences)}; "
            "add --allow-other-environment to see the ratios all the same, without a verdict on the code"
        )
    ours, theirs = measured_of(base), measured_of(head)
    if not ours.keys() & theirs.keys():
        raise UsageError(f"{base.run_id} and {head.run_id}: have no case in common, so there is nothing to compare")
    tier = tier_of(after.device_kind)
    checks = [_check(each.case.case_id, ours.get(key), each, policy, tier) for key, each in theirs.items()]
    checks += [_check(each.case.case_id, each, None, policy, tier) for key, each in ours.items() if key not in theirs]
    if differences:
        return [_without_verdict(check, f"measured in {' and '.join(differences)}") for check in checks]
    return checks


def compare_implementations(run: Run, base: str, head: str, policy: Policy) -> list[Check]:
    """Compare two implementations of one run, on the workloads and passes that both have.

    Args:
        base, head: `method@engine`, or the head of one that a case id begins with, such as `bsa@triton:quad`. A method
            with options is compared with each of its own.

    Raises:
        UsageError: the run has no case of one of them, or none of the same workload and pass.
    """
    sides: list[list[Measured]] = []
    everything = list(measured_of(run).values())
    for name in (base, head):
        found = [each for each in everything if each.case.implementation == name]
        if not found:
            there = ", ".join(sorted({each.case.implementation for each in everything}))
            raise UsageError(f"implementation {name!r}: run {run.run_id} has none of it, it has {there}")
        sides.append(found)
    tier = tier_of(run.environment.device_kind)
    checks = []
    for after in sides[1]:
        matching = [each for each in sides[0] if _cohort(each.case) == _cohort(after.case)]
        # Of several with options of their own, the one with the same options where there is one.
        same = [each for each in matching if each.case.options == after.case.options]
        for before in same or matching:
            own = f", against {before.case.label}" if before.case.label and not same else ""
            checks.append(_check(after.case.case_id + own, before, after, policy, tier))
    if not checks:
        raise UsageError(f"{base} and {head}: run {run.run_id} has no workload and pass of both")
    return checks


def sentence(checks: Iterable[Check], base: str, head: str) -> str:
    """One line that says it all: `HEAD is 1.20 +- 0.05 times faster than BASE` (the geometric mean of several cases).

    The half-width is of the interval of the one case, or that of the mean of the logs over the cases' intervals.
    """
    pairs = [c.pairs for c in checks if c.pairs is not None and not c.is_control and c.verdict.is_measured]
    if not pairs:
        return f"{head} and {base}: nothing was measured of both"
    ratios = [each.ratio for each in pairs]
    middle = geometric_mean(ratios)
    halves = [math.log(p.high / p.low) / 2 for p in pairs if p.low and p.high]
    # The intervals of the cases are independent of each other as far as their processes are.
    half = math.sqrt(sum(h * h for h in halves)) / len(halves) if len(halves) == len(pairs) else None
    factor, word = (1 / middle, "faster") if middle < 1 else (middle, "slower")
    digits = 2 if factor >= 1.1 else 3
    unknown = "" if half is not None else "; too few processes for an interval"
    spread = "" if half is None else f" +- {factor * math.sinh(half):.{digits}f}"
    over = "" if len(pairs) == 1 else f" (geometric mean of {len(pairs)} cases)"
    if half is not None and abs(math.log(middle)) <= half:
        interval = f"{middle:.3f} +- {middle * math.sinh(half):.3f}"
        return f"{head} and {base} cannot be told apart: the ratio is {interval}{over}"
    return f"{head} is {factor:.{digits}f}{spread} times {word} than {base}{over}{unknown}"


def _check(name: str, base: Measured | None, head: Measured | None, policy: Policy, tier: Tier) -> Check:
    if head is not None and head.status is Status.WRONG:
        return Check(tier=tier, name=name, verdict=Verdict.WRONG, reason="the head's result is wrong")
    if base is None or head is None:
        side = "base" if base is None else "head"
        return Check(tier=tier, name=name, verdict=Verdict.NOT_MEASURED, reason=f"the {side} has no such case")
    if base.processes and head.processes:
        pairs = _unpaired(base.processes, head.processes, policy)
        verdict, reason = _judge(pairs, min(len(base.processes), len(head.processes)), policy)
        check = Check(tier=tier, name=name, verdict=verdict, reason=reason, pairs=pairs)
        # A run that was resumed elsewhere has cases of several environments.
        if base.env_hash != head.env_hash:
            return _without_verdict(check, "the runs measured this case in different environments")
        for side, measured in (("base", base), ("head", head)):
            if measured.trouble:
                return _without_verdict(check, f"the {side} was disturbed: {measured.trouble}")
        return check
    if base.status in _VERIFIED and head.status in _VERIFIED:
        reason = f"came to {head.status}: it has no time to compare"
        return Check(tier=tier, name=name, verdict=Verdict.VERIFIED, reason=reason)
    if base.processes:
        verdict = Verdict.FAILED if head.status.is_failure else Verdict.NOT_MEASURED
        reason = f"the head came to {head.status}, the base did not"
    else:
        verdict = Verdict.NOT_MEASURED
        reason = f"the base came to {base.status}, the head to {head.status}"
    return Check(tier=tier, name=name, verdict=verdict, reason=reason)


def _without_verdict(check: Check, why: str) -> Check:
    """The ratio all the same, but nothing that it would say of the code."""
    return check.model_copy(update={"verdict": Verdict.AMBIGUOUS, "reason": why}) if check.pairs else check


def _judge(pairs: Pairs, num_processes: int, policy: Policy) -> tuple[Verdict, str | None]:
    if num_processes < LEAST_PROCESSES:
        count = "one process" if num_processes == 1 else f"{num_processes} processes"
        return Verdict.AMBIGUOUS, f"{count} a side; a verdict needs {LEAST_PROCESSES} (run --processes)"
    bound = math.log1p(pairs.limit)
    if pairs.p is not None and pairs.p < policy.significance and abs(math.log(pairs.ratio)) > bound:
        return (Verdict.SLOWER if pairs.ratio > 1 else Verdict.FASTER), None
    # What scatters more is not the same within more.
    same_within = math.log1p(policy.limit_of(None, pairs.base_s))
    if pairs.low and pairs.high and -same_within <= math.log(pairs.low) and math.log(pairs.high) <= same_within:
        return Verdict.SAME, None
    return Verdict.AMBIGUOUS, "the processes tell no more"


def _unpaired(base: Sequence[Sequence[float]], head: Sequence[Sequence[float]], policy: Policy) -> Pairs:
    from scipy.stats import mannwhitneyu

    ours, theirs = summarise_processes(base), summarise_processes(head)
    medians = [[median(process) for process in side] for side in (base, head)]
    is_one = min(len(base), len(head)) < 2
    low, high = bootstrap_ratio(base, head)
    sd = None if is_one else math.sqrt(ours.between**2 + theirs.between**2)
    limit = policy.limit_of(sd, ours.median)
    direction = "greater" if theirs.median > ours.median else "less"
    return Pairs(
        stage="screen",
        log_ratios=(),
        ratio=theirs.median / ours.median,
        low=low,
        high=high,
        p=None if is_one else float(mannwhitneyu(medians[1], medians[0], alternative=direction, method="exact").pvalue),
        limit=limit,
        detectable=None
        if sd is None
        else math.expm1(
            detectable_effect(sd, min(len(base), len(head)), limit=math.log1p(limit), significance=policy.significance)
        ),
        sd=sd,
        base_s=ours.median,
        head_s=theirs.median,
        modes=tuple(mode / ours.median for mode in theirs.modes or ours.modes),
    )


def _cohort(case: Case) -> tuple[str, str]:
    return case.workload.digest, case.passes
