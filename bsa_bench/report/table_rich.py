"""Tables for a terminal, or as plain text for a pipe or a file."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from bsa_bench.report.table_model import Cell, Column, Mark, Table
from bsa_bench.report.table_text import SEPARATE, plain

_GAP = 2
_NOTE_WIDTH, _HEADING_WIDTH = 120, 11
#: What marks a cell where bold and underlined cannot be seen.
_SIGNS = {Mark.BEST: "*", Mark.SECOND: "+"}
_STYLES = {Mark.BEST: "bold", Mark.SECOND: "underline"}


def print_rich(table: Table, console: Console) -> None:
    """Print a table, its footnotes and notes.

    A table that is wider than a terminal is printed in parts, each with the first columns; elsewhere lines are as long
    as they need to be. Nothing is cut.
    """
    letters = table.letters
    heads = [_header(column) for column in table.columns]
    bodies = [[list(_cells(row, table.columns, letters)) for row in group.rows] for group in table.groups]
    widths = [
        max(map(cell_len, "\n".join([head, *(row[i].plain for body in bodies for row in body)]).split("\n")))
        for i, head in enumerate(heads)
    ]
    console.print(Text(plain(table.title), style="bold"), soft_wrap=True)
    room = console.width if console.is_terminal else sum(widths) + _GAP * len(widths)
    for part in _parts(table.columns, widths, room):
        for place, (group, body) in enumerate(zip(table.groups, bodies, strict=True)):
            console.print()
            if group.title:
                console.print(Text(plain(group.title), style="italic"), soft_wrap=True)
            grid = _grid([table.columns[i] for i in part], [heads[i] for i in part], [widths[i] for i in part])
            grid.show_header = place == 0
            for row in body:
                grid.add_row(*(row[i] for i in part))
            console.print(grid, width=room, soft_wrap=not console.is_terminal)
    console.print()
    for text, letter in letters.items():
        _print_note(f"[{letter}] {plain(text)}", console)
    if table.has_marks:
        _print_note(f"* (bold): the best of its column and group; + (underlined): the second-best. {SEPARATE}", console)
    for note in table.notes:
        _print_note(plain(note), console)


def to_plain(table: Table) -> str:
    """What `print_rich` prints into a pipe."""
    out = io.StringIO()
    print_rich(table, Console(file=out, force_terminal=False, color_system=None, width=_NOTE_WIDTH, emoji=False))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _parts(columns: Sequence[Column], widths: Sequence[int], room: int) -> list[list[int]]:
    """Columns by number, as many as fit at a time; the words before the first figure stand in each part."""
    num_names = next((i for i, column in enumerate(columns) if column.align == "right"), len(columns))
    names = list(range(num_names))
    parts = [list(names)]
    for i in range(num_names, len(columns)):
        is_full = sum(widths[j] + _GAP for j in [*parts[-1], i]) > room + _GAP
        if is_full and len(parts[-1]) > num_names:
            parts.append(list(names))
        parts[-1].append(i)
    return parts


def _grid(columns: Sequence[Column], heads: Sequence[str], widths: Sequence[int]) -> RichTable:
    """Without rows; columns are as wide in all groups."""
    grid = RichTable(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, _GAP - 1, 0, 0), header_style="bold")
    for column, head, width in zip(columns, heads, widths, strict=True):
        grid.add_column(Text(head), justify=column.align, vertical="bottom", overflow="fold", min_width=width)
    return grid


def _header(column: Column) -> str:
    """The spanning heading, the header's own lines and the unit, one below the other."""
    heading = textwrap.wrap(column.group.replace("+", "+ "), _HEADING_WIDTH)
    return "\n".join(part for part in (*heading, column.header, column.unit and f"[{column.unit}]") if part)


def _cells(row: Sequence[Cell], columns: Sequence[Column], letters: dict[str, str]) -> Iterator[Text]:
    for cell, column in zip(row, columns, strict=True):
        refs = ",".join(sorted(letters[note] for note in cell.footnotes))
        text = Text(plain(cell.text(column)) + _SIGNS.get(cell.mark, ""), style=_STYLES.get(cell.mark, ""))
        yield Text.assemble(text, (f" [{refs}]" if refs else "", "dim"))


def _print_note(text: str, console: Console) -> None:
    width = console.width if console.is_terminal else _NOTE_WIDTH
    lines = textwrap.wrap(text, width, subsequent_indent="  ", break_on_hyphens=False)
    console.print(Text("\n".join(lines)), soft_wrap=True)
