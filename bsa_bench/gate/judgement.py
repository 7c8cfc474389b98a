"""What the pairs of one case say: whether they tell the sides apart, call them the same, or neither."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from bsa_bench.gate.policy import Policy
from bsa_bench.gate.verdict import Pairs, Verdict
from bsa_bench.stats.pairs import detectable_effect, is_noisier, pooled_sd, shared_sd, summarise_pairs
from bsa_bench.stats.processes import two_modes

Stage = Literal["screen", "confirm"]
Noise = tuple[float, int]
"""Standard deviation of a pair's log ratio, and the degrees of freedom behind it."""
_CONFIRM_POWER = 0.9
"""An effect that both the screen and the confirmation find 9 times in 10 is found 8 times in 10."""
_ASIDE = 0.25
"""Of pairs in two groups, the share that may not show a change which is called one nevertheless."""


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


@dataclass(frozen=True)
class Evidence:
    """The pairs of one stage of a case, weighed.

    Args:
        pairs: as they are stored; their limit is that of a change.
        is_same: the interval of the ratio is inside the machine's limit, and the sides ran at the same clock.
        direction: 1 where the ratio is above the limit, -1 where it is below, else 0.
        is_clear: every pair is beyond the limit on that side, and noise alone would not bring them there.
        reason: in words, why these pairs are ambiguous if they are.
    """

    pairs: Pairs
    is_same: bool
    direction: int
    is_clear: bool
    reason: str


def problem_of(sample: PairSample) -> Problem | None:
    """What makes a pair's sample worthless."""
    if not sample.base or not sample.head:
        return Problem(Verdict.NOT_MEASURED, "the pair took no sample")
    if len(sample.base) != len(sample.head):
        counts = f"{len(sample.base)} of the base and {len(sample.head)} of the head"
        return Problem(Verdict.INFRA_ERROR, f"the sides did not sample in turn: {counts}")
    if not all(math.isfinite(time) and time > 0 for time in (*sample.base, *sample.head)):
        return Problem(Verdict.INFRA_ERROR, "the timer gave a time that is no finite number above zero")
    if sample.throttle_ns:
        return Problem(Verdict.INFRA_ERROR, f"the device throttled for {sample.throttle_ns / 1e6:.1f} ms meanwhile")
    return None


def machine_noise(groups: Sequence[Sequence[float]], policy: Policy) -> Noise | None:
    """How far the machine moves a pair: as calibrated, or as the run's own pairs say if they are noisier.

    Args:
        groups: the log ratios of each case's screen.
        policy: has the calibrated figure, if there is one.
    """
    seen = shared_sd(groups)
    if policy.sd is None:
        return seen
    known = (policy.sd, policy.num_freedoms)
    return seen if seen is not None and is_noisier(seen, known) else known


def weigh(
    samples: Sequence[PairSample], log_ratios: Sequence[float], noise: Noise | None, policy: Policy, stage: Stage
) -> Evidence:
    """Weigh the pairs of a case.

    Where the case is noisier than the machine makes the others, its own noise widens the interval and the limit of a
    change, but not what counts as the same: a case that scatters by 20 % is not the same within 20 %.

    Args:
        samples, log_ratios: of at least one pair.
        noise: of the machine, as far as it is known.
        policy: when a change counts.
        stage: stands in the evidence; p is that of a confirmation.
    """
    own = pooled_sd([log_ratios])
    effective = own if own and (noise is None or is_noisier(own, noise)) else noise
    sd, freedoms = effective or (None, None)
    summary = summarise_pairs(log_ratios, sd=sd, num_freedoms=freedoms)
    base_s = median(median(sample.base) for sample in samples)
    limit = policy.limit_of(sd, base_s)
    same_within = math.log1p(policy.limit_of(noise[0] if noise else sd, base_s))
    clocks = [s.head_clock_hz / s.base_clock_hz for s in samples if s.head_clock_hz and s.base_clock_hz]
    clock_ratio = median(clocks) if clocks else None
    bound = math.log1p(limit)
    direction = _direction(summary.log_ratio, bound)
    are_beyond = direction != 0 and {_direction(log_ratio, bound) for log_ratio in log_ratios} == {direction}
    is_clear = are_beyond and summary.p_of_noise < policy.clear_significance
    p = summary.p_slower if summary.log_ratio > 0 else summary.p_faster
    # Of the ratios themselves: a gap of a share of the median needs values that are not around zero.
    modes = two_modes([math.exp(ratio) for ratio in log_ratios])
    pairs = Pairs(
        stage=stage,
        log_ratios=summary.log_ratios,
        ratio=summary.ratio,
        low=math.exp(summary.low) if math.isfinite(summary.low) else None,
        high=math.exp(summary.high) if math.isfinite(summary.high) else None,
        p=None if stage == "screen" else min(p, summary.p_of_noise) if is_clear else p,
        limit=limit,
        detectable=None if sd is None else _detectable(sd, limit, policy),
        sd=sd,
        base_s=base_s,
        head_s=median(median(sample.head) for sample in samples),
        clock_ratio=clock_ratio,
        modes=modes,
    )
    does_clock_differ = _does_clock_differ(pairs, policy)
    return Evidence(
        pairs=pairs,
        is_same=-same_within <= summary.low and summary.high <= same_within and not does_clock_differ,
        direction=direction,
        is_clear=is_clear,
        reason=_CLOCKS_DIFFER if does_clock_differ else _why_ambiguous(samples, modes),
    )


def judge_confirmed(evidence: Evidence, flagged: int, policy: Policy) -> tuple[Verdict, str | None]:
    """The verdict of a look at the fresh pairs of a flagged case, and the reason where it needs one.

    Args:
        evidence: of the confirmation.
        flagged: the direction in which the screen flagged it, 1 or -1.
        policy: when a change counts.
    """
    pairs = evidence.pairs
    if evidence.is_same:
        return Verdict.SAME, "flagged by the screen, not confirmed on fresh pairs"
    assert pairs.p is not None
    is_significant = pairs.p < policy.significance_of_a_look or evidence.is_clear
    if _does_clock_differ(pairs, policy) or not evidence.direction or not is_significant:
        return Verdict.AMBIGUOUS, evidence.reason
    if evidence.direction != flagged:
        return Verdict.AMBIGUOUS, "the screen and the confirmation point in opposite directions"
    bound = math.log1p(pairs.limit)
    aside = sum(_direction(log_ratio, bound) != flagged for log_ratio in pairs.log_ratios)
    if pairs.modes and aside >= _ASIDE * len(pairs.log_ratios):
        return Verdict.AMBIGUOUS, evidence.reason
    cycles = math.log(pairs.ratio) + math.log(pairs.clock_ratio or 1.0)
    if _direction(cycles, bound) != flagged:
        return Verdict.AMBIGUOUS, "clock: the change is in time, not in cycles"
    return (Verdict.SLOWER if flagged > 0 else Verdict.FASTER), None


def memory_problem(samples: Sequence[PairSample], policy: Policy) -> str | None:
    """How the peak memory above the inputs grew, if by more than the policy allows."""
    base = [sample.base_peak_bytes for sample in samples if sample.base_peak_bytes is not None]
    head = [sample.head_peak_bytes for sample in samples if sample.head_peak_bytes is not None]
    if not base or not head:
        return None
    before, after = median(base), median(head)
    if after - before <= max(policy.memory_bytes, policy.memory_share * before):
        return None
    return f"peak memory above the inputs grew from {before / 2**20:.0f} to {after / 2**20:.0f} MiB"


_CLOCKS_DIFFER = "clock: the sides ran at different clocks"


def _does_clock_differ(pairs: Pairs, policy: Policy) -> bool:
    return pairs.clock_ratio is not None and abs(math.log(pairs.clock_ratio)) > math.log1p(policy.clock_spread)


def _detectable(sd: float, limit: float, policy: Policy) -> float:
    return math.expm1(
        detectable_effect(
            sd,
            policy.max_confirm_pairs,
            limit=math.log1p(limit),
            significance=policy.significance_of_a_look,
            power=_CONFIRM_POWER,
        )
    )


def _direction(log_ratio: float, bound: float) -> int:
    return (log_ratio > bound) - (log_ratio < -bound)


def _why_ambiguous(samples: Sequence[PairSample], modes: Sequence[float]) -> str:
    if modes:
        return f"two groups of pairs, at ratios {modes[0]:.3f} and {modes[1]:.3f}: a side's processes are not alike"
    for side in ("base", "head"):
        if two_modes([median(getattr(sample, side)) for sample in samples]):
            return f"the processes of the {side} are in two groups that are not alike"
    return f"{len(samples)} pairs tell no more on this machine"
