"""A gate's result for a pull request's comment and for the summary of a workflow's step."""

from __future__ import annotations

import shlex

from bsa_bench.gate.show.page import CLOSING, Page, code, code_block, escaped, opening
from bsa_bench.gate.show.rows import TITLE_COLUMNS, Grid, full_name, grid
from bsa_bench.gate.show.words import (
    CONTROL_MEANING,
    DETECTABLE_MEANING,
    all_checks,
    count_text,
    counts_text,
    exit_meaning,
    found_text,
    occurring,
    one_line,
    plain_lines,
    side_text,
    value_text,
)
from bsa_bench.gate.verdict import Check, GateResult, TierResult, Verdict, ordered
from bsa_bench.units import format_seconds

MARKER = "<!-- bsa-bench gate -->"
"""The first line, by which a workflow finds the comment that it made before."""
COMMENT_BYTES = 65_000
"""GitHub takes 65,536 characters in a comment."""
MAX_DETAIL_LINES = 200
_LONGEST_WORDS = 500
_CODE_COLUMNS = {*TITLE_COLUMNS, "line"} - {"verdict"}


def markdown(result: GateResult, *, limit_bytes: int = COMMENT_BYTES) -> str:
    """The verdict, what each tier came to, and the changed rows; details and unchanged rows are folded.

    Args:
        result: the whole of it.
        limit_bytes: what does not fit, the folded parts before the tables, is left out, which a note at the end says.

    Raises:
        UsageError: the limit is below 1,000 bytes.
    """
    page = Page(limit_bytes)
    page.add(MARKER, f"### bsa-bench gate: {_headline(result)}")
    page.add(f"**Exit {result.exit_code}**: {exit_meaning(result)}.")
    page.add(_words(result.summary) + ".")
    page.add(f"Base {code(side_text(result.base))}, head {code(side_text(result.head))}.")
    _add_tiers(page, result)
    for tier in result.tiers:
        changed = [check for check in tier.checks if check.verdict.is_change]
        if changed:
            _add_grid(page, grid(changed), before=f"#### Tier {tier.tier}, {tier.title}: {counts_text(changed)}")
    _add_legend(page, result)
    for check in ordered(all_checks(result)):
        if check.detail and check.verdict.is_change:
            _add_detail(page, check)
    for tier in result.tiers:
        if unchanged := [check for check in tier.checks if not check.verdict.is_change]:
            summary = f"Tier {tier.tier}, {tier.title}: {counts_text(unchanged)}"
            _add_grid(page, grid(unchanged), before=opening(summary), after=CLOSING)
    _add_environment(page, result)
    return page.text()


def _headline(result: GateResult) -> str:
    """The changed verdicts; else that nothing is worse; and which tiers say nothing."""
    telling = [c for c in all_checks(result) if c.verdict.is_change and c.verdict is not Verdict.NOT_MEASURED]
    parts = [counts_text(telling)] if telling else []
    if not telling and any(tier.is_measured for tier in result.tiers):
        parts = ["nothing that was measured is worse"]
    parts += [f"{tier.title} {Verdict.NOT_MEASURED}" for tier in result.tiers if not tier.is_measured]
    return ", ".join(parts) or f"{Verdict.NOT_MEASURED}"


def _add_tiers(page: Page, result: GateResult) -> None:
    rows = [
        [
            f"{tier.tier}, {tier.title}",
            _words(found_text(tier)),
            format_seconds(tier.wall_s) if tier.wall_s else "-",
        ]
        for tier in result.tiers
    ]
    page.table(["Tier", "Found", "Wall time"], [False, False, True], rows)
    for tier in result.tiers:
        _add_notes(page, tier)


def _add_notes(page: Page, tier: TierResult) -> None:
    if tier.notes:
        page.add(*(f"- Tier {tier.tier}: {_words(note)}" for note in tier.notes))


def _add_grid(page: Page, of: Grid, *, before: str, after: str = "") -> None:
    has_words = any(row.why for row in of.rows)
    head = [name.replace("->", "→") for name in of.head] + ["why"] * has_words
    rows = [
        [
            *(_cell(name, text) for name, text in zip(of.head, row.cells, strict=True)),
            *([_words(row.why)] if has_words else []),
        ]
        for row in of.rows
    ]
    page.table(head, [*of.is_figure, *[False] * has_words], rows, before=before, after=after)


def _cell(column: str, text: str) -> str:
    if column == "verdict":
        return f"**{text}**" if text and Verdict(text).is_worse else text
    return code(text) if column in _CODE_COLUMNS else _arrowed(text)


def _words(text: str) -> str:
    line = one_line(text).rstrip(".")
    return _arrowed(line if len(line) <= _LONGEST_WORDS else f"{line[: _LONGEST_WORDS - 3]}...")


def _arrowed(text: str) -> str:
    return escaped(text.replace("->", "→"))


def _add_legend(page: Page, result: GateResult) -> None:
    checks = all_checks(result)
    lines = [f"- {verdict}: {verdict.meaning}" for verdict in occurring(result)]
    if any(check.pairs for check in checks):
        lines.append(f"- detectable: {DETECTABLE_MEANING}")
    if any(check.is_control for check in checks):
        lines.append(f"- control: {CONTROL_MEANING}")
    if lines:
        page.fold("What the words mean", *lines)


def _add_detail(page: Page, check: Check) -> None:
    lines = plain_lines(check.detail)
    shown = lines[:MAX_DETAIL_LINES]
    more = [f"{count_text(len(lines) - len(shown), 'more line')} in the JSON document."] * (len(lines) > len(shown))
    page.fold(f"{check.verdict}: {full_name(check)}", *code_block(shown, "diff"), *more)


def _add_environment(page: Page, result: GateResult) -> None:
    lines = [
        f"- {code('command')}: {code(one_line(shlex.join(result.command)))}",
        f"- {code('utc')}: {escaped(result.utc)}",
    ]
    lines += [f"- {code(one_line(name))}: {escaped(value_text(value))}" for name, value in result.environment.items()]
    page.fold("How it was run", *lines)
