"""A grid as lines of text: beside each other where they fit, under each other where they do not."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.text import Text

from bsa_bench.gate.show.rows import CHANGE_COLUMNS, TITLE_COLUMNS, Grid, Row
from bsa_bench.gate.verdict import Check, Verdict

STYLES: dict[Verdict, str] = {
    Verdict.WRONG: "bold red",
    Verdict.SLOWER: "bold red",
    Verdict.FAILED: "bold red",
    Verdict.INFRA_ERROR: "bold magenta",
    Verdict.CALIBRATION_NEEDED: "bold magenta",
    Verdict.AMBIGUOUS: "yellow",
    Verdict.NOT_MEASURED: "yellow",
    Verdict.WARNING: "yellow",
    Verdict.FASTER: "green",
    Verdict.SAME: "dim",
    Verdict.VERIFIED: "dim",
    Verdict.UNCHANGED: "dim",
}
_GAP = "  "
_INDENT = "    "
_WHY = "why"
_NAME = 1
"""The column of the name: the one that may be folded."""
_LEAST_NAME = 24


def lay_out(grid: Grid, width: int | None) -> tuple[Text | None, Iterator[tuple[Check, list[Text]]]]:
    """The head, and the lines of each check.

    What a row says in words stands at its end where the whole table has room for that, else on lines of its own below.
    A name that leaves no room for the figures has a line of its own too. Where not even the figures have room, each
    row is a paragraph, without a head.

    Args:
        grid: the rows.
        width: of the terminal; None where lines may be of any length.
    """
    widths = [max(map(cell_len, column)) for column in zip(grid.head, *(row.cells for row in grid.rows), strict=True)]
    words = max((cell_len(row.why) for row in grid.rows), default=0)
    whole = sum(widths) + len(_GAP) * len(widths) + words
    is_beside = width is None or whole <= width
    if width is not None and not is_beside:
        others = sum(widths) - widths[_NAME] + len(_GAP) * (len(widths) - 1)
        room = width - others
        if room < min(_LEAST_NAME, widths[_NAME]):
            return None, ((check, _paragraph(grid, rows, width)) for check, rows in grid.by_check())
        widths[_NAME] = min(widths[_NAME], room)
    width_below = None if is_beside else width
    head = _aligned(grid, grid.head, widths) + (_GAP + _WHY if words and is_beside else "")
    body = (
        (check, [line for row in rows for line in _table_lines(grid, row, widths, width_below)])
        for check, rows in grid.by_check()
    )
    return Text(head.rstrip(), style="bold"), body


def _table_lines(grid: Grid, row: Row, widths: Sequence[int], width_below: int | None) -> list[Text]:
    if width_below is None:
        return [_painted(f"{_aligned(grid, row.cells, widths)}{_GAP}{row.why}".rstrip(), row)]
    below = _wrapped(row.why, width_below, _INDENT)
    if cell_len(row.cells[_NAME]) <= widths[_NAME]:
        return [_painted(_aligned(grid, row.cells, widths).rstrip(), row), *below]
    title = _painted(f"{row.cells[0].ljust(widths[0])}{_GAP}{row.cells[_NAME]}", row)
    figures = _aligned(grid, ("", "", *row.cells[_NAME + 1 :]), widths).rstrip()
    return [title, *([Text(figures)] if figures else []), *below]


def _paragraph(grid: Grid, rows: Sequence[Row], width: int) -> list[Text]:
    """Verdict and name on a line, each change or the figures of the pairs below, and then the words."""
    lines: list[Text] = []
    for number, row in enumerate(rows):
        texts = {name: text for name, text in zip(grid.head, row.cells, strict=True) if text}
        if number == 0:
            title = [texts.pop(name) for name in TITLE_COLUMNS if name in texts]
            lines += _wrapped(_GAP.join(title), width, "", style=STYLES[row.check.verdict])
        change = " ".join(texts.pop(name) for name in CHANGE_COLUMNS if name in texts)
        parts = ([change] if change else []) + [f"{name} {text}" for name, text in texts.items()]
        lines += _wrapped(", ".join(parts), width, _INDENT)
        lines += _wrapped(row.why, width, _INDENT * 2 if change else _INDENT)
    return lines


def _aligned(grid: Grid, cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = []
    for text, width, is_figure in zip(cells, widths, grid.is_figure, strict=True):
        room = " " * (width - cell_len(text))
        padded.append(room + text if is_figure else text + room)
    return _GAP.join(padded)


def _painted(line: str, row: Row) -> Text:
    text = Text(line)
    verdict = row.cells[0]
    if verdict:
        text.stylize(STYLES[row.check.verdict], 0, len(verdict))
    return text


def _wrapped(text: str, width: int, indent: str, style: str = "") -> list[Text]:
    lines = textwrap.wrap(
        text,
        max(width, 20),
        initial_indent=indent,
        subsequent_indent=indent or _GAP,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [Text(line, style=style) for line in lines]
