"""The words and figures of a gate's result, the same for every reader."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import TypeGuard

from pydantic import JsonValue

from bsa_bench.errors import (
    EXIT_AMBIGUOUS,
    EXIT_CALIBRATION_NEEDED,
    EXIT_INFRASTRUCTURE,
    EXIT_NOTHING_MEASURED,
    EXIT_OK,
    EXIT_SLOWER,
    EXIT_WRONG,
)
from bsa_bench.gate.verdict import Change, Check, GateResult, Pairs, Side, TierResult, Verdict
from bsa_bench.units import format_seconds, three_digits

EXIT_MEANING: dict[int, str] = {
    EXIT_OK: "nothing that was measured came out worse than the base",
    EXIT_SLOWER: "worse than the base: a confirmed slow-down, or a broken rule of compiled code, counters or memory",
    EXIT_WRONG: "an output or a gradient is outside its error budget",
    EXIT_NOTHING_MEASURED: "less was measured than was asked for, so this has neither passed nor failed",
    EXIT_INFRASTRUCTURE: "the machine disturbed the measurement, so this says nothing of the code; run it again",
    EXIT_CALIBRATION_NEEDED: "this machine has no limits to judge by; run bsa-bench noise",
    EXIT_AMBIGUOUS: "ambiguous: this many pairs cannot tell whether it is worse than the base",
}
CONTROL_MEANING = "runs nothing that could have changed, so that it measures the machine"
DETECTABLE_MEANING = "the smallest slow-down that the confirmation would find at least 8 times in 10"

_ESCAPE_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[@-Z\\-_])")
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_DIGEST = re.compile(r"[0-9a-f]{16,}")
_LONGEST_VALUE = 60


def exit_meaning(result: GateResult) -> str:
    """What the exit code says of this result."""
    if result.exit_code == EXIT_SLOWER and fails_by_ambiguity(result):
        return "ambiguous checks count as failures here"
    return EXIT_MEANING.get(result.exit_code, "the gate did not come to its end")


def fails_by_ambiguity(result: GateResult) -> bool:
    """Whether it is only the ambiguous checks that make the exit code differ from 0."""
    checks = all_checks(result)
    if not any(check.verdict is Verdict.AMBIGUOUS for check in checks):
        return False
    is_worse = any(check.verdict.is_worse for check in checks)
    return result.exit_code == EXIT_AMBIGUOUS or (result.exit_code == EXIT_SLOWER and not is_worse)


def all_checks(result: GateResult) -> list[Check]:
    """Of all tiers."""
    return [check for tier in result.tiers for check in tier.checks]


def occurring(result: GateResult) -> list[Verdict]:
    """The verdicts that a reader of this result meets, the worst first; of tiers too, which may have no check."""
    found = {check.verdict for check in all_checks(result)}
    if not all(tier.is_measured for tier in result.tiers):
        found.add(Verdict.NOT_MEASURED)
    return [verdict for verdict in Verdict if verdict in found]


def found_text(tier: TierResult) -> str:
    """`2 FAILED, 43 UNCHANGED of 45 checks`; of a tier that measured nothing `NOT_MEASURED: no GPU`, and the counts."""
    of_all = f"{counts_text(tier.checks)} of {count_text(len(tier.checks), 'check')}" if tier.checks else ""
    if tier.is_measured:
        return of_all
    text = f"{Verdict.NOT_MEASURED}: {why_unmeasured(tier)}"
    has_other_words = any(check.verdict is not Verdict.NOT_MEASURED for check in tier.checks)
    return f"{text} ({of_all})" if has_other_words else text


def why_unmeasured(tier: TierResult) -> str:
    """Of a tier that measured nothing."""
    why = tier.reason or next((check.reason for check in tier.checks if check.reason), None) or "nothing to measure"
    return one_line(why)


def counts_text(checks: Sequence[Check]) -> str:
    """`2 FAILED, 43 UNCHANGED`, the worst first."""
    counts = ((verdict, sum(check.verdict is verdict for check in checks)) for verdict in Verdict)
    return ", ".join(f"{number} {verdict}" for verdict, number in counts if number)


def count_text(number: int, noun: str) -> str:
    """`1 check`, `1,024 checks`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def side_text(side: Side) -> str:
    """`main (0123456789ab, uncommitted changes)`."""
    facts = [side.commit[:12]] if side.commit and side.commit != side.label else []
    facts += ["uncommitted changes"] * bool(side.dirty)
    more = f" ({', '.join(facts)})" if facts else ""
    return one_line(side.label) + more


def one_line(text: str) -> str:
    """The text on one line, without what a terminal would obey."""
    return " ".join(_plain(text).split())


def plain_lines(lines: Iterable[str]) -> list[str]:
    """Lines as they are, their indentation kept, without what a terminal would obey."""
    return [each.rstrip() for line in lines for each in _plain(line).expandtabs(4).split("\n")]


def percent(share: float) -> str:
    """`3.1%`, `0.52%`, `128%`."""
    value = 100 * share
    return f"{value:,.0f}%" if abs(value) >= 99.5 else f"{value:.2g}%"


def change_text(change: Change) -> str:
    """`198 -> 200 (+1%)`; the values as they are stored where their short forms are the same."""
    base, head = value_text(change.base), value_text(change.head)
    if base == head and change.base != change.head:
        base, head = json.dumps(change.base), json.dumps(change.head)
    text = f"{base} -> {head}"
    if _is_number(change.base) and _is_number(change.head) and change.base > 0:
        share = change.head / change.base - 1
        return f"{text} ({'+' if share > 0 else ''}{percent(share)})" if share else text
    return text


def _is_number(value: JsonValue) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def value_text(value: JsonValue) -> str:
    """A figure for a table: `1,234`, `0.0512`, `none`, `wgmma, tma`, the first 12 digits of a digest."""
    if value is None or value == []:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:.6g}"
    if isinstance(value, list):
        return _short(", ".join(map(value_text, value)))
    if isinstance(value, dict):
        return _short(json.dumps(value))
    return value[:12] if _DIGEST.fullmatch(value) else _short(one_line(value)) or '""'


def ratio_text(pairs: Pairs) -> str:
    """`1.10x [1.08, 1.13]`; a digit more where the interval is narrow."""
    if pairs.low is None or pairs.high is None:
        return f"{three_digits(pairs.ratio)}x (no interval)"
    if pairs.high >= 9.995:
        ratio, low, high = map(three_digits, (pairs.ratio, pairs.low, pairs.high))
    else:
        decimals = 3 if pairs.high - pairs.low < 0.02 else 2
        ratio, low, high = (f"{value:.{decimals}f}" for value in (pairs.ratio, pairs.low, pairs.high))
    return f"{ratio}x [{low}, {high}]"


def seconds_text(pairs: Pairs) -> str:
    """`12.3 ms -> 13.6 ms`."""
    return f"{format_seconds(pairs.base_s)} -> {format_seconds(pairs.head_s)}"


def detectable_text(pairs: Pairs) -> str:
    """`8.1%`, or that it is unknown."""
    return "unknown" if pairs.detectable is None else percent(pairs.detectable)


def pairs_text(pairs: Pairs) -> str:
    """`1.10x [1.08, 1.13], 12.3 ms -> 13.6 ms, limit 5%, detectable 8.1%, 8 pairs`."""
    return (
        f"{ratio_text(pairs)}, {seconds_text(pairs)}, limit {percent(pairs.limit)}, "
        f"detectable {detectable_text(pairs)}, {count_text(len(pairs.log_ratios), 'pair')}"
    )


def _plain(text: str) -> str:
    return _UNPRINTABLE.sub("", _ESCAPE_SEQUENCE.sub("", text.replace("\r\n", "\n")))


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."
