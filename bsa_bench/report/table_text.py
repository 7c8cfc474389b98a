"""Tables as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence

from bsa_bench.report.markdown import code, words
from bsa_bench.report.table_model import Cell, Column, Mark, Table

CODE = re.compile(r"`([^`]+)`")
MARKDOWN_LEGEND = "**Bold**: the best of its column and group; <ins>underlined</ins>: the second-best. "
SEPARATE = "Marked only where the intervals of 95% coverage (of five processes 94%) are separate."


def markdown_grid(head: Sequence[str], is_left: Sequence[bool], body: Sequence[Sequence[str]]) -> list[str]:
    """Lay out a table of cells that are Markdown already; only what would end a cell is escaped."""
    rule = ["---" if left else "---:" for left in is_left]
    return [f"| {' | '.join(_on_one_line(text) for text in row)} |" for row in (head, rule, *body)]


def markdown(table: Table) -> str:
    """A table as GitHub shows it: a bold caption, the grid, footnotes and notes."""
    letters = table.letters
    body = []
    for group in table.groups:
        if group.title:
            body.append([f"*{_escaped(group.title)}*", *[""] * (len(table.columns) - 1)])
        body += [
            [_markdown_cell(cell, column, letters) for cell, column in zip(row, table.columns, strict=True)]
            for row in group.rows
        ]
    head = [_escaped(header_text(column, with_group=True)) for column in table.columns]
    lines = [f"**{_escaped(table.title)}**", ""]
    lines += [*markdown_grid(head, [column.align == "left" for column in table.columns], body), ""]
    lines += [f"- <sup>{letter}</sup> {_escaped(text)}" for text, letter in letters.items()]
    lines += [f"- {MARKDOWN_LEGEND}{SEPARATE}"] if table.has_marks else []
    return "\n".join([*lines, *(f"- {_escaped(note)}" for note in table.notes)]) + "\n"


def header_text(column: Column, *, with_group: bool) -> str:
    """`Speed-up, forward [x]`."""
    parts = [column.header.replace("\n", " "), *([column.group] if with_group and column.group else [])]
    return ", ".join(part for part in parts if part) + (f" [{column.unit}]" if column.unit else "")


def to_csv(table: Table) -> str:
    """The figures in full, in the units of their keys; behind those with intervals `_low` and `_high`, `_mark` behind
    those that are compared.

    Words in the place of a figure (`OOM`) stand in the last column with the footnotes, so that figures stay numbers.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = ["group"]
    extras = [
        _extras(column, cells) for column, cells in zip(table.columns, zip(*table.rows, strict=True), strict=True)
    ]
    for column, names in zip(table.columns, extras, strict=True):
        head += [column.key, *(f"{column.key}_{name}" for name in names)]
    writer.writerow([*head, "footnotes"])
    for group in table.groups:
        for row in group.rows:
            cells = zip(row, table.columns, extras, strict=True)
            texts = [text for cell, column, names in cells for text in _csv_cells(cell, column, names)]
            writer.writerow([group.title, *texts, "; ".join(_csv_notes(row, table.columns))])
    return out.getvalue()


def plain(text: str) -> str:
    """Without the backticks of code."""
    return CODE.sub(r"\1", text)


def _extras(column: Column, cells: Sequence[Cell]) -> list[str]:
    """What stands behind a column's figures."""
    ends = ["low", "high"] if any(cell.low is not None for cell in cells) else []
    return [*ends, "mark"] if column.better else ends


def _csv_cells(cell: Cell, column: Column, extras: Sequence[str]) -> Iterator[str]:
    yield plain(cell.words) if column.align == "left" else _number(cell.value)
    for name in extras:
        yield cell.mark.value if name == "mark" else _number(cell.low if name == "low" else cell.high)


def _number(value: float | None) -> str:
    return "" if value is None else repr(value)


def _csv_notes(row: Sequence[Cell], columns: Sequence[Column]) -> list[str]:
    notes = []
    for cell, column in zip(row, columns, strict=True):
        if column.align == "right" and cell.words not in {"", "-"}:
            notes.append(f"{column.key}: {plain(cell.words)}")
        notes += [plain(text if column.align == "left" else f"{column.key}: {text}") for text in cell.footnotes]
    return list(dict.fromkeys(notes))


def _markdown_cell(cell: Cell, column: Column, letters: dict[str, str]) -> str:
    text = cell.text(column)
    text = code(text) if cell.is_code else _escaped(text)
    text = {Mark.BEST: f"**{text}**", Mark.SECOND: f"<ins>{text}</ins>"}.get(cell.mark, text)
    refs = ",".join(sorted(letters[note] for note in cell.footnotes))
    return f"{text}<sup>{refs}</sup>" if refs else text


def _escaped(text: str) -> str:
    """Escape markup, but in code."""
    parts = CODE.split(" ".join(text.split()))
    return "".join(code(part) if i % 2 else words(part) for i, part in enumerate(parts))


def _on_one_line(text: str) -> str:
    """A cell without line ends; a bar that is not escaped yet is."""
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(text.split()))
