"""What a gate says: verdicts, the checks they belong to, and the exit code that follows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, JsonValue, NonNegativeInt

from bsa_bench.errors import (
    EXIT_AMBIGUOUS,
    EXIT_CALIBRATION_NEEDED,
    EXIT_INFRASTRUCTURE,
    EXIT_NOTHING_MEASURED,
    EXIT_OK,
    EXIT_SLOWER,
    EXIT_WRONG,
)
from bsa_bench.result import Line

Tier = Literal[0, 1, 2, 3]
TIER_TITLE: dict[Tier, str] = {
    0: "compiled code",
    1: "counters",
    2: "CPU execution",
    3: "GPU timing",
}


def tier_of(device: Literal["cpu", "cuda"]) -> Tier:
    """The tier that times cases on a kind of device."""
    return 2 if device == "cpu" else 3


class Verdict(StrEnum):
    """What became of one check. In the order in which a reader wants to see them: the worst first."""

    WRONG = "WRONG"
    SLOWER = "SLOWER"
    FAILED = "FAILED"
    INFRA_ERROR = "INFRA_ERROR"
    CALIBRATION_NEEDED = "CALIBRATION_NEEDED"
    AMBIGUOUS = "AMBIGUOUS"
    NOT_MEASURED = "NOT_MEASURED"
    WARNING = "WARNING"
    FASTER = "FASTER"
    SAME = "SAME"
    VERIFIED = "VERIFIED"
    UNCHANGED = "UNCHANGED"

    @property
    def meaning(self) -> str:
        """One sentence for legends."""
        return VERDICT_MEANING[self]

    @property
    def is_measured(self) -> bool:
        """Whether the check says something of the code."""
        return self not in {Verdict.NOT_MEASURED, Verdict.INFRA_ERROR, Verdict.CALIBRATION_NEEDED}

    @property
    def is_worse(self) -> bool:
        """Whether the head is worse than the base."""
        return self in {Verdict.WRONG, Verdict.SLOWER, Verdict.FAILED}

    @property
    def is_change(self) -> bool:
        """Whether a reader of a pull request wants to see the row."""
        return self not in {Verdict.SAME, Verdict.VERIFIED, Verdict.UNCHANGED}


VERDICT_MEANING: dict[Verdict, str] = {
    Verdict.WRONG: "the output or a gradient is outside its error budget",
    Verdict.SLOWER: "slower by more than the limit, confirmed on fresh pairs of processes",
    Verdict.FAILED: "a rule of compiled code, a counter or a memory limit is broken",
    Verdict.INFRA_ERROR: "the machine disturbed the measurement; it says nothing of the code",
    Verdict.CALIBRATION_NEEDED: "this machine has no limits file, or is too noisy to gate; run bsa-bench noise",
    Verdict.AMBIGUOUS: "neither the same nor different within what this many pairs can tell",
    Verdict.NOT_MEASURED: "not measured, so neither passed nor failed",
    Verdict.WARNING: "worth a look, within the limits",
    Verdict.FASTER: "faster by more than the limit, confirmed on fresh pairs of processes",
    Verdict.SAME: "measured, and the same within the limit",
    Verdict.VERIFIED: "correct within its error budget; it has no time here",
    Verdict.UNCHANGED: "the same by construction: nothing that runs has changed",
}


class Change(Line):
    """One figure that differs between base and head.

    Args:
        metric: what differs.
        base, head: its values, null where a side has none.
        severity: `fail` breaks a rule, `warn` is worth a look, `info` is told with the others.
        rule: the rule that was applied, in words.
        line: the source line that it comes from.
    """

    metric: str
    base: JsonValue
    head: JsonValue
    severity: Literal["fail", "warn", "info"]
    rule: str = ""
    line: str | None = None


class Pairs(Line):
    """What the pairs of processes of one case said. Ratios are head over base, seconds medians of process medians.

    Args:
        stage: `screen`, or `confirm` for a case that the screen flagged.
        log_ratios: of each pair, in the order of measurement.
        ratio, low, high: the median, and its 95 % interval.
        p: one-sided, of the change in the direction of `ratio`; null for a screen.
        limit: how far from 1 the ratio may be.
        detectable: the smallest slow-down that this many pairs find at least 8 times in 10; 0.05 is 5 %.
        sd: standard deviation of a pair's log ratio.
        base_s, head_s: seconds of a call.
        clock_ratio: the sides' clocks, head over base; null where the platform does not tell.
        modes: the centres of two groups of pairs where there clearly are two.
    """

    stage: Literal["screen", "confirm"]
    log_ratios: tuple[FiniteFloat, ...]
    ratio: FiniteFloat
    low: FiniteFloat | None
    high: FiniteFloat | None
    p: FiniteFloat | None = None
    limit: FiniteFloat
    detectable: FiniteFloat | None
    sd: FiniteFloat | None
    base_s: FiniteFloat
    head_s: FiniteFloat
    clock_ratio: FiniteFloat | None = None
    modes: tuple[FiniteFloat, ...] = ()


class Check(Line):
    """One thing that was compared: a compiled configuration, a counter's case, a timed case.

    Args:
        name: the configuration or the case.
        where: the architecture or device, empty where the name says it all.
        changes: the figures that differ, those that break a rule first.
        detail: lines for who looks closer, such as the changed instructions.
        is_suspect: the screen flagged it as slower, and no time was left to confirm or clear it: never a pass.
        is_control: it runs nothing that could have changed, so that it measures the machine.
    """

    tier: Tier
    name: str
    where: str = ""
    verdict: Verdict
    reason: str | None = None
    changes: tuple[Change, ...] = ()
    pairs: Pairs | None = None
    detail: tuple[str, ...] = ()
    is_control: bool = False
    is_suspect: bool = False


class TierResult(Line):
    """What one tier came to. `reason` says why nothing was measured, where nothing was.

    Args:
        notes: what a reader should know about how it was measured.
        wall_s: how long it took.
        is_absent: the machine has not what the tier needs, which `require_gpu` alone makes a failure.
    """

    tier: Tier
    checks: tuple[Check, ...] = ()
    reason: str | None = None
    is_absent: bool = False
    notes: tuple[str, ...] = ()
    wall_s: Annotated[float, Field(ge=0)] = 0.0

    @property
    def title(self) -> str:
        """What the tier looks at."""
        return TIER_TITLE[self.tier]

    @property
    def is_measured(self) -> bool:
        """Whether any check says something of the code, which a control alone does not."""
        return any(check.verdict.is_measured for check in self._own_checks)

    @property
    def measured_share(self) -> float:
        """How many of the checks say something of the code, of all but controls; 0 without any."""
        own = self._own_checks
        return sum(check.verdict.is_measured for check in own) / max(len(own), 1)

    @property
    def _own_checks(self) -> list[Check]:
        return [check for check in self.checks if not check.is_control]

    def count(self, verdict: Verdict) -> int:
        """How many checks came to a verdict."""
        return sum(check.verdict is verdict for check in self.checks)


class Side(Line):
    """One side of the comparison: what was asked for, the commit, and whether the tree differs from it."""

    label: str
    commit: str | None = None
    dirty: bool | None = None


class GateResult(Line):
    """The whole of a gate run, as its JSON holds it."""

    schema_version: Literal[1] = 1
    kind: Literal["gate"] = "gate"
    utc: str
    command: tuple[str, ...]
    base: Side
    head: Side
    tiers: tuple[TierResult, ...]
    environment: dict[str, JsonValue] = Field(default_factory=dict)
    exit_code: NonNegativeInt
    summary: str


def exit_code(
    tiers: Sequence[TierResult],
    *,
    require_gpu: bool = False,
    ambiguous: Literal["ambiguous", "pass", "fail"] = "pass",
    required_share: float = 0.5,
) -> int:
    """The exit code of a gate run; the worst verdict decides, and correctness comes before speed.

    Args:
        tiers: those that were asked for.
        require_gpu: a tier 3 that was not measured is then a failure to measure.
        ambiguous: what checks that stay ambiguous come to: a code of their own, 0, or that of a slow-down. Where the
            screen saw a slow-down that nothing confirmed or cleared, 0 becomes the code of their own.
        required_share: of each tier's checks, how many have to be measured; of a tier that is absent `require_gpu`
            says.
    """
    checks = [check for tier in tiers for check in tier.checks]
    found = {check.verdict for check in checks}
    if Verdict.WRONG in found:
        return EXIT_WRONG
    if found & {Verdict.SLOWER, Verdict.FAILED}:
        return EXIT_SLOWER
    if Verdict.INFRA_ERROR in found:
        return EXIT_INFRASTRUCTURE
    if Verdict.CALIBRATION_NEEDED in found:
        return EXIT_CALIBRATION_NEEDED
    if not any(verdict.is_measured for verdict in found):
        return EXIT_NOTHING_MEASURED
    if require_gpu and not any(tier.tier == 3 and tier.is_measured for tier in tiers):
        return EXIT_NOTHING_MEASURED
    if any(not tier.is_absent and (not tier.is_measured or tier.measured_share < required_share) for tier in tiers):
        return EXIT_NOTHING_MEASURED
    is_open = ambiguous != "pass" or any(check.is_suspect for check in checks)
    if Verdict.AMBIGUOUS in found and is_open:
        return EXIT_SLOWER if ambiguous == "fail" else EXIT_AMBIGUOUS
    return EXIT_OK


def summarise(tiers: Sequence[TierResult]) -> str:
    """One line: which tiers were measured, what they found, and which were not, with the reason."""
    measured = [tier for tier in tiers if tier.is_measured]
    parts = []
    if measured:
        numbers = _ranges([tier.tier for tier in measured])
        parts.append(f"{'tier' if len(measured) == 1 else 'tiers'} {numbers} measured")
    parts += [f"tier {tier.tier} NOT_MEASURED: {_why(tier)}" for tier in tiers if not tier.is_measured]
    checks = [check for tier in tiers for check in tier.checks]
    counts = [(verdict, sum(check.verdict is verdict for check in checks)) for verdict in Verdict]
    told = [f"{number} {verdict}" for verdict, number in counts if number and verdict is not Verdict.NOT_MEASURED]
    return ", ".join(parts) + (f" ({', '.join(told)})" if told else "")


def ordered(checks: Iterable[Check]) -> list[Check]:
    """The worst first, otherwise as they were."""
    ranks = {verdict: place for place, verdict in enumerate(Verdict)}
    return sorted(checks, key=lambda check: ranks[check.verdict])


def _why(tier: TierResult) -> str:
    return tier.reason or next((check.reason for check in tier.checks if check.reason), None) or "nothing to measure"


def _ranges(numbers: Sequence[int]) -> str:
    """`0-2`, `0, 2`."""
    ordered_numbers = sorted(numbers)
    if len(ordered_numbers) > 1 and ordered_numbers[-1] - ordered_numbers[0] == len(ordered_numbers) - 1:
        return f"{ordered_numbers[0]}-{ordered_numbers[-1]}"
    return ", ".join(map(str, ordered_numbers))
