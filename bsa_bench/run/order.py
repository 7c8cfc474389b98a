"""Which cases a run would measure, in which order, and what they are predicted to need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bsa_bench.result import Case, Result, Status
from bsa_bench.run.agenda import Agenda, Forecast, Listed
from bsa_bench.run.estimate import DeviceModel, Estimate, predict
from bsa_bench.run.job import Profile
from bsa_bench.run.pace import Pace
from bsa_bench.run.rounds import Ledger
from bsa_bench.units import format_bytes, format_seconds


@dataclass(frozen=True)
class PlannedCase:
    """One row of `--dry-run`.

    Args:
        estimate: the prediction for the case by itself.
        seconds: of all processes that would be started, with what a worker's cases share (start, compilation,
            verification) charged to the first of them, so that the rows add up; 0 where the case will not run.
        reason: why the case will not run, with the remedy; null where it will.
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
    done: Mapping[tuple[str, int], Status] | None = None,
    known: Sequence[Result] = (),
    budget_s: float | None = None,
    left_s: float = float("inf"),
    seed: int = 0,
    priority: Sequence[str] = (),
) -> list[PlannedCase]:
    """List the cases with predictions; nothing is run.

    Under a budget first what fits, in its order, and then the rest; else the cases as they are asked for.

    Args:
        cases: what is asked for; of two that measure the same, the first counts.
        device: the device, whose memory decides what fits.
        profile: how long each case is measured.
        num_processes: in how many processes.
        unavailable: the reason why an implementation cannot run a case here, or None.
        done: final statuses of a run to resume, by case hash and process index.
        known: its results, whose latencies correct the predictions.
        budget_s: of the whole command; null for none.
        left_s: what of the budget is left for the cases.
        seed, priority: see `Agenda`.
    """
    asked = [case for group in group_cases(cases) for case in group]
    ledger = Ledger(asked, num_processes, done or {})
    reasons = {case.case_hash: _reason(case, ledger, device, unavailable) for case in asked}
    groups = group_cases(_able(asked, ledger, reasons))
    forecast = Forecast(device, profile, Pace.of(known, device))
    turns = (
        Listed(groups, ledger, forecast, num_processes=num_processes, seed=seed)
        if budget_s is None
        else Agenda(groups, ledger, forecast, num_processes=num_processes, seed=seed, priority=priority)
    )
    seconds: dict[str, float] = {}
    while visit := turns.next(left_s):
        left_s -= forecast.seconds(visit.cases)
        shared_s = forecast.seconds(visit.cases) - sum(
            predict(c, device, profile).seconds for c in visit.cases.values()
        )
        for place, (case_hash, case) in enumerate(visit.cases.items()):
            own_s = predict(case, device, profile).seconds + (0.0 if place else shared_s)
            seconds[case_hash] = seconds.get(case_hash, 0.0) + own_s
            ledger.note(case_hash, visit.process_index, Status.OK)
    no_room = f"it does not fit in the budget of {format_seconds(budget_s)}" if budget_s else None
    places = {case_hash: place for place, case_hash in enumerate(seconds)} if budget_s else {}
    return [
        PlannedCase(
            case,
            predict(case, device, profile),
            seconds.get(case.case_hash, 0.0),
            memory_reason(case, device) is None,
            None if case.case_hash in seconds else reasons[case.case_hash] or no_room,
        )
        for case in sorted(asked, key=lambda case: places.get(case.case_hash, len(places)))
    ]


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


def smallest_budget_s(
    cases: Sequence[Case],
    *,
    device: DeviceModel,
    profile: Profile,
    num_processes: int,
    unavailable: Callable[[Case], str | None],
    done: Mapping[tuple[str, int], Status],
    known: Sequence[Result],
    priority: Sequence[str],
) -> float:
    """Predict the seconds of the least that answers something, see `Agenda.smallest_s`; arguments as of `plan_run`."""
    asked = [case for group in group_cases(cases) for case in group]
    ledger = Ledger(asked, num_processes, done)
    reasons = {case.case_hash: _reason(case, ledger, device, unavailable) for case in asked}
    forecast = Forecast(device, profile, Pace.of(known, device))
    agenda = Agenda(
        group_cases(_able(asked, ledger, reasons)), ledger, forecast, num_processes=num_processes, priority=priority
    )
    return agenda.smallest_s()


def _able(asked: Sequence[Case], ledger: Ledger, reasons: Mapping[str, str | None]) -> list[Case]:
    """What can run here, what is done included: an agenda pairs the rest with it."""
    return [c for c in asked if reasons[c.case_hash] is None or ledger.status(c.case_hash) is Status.OK]


def _reason(case: Case, ledger: Ledger, device: DeviceModel, unavailable: Callable[[Case], str | None]) -> str | None:
    if not ledger.missing(case.case_hash):
        return f"it is done: {ledger.status(case.case_hash)}"
    return unavailable(case) or memory_reason(case, device)
