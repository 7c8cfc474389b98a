"""What `table` does."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from bsa_bench.cli.commands import find_run
from bsa_bench.cli.output import console
from bsa_bench.errors import StoreError
from bsa_bench.report.named_tables import TableFormat, TableName, make_table
from bsa_bench.report.table_latex import latex
from bsa_bench.report.table_model import Table
from bsa_bench.report.table_rich import print_rich, to_plain
from bsa_bench.report.table_text import markdown, plain, to_csv


def table(name: TableName, runs: Sequence[str], results: Path, to: TableFormat, out: Path | None) -> None:
    """Make a table of stored runs and print it, or write it to `out` and print where.

    Raises:
        UsageError: there is no such run.
        StoreError: a run or `out` cannot be read or written.
        EmptyTableError: the runs hold nothing that the table could show.
    """
    made = make_table(name, [find_run(run, results) for run in runs])
    if to == "csv":
        _print_notes(made)
    if out is not None:
        _write(_text(made, to), out)
        print(out)
    elif to == "rich":
        print_rich(made, console())
    else:
        sys.stdout.write(_text(made, to))


def _text(made: Table, to: TableFormat) -> str:
    return {"md": markdown, "latex": latex, "csv": to_csv, "rich": to_plain}[to](made)


def _print_notes(made: Table) -> None:
    """A CSV has no place for the notes of a table."""
    for note in made.notes:
        print(plain(note), file=sys.stderr)


def _write(text: str, out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{out}: cannot be written: {error.strerror or error}") from error
