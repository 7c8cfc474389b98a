"""Decide by pairs of processes: a screen of all cases, then an independent confirmation of those that it flagged.

A pair is one fresh process of each side, alive at the same time and sampling in turn; each pair visits in a random
order the cases that are not decided yet. The screen goes on, pair by pair, with the cases that it can neither call the
same nor flag. What it flagged is decided on fresh pairs alone, so that looking at many cases many times raises no false
alarm. Starting processes costs more than visiting a case: confirmations and the screen of other cases share pairs.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Protocol

from bsa_bench.gate.judgement import (
    Evidence,
    Noise,
    PairSample,
    Problem,
    Stage,
    judge_confirmed,
    machine_noise,
    memory_problem,
    problem_of,
    weigh,
)
from bsa_bench.gate.policy import Policy
from bsa_bench.gate.verdict import Check, Pairs, Tier, Verdict
from bsa_bench.stats.pairs import lockstep_log_ratio

__all__ = ["PairBench", "PairSample", "Policy", "Problem", "decide"]


class PairBench(Protocol):
    """Measures a fresh pair of processes."""

    def measure(self, names: Sequence[str]) -> Mapping[str, PairSample | Problem]:
        """Start one process of each side, visit the cases in this order, end both; an entry for each name.

        A problem of INFRA_ERROR says that the pair was disturbed: it is dropped, and the case measured again, as often
        as the policy allows. So is a problem of a case that other pairs did measure, unless its result is wrong or its
        head fails for the second time. Other problems end the case.
        """

    def cost_s(self, names: Sequence[str]) -> float:
        """How many seconds a pair of these cases takes, as far as is known by now; 0 where nothing is."""


def decide(
    names: Sequence[str],
    bench: PairBench,
    policy: Policy,
    *,
    tier: Tier,
    controls: Sequence[str] = (),
    seed: int = 0,
    time_left_s: Callable[[], float] = lambda: math.inf,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Check]:
    """Measure cases by pairs of processes until each is decided, and say what became of each.

    Args:
        names: the cases whose code may have changed.
        bench: measures a pair.
        policy: when a change counts.
        tier: stands in the checks.
        controls: cases of which nothing can have changed. If one moves, the machine did, and nothing is decided.
        seed: of the order in which a pair visits the cases.
        time_left_s: asked before each pair. Where it is short, cases that were flagged come before others, and the
            worst of them first; what is undecided in the end is ambiguous, or not measured.
        tell: told what happens, a line at a time.

    Returns:
        A check for each case, in the order of `names` and then `controls`.

    Raises:
        ValueError: a case is named twice.
    """
    cases = [_Case(name, is_control) for group, is_control in ((names, False), (controls, True)) for name in group]
    if len({case.name for case in cases}) < len(cases):
        raise ValueError(f"names, controls: expected each case once, got {[*names, *controls]}")
    checks = _Run(cases, bench, policy, tier, random.Random(seed), tell).run(time_left_s)
    movements = {Verdict.SLOWER, Verdict.FASTER, Verdict.FAILED}
    moved = next((check for check in checks if check.is_control and check.verdict in movements), None)
    if moved is None:
        return checks
    why = (
        f"{moved.name} came out {moved.verdict} although nothing of it has changed ({_what_moved(moved)}); "
        "the machine is not to be trusted now"
    )
    return [
        check.model_copy(update={"verdict": Verdict.INFRA_ERROR, "reason": why})
        if check.verdict.is_measured and check.verdict is not Verdict.WRONG
        else check
        for check in checks
    ]


@dataclass
class _Case:
    """A case on its way: screened, perhaps flagged and confirmed, ended by its check.

    Args:
        flagged: the direction in which the screen flagged it, 1 slower and -1 faster; 0 while it is screened.
        dropped: what was wrong with pairs that were measured again.
    """

    name: str
    is_control: bool
    flagged: int = 0
    samples: dict[Stage, list[PairSample]] = field(default_factory=lambda: {"screen": [], "confirm": []})
    log_ratios: dict[Stage, list[float]] = field(default_factory=lambda: {"screen": [], "confirm": []})
    dropped: list[Problem] = field(default_factory=list)
    check: Check | None = None

    @property
    def stage(self) -> Stage:
        return "confirm" if self.flagged else "screen"

    @property
    def num_pairs(self) -> int:
        """Of the present stage."""
        return len(self.samples[self.stage])

    @property
    def all_samples(self) -> list[PairSample]:
        return self.samples["screen"] + self.samples["confirm"]

    @property
    def has_failed(self) -> bool:
        """Whether the head failed in a pair that was dropped."""
        return any(problem.verdict is Verdict.FAILED for problem in self.dropped)

    def add(self, sample: PairSample) -> None:
        self.samples[self.stage].append(sample)
        self.log_ratios[self.stage].append(lockstep_log_ratio(sample.base, sample.head))


class _Run:
    def __init__(
        self,
        cases: Sequence[_Case],
        bench: PairBench,
        policy: Policy,
        tier: Tier,
        order: random.Random,
        tell: Callable[[str], None],
    ) -> None:
        self._cases, self._bench, self._policy, self._tier = cases, bench, policy, tier
        self._order, self._tell = order, tell
        self._noise: Noise | None = None

    def run(self, time_left_s: Callable[[], float]) -> list[Check]:
        """Pairs until every case is decided or the time is over."""
        number = 0
        while (pending := [case for case in self._cases if case.check is None]) and (
            chosen := self._chosen(pending, time_left_s())
        ):
            number += 1
            self._tell(f"pair {number}: {_what_is_left(chosen)}")
            measured = [case for case in self._measure(chosen) if case.check is None]
            self._noise = machine_noise([case.log_ratios["screen"] for case in self._cases], self._policy)
            for case in measured:
                if case.flagged:
                    self._look_at_confirmation(case)
                else:
                    self._look_at_screen(case)
        for case in self._cases:
            if case.check is None:
                self._end_late(case)
        return [case.check for case in self._cases if case.check is not None]

    def _chosen(self, pending: Sequence[_Case], left_s: float) -> Sequence[_Case]:
        """The cases of the next pair: all, unless the time is short; then those that can still be confirmed."""
        flagged = sorted((case for case in pending if case.flagged), key=self._urgency)
        if left_s > 0 and self._cost_s(pending) + self._confirmation_s(flagged, 1) <= left_s:
            return pending
        chosen: list[_Case] = []
        for case in flagged:
            if self._confirmation_s([*chosen, case]) <= left_s:
                chosen.append(case)
        if chosen or left_s <= 0:
            return chosen
        others = [case for case in pending if not case.flagged]
        return others if self._cost_s(others) <= left_s else []

    def _urgency(self, case: _Case) -> tuple[bool, float]:
        """What is slower first, the worst of it before the rest."""
        log_ratio = median(case.log_ratios["screen"])
        return log_ratio <= 0, -abs(log_ratio)

    def _confirmation_s(self, flagged: Sequence[_Case], num_done: int = 0) -> float:
        """How long it takes to confirm them all, once so many more pairs were measured."""
        missing = [next((n for n in self._policy.looks if n > case.num_pairs), 0) - case.num_pairs for case in flagged]
        rounds = range(num_done, max(missing, default=0))
        return sum(
            self._cost_s([case for case, number in zip(flagged, missing, strict=True) if number > done])
            for done in rounds
        )

    def _cost_s(self, cases: Sequence[_Case]) -> float:
        return self._bench.cost_s([case.name for case in cases])

    def _measure(self, pending: Sequence[_Case]) -> list[_Case]:
        """Measure a pair; returns the cases that have one pair more."""
        names = [case.name for case in pending]
        self._order.shuffle(names)
        answers = self._bench.measure(names)
        added = []
        for case in pending:
            outcome = answers.get(case.name, Problem(Verdict.INFRA_ERROR, "the pair gave no answer for it"))
            if isinstance(outcome, PairSample):
                outcome = problem_of(outcome) or outcome
            if isinstance(outcome, PairSample):
                case.add(outcome)
                added.append(case)
            else:
                self._take_problem(case, outcome)
        return added

    def _take_problem(self, case: _Case, problem: Problem) -> None:
        is_known_to_run = problem.verdict is not Verdict.WRONG and case.all_samples
        is_second_failure = problem.verdict is Verdict.FAILED and case.has_failed
        if (problem.verdict is not Verdict.INFRA_ERROR and not is_known_to_run) or is_second_failure:
            self._end(case, problem.verdict, problem.reason)
            return
        self._tell(f"{case.name}: pair dropped: {problem.reason}")
        case.dropped.append(problem)
        if len(case.dropped) > self._policy.spare_pairs:
            times = f"; {len(case.dropped)} pairs were disturbed" if len(case.dropped) > 1 else ""
            self._end(case, Verdict.INFRA_ERROR, problem.reason + times)

    def _look_at_screen(self, case: _Case) -> None:
        if case.num_pairs < self._policy.screen_pairs:
            return
        evidence = self._weigh(case)
        if evidence.direction:
            case.flagged = evidence.direction
        elif evidence.is_same:
            self._end_measured(case, Verdict.SAME, None, evidence.pairs)
        elif case.num_pairs >= self._policy.max_screen_pairs:
            self._end_measured(case, Verdict.AMBIGUOUS, evidence.reason, evidence.pairs)

    def _look_at_confirmation(self, case: _Case) -> None:
        if case.num_pairs not in self._policy.looks:
            return
        evidence = self._weigh(case)
        verdict, reason = judge_confirmed(evidence, case.flagged, self._policy)
        if verdict is not Verdict.AMBIGUOUS or case.num_pairs == self._policy.looks[-1]:
            self._end_measured(case, verdict, reason, evidence.pairs)

    def _end_late(self, case: _Case) -> None:
        if not case.all_samples:
            self._end(case, Verdict.NOT_MEASURED, "no time was left for it")
            return
        if case.flagged and case.num_pairs < self._policy.looks[0]:
            reason = f"flagged by the screen; no time was left for {self._policy.looks[0]} pairs to confirm it"
            pairs = self._weigh(case, "screen").pairs
        else:
            reason = f"no time was left for more than {case.num_pairs} {'pair' if case.num_pairs == 1 else 'pairs'}"
            pairs = self._weigh(case).pairs
        self._end_measured(case, Verdict.AMBIGUOUS, reason, pairs, is_suspect=case.flagged > 0)

    def _weigh(self, case: _Case, stage: Stage | None = None) -> Evidence:
        stage = stage or case.stage
        return weigh(case.samples[stage], case.log_ratios[stage], self._noise, self._policy, stage)

    def _end_measured(
        self, case: _Case, verdict: Verdict, reason: str | None, pairs: Pairs, *, is_suspect: bool = False
    ) -> None:
        if grown := memory_problem(case.all_samples, self._policy):
            verdict, reason = Verdict.FAILED, f"{grown}; time: {verdict}"
        elif case.has_failed and verdict in {Verdict.SAME, Verdict.FASTER}:
            verdict, reason = Verdict.WARNING, f"the head failed in one pair; the other pairs: {verdict}"
        self._end(case, verdict, reason, pairs, is_suspect=is_suspect)

    def _end(
        self,
        case: _Case,
        verdict: Verdict,
        reason: str | None,
        pairs: Pairs | None = None,
        *,
        is_suspect: bool = False,
    ) -> None:
        case.check = Check(
            tier=self._tier,
            name=case.name,
            verdict=verdict,
            reason=reason,
            pairs=pairs,
            detail=tuple(f"pair dropped: {problem.reason}" for problem in case.dropped),
            is_control=case.is_control,
            is_suspect=is_suspect and not case.is_control,
        )


def _what_is_left(pending: Sequence[_Case]) -> str:
    flagged = sum(case.flagged != 0 for case in pending)
    parts = [(len(pending) - flagged, "to screen"), (flagged, "to confirm")]
    return ", ".join(f"{number} {'case' if number == 1 else 'cases'} {what}" for number, what in parts if number)


def _what_moved(check: Check) -> str:
    return f"{100 * (check.pairs.ratio - 1):+.1f} %" if check.pairs else f"{check.reason}"
