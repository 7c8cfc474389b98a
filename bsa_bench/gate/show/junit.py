"""A gate's result as JUnit XML, for dashboards of tests: a suite for each tier, a test case for each check.

The dialect is the one that Jenkins, GitLab and pytest share: `testsuites > testsuite > testcase`, a case with its
properties, then at most one of failure, error and skipped, then its output.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal
from xml.etree import ElementTree as ET

from bsa_bench.errors import EXIT_NOTHING_MEASURED
from bsa_bench.gate.show.rows import change_line, reason_text
from bsa_bench.gate.show.words import (
    fails_by_ambiguity,
    found_text,
    one_line,
    pairs_text,
    plain_lines,
    side_text,
    why_unmeasured,
)
from bsa_bench.gate.verdict import Check, GateResult, TierResult, Verdict

Outcome = Literal["passed", "failure", "error", "skipped"]

_OUTCOMES: dict[Verdict, Outcome] = {
    Verdict.WRONG: "failure",
    Verdict.SLOWER: "failure",
    Verdict.FAILED: "failure",
    Verdict.INFRA_ERROR: "error",
    Verdict.CALIBRATION_NEEDED: "error",
    Verdict.AMBIGUOUS: "skipped",
    Verdict.NOT_MEASURED: "skipped",
    Verdict.WARNING: "passed",
    Verdict.FASTER: "passed",
    Verdict.SAME: "passed",
    Verdict.VERIFIED: "passed",
    Verdict.UNCHANGED: "passed",
}
_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(result: GateResult) -> str:
    """The whole result as one XML document.

    A tier that measured nothing has a test case of its own, skipped, so that it is not taken for passed. Where the
    gate's exit code says that too little was measured, each tier that left anything out has one, an error. Ambiguous
    checks are skipped, or failures where the exit code comes of them.
    """
    root = ET.Element("testsuites", name="bsa-bench gate")
    for tier in result.tiers:
        root.append(_suite(tier, result))
    _count(root, list(root.iter("testcase")))
    root.set("time", f"{sum(tier.wall_s for tier in result.tiers):.3f}")
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _suite(tier: TierResult, result: GateResult) -> ET.Element:
    suite = ET.Element("testsuite", name=f"tier {tier.tier}: {tier.title}", timestamp=_legal(result.utc))
    suite.set("time", f"{tier.wall_s:.3f}")
    facts = [("base", side_text(result.base)), ("head", side_text(result.head)), ("exit_code", str(result.exit_code))]
    facts += [("note", one_line(note)) for note in tier.notes]
    _add_properties(suite, facts)
    is_too_little = result.exit_code == EXIT_NOTHING_MEASURED and tier.measured_share < 1
    if is_too_little or not tier.is_measured:
        why = found_text(tier) if tier.is_measured else why_unmeasured(tier)
        case = _case(suite, tier, f"{tier.title} is measured")
        _add_outcome(case, "error" if is_too_little else "skipped", Verdict.NOT_MEASURED, why, "")
    for check in tier.checks:
        _add_check(suite, tier, check, is_ambiguity_failure=fails_by_ambiguity(result))
    _count(suite, suite.findall("testcase"))
    return suite


def _add_check(suite: ET.Element, tier: TierResult, check: Check, *, is_ambiguity_failure: bool) -> None:
    # Without the mark of a control: a dashboard knows a case by its name from run to run.
    case = _case(suite, tier, ", ".join(filter(None, (one_line(check.name), one_line(check.where)))))
    _add_properties(case, _facts(check))
    outcome = _OUTCOMES[check.verdict]
    if check.verdict is Verdict.AMBIGUOUS and is_ambiguity_failure:
        outcome = "failure"
    lines = [change_line(change) for change in check.changes]
    said = [reason_text(check), *lines[:1], pairs_text(check.pairs) if check.pairs else ""]
    message = "; ".join(filter(None, said)) or check.verdict.meaning
    text = "\n".join([*lines, *plain_lines(check.detail)])
    if outcome == "passed":
        if output := "\n".join(filter(None, (reason_text(check), text))):
            ET.SubElement(case, "system-out").text = _legal(output)
        return
    _add_outcome(case, outcome, check.verdict, message, text)


def _case(suite: ET.Element, tier: TierResult, name: str) -> ET.Element:
    group = f"bsa_bench.gate.{tier.title.lower().replace(' ', '_')}"
    return ET.SubElement(suite, "testcase", classname=group, name=_legal(name))


def _add_outcome(case: ET.Element, outcome: Outcome, verdict: Verdict, message: str, text: str) -> None:
    element = ET.SubElement(case, outcome, type=verdict, message=_legal(f"{verdict}: {message}"))
    element.text = _legal(text) or None


def _facts(check: Check) -> Iterator[tuple[str, str]]:
    """What a dashboard may sort by; a figure that is not known has no property."""
    yield "verdict", check.verdict
    if check.is_control:
        yield "is_control", "true"
    if (pairs := check.pairs) is None:
        return
    figures = {
        "ratio": pairs.ratio,
        "ratio_low": pairs.low,
        "ratio_high": pairs.high,
        "detectable": pairs.detectable,
        "limit": pairs.limit,
        "p": pairs.p,
        "base_s": pairs.base_s,
        "head_s": pairs.head_s,
        "clock_ratio": pairs.clock_ratio,
    }
    yield from ((name, f"{value:.6g}") for name, value in figures.items() if value is not None)
    yield "num_pairs", str(len(pairs.log_ratios))
    yield "stage", pairs.stage


def _add_properties(parent: ET.Element, facts: Iterator[tuple[str, str]] | list[tuple[str, str]]) -> None:
    properties = ET.SubElement(parent, "properties")
    for name, value in facts:
        ET.SubElement(properties, "property", name=name, value=_legal(value))


def _count(parent: ET.Element, cases: list[ET.Element]) -> None:
    parent.set("tests", str(len(cases)))
    for attribute, outcome in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        parent.set(attribute, str(sum(case.find(outcome) is not None for case in cases)))


def _legal(text: str) -> str:
    """Without the characters that XML cannot hold."""
    return _ILLEGAL.sub("", text)
