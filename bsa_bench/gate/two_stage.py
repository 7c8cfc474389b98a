"""Decide by pairs of processes: a screen of all cases, then an independent confirmation of those that it flagged.

A pair is one fresh process of each side, alive at the same time and sampling in turn; each pair visits the cases in a
random order. The screen goes on, pair by pair, with the cases that it cannot yet call the same nor flag. What it
flagged is decided on fresh pairs alone, so that looking at many cases many times raises no false alarm.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal, Protocol

from bsa_bench.gate.verdict import Check, Pairs, Tier, Verdict
from bsa_bench.stats.pairs import detectable_effect, lockstep_log_ratio, pooled_sd, summarise_pairs
from bsa_bench.stats.processes import two_modes


@dataclass(frozen=True, kw_only=True)
class Policy:
    """When a change counts. Limits are relative: 0.02 is 2 %.

    Args:
        limit: a change below it is none.
        absolute_s: a change below it is none either, whatever its share.
        noise_factor: the limit is at least this many standard deviations of a process on this machine.
        sd: the calibrated standard deviation of a pair's log ratio; without it that of the run's own pairs is used.
        screen_pairs, max_screen_pairs: pairs before the first decision, and before a case is left ambiguous.
        confirm_pairs: fresh pairs of a flagged case; 8 is the least with which the test can reach p < .01 if one of
            them points the other way.
        significance: one-sided, of the confirmation.
        clock_spread: how far the sides' clocks may differ.
        memory_share, memory_bytes: growth of the peak memory that fails, both together.
    """

    limit: float = 0.02
    absolute_s: float = 20e-6
    noise_factor: float = 1.5
    sd: float | None = None
    screen_pairs: int = 3
    max_screen_pairs: int = 10
    confirm_pairs: int = 8
    significance: float = 0.01
    clock_spread: float = 0.03
    memory_share: float = 0.05
    memory_bytes: int = 64 << 20


@dataclass(frozen=True, kw_only=True)
class PairSample:
    """What one pair of processes measured of one case; the sides sampled in turn.

    Args:
        base, head: seconds, as many of both, in order.
        base_clock_hz, head_clock_hz: medians of the device's clock while a side ran; null where nobody can tell.
        base_peak_bytes, head_peak_bytes: peak memory above the inputs.
        throttle_ns: growth of the device's throttle counters meanwhile.
    """

    base: Sequence[float]
    head: Sequence[float]
    base_clock_hz: float | None = None
    head_clock_hz: float | None = None
    base_peak_bytes: int | None = None
    head_peak_bytes: int | None = None
    throttle_ns: int = 0


@dataclass(frozen=True)
class Problem:
    """Why a pair has no sample of a case: what it comes to, and the reason in words."""

    verdict: Literal[Verdict.WRONG, Verdict.FAILED, Verdict.INFRA_ERROR, Verdict.NOT_MEASURED]
    reason: str


class PairBench(Protocol):
    """Measures a fresh pair of processes."""

    def measure(self, names: Sequence[str]) -> Mapping[str, PairSample | Problem]:
        """Start one process of each side, visit the cases in this order, end both; an entry for each name."""


@dataclass
class _Case:
    name: str
    is_control: bool
    screen: list[PairSample] = field(default_factory=list)
    confirm: list[PairSample] = field(default_factory=list)
    state: Literal["screening", "same", "flagged", "undecided", "ended"] = "screening"
    check: Check | None = None

    def log_ratios(self, samples: Sequence[PairSample]) -> list[float]:
        return [lockstep_log_ratio(sample.base, sample.head) for sample in samples]


def decide(
    names: Sequence[str],
    bench: PairBench,
    policy: Policy,
    *,
    tier: Tier,
    controls: Sequence[str] = (),
    seed: int = 0,
    out_of_time: Callable[[], bool] = lambda: False,
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
        out_of_time: asked before each pair; what is undecided then is ambiguous, or not measured.
        tell: told what happens, a line at a time.

    Returns:
        A check for each case, in the order of `names` and then `controls`.
    """
    order = random.Random(seed)
    cases = {
        name: _Case(name, is_control) for group, is_control in ((names, False), (controls, True)) for name in group
    }
    run = _Run(cases, bench, policy, tier, order, out_of_time, tell)
    run.screen()
    run.confirm()
    checks = [run.check_of(case) for case in cases.values()]
    moved = [check for check in checks if check.is_control and check.verdict in {Verdict.SLOWER, Verdict.FASTER}]
    if not moved:
        return checks
    why = (
        f"{moved[0].name} came out {moved[0].verdict} although nothing of it has changed "
        f"({_percent(moved[0].pairs)}); the machine is not to be trusted now"
    )
    return [
        check.model_copy(update={"verdict": Verdict.INFRA_ERROR, "reason": why})
        if check.verdict.is_measured and check.verdict is not Verdict.WRONG
        else check
        for check in checks
    ]


class _Run:
    def __init__(
        self,
        cases: dict[str, _Case],
        bench: PairBench,
        policy: Policy,
        tier: Tier,
        order: random.Random,
        out_of_time: Callable[[], bool],
        tell: Callable[[str], None],
    ) -> None:
        self._cases, self._bench, self._policy, self._tier = cases, bench, policy, tier
        self._order, self._out_of_time, self._tell = order, out_of_time, tell
        self._is_late = False

    def screen(self) -> None:
        """Pairs of all cases that are not decided yet."""
        for number in range(1, self._policy.max_screen_pairs + 1):
            pending = [case for case in self._cases.values() if case.state == "screening"]
            if not pending or self._late():
                break
            self._tell(f"screen, pair {number}: {_num_cases(len(pending))}")
            self._measure(pending, "screen")
            if number >= self._policy.screen_pairs:
                for case in pending:
                    self._sort(case)
        for case in self._cases.values():
            if case.state == "screening":
                case.state = "undecided"

    def confirm(self) -> None:
        """Fresh pairs of the flagged cases."""
        for number in range(1, self._policy.confirm_pairs + 1):
            pending = [case for case in self._cases.values() if case.state == "flagged"]
            if not pending or self._late():
                break
            self._tell(f"confirmation, pair {number} of {self._policy.confirm_pairs}: {_num_cases(len(pending))}")
            self._measure(pending, "confirm")

    def check_of(self, case: _Case) -> Check:
        """The verdict of a case."""
        if case.check is not None:
            return case.check
        if not case.screen:
            return self._check(case, Verdict.NOT_MEASURED, "no time was left for it")
        is_flagged = case.state == "flagged"
        if is_flagged and len(case.confirm) < self._policy.confirm_pairs:
            pairs = self._pairs(case, "screen")
            why = f"flagged by the screen; no time was left for {self._policy.confirm_pairs} pairs to confirm it"
            return self._check(case, Verdict.AMBIGUOUS, why, pairs)
        pairs = self._pairs(case, "confirm" if is_flagged else "screen")
        if problem := self._memory_problem(case):
            return self._check(case, Verdict.FAILED, problem, pairs)
        if not is_flagged:
            if case.state == "same":
                return self._check(case, Verdict.SAME, None, pairs)
            return self._check(case, Verdict.AMBIGUOUS, self._why_ambiguous(case, pairs), pairs)
        return self._judge_confirmed(case, pairs)

    def _measure(self, pending: Sequence[_Case], stage: Literal["screen", "confirm"]) -> None:
        names = [case.name for case in pending]
        self._order.shuffle(names)
        measured = self._bench.measure(names)
        for case in pending:
            outcome = measured.get(case.name) or Problem(Verdict.NOT_MEASURED, "the pair gave no answer for it")
            if isinstance(outcome, PairSample) and (problem := _problem_of(outcome)):
                outcome = problem
            if isinstance(outcome, Problem):
                case.check, case.state = self._check(case, outcome.verdict, outcome.reason), "ended"
            else:
                (case.screen if stage == "screen" else case.confirm).append(outcome)

    def _sort(self, case: _Case) -> None:
        if case.state != "screening":
            return
        pairs = self._pairs(case, "screen")
        bound = math.log1p(pairs.limit)
        if abs(math.log(pairs.ratio)) > bound:
            case.state = "flagged"
        elif (
            pairs.low is not None
            and pairs.high is not None
            and -bound <= math.log(pairs.low)
            and (math.log(pairs.high) <= bound)
        ):
            case.state = "same"

    def _judge_confirmed(self, case: _Case, pairs: Pairs) -> Check:
        bound, log_ratio = math.log1p(pairs.limit), math.log(pairs.ratio)
        assert pairs.p is not None
        is_confirmed = (
            abs(log_ratio) > bound
            and pairs.p < self._policy.significance
            and abs(pairs.head_s - pairs.base_s) > self._policy.absolute_s
        )
        if not is_confirmed:
            is_same = (
                pairs.low is not None
                and pairs.high is not None
                and (-bound <= math.log(pairs.low) and math.log(pairs.high) <= bound)
            )
            if is_same or abs(pairs.head_s - pairs.base_s) <= self._policy.absolute_s < abs(log_ratio) * pairs.base_s:
                return self._check(case, Verdict.SAME, "flagged by the screen, not confirmed on fresh pairs", pairs)
            return self._check(case, Verdict.AMBIGUOUS, self._why_ambiguous(case, pairs), pairs)
        if pairs.clock_ratio is not None:
            if abs(math.log(pairs.clock_ratio)) > math.log1p(self._policy.clock_spread):
                return self._check(case, Verdict.AMBIGUOUS, "clock: the sides ran at different clocks", pairs)
            if abs(log_ratio + math.log(pairs.clock_ratio)) <= bound:
                return self._check(case, Verdict.AMBIGUOUS, "clock: the change is in time, not in cycles", pairs)
        return self._check(case, Verdict.SLOWER if log_ratio > 0 else Verdict.FASTER, None, pairs)

    def _why_ambiguous(self, case: _Case, pairs: Pairs) -> str:
        if self._is_late and case.state == "undecided" and len(case.screen) < self._policy.max_screen_pairs:
            return f"no time was left for more than {len(case.screen)} pairs"
        if pairs.modes:
            return "two groups of pairs: the processes of a side are not alike"
        return f"{len(pairs.log_ratios)} pairs tell no more on this machine"

    def _pairs(self, case: _Case, stage: Literal["screen", "confirm"]) -> Pairs:
        samples = case.screen if stage == "screen" else case.confirm
        log_ratios = case.log_ratios(samples)
        sd, freedoms = self._sd(log_ratios, stage)
        summary = summarise_pairs(log_ratios, sd=sd, num_freedoms=freedoms)
        limit = self._limit(sd)
        clocks = [s.head_clock_hz / s.base_clock_hz for s in samples if s.head_clock_hz and s.base_clock_hz]
        is_known = math.isfinite(summary.sd)
        return Pairs(
            stage=stage,
            log_ratios=tuple(log_ratios),
            ratio=summary.ratio,
            low=math.exp(summary.low) if math.isfinite(summary.low) else None,
            high=math.exp(summary.high) if math.isfinite(summary.high) else None,
            p=min(summary.p_slower, summary.p_faster) if stage == "confirm" else None,
            limit=limit,
            detectable=math.expm1(
                detectable_effect(
                    summary.sd,
                    self._policy.confirm_pairs,
                    limit=math.log1p(limit),
                    significance=self._policy.significance,
                )
            )
            if is_known
            else None,
            sd=summary.sd if is_known else None,
            base_s=median(median(sample.base) for sample in samples),
            head_s=median(median(sample.head) for sample in samples),
            clock_ratio=median(clocks) if clocks else None,
            modes=tuple(math.exp(mode) for mode in _modes(log_ratios)),
        )

    def _sd(self, own: Sequence[float], stage: Literal["screen", "confirm"]) -> tuple[float | None, int | None]:
        """Of a pair's log ratio: the calibrated one, else that of all pairs of the run's screen, pooled.

        A case may be noisier than the others: of the confirmation, where it has pairs enough, its own counts if larger.
        """
        if self._policy.sd is not None:
            known: tuple[float, int] | None = (self._policy.sd, 200)
        else:
            known = pooled_sd([case.log_ratios(case.screen) for case in self._cases.values()])
        if known is None:
            return None, None
        own_sd = pooled_sd([own])
        if own_sd is not None and (stage == "confirm" or len(own) >= 6) and own_sd[0] > known[0]:
            return own_sd
        return known

    def _limit(self, sd: float | None) -> float:
        # The spread of one process is that of a pair's ratio over the square root of two.
        noise = 0.0 if sd is None or not math.isfinite(sd) else self._policy.noise_factor * sd / math.sqrt(2)
        return max(self._policy.limit, math.expm1(noise))

    def _memory_problem(self, case: _Case) -> str | None:
        sides = [
            [getattr(sample, name) for sample in (*case.screen, *case.confirm) if getattr(sample, name) is not None]
            for name in ("base_peak_bytes", "head_peak_bytes")
        ]
        if not all(sides):
            return None
        base, head = (median(side) for side in sides)
        if head - base > max(self._policy.memory_bytes, self._policy.memory_share * base):
            return f"peak memory above the inputs grew from {base / 2**20:.0f} to {head / 2**20:.0f} MiB"
        return None

    def _check(self, case: _Case, verdict: Verdict, reason: str | None, pairs: Pairs | None = None) -> Check:
        return Check(
            tier=self._tier, name=case.name, verdict=verdict, reason=reason, pairs=pairs, is_control=case.is_control
        )

    def _late(self) -> bool:
        self._is_late = self._is_late or self._out_of_time()
        return self._is_late


def _problem_of(sample: PairSample) -> Problem | None:
    """What makes a pair's sample worthless."""
    if not sample.base or not sample.head:
        return Problem(Verdict.NOT_MEASURED, "the pair took no sample")
    if not all(math.isfinite(time) and time > 0 for time in (*sample.base, *sample.head)):
        return Problem(Verdict.INFRA_ERROR, "the timer gave a time that is no finite number above zero")
    if sample.throttle_ns:
        return Problem(Verdict.INFRA_ERROR, f"the device throttled for {sample.throttle_ns / 1e6:.0f} ms meanwhile")
    return None


def _modes(log_ratios: Sequence[float]) -> tuple[float, ...]:
    # Of the ratios themselves: a gap of a share of the median needs values that are not around zero.
    return tuple(math.log(mode) for mode in two_modes([math.exp(ratio) for ratio in log_ratios]))


def _num_cases(number: int) -> str:
    return f"{number} case{'' if number == 1 else 's'}"


def _percent(pairs: Pairs | None) -> str:
    return f"{100 * (pairs.ratio - 1):+.1f} %" if pairs else "no pairs"
