"""Write the report of a stored run: `report.md` and its plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bsa_bench import __version__
from bsa_bench.errors import StoreError
from bsa_bench.report import tables
from bsa_bench.report.findings import findings, groups
from bsa_bench.report.kit import Plot
from bsa_bench.report.labels import Labels, counter_lines, timer_label, workload_label
from bsa_bench.report.plots import draw_plots
from bsa_bench.report.published import Collection, published_lines, read_collection
from bsa_bench.result import Status
from bsa_bench.store.derive import Row, derive
from bsa_bench.store.reader import Run, read_run

NOTES = """\
- **Median**: of the medians of the processes that a case was measured in; of one process, of its samples. ± is the
  wider half of the interval of that median, from order statistics (of 9 processes and more, a bootstrap of processes
  and samples), at 95% coverage where their number allows, 94% of five. † the interval covers less than 90%. ‡ the
  warm-up did not settle before its cap. § others took the processor meanwhile, so that the time is too long. ¶ the
  processes fall into two groups. **CV**: standard deviation over mean, of the samples within a process and of the
  medians between processes.
- **One process**: the interval is of the samples within it, and says nothing of how far another process would be off.
- **Timers**: `host` is `perf_counter` around a synchronised call; `event` is a pair of CUDA events. **Cache**: `cold`
  flushes the L2 by its queried size before each sample; `warm` does nothing. A ratio never mixes two timers or caches.
- **Speed-up**: of the fastest correct dense row of the same workload and pass, over the row. Of several processes: the
  median of the ratios within rounds (of one process of each), and in brackets the order-statistic interval of that
  median. Of one process: the ratio of the two medians; its bars in plots divide the far ends of their intervals.
- **Ideal**: 1 / realised density, the method's work over dense attention's. **Achieved** is speed-up / ideal.
- **Attend only**, **attend + select**: sums of those phases, timed in a pass of their own; the ratio divides the whole
  of the fastest dense row by them. The headline is the whole operator, selection, permutation and fill included.
- **TFLOP/s exec**: FLOP of the tiles that the engine visits, padding included, over the median. A multiply-add is 2;
  softmax is not counted; backward is 2.5 x forward (5 matrix products against 2).
- **Peak memory above inputs**: in an untimed pass of its own. "-" is unknown or not measured, never zero.
- **Error / budget**: relative L2 error against the oracle of the very same mask, and what the number format itself
  costs. **Error against dense** is what the method changes. **Mass kept** is the mean share of the dense attention mass
  of a computed query row that its plan kept.
- **Lists that are walked**: KV blocks of a list. Query blocks that share one walk the union of what they asked for;
  **union efficiency** is the share of that work that they did ask for, 100% where nothing is shared."""


@dataclass(frozen=True)
class ReportFiles:
    """What `write_report` wrote; `plots` holds each plot's PNG and SVG."""

    folder: Path
    markdown: Path
    plots: tuple[Path, ...]


def write_report(
    run_path: str | Path, out_dir: str | Path | None = None, *, published: Sequence[Path] = ()
) -> ReportFiles:
    """Write the report of the run at `run_path` (its folder or results file) into `out_dir`, or `reports/<run_id>`.

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
    folder = Path(out_dir) if out_dir is not None else Path("reports") / run.run_id
    rows = derive(run.latest())
    labels = Labels(row.result.case for row in rows)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        plots = draw_plots(rows, labels, folder, collection.figures, [run])
        markdown = folder / "report.md"
        markdown.write_text("\n".join(_markdown(run, rows, labels, plots, collection)) + "\n", encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{folder}: the report cannot be written: {error.strerror or error}") from error
    return ReportFiles(folder, markdown, tuple(path for plot in plots for path in plot.files))


def _markdown(
    run: Run, rows: Sequence[Row], labels: Labels, plots: Sequence[Plot], collection: Collection
) -> list[str]:
    title = run.run_lines[-1].suite_title or run.run_lines[-1].suite
    source = f"Made from `{_shown_path(run.path)}` by bsa-bench {__version__}"
    flags = "".join(f" --published {_shown_path(path)}" for path in collection.paths)
    lines = [
        f"{source}; regenerated by `bsa-bench report {_shown_path(run.path.parent)}{flags}`, so do not edit it.",
        "",
        f"# {title}",
        "",
        _summary(run, rows),
    ]
    for heading, body in (
        ("Findings", findings(run, rows, labels)),
        ("Overview", tables.overview_table(rows, labels) if rows else []),
        ("Plots", _plot_lines(plots, rows)),
        ("Measured cases", _case_lines(rows, labels)),
        ("Phases", tables.phase_table(rows, labels)),
        ("Counters", _counter_lines(rows, labels)),
        ("Beside the paper", _paper_lines(rows, labels)),
        ("Published elsewhere, other hardware", published_lines(collection)),
        ("Environment", tables.environment_table(run)),
        ("How to read it", [*_status_lines(rows), NOTES]),
    ):
        if body:
            lines += ["", f"## {heading}", "", *_trimmed(body)]
    return lines


def _shown_path(path: Path) -> str:
    """The path relative to here, or its last three parts: a report must not name the machine that made it."""
    absolute, here = path.resolve(), Path.cwd().resolve()
    shown = absolute.relative_to(here) if absolute.is_relative_to(here) else Path(*absolute.parts[-3:])
    return shown.as_posix().lstrip("/")


def _summary(run: Run, rows: Sequence[Row]) -> str:
    counts = {status: sum(r.result.status is status for r in rows) for status in Status}
    parts = [f"{count} {status}" for status, count in counts.items() if count]
    text = f"Run `{run.run_id}` on {run.environment.device_name}: {len(rows)} cases ({', '.join(parts) or 'none'})"
    text += f", to be measured in {run.num_processes} processes each." if run.num_processes > 1 else "."
    if run.num_remaining:
        left = f"{run.num_remaining} of {run.run_lines[-1].num_cases}"
        text += f" **Unfinished**, cases left: {left}; --resume goes on."
    return text


def _plot_lines(plots: Sequence[Plot], rows: Sequence[Row]) -> list[str]:
    if not plots:
        return []
    left_out = sum(row.whole is None for row in rows)
    lines = [f"Measured rows only; the findings say why {left_out} others are left out."] if left_out else []
    for plot in plots:
        lines += ["", f"### {plot.title}", "", f"![{plot.title}]({plot.png.name})", "", f"As [SVG]({plot.svg.name})."]
    return lines


def _case_lines(rows: Sequence[Row], labels: Labels) -> list[str]:
    lines: list[str] = []
    by_workload: dict[str, list[list[Row]]] = {}
    for (digest, _), group in groups(rows).items():
        by_workload.setdefault(digest, []).append(group)
    for passes in by_workload.values():
        lines += ["", f"### {workload_label(passes[0][0].result.case)}"]
        for group in passes:
            timers = timer_label(group)
            lines += ["", f"**{group[0].result.case.passes}**{f' ({timers})' if timers else ''}", ""]
            lines += tables.speed_table(group, labels)
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
    return [text, "", *(f"- {line}" for line in lines)] if lines else []


def _paper_lines(rows: Sequence[Row], labels: Labels) -> list[str]:
    table = tables.paper_table(rows, labels)
    text = (
        "Figures that papers claim, from other hardware and against a dense baseline that is not known; none of them "
        "was measured here. The standing says how far each can be trusted."
    )
    return [text, "", *table] if table else []


def _status_lines(rows: Sequence[Row]) -> list[str]:
    present = [status for status in Status if any(row.result.status is status for row in rows)]
    return [f"- **{status}**: {status.meaning}." for status in present]


def _trimmed(lines: Sequence[str]) -> Sequence[str]:
    start = next((i for i, line in enumerate(lines) if line), 0)
    return lines[start:]
