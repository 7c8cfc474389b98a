"""What is decided over the cells of a table: which figures are best, and where a shared footnote stands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

from bsa_bench.report.table_model import Cell, Column, Contest, Mark, Table

NO_MARK_NOTE = (
    "No figure is marked as best: none has a 95% interval over several processes that is separate from those of all "
    "others in its group."
)


def with_marks(table: Table) -> Table:
    """Mark the best and the second-best figure of each column and group where their intervals are separate.

    The best is marked where its interval is separate from those of all others, the second-best where its own also
    is from those of all that follow; of two figures, none is called second-best. A note says so where nothing could be
    marked.
    """
    groups = []
    for group in table.groups:
        columns = [
            _marked(cells, column.better)
            for column, cells in zip(table.columns, zip(*group.rows, strict=True), strict=True)
        ]
        groups.append(replace(group, rows=tuple(zip(*columns, strict=True))))
    marked = replace(table, groups=tuple(groups))
    is_compared = any(column.better for column in table.columns)
    return replace(marked, notes=(*marked.notes, NO_MARK_NOTE)) if is_compared and not marked.has_marks else marked


def with_shared_footnotes(table: Table) -> Table:
    """Move a footnote that all measured figures of a row bear to the row's first cell, where it is read once.

    Measured: with an interval. So is one that all figures of the row bear of which the larger is the better (ratios).
    """
    groups = [replace(g, rows=tuple(_hoisted(row, table.columns) for row in g.rows)) for g in table.groups]
    return replace(table, groups=tuple(groups))


def _hoisted(row: Sequence[Cell], columns: Sequence[Column]) -> tuple[Cell, ...]:
    measured = {i for i, cell in enumerate(row) if cell.low is not None}
    ratios = {i for i in measured if columns[i].better == "larger" and row[i].low != row[i].high}
    shared = []
    for note in dict.fromkeys(note for i in sorted(measured) for note in row[i].footnotes):
        bearers = {i for i in measured if note in row[i].footnotes}
        if len(bearers) > 1 and bearers in (measured, ratios):
            shared.append(note)
    first, *others = (
        replace(cell, footnotes=tuple(note for note in cell.footnotes if i not in measured or note not in shared))
        for i, cell in enumerate(row)
    )
    return replace(first, footnotes=(*first.footnotes, *shared)), *others


def _marked(cells: Sequence[Cell], better: Literal["larger", "smaller"] | None) -> list[Cell]:
    marked = list(cells)
    ranked = [i for i, cell in enumerate(cells) if cell.contest is not Contest.OUT and cell.value is not None]
    if better is None or len(ranked) < 2:
        return marked
    sign = 1 if better == "larger" else -1
    ranked.sort(key=lambda i: sign * (cells[i].value or 0.0), reverse=True)
    if not _leads(cells[ranked[0]], (cells[i] for i in ranked[1:]), sign):
        return marked
    marked[ranked[0]] = replace(cells[ranked[0]], mark=Mark.BEST)
    if len(ranked) > 2 and _leads(cells[ranked[1]], (cells[i] for i in ranked[2:]), sign):
        marked[ranked[1]] = replace(cells[ranked[1]], mark=Mark.SECOND)
    return marked


def _leads(own: Cell, others: Iterable[Cell], sign: int) -> bool:
    """Whether a figure may be marked, and its interval lies beyond all others."""
    if own.contest is not Contest.OPEN or own.low is None or own.high is None:
        return False
    own_end = own.low if sign > 0 else own.high
    return all(
        other.contest is not Contest.UNBOUNDED
        and other.low is not None
        and other.high is not None
        and sign * own_end > sign * (other.high if sign > 0 else other.low)
        for other in others
    )
