"""Measure candidate after candidate until all are, the budget is spent, or the user ends it. Knows no GPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from bsa_bench.tune.candidates import Candidate

#: How long one candidate may take: compilation, verification and all lengths.
LIMIT_S = 120.0

Status = Literal["OK", "WRONG", "FAILED"]


@dataclass(frozen=True)
class Outcome:
    """What became of a candidate: seconds by tokens where it is right, else why not.

    `WRONG`: outside its error budget, never timed. `FAILED`: it did not run, or not in time.
    """

    candidate: Candidate
    status: Status
    seconds: Mapping[int, float] = field(default_factory=dict)
    reason: str | None = None

    @property
    def total_s(self) -> float:
        """The sum over the lengths, which decides."""
        return sum(self.seconds.values())


#: Measures a candidate within so many seconds.
Measure = Callable[[Candidate, float], Outcome]


@dataclass(frozen=True)
class Search:
    """How a search ended: `left` was not reached."""

    outcomes: tuple[Outcome, ...]
    left: tuple[Candidate, ...]
    was_interrupted: bool


def search(
    candidates: Sequence[Candidate],
    measure: Measure,
    *,
    budget_s: float,
    clock: Callable[[], float] = time.monotonic,
    on_done: Callable[[Outcome], None] = lambda _: None,
) -> Search:
    """Measure in the order given. Ctrl-C ends the search, not the program: what is known is returned."""
    start = clock()
    outcomes: list[Outcome] = []
    was_interrupted = False
    for candidate in candidates:
        left_s = budget_s - (clock() - start)
        if left_s <= 0:
            break
        try:
            outcome = measure(candidate, min(LIMIT_S, left_s))
            on_done(outcome)
        except KeyboardInterrupt:
            was_interrupted = True
            break
        outcomes.append(outcome)
    return Search(tuple(outcomes), tuple(candidates[len(outcomes) :]), was_interrupted)
