"""The flat table, as CSV and Parquet; `bsa_bench.store.frame` lays it out and names its columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bsa_bench.exports.rows import ExportRow
from bsa_bench.store.frame import write_table
from bsa_bench.store.reader import Run


def write_csv(rows: Sequence[ExportRow], run: Run, target: Path) -> None:  # noqa: ARG001
    """Write every row of the run, `rows` or not."""
    write_table(run, to="csv", out=target)


def write_parquet(rows: Sequence[ExportRow], run: Run, target: Path) -> None:  # noqa: ARG001
    """Write every row of the run, `rows` or not."""
    write_table(run, to="parquet", out=target)
