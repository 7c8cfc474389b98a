"""The document as tables: for the terminal (rich) and for Markdown, from one list of columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bsa_bench.static.columns import Column, Row, Section, sections

_GAP = 2
"""Columns of characters between two cells."""


def fitting(section: Section, width: int) -> list[Column]:
    """The columns that a line has room for; a first one that wants more than half of it is folded."""
    ranked = sorted((c for c in section.columns if c.rank is not None), key=lambda column: column.rank or 0)
    chosen, room = ranked[:1], width - min(ranked[0].width(section.rows), width // 2)
    for column in ranked[1:]:
        need = column.width(section.rows) + _GAP
        if need <= room:
            chosen.append(column)
            room -= need
    return [column for column in section.columns if any(column is each for each in chosen)]


def grouped_findings(document: Row) -> list[tuple[str, list[str]]]:
    """Each finding, and why there is no ceiling, once with the configurations that have it."""
    groups: dict[str, list[str]] = {}
    for row in document["configurations"]:
        no_ceiling = [f"no ceiling: {row['no_ceiling']}"] if row["no_ceiling"] else []
        for finding in [*row["findings"], *no_ceiling]:
            groups.setdefault(f"{row['arch']}: {finding}", []).append(row["name"])
    return sorted(groups.items())


def markdown(document: Row) -> str:
    """The whole document as Markdown."""
    parts = [f"Compiled by Triton {', '.join(document['toolchain']['triton']) or '-'} ({_flags(document)}).", ""]
    for section in sections(document):
        parts += [f"### {section.title}", "", _markdown_table(section), ""]
    if failures := document["failures"]:
        parts += [
            "### Not compiled",
            "",
            *(f"- `{f['name']}`, {f['arch']}: {f['kind']}\n\n{_quoted(f['message'])}\n" for f in failures),
        ]
    if found := grouped_findings(document):
        parts += [
            "### Findings",
            "",
            *(f"- {text} — {', '.join(f'`{n}`' for n in names)}" for text, names in found),
            "",
        ]
    parts += ["### What the ceilings assume", "", *(f"- {text}" for text in document["assumptions"])]
    parts += [f"- Left out: {text}." for text in document["left_out"]]
    parts += ["", "### Figures of the architectures and devices", "", *_figure_lines(document)]
    return "\n".join(parts) + "\n"


def _flags(document: Row) -> str:
    toolchain = document["toolchain"]
    fusion = "on" if toolchain["fp_fusion"] else "off"
    return f"floating-point fusion {fusion}, line info {'on' if toolchain['line_info'] else 'off'}"


def _quoted(message: str) -> str:
    """As a block of code that belongs to a list's entry: the compiler points at columns."""
    return textwrap.indent(f"```text\n{message}\n```", "  ")


def _markdown_table(section: Section) -> str:
    def line(cells: Iterable[str]) -> str:
        safe = (" ".join(cell.split()).replace("|", "\\|") for cell in cells)
        return f"| {' | '.join(safe)} |"

    columns = [column for column in section.columns if not column.is_short]
    rule = "|" + "|".join("---" if column.is_text else "---:" for column in columns) + "|"
    rows = (line(column.cell(row) for column in columns) for row in section.rows)
    return "\n".join([line(column.header for column in columns), rule, *rows])


def _figure_lines(document: Row) -> Iterator[str]:
    for name, figures in {**document["architectures"], **document["devices"]}.items():
        groups: dict[tuple[str, bool], list[str]] = {}
        for key, figure in _flattened(figures):
            groups.setdefault((figure["source"], figure["measured"]), []).append(f"{key} {figure['value']:.6g}")
        for (source, measured), texts in groups.items():
            yield f"- {name}: {', '.join(texts)} ({'measured; ' if measured else ''}{source})"


def _flattened(figures: Row, prefix: str = "") -> Iterator[tuple[str, Row]]:
    for key, value in figures.items():
        if isinstance(value, Mapping) and "source" in value:
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{key} ")


def print_tables(document: Row, console: Console) -> None:
    """Show the document on a terminal."""

    def say(text: str, style: str | None = None) -> None:
        lines = textwrap.wrap(text, console.width, subsequent_indent="  ", break_on_hyphens=False)
        console.print("\n".join(lines), style=style, markup=False, highlight=False, soft_wrap=True)

    for section in sections(document):
        say(section.title, "bold")
        console.print(_table(section, console.width), "")
    for text, names in grouped_findings(document):
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        say(f"- {text} [{shown}]")
    for failure in document["failures"]:
        say(f"- not compiled: {failure['name']}, {failure['arch']} ({failure['kind']}):")
        message = textwrap.indent(failure["message"], "  ")
        console.print(message, markup=False, highlight=False, soft_wrap=True)
    has_ceilings = any(row["ceilings"] for row in document["configurations"])
    say(f"Triton {', '.join(document['toolchain']['triton'])}; {_flags(document)}.")
    if has_ceilings:
        say("Ceilings assume:")
        for text in [*document["assumptions"], *(f"left out: {text}" for text in document["left_out"])]:
            say(f"- {text}")


def _table(section: Section, width: int) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, _GAP - 1, 0, 0), header_style="bold")
    columns = fitting(section, width)
    for column in columns:
        is_first = column is columns[0]
        table.add_column(
            Text(column.header),
            justify="left" if column.is_text else "right",
            vertical="bottom",
            overflow="fold",
            max_width=width // 2 if is_first else None,
        )
    for row in section.rows:
        table.add_row(*(Text(column.cell(row)) for column in columns))
    return table
