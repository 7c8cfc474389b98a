"""A gate's result for a person: at a terminal, or behind a pipe."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from bsa_bench.gate.show.layout import STYLES, lay_out
from bsa_bench.gate.show.rows import CONTROL_MARK, grid
from bsa_bench.gate.show.words import (
    CONTROL_MEANING,
    DETECTABLE_MEANING,
    all_checks,
    count_text,
    exit_meaning,
    found_text,
    occurring,
    one_line,
    plain_lines,
    side_text,
)
from bsa_bench.gate.verdict import TIER_TITLE, Check, GateResult, TierResult
from bsa_bench.units import format_seconds

MAX_DETAIL_LINES = 12
MAX_DETAILED_CHECKS = 8


def print_result(result: GateResult, console: Console, *, verbose: bool = False) -> None:
    """Print what each tier came to, the checks that changed, what the words mean, and one line that sums up.

    On a terminal lines keep within its width; elsewhere each row is one line, so that nothing is cut or broken.

    Args:
        result: the whole of it.
        console: where to.
        verbose: list the unchanged checks too, all figures that differ, and all lines of detail.
    """
    printer = _Printer(console)
    printer.say(f"base: {side_text(result.base)}")
    printer.say(f"head: {side_text(result.head)}")
    printer.say("")
    titles = [_tier_title(tier) for tier in result.tiers]
    for tier, title in zip(result.tiers, titles, strict=True):
        _print_tier(tier, title.ljust(max(map(len, titles))), printer)
    asked = {tier.tier for tier in result.tiers}
    if others := [f"{number} {title}" for number, title in TIER_TITLE.items() if number not in asked]:
        printer.say(f"not asked for: {', '.join(others)}", style="dim")
    for tier, title in zip(result.tiers, titles, strict=True):
        shown = [check for check in tier.checks if verbose or check.verdict.is_change]
        if shown:
            printer.say("")
            printer.say(title, style="bold underline")
            _print_checks(shown, printer, verbose=verbose)
    _print_legend(result, printer, verbose=verbose)
    printer.say("")
    last = f"{one_line(result.summary)}; exit {result.exit_code}: {exit_meaning(result)}"
    printer.line(Text(last, style="bold"))


class _Printer:
    def __init__(self, console: Console) -> None:
        self._console = console
        self.width = console.width if console.is_terminal else None

    def say(self, text: str, *, style: str = "", indent: str = "  ") -> None:
        """Words, folded on a terminal."""
        lines = [text]
        if self.width is not None:
            lines = textwrap.wrap(
                text, self.width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
            ) or [""]
        for line in lines:
            self.line(Text(line, style=style))

    def line(self, text: Text) -> None:
        """One line, whatever its length."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def _tier_title(tier: TierResult) -> str:
    return f"tier {tier.tier}, {tier.title}"


def _print_tier(tier: TierResult, title: str, printer: _Printer) -> None:
    took = f", {format_seconds(tier.wall_s)}" if tier.wall_s else ""
    num_controls = sum(check.is_control for check in tier.checks)
    controls = f", {count_text(num_controls, 'control')} among them" if num_controls else ""
    printer.say(f"{title}  {found_text(tier)}{controls}{took}", indent=" " * (len(title) + 2))
    for note in tier.notes:
        printer.say(f"  note: {one_line(note)}", indent=" " * 8)


def _print_checks(checks: Sequence[Check], printer: _Printer, *, verbose: bool) -> None:
    head, body = lay_out(grid(checks, all_changes=verbose), printer.width)
    if head is not None:
        printer.line(head)
    num_detailed = num_untold = 0
    for check, lines in body:
        for line in lines:
            printer.line(line)
        if not check.detail:
            continue
        if verbose or num_detailed < MAX_DETAILED_CHECKS:
            num_detailed += 1
            _print_detail(check, printer, verbose=verbose)
        else:
            num_untold += 1
    if num_untold:
        printer.say(f"{count_text(num_untold, 'more check')} with lines of detail: --verbose, or the JSON document")


def _print_detail(check: Check, printer: _Printer, *, verbose: bool) -> None:
    lines = plain_lines(check.detail)
    shown = lines if verbose else lines[:MAX_DETAIL_LINES]
    for line in shown:
        style = {"+": "green", "-": "red"}.get(line[:1], "dim")
        printer.line(Text(f"    {line}", style=style))
    if len(lines) > len(shown):
        more = f"{count_text(len(lines) - len(shown), 'more line')}: --verbose, or the JSON document"
        printer.line(Text(f"    ... {more}", style="dim"))


def _print_legend(result: GateResult, printer: _Printer, *, verbose: bool) -> None:
    checks = all_checks(result)
    words = [(str(verdict), verdict.meaning, STYLES[verdict]) for verdict in occurring(result)]
    shown = [check for check in checks if verbose or check.verdict.is_change]
    if any(check.pairs for check in shown):
        words.append(("detectable", DETECTABLE_MEANING, ""))
    if any(check.is_control for check in checks):
        words.append((CONTROL_MARK.strip(" ()"), CONTROL_MEANING, ""))
    if not words:
        return
    printer.say("")
    room = max(len(word) for word, _, _ in words) + 2
    for word, meaning, style in words:
        wrapped = [meaning]
        if printer.width is not None:
            wrapped = textwrap.wrap(meaning, max(printer.width - room, 20))
        for number, line in enumerate(wrapped):
            label = word if number == 0 else ""
            printer.line(Text.assemble((label, style), " " * (room - len(label)), line))
