"""Which cases run, in which order, and what they are predicted to need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bsa_bench.result import Case
from bsa_bench.run.estimate import DeviceModel, Estimate, group_seconds, group_start_s, predict
from bsa_bench.run.job import Profile
from bsa_bench.units import format_bytes


@dataclass(frozen=True)
class PlannedCase:
    """One row of `--dry-run`.

    Args:
        estimate: the prediction for the case by itself.
        seconds: of all processes, with what its group shares (start, compilation, verification) charged to the group's
            first case, so that the rows add up; 0 where the case will not run.
        reason: why the case will not run here, with the remedy; null where it will.
        fits: whether the predicted memory is there.
    """

    case: Case
    estimate: Estimate
    seconds: float
    fits: bool
    reason: str | None

    @property
    def runs(self) -> bool:
        """Whether a worker process will be started for it."""
        return self.reason is None


def plan_run(
    cases: Sequence[Case],
    *,
    device: DeviceModel,
    profile: Profile = "quick",
    num_processes: int = 1,
    unavailable: Callable[[Case], str | None] = lambda _: None,
    informative_first: bool = False,
    priority: Sequence[str] = (),
) -> list[PlannedCase]:
    """List the cases with predictions, in the order of a run of one process; nothing is run.

    Args:
        cases: what is asked for; of two that measure the same, the first counts.
        device: the device, whose memory decides what fits.
        profile: how long each case is measured.
        num_processes: in how many processes.
        unavailable: the reason why an implementation cannot run a case here, or None.
        informative_first: the order that `--budget` uses, see `budget_order`.
        priority: see there.
    """
    groups = group_cases(cases)
    if informative_first:
        groups = budget_order(groups, device, profile, priority)
    rows: list[PlannedCase] = []
    for group in groups:
        reasons = [unavailable(case) or memory_reason(case, device) for case in group]
        running = [case for case, reason in zip(group, reasons, strict=True) if reason is None]
        shared_s = group_start_s(running, device, profile) if running else 0.0
        for case, reason in zip(group, reasons, strict=True):
            estimate = predict(case, device, profile)
            once_s = 0.0 if reason else estimate.seconds + (shared_s if case is running[0] else 0.0)
            fits = memory_reason(case, device) is None
            rows.append(PlannedCase(case, estimate, num_processes * once_s, fits, reason))
    return rows


def memory_reason(case: Case, device: DeviceModel) -> str | None:
    """Say why a case does not fit in memory; None if it does."""
    need = predict(case, device).bytes
    if need <= device.memory_bytes:
        return None
    return (
        f"predicted to need {format_bytes(need)}, {format_bytes(device.memory_bytes)} can be used; "
        "take fewer tokens or heads, or a machine with more memory"
    )


def group_cases(cases: Sequence[Case]) -> list[list[Case]]:
    """Gather the cases that share a worker process, in the order of their first ones; a repeated case counts once."""
    groups: dict[str, dict[str, Case]] = {}
    for case in cases:
        groups.setdefault(case.group, {}).setdefault(case.case_hash, case)
    return [list(group.values()) for group in groups.values()]


def budget_order(
    groups: Sequence[list[Case]], device: DeviceModel, profile: Profile, priority: Sequence[str]
) -> list[list[Case]]:
    """Order groups for a run that may stop early: by `priority`, implementations, or else as tells most."""
    if not priority:
        return most_informative_first(groups, device, profile)
    return sorted(groups, key=lambda group: priority.index(group[0].implementation))


def most_informative_first(
    groups: Sequence[list[Case]], device: DeviceModel, profile: Profile = "quick"
) -> list[list[Case]]:
    """Order groups so that a run that stops early has said as much as it could.

    What a run is for is a ratio: a sparse method over the fastest dense row of the same workload, a causal one over a
    causal one. So within a workload come first the dense group and the sparse group that are predicted fastest (the
    pair), then the others, cheap ones first. Over all workloads the pairs come first, from the cheapest workload to the
    dearest, so that the pairs spread over all lengths before a second opinion on any of them; then the third group of
    each workload, and so on.
    """
    by_workload: dict[tuple[str, bool], list[tuple[float, list[Case]]]] = {}
    for group in groups:
        key = (group[0].workload.digest, group[0].claims.causal)
        by_workload.setdefault(key, []).append((group_seconds(group, device, profile), group))
    ranked: list[tuple[int, float, int, list[Case]]] = []
    for costed in by_workload.values():
        costed.sort(key=lambda pair: pair[0])
        dense = [pair for pair in costed if pair[1][0].claims.is_dense][:1]
        sparse = [pair for pair in costed if not pair[1][0].claims.is_dense][:1]
        head = dense + sparse
        rest = [pair for pair in costed if pair not in head]
        workload_s = sum(seconds for seconds, _ in head)
        for place, (_, group) in enumerate(head + rest):
            tier = max(0, place - len(head) + 1)
            ranked.append((tier, workload_s, place, group))
    ranked.sort(key=lambda entry: entry[:3])
    return [group for *_, group in ranked]
