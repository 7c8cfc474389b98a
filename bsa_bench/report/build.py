"""Write the reports of stored runs: `report.md` with its plots for each, `report.html` for all of them."""

from __future__ import annotations

import gc
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bsa_bench import __version__
from bsa_bench.errors import StoreError
from bsa_bench.report import tables
from bsa_bench.report.answer import answer
from bsa_bench.report.device_tables import device_lines
from bsa_bench.report.findings import findings, groups
from bsa_bench.report.kit import Plot
from bsa_bench.report.labels import Labels, counter_lines, input_line, timer_label, workload_label
from bsa_bench.report.markdown import code, words
from bsa_bench.report.plots import FIGURES, draw_plots
from bsa_bench.report.published import Collection, published_lines, read_collection
from bsa_bench.report.verdicts import Verdicts
from bsa_bench.report.words import NOTES, shown_path, status_lines, summary, title, unique_names
from bsa_bench.store.derive import Row, derive
from bsa_bench.store.reader import Run, read_run

ReportFormat = Literal["md", "html"]
FORMATS: tuple[ReportFormat, ...] = ("md", "html")


@dataclass(frozen=True)
class ReportFiles:
    """What `write_report` wrote; `plots` holds each plot's PNG and SVG."""

    folder: Path
    markdown: Path
    plots: tuple[Path, ...]


@dataclass(frozen=True)
class WrittenReports:
    """What `write_reports` wrote: a Markdown report for each run, and the page of all, of the formats asked for."""

    markdown: tuple[ReportFiles, ...]
    page: Path | None

    @property
    def texts(self) -> list[Path]:
        """The files to open."""
        return [*(files.markdown for files in self.markdown), *([self.page] if self.page else [])]


def write_reports(
    run_paths: Sequence[str | Path],
    out_dir: str | Path | None = None,
    *,
    formats: Sequence[ReportFormat] = FORMATS,
    published: Sequence[Path] = (),
) -> WrittenReports:
    """Write `report.md` and `report.html` of one run into `out_dir`, or of several runs side by side.

    Several share one page; each has its Markdown in a folder of its own below. Without `out_dir` the folder is
    `reports/<run_id>`, or `reports/<first run_id>+<number of others>`. `published` is as `write_report` takes it, for
    the Markdown.

    Raises:
        UsageError: a file of `published` cannot be read as such.
        StoreError: a run cannot be read, the folder cannot be written, or a library of the page is not installed.
    """
    from bsa_bench.report.html import write_page

    collection = read_collection(published)
    with _without_collector():
        runs = [read_run(path) for path in run_paths]
    names = unique_names(runs)
    others = f"+{len(runs) - 1}" * (len(runs) > 1)
    folder = Path(out_dir) if out_dir is not None else Path("reports") / f"{runs[0].run_id}{others}"
    written = tuple(
        _write_markdown(run, folder / name if len(runs) > 1 else folder, collection)
        for name, run in zip(names, runs, strict=True)
        if "md" in formats
    )
    page = folder / "report.html" if "html" in formats else None
    if page:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _without_collector():
                write_page(dict(zip(names, runs, strict=True)), page)
        except OSError as error:
            raise StoreError(f"{folder}: the report cannot be written: {error.strerror or error}") from error
    return WrittenReports(written, page)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Pause the cyclic collector: a large run is millions of objects that all live on, and it walks them in vain."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def write_report(
    run_path: str | Path, out_dir: str | Path | None = None, *, published: Sequence[Path] = ()
) -> ReportFiles:
    """Write the Markdown report of the run at `run_path` (its folder or results file) into `out_dir`.

    Without `out_dir` that is `reports/<run_id>`.

    Args:
        run_path: what was measured.
        out_dir: where to write.
        published: files of figures that others published, as `bsa-bench import` writes them; they get a section and
            reference lines of their own.

    Raises:
        UsageError: a file of `published` cannot be read as such.
        StoreError: there is no readable run, or the folder cannot be written.
    """
    run = read_run(run_path)
    collection = read_collection(published)
    return _write_markdown(run, Path(out_dir) if out_dir is not None else Path("reports") / run.run_id, collection)


def _write_markdown(run: Run, folder: Path, collection: Collection) -> ReportFiles:
    rows = derive(run.latest())
    labels = Labels(row.result.case for row in rows)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        plots = draw_plots(rows, labels, folder, collection.figures, [run])
        markdown = folder / "report.md"
        markdown.write_text("\n".join(_markdown(run, rows, labels, plots, collection)) + "\n", encoding="utf-8")
        written = {path.name for plot in plots for path in plot.files}
        for name in set(FIGURES) - written:  # of an earlier report of another run
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"{folder}: the report cannot be written: {error.strerror or error}") from error
    return ReportFiles(folder, markdown, tuple(path for plot in plots for path in plot.files))


def _markdown(
    run: Run, rows: Sequence[Row], labels: Labels, plots: Sequence[Plot], collection: Collection
) -> list[str]:
    source = f"Made from {code(shown_path(run.path))} by bsa-bench {__version__}"
    flags = "".join(f" --published {shlex.quote(shown_path(path))}" for path in collection.paths)
    verdicts = Verdicts(rows, run.environment.device_kind)
    again = f"bsa-bench report {shlex.quote(shown_path(run.path.parent))}{flags}"
    lines = [
        f"{source}; regenerated by {code(again)}, so do not edit it.",
        "",
        f"# {words(title(run))}",
        "",
        answer(run, rows, labels),
        "",
        summary(run, rows),
    ]
    for heading, body in (
        ("Findings", findings(run, rows, labels)),
        ("Overview", tables.overview_table(rows, labels, verdicts) if rows else []),
        ("Plots", _plot_lines(plots, rows)),
        ("Measured cases", _case_lines(rows, labels, verdicts)),
        ("Phases", tables.phase_table(rows, labels)),
        ("Counters", _counter_lines(rows, labels)),
        ("Device", device_lines(run, rows, labels)),
        ("Beside the paper", _paper_lines(rows, labels)),
        ("Published elsewhere, other hardware", published_lines(collection)),
        ("Environment", tables.environment_table(run)),
        ("How to read it", [*status_lines(rows), NOTES]),
    ):
        if body:
            lines += ["", f"## {heading}", "", *_trimmed(body)]
    return lines


def _plot_lines(plots: Sequence[Plot], rows: Sequence[Row]) -> list[str]:
    if not plots:
        return []
    left_out = sum(row.whole is None for row in rows)
    lines = [f"Measured rows only; the findings say why {left_out} others are left out."] if left_out else []
    for plot in plots:
        name = words(plot.title)
        lines += ["", f"### {name}", "", f"![{name}]({plot.png.name})", "", f"As [SVG]({plot.svg.name})."]
    return lines


def _case_lines(rows: Sequence[Row], labels: Labels, verdicts: Verdicts) -> list[str]:
    lines: list[str] = []
    by_workload: dict[str, list[list[Row]]] = {}
    for (digest, _), group in groups(rows).items():
        by_workload.setdefault(digest, []).append(group)
    for passes in by_workload.values():
        lines += ["", f"### {words(workload_label(passes[0][0].result.case))}"]
        made_of = input_line(row.result for group in passes for row in group)
        lines += ["", f"Input: {made_of}."] if made_of else []
        for group in passes:
            timers = timer_label(group)
            lines += ["", f"**{group[0].result.case.passes}**{f' ({timers})' if timers else ''}", ""]
            lines += tables.speed_table(group, labels, verdicts)
        fidelity = tables.fidelity_table([row for group in passes for row in group], labels)
        lines += (
            ["", "**Fidelity** (of each implementation the pass that errs most)", "", *fidelity] if fidelity else []
        )
        walked = tables.list_lines([row for group in passes for row in group], labels)
        lines += ["", "**Lists that are walked**", "", *walked] if walked else []
    return lines


def _counter_lines(rows: Sequence[Row], labels: Labels) -> list[str]:
    lines = counter_lines(rows, labels)
    text = "Of methods that simulate hardware: verified, and counted. They have no latency, and none is implied."
    return [text, "", *(f"- {words(line)}" for line in lines)] if lines else []


def _paper_lines(rows: Sequence[Row], labels: Labels) -> list[str]:
    table = tables.paper_table(rows, labels)
    text = (
        "Figures that papers claim, from other hardware and against a dense baseline that is not known; none of them "
        "was measured here. The standing says how far each can be trusted."
    )
    return [text, "", *table] if table else []


def _trimmed(lines: Sequence[str]) -> Sequence[str]:
    start = next((i for i, line in enumerate(lines) if line), 0)
    return lines[start:]
