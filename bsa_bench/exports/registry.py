"""The formats that a run can be exported to, and the one way to do it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, cast, get_args

from bsa_bench.errors import EXIT_NOTHING_MEASURED, BenchError, StoreError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bsa_bench.exports.rows import ExportRow
    from bsa_bench.store.reader import Run

FormatName = Literal[
    "csv",
    "parquet",
    "pytest-benchmark",
    "github-action-benchmark",
    "github-action-benchmark-bigger",
    "bencher",
    "asv",
    "google-benchmark",
    "hyperfine",
]


class NothingMeasuredError(BenchError):
    """A run has no row with a verified latency, so that a tool that knows nothing else has nothing to read."""

    exit_code: ClassVar[int] = EXIT_NOTHING_MEASURED


class Writer(Protocol):
    """Writes the rows of a run to `target`, a file, or the folder of a format that is one."""

    def __call__(self, rows: Sequence[ExportRow], run: Run, target: Path) -> None:
        """Write, or raise StoreError; OSError is made one by the caller."""


@dataclass(frozen=True)
class ExportFormat:
    """One format.

    Attributes:
        name: what `--to` calls it.
        suffix: what the default file's (or folder's) name ends with, behind the run's name.
        about: one line.
        home: `module:function` of its `Writer`, loaded when it is used.
        holds_all: whether it holds every row, those without a latency too.
    """

    name: FormatName
    suffix: str
    about: str
    home: str
    holds_all: bool = False

    @property
    def write(self) -> Writer:
        """The function that writes it."""
        module, _, function = self.home.partition(":")
        return cast("Writer", getattr(import_module(f"bsa_bench.exports.{module}"), function))


FORMATS: dict[str, ExportFormat] = {
    each.name: each
    for each in (
        ExportFormat("csv", ".csv", "one flat table of every row", "tables:write_csv", holds_all=True),
        ExportFormat("parquet", ".parquet", "the same, typed", "tables:write_parquet", holds_all=True),
        ExportFormat(
            "pytest-benchmark", ".pytest-benchmark.json", "for `pytest-benchmark compare`", "pytest_benchmark:write"
        ),
        ExportFormat(
            "github-action-benchmark",
            ".github-action-benchmark.json",
            "latency and memory, as customSmallerIsBetter",
            "github_action:write_smaller",
        ),
        ExportFormat(
            "github-action-benchmark-bigger",
            ".github-action-benchmark-bigger.json",
            "TFLOP/s and speed-up, as customBiggerIsBetter",
            "github_action:write_bigger",
        ),
        ExportFormat("bencher", ".bencher.json", "Bencher Metric Format", "bencher:write"),
        ExportFormat("asv", ".asv", "a results folder of airspeed velocity", "asv:write"),
        ExportFormat("google-benchmark", ".google-benchmark.json", "for Google Benchmark's compare.py", "google:write"),
        ExportFormat("hyperfine", ".hyperfine.json", "for the scripts of hyperfine", "hyperfine:write"),
    )
}
assert list(FORMATS) == list(get_args(FormatName))


@dataclass(frozen=True)
class Exported:
    """What an export wrote: where, how many rows, and how many it left out by status."""

    target: Path
    num_rows: int
    left_out: dict[str, int]

    @property
    def note(self) -> str | None:
        """One line of what was left out; None where nothing was."""
        if not self.left_out:
            return None
        return f"{self.num_rows} rows exported, left out: {_by_status(self.left_out)}"


def export_run(run_path: str | Path, *, to: str, out: str | Path) -> Exported:
    """Export the run at `run_path` (its folder or results file) to `out`.

    Rows without a verified latency are left out, and counted, but of the tables, which hold every row.

    Raises:
        UsageError: an unknown format, or a run that the format cannot hold.
        StoreError: there is no readable run, or `out` cannot be written.
        NothingMeasuredError: no row is left to write.
    """
    from bsa_bench.exports.rows import measured_rows
    from bsa_bench.store.derive import derive
    from bsa_bench.store.reader import read_run

    if to not in FORMATS:
        raise UsageError(f"export format: got {to!r}, expected one of {', '.join(FORMATS)}")
    chosen, run, target = FORMATS[to], read_run(run_path), Path(out)
    derived = derive(run.latest())
    rows = [] if chosen.holds_all else measured_rows(run, derived)
    left_out = {} if chosen.holds_all else dict(Counter(row.status_word for row in derived if not row.is_correct))
    if not rows and not chosen.holds_all:
        raise NothingMeasuredError(
            f"run {run.run_id}: nothing to export to {to}, no row has a verified latency "
            f"({_by_status(left_out) or 'it has no rows'}); csv and parquet hold every row"
        )
    try:
        chosen.write(rows, run, target)
    except OSError as error:
        raise StoreError(f"{target}: cannot be written: {error.strerror or error}") from error
    return Exported(target, len(derived) if chosen.holds_all else len(rows), left_out)


def _by_status(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {word}" for word, count in counts.items())
