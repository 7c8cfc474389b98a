"""Checks as rows of text, from one list of columns for terminal and Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from bsa_bench.gate.show.words import (
    change_text,
    count_text,
    detectable_text,
    one_line,
    percent,
    ratio_text,
    seconds_text,
)
from bsa_bench.gate.verdict import Change, Check, Verdict, ordered
from bsa_bench.units import three_digits

CONTROL_MARK = " (control)"
TITLE_COLUMNS = ("verdict", "configuration", "case", "arch", "device")
CHANGE_COLUMNS = ("metric", "base -> head")


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Args:
        check: the check that it belongs to; one with several changes has a row for each.
        cells: as many as the grid's head.
        why: the rule that was applied, and the check's reason.
    """

    check: Check
    cells: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class Grid:
    """Rows under one head; a column that would be empty is left out.

    Args:
        head: names of the columns.
        is_figure: of each column, whether it stands right.
        rows: those of one check next to each other.
    """

    head: tuple[str, ...]
    is_figure: tuple[bool, ...]
    rows: tuple[Row, ...]

    def by_check(self) -> Iterator[tuple[Check, list[Row]]]:
        """Each check with its rows."""
        for _, rows in groupby(self.rows, key=lambda row: id(row.check)):
            found = list(rows)
            yield found[0].check, found


@dataclass(frozen=True)
class _Column:
    header: str
    cell: Callable[[Check, Change | None], str]
    is_figure: bool = False
    # A row for the second change of a check does not say again what belongs to the check.
    is_of_change: bool = False


def grid(checks: Iterable[Check], *, all_changes: bool = False) -> Grid:
    """The checks of one tier as a table, the worst first.

    Args:
        checks: all of one tier.
        all_changes: show the figures too that differ without breaking a rule, where others of the check break one.
    """
    in_order = ordered(checks)
    columns = _columns(tier_0=any(check.tier == 0 for check in in_order))
    lines = [line for check in in_order for line in _lines(check, all_changes=all_changes)]
    texts = [
        [column.cell(check, change) if is_first or column.is_of_change else "" for column in columns]
        for check, change, is_first, _ in lines
    ]
    used = [i for i in range(len(columns)) if any(row[i] for row in texts)]
    return Grid(
        head=tuple(columns[i].header for i in used),
        is_figure=tuple(columns[i].is_figure for i in used),
        rows=tuple(
            Row(check, tuple(row[i] for i in used), why) for (check, _, _, why), row in zip(lines, texts, strict=True)
        ),
    )


def name_text(check: Check) -> str:
    """The configuration or case, marked if it is a control."""
    return one_line(check.name) + CONTROL_MARK * check.is_control


def full_name(check: Check) -> str:
    """With the architecture or device: `attend-bf16-d128-k32, sm_90`."""
    return ", ".join(filter(None, (name_text(check), one_line(check.where))))


def change_line(change: Change) -> str:
    """`spills in the main loop: none -> 4 (rule), attend.py:120`."""
    rule = f" ({one_line(change.rule)})" if change.rule else ""
    line = f", {one_line(change.line)}" if change.line else ""
    return f"{one_line(change.metric)}: {change_text(change)}{rule}{line}"


def reason_text(check: Check) -> str:
    """The check's reason, and what its pairs make a reader ask for."""
    parts = [one_line(check.reason).rstrip(".")] if check.reason else []
    if check.pairs and check.pairs.modes:
        parts.append("groups around " + " and ".join(f"{three_digits(mode)}x" for mode in check.pairs.modes))
    if check.pairs and check.pairs.clock_ratio and abs(check.pairs.clock_ratio - 1) >= 0.01:
        parts.append(f"clock of the head over that of the base {check.pairs.clock_ratio:.2f}")
    return "; ".join(parts)


def _lines(check: Check, *, all_changes: bool) -> list[tuple[Check, Change | None, bool, str]]:
    """(check, change, whether it is the check's first row, why)."""
    reason = reason_text(check)
    if not check.verdict.is_change:
        # What differs within the rules is told in one row.
        return [(check, None, True, "; ".join(filter(None, [reason, *map(change_line, check.changes)])))]
    changes, num_hidden = _shown(check.changes, all_changes=all_changes)
    if not changes:
        return [(check, None, True, reason)]
    whys = [_rule_text(check, change) for change in changes]
    whys[0] = "; ".join(filter(None, (whys[0], reason)))
    if num_hidden:
        more = f"{count_text(num_hidden, 'more figure')} {'differs' if num_hidden == 1 else 'differ'}"
        whys[-1] = "; ".join(filter(None, (whys[-1], more)))
    return [(check, change, i == 0, why) for i, (change, why) in enumerate(zip(changes, whys, strict=True))]


def _shown(changes: Sequence[Change], *, all_changes: bool) -> tuple[list[Change], int]:
    ranks = {"fail": 0, "warn": 1, "info": 2}
    in_order = sorted(changes, key=lambda change: ranks[change.severity])
    telling = [change for change in in_order if change.severity != "info"]
    shown = in_order if all_changes or not telling else telling
    return shown, len(changes) - len(shown)


def _rule_text(check: Check, change: Change) -> str:
    is_milder = change.severity == "warn" and check.verdict is not Verdict.WARNING
    return ": ".join(filter(None, ("warning" * is_milder, one_line(change.rule))))


def _columns(*, tier_0: bool) -> list[_Column]:
    return [
        _Column("verdict", lambda check, _: check.verdict),
        _Column("configuration" if tier_0 else "case", lambda check, _: name_text(check)),
        _Column("arch" if tier_0 else "device", lambda check, _: one_line(check.where)),
        _Column("metric", lambda _, change: one_line(change.metric) if change else "", is_of_change=True),
        _Column("base -> head", lambda _, change: change_text(change) if change else "", is_of_change=True),
        _Column("ratio", lambda check, _: ratio_text(check.pairs) if check.pairs else "", is_figure=True),
        _Column("time per call", lambda check, _: seconds_text(check.pairs) if check.pairs else "", is_figure=True),
        _Column("detectable", lambda check, _: detectable_text(check.pairs) if check.pairs else "", is_figure=True),
        _Column("limit", lambda check, _: percent(check.pairs.limit) if check.pairs else "", is_figure=True),
        _Column(
            "pairs",
            lambda check, _: f"{len(check.pairs.log_ratios)} ({check.pairs.stage})" if check.pairs else "",
            is_figure=True,
        ),
        _Column("line", lambda _, change: one_line(change.line) if change and change.line else "", is_of_change=True),
    ]
