"""What comes next under a budget: pairs of dense and sparse first, planned anew after each worker."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from bsa_bench.result import PASSES, Case, Status
from bsa_bench.run.estimate import DeviceModel, group_seconds, is_timed
from bsa_bench.run.job import Profile
from bsa_bench.run.pace import Pace
from bsa_bench.run.rounds import Ledger, Visit, plan_visits
from bsa_bench.workload import short_digest

#: A worker is started where so many times its prediction is left, for predictions are crude; the half that completes a
#: pair needs no margin.
MARGIN = 1.1
#: What is left of the budget over all that is left to do, from which on a worker measures all passes of its group.
ROOM = 1.25
#: Workers whose predictions differ by no more than this factor are expected to end at about the same time.
ABOUT = 1.15


class Turns(Protocol):
    """Says what runs next, until nothing is left or nothing of it fits."""

    def next(self, left_s: float) -> Visit | None:
        """The next worker, of `left_s` seconds at most."""

    def seconds(self) -> float:
        """Predict all that is left, whether it fits or not."""


class Forecast:
    """Predicts the seconds of workers, corrected by what earlier ones took."""

    def __init__(self, device: DeviceModel, profile: Profile, pace: Pace) -> None:
        self.device = device
        self.pace = pace
        self._profile = profile
        self._known: dict[tuple[str, ...], float] = {}

    def seconds(self, cases: dict[str, Case]) -> float:
        """Of one worker that measures these cases of a group, by their hashes; 0 for none."""
        if not cases:
            return 0.0
        key = tuple(cases)
        if key not in self._known:
            self._known[key] = group_seconds(list(cases.values()), self.device, self._profile)
        return self.pace.scaled(next(iter(cases.values())).base_engine, self._known[key])


class Listed:
    """Rounds in an order that is drawn once, for a run without a budget."""

    def __init__(
        self, groups: Sequence[Sequence[Case]], ledger: Ledger, forecast: Forecast, *, num_processes: int, seed: int
    ) -> None:
        self._visits = plan_visits(groups, num_processes, seed=seed)
        self._ledger = ledger
        self._forecast = forecast

    def next(self, left_s: float) -> Visit | None:  # noqa: ARG002 - nothing is left out
        """The next visit with a case that is yet to be measured."""
        while self._visits:
            visit = self._visits.pop(0)
            if pending := self._pending(visit):
                return Visit(visit.process_index, pending)
        return None

    def seconds(self) -> float:
        """Predict all visits ahead."""
        return sum(self._forecast.seconds(self._pending(visit)) for visit in self._visits)

    def _pending(self, visit: Visit) -> dict[str, Case]:
        return {h: case for h, case in visit.cases.items() if visit.process_index in self._ledger.missing(h)}


@dataclass(frozen=True)
class _Entry:
    """A case with what the agenda asks of it again and again; `rivals` names what its time is compared with."""

    case: Case
    case_hash: str
    rivals: tuple[str, bool, str]
    is_timed: bool


class Agenda:
    """Chooses under a budget so that the run has answered as much as it could whenever it stops.

    What a run is for is a ratio: a sparse method over the fastest dense engine of the same workload and pass, causal
    over causal. So a pair comes first, before the next pass begins: the dense engine that is known or expected to be
    the fastest, then the sparse one of the same pass whose worker is expected to end first, or about first and is the
    faster one. Pairs go from the cheapest to the dearest, and one is begun only where both of its halves fit. Each
    result corrects what is expected, of seconds and of which engine is the fastest: where another dense engine is then
    expected to be faster, it is measured next.

    After the pairs come the other cases that fit, spread over the workloads, dense ones first; then what is verified
    and not timed; last, halves of pairs. Each round goes like that; in the second and later ones the seed draws which
    half of a pair is first.

    A worker measures one pass, or all passes of its group where all that is left fits easily.

    Args:
        groups: the cases that share inputs; those that cannot run are left out.
        ledger: what is known; read again at each turn.
        forecast: of seconds, and of calls by its pace.
        num_processes: the number of rounds.
        seed: see above.
        priority: implementations; given, their groups come in this order instead, as far as they fit.
        reserve_s: kept for what follows the run, and given away for the half that completes a pair alone.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[Case]],
        ledger: Ledger,
        forecast: Forecast,
        *,
        num_processes: int,
        seed: int = 0,
        priority: Sequence[str] = (),
        reserve_s: float = 0.0,
    ) -> None:
        kind = forecast.device.kind
        self._groups = [
            [
                _Entry(
                    case,
                    case.case_hash,
                    (case.workload.digest, case.claims.causal, case.passes),
                    is_timed(case, kind),
                )
                for case in group
            ]
            for group in groups
        ]
        self._group_of = {entry.case_hash: group for group in self._groups for entry in group}
        self._rivals: dict[tuple[str, bool, str], list[_Entry]] = {}
        for entry in (entry for group in self._groups for entry in group):
            if entry.is_timed:
                self._rivals.setdefault(entry.rivals, []).append(entry)
        self._ledger = ledger
        self._forecast = forecast
        self._num_processes = num_processes
        self._seed = seed
        self._priority = list(priority)
        self._reserve_s = reserve_s
        self._taken: set[tuple[str, int]] = set()

    def next(self, left_s: float) -> Visit | None:
        """The next worker, of one round after the other, or None where nothing that is left fits."""
        room_s = left_s / MARGIN
        is_roomy = self.seconds() * ROOM <= left_s
        for index in range(self._num_processes):
            pending = [e for group in self._groups for e in group if self._is_pending(e, index)]
            entries = self._choose(pending, index, room_s, whole=is_roomy) if pending else []
            if entries:
                self._taken |= {(entry.case_hash, index) for entry in entries}
                return Visit(index, {entry.case_hash: entry.case for entry in entries})
        return None

    def seconds(self) -> float:
        """Predict all that is left, whether it fits or not, a worker for each group."""
        return sum(
            self._cost([entry for entry in group if self._is_pending(entry, index, later=True)])
            for group in self._groups
            for index in range(self._num_processes)
        )

    def smallest_s(self) -> float:
        """Predict the least that answers something: the cheapest pair, where there is none the cheapest case."""
        pending = [
            e for group in self._groups for e in group for i in range(self._num_processes) if self._is_pending(e, i)
        ]
        pairs = [] if self._priority else [sum(self._cost([e]) for e in pair) for _, pair in self._open_pairs(0)]
        return MARGIN * min(pairs or [self._cost([entry]) for entry in pending], default=0.0)

    def _choose(self, pending: Sequence[_Entry], index: int, room_s: float, *, whole: bool) -> list[_Entry]:
        if self._priority:
            return self._first_listed(pending, room_s)
        entry = self._of_a_pair(index, room_s) or self._of_the_rest(pending, index, room_s)
        if entry is None:
            return []
        together = [other for other in self._group_of[entry.case_hash] if self._is_pending(other, index)]
        return together if whole else [entry]

    def _first_listed(self, pending: Sequence[_Entry], room_s: float) -> list[_Entry]:
        groups: dict[str, list[_Entry]] = {}
        for entry in pending:
            groups.setdefault(self._group_of[entry.case_hash][0].case_hash, []).append(entry)
        ordered = sorted(groups.values(), key=lambda group: self._priority.index(group[0].case.implementation))
        return next((group for group in ordered if self._cost(group) <= room_s), [])

    def _of_a_pair(self, index: int, room_s: float) -> _Entry | None:
        """The next half of the pair that comes next, if both halves fit."""
        ranked = []
        for rivals, halves in self._open_pairs(index):
            cost_s = sum(self._cost([half]) for half in halves)
            is_begun = len(halves) == 1
            if cost_s <= (room_s * MARGIN + self._reserve_s if is_begun else room_s):
                approximates = all(half.case.claims.approximates_dense for half in halves)
                ranked.append((not is_begun, not approximates, cost_s, PASSES.index(rivals[2]), rivals[0], halves))
        if not ranked:
            return None
        *_, halves = min(ranked, key=lambda each: each[:-1])
        drawn = index and int(short_digest([self._seed, index, halves[0].case_hash]), 16) % 2
        return halves[-1 if drawn else 0]

    def _of_the_rest(self, pending: Sequence[_Entry], index: int, room_s: float) -> _Entry | None:
        unpaired = {rivals for rivals, _ in self._open_pairs(index)}
        ranked = []
        for place, entry in enumerate(pending):
            cost_s = self._cost([entry])
            if cost_s > room_s:
                continue
            tier = 1 if not entry.is_timed else 2 if entry.rivals in unpaired else 0
            known = sum(self._is_known(rival, index) for rival in self._rivals.get(entry.rivals, ()))
            ranked.append((tier, known, not entry.case.claims.is_dense, cost_s, place, entry))
        return min(ranked, key=lambda each: each[:-1])[-1] if ranked else None

    def _open_pairs(self, index: int) -> list[tuple[tuple[str, bool, str], list[_Entry]]]:
        """The pairs of a round that are not complete, each with what is missing of it, the dense half first."""
        pairs = []
        for rivals, entries in self._rivals.items():
            able = [e for e in entries if self._ledger.status(e.case_hash) in {None, Status.OK}]
            dense = [entry for entry in able if entry.case.claims.is_dense]
            sparse = [entry for entry in able if not entry.case.claims.is_dense]
            if not (dense and sparse):
                continue
            halves = [min(dense, key=self._call_s)]
            if not any(self._is_known(entry, index) for entry in sparse):
                halves.append(self._sparse_half(sparse))
            missing = [half for half in halves if not self._is_known(half, index)]
            if missing and all(self._is_pending(half, index) for half in missing):
                pairs.append((rivals, missing))
        return pairs

    def _sparse_half(self, sparse: Sequence[_Entry]) -> _Entry:
        """The one whose worker is expected to end first; of those that end about then, the one of the shortest call."""
        alike = [e for e in sparse if e.case.claims.approximates_dense] or sparse
        soon_s = ABOUT * min(self._cost([entry]) for entry in alike)
        return min((entry for entry in alike if self._cost([entry]) <= soon_s), key=self._call_s)

    def _is_known(self, entry: _Entry, index: int) -> bool:
        return self._ledger.at(entry.case_hash, index) is not None

    def _is_pending(self, entry: _Entry, index: int, *, later: bool = False) -> bool:
        """Whether a case is yet to be measured in a process, and is not ahead of its rounds unless `later` asks so."""
        if (entry.case_hash, index) in self._taken or self._ledger.status(entry.case_hash) not in {None, Status.OK}:
            return False
        missing = self._ledger.missing(entry.case_hash)
        return index in missing if later else missing[:1] == [index]

    def _call_s(self, entry: _Entry) -> float:
        return self._forecast.pace.call_s(entry.case, self._forecast.device)

    def _cost(self, entries: Iterable[_Entry]) -> float:
        return self._forecast.seconds({entry.case_hash: entry.case for entry in entries})
