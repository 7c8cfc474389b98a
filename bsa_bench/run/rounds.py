"""The process is the replicate: rounds in which every group runs once, each in a worker process of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bsa_bench.result import Case, Status, missing_processes, worst_status
from bsa_bench.run.job import Profile
from bsa_bench.workload import short_digest

NUM_PROCESSES: dict[Profile, int] = {"quick": 1, "report": 5}
"""In how many processes each profile measures a case, unless the suite or the user says otherwise."""


@dataclass(frozen=True)
class Visit:
    """One group in one worker process; `cases` go by their hash."""

    process_index: int
    cases: dict[str, Case]


def plan_visits(groups: Sequence[Sequence[Case]], num_processes: int, *, seed: int) -> list[Visit]:
    """List the visits of all rounds, round after round, so that a run that stops early has complete first rounds.

    The order within a round is random for several processes, and as given for one. It is drawn for each group by
    itself: leaving some groups out, as after a resume, does not change the order of the others. A budget has an order
    of its own, see `bsa_bench.run.agenda`.

    Args:
        groups: the cases that share a worker process.
        num_processes: the number of rounds.
        seed: of the order.
    """
    visits = []
    for index in range(num_processes):
        ordered = list(groups)
        if num_processes > 1:
            places = [short_digest([seed, index, group[0].group]) for group in groups]
            ordered = [groups[i] for i in sorted(range(len(groups)), key=places.__getitem__)]
        visits += [Visit(index, {case.case_hash: case for case in group}) for group in ordered]
    return visits


class Ledger:
    """What is known of the cases that are asked for, process by process.

    Args:
        asked: each case once.
        num_processes: in how many processes each is to be measured.
        done: final statuses of before, by case hash and process index; what is not asked for is left out.
    """

    def __init__(self, asked: Sequence[Case], num_processes: int, done: Mapping[tuple[str, int], Status]) -> None:
        self._num_processes = num_processes
        self._known: dict[str, dict[int, Status]] = {case.case_hash: {} for case in asked}
        for (case_hash, index), status in done.items():
            if case_hash in self._known and index < num_processes:
                self._known[case_hash][index] = status

    def note(self, case_hash: str, process_index: int, status: Status) -> None:
        """Take a status in, if it is final."""
        if status.is_final:
            self._known[case_hash][process_index] = status

    def missing(self, case_hash: str) -> list[int]:
        """The processes of a case that are yet to be measured."""
        return missing_processes(self._known[case_hash], self._num_processes)

    def at(self, case_hash: str, process_index: int) -> Status | None:
        """The final status of a case in a process; null where it is not known."""
        return self._known[case_hash].get(process_index)

    def status(self, case_hash: str) -> Status | None:
        """The status of a case by the processes that are known; null where none is."""
        return worst_status(self._known[case_hash].values())

    @property
    def num_known(self) -> int:
        """How many measurements have a final status."""
        return sum(map(len, self._known.values()))

    @property
    def num_missing(self) -> int:
        """How many measurements are yet to be made."""
        return sum(len(self.missing(case_hash)) for case_hash in self._known)

    def num_measured(self, case_hash: str) -> int:
        """How many processes of a case are known."""
        return len(self._known[case_hash])

    def counts(self) -> Counter[Status]:
        """Cases by status, those of which nothing is known left out."""
        return Counter(status for case_hash in self._known if (status := self.status(case_hash)))
