"""The table that ends `bsa-bench run`, for a terminal or for a pipe."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bsa_bench.report.findings import groups, is_unavailable, unavailable
from bsa_bench.report.labels import (
    ONE_PROCESS,
    Labels,
    bimodal_lines,
    counter_lines,
    faster_words,
    interval_text,
    latency_text,
    one_line,
    percent,
    scientific,
    speedup_text,
    workload_label,
)
from bsa_bench.store.derive import Row, derive
from bsa_bench.store.reader import Run
from bsa_bench.units import format_ratio

#: Counters of a row that are named; the report has all.
MAX_COUNTERS = 8
HEAD = ("implementation", "latency", "speed-up", "ideal", "achieved", "error vs dense", "status")


def print_table(run: Run, console: Console) -> None:
    """Print each workload and pass with the rows that can run here, the fastest first, then what cannot and why.

    On a terminal long cells fold; elsewhere lines are plain and as long as they need to be, so that nothing is cut.
    """
    rows = derive(run.latest())
    labels = Labels(row.result.case for row in rows)
    shown = groups(row for row in rows if not is_unavailable(run, row.result))
    sections = [(_title(group), [_cells(row, labels) for row in _in_order(group)]) for group in shown.values()]
    lines = [cells for _, body in sections for cells in body]
    widths = [max(len(cells[i]) for cells in [HEAD, *lines]) for i in range(len(HEAD))]
    for title, body in sections:
        console.print()
        if console.is_terminal:
            _print_rich(title, body, widths, console)
        else:
            _print_plain([title, *(_aligned(cells, widths) for cells in [HEAD, *body])], console)
    notes = _notes(run, rows, labels)
    if console.is_terminal:
        for note in notes:
            console.print(note, markup=False, highlight=False)
    else:
        _print_plain(notes, console)


def _title(group: Sequence[Row]) -> str:
    case = group[0].result.case
    return f"{case.passes}: {workload_label(case)}"


def _in_order(group: Sequence[Row]) -> list[Row]:
    return sorted(group, key=lambda row: row.whole.median if row.whole else float("inf"))


def _cells(row: Row, labels: Labels) -> tuple[str, ...]:
    checks = row.result.correctness
    return (
        labels.of(row.result.case),
        latency_text(row.whole),
        "baseline" if row.is_baseline else speedup_text(row.speedup),
        "-" if row.is_dense or not row.whole else format_ratio(row.ideal_speedup),
        "-" if row.is_dense else percent(row.achieved_share),
        "-" if row.is_dense else scientific(checks.dense.relative_l2 if checks and checks.dense else None),
        ", ".join((row.status_word, *row.doubts)),
    )


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    last = len(cells) - 1
    texts = [c.ljust(w) if i in {0, last} else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
    return "  ".join(texts).rstrip()


def _print_plain(lines: Sequence[str], console: Console) -> None:
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _print_rich(title: str, body: Sequence[Sequence[str]], widths: Sequence[int], console: Console) -> None:
    table = Table(
        title=Text(title), title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    last = len(HEAD) - 1
    room = sum(widths) + 2 * last <= console.width
    for i, (name, width) in enumerate(zip(HEAD, widths, strict=True)):
        table.add_column(
            name,
            justify="left" if i in {0, last} else "right",
            overflow="fold",
            min_width=width if room else None,
        )
    for cells in body:
        style = "dim" if cells[1] == "-" else None
        table.add_row(*(Text(cell) for cell in cells), style=style)
    console.print(table)


def _notes(run: Run, rows: Sequence[Row], labels: Labels) -> list[str]:
    """What follows the table: reasons for rows without a figure, what is left, what is unavailable."""
    reasons: dict[tuple[str, str], int] = {}
    for row in rows:
        if not row.is_correct and not row.is_counted and not is_unavailable(run, row.result):
            why = "never compared with an oracle" if row.is_unverified else one_line(row.result.reason)
            reasons[row.status_word, why] = reasons.get((row.status_word, why), 0) + 1
    lines: list[str] = []
    if not rows:
        lines += ["", "No case has a result."]
    if reasons:
        lines += ["", "Unverified, wrong or not run:"]
        lines += [f"  {word} ({count} row{'s' * (count != 1)}): {why}" for (word, why), count in reasons.items()]
    counted = counter_lines(rows, labels, most=MAX_COUNTERS)
    if counted:
        lines += ["", "COUNTED, verified and not timed:", *(f"  {line}" for line in counted)]
    disturbed = [row for row in rows if row.is_disturbed]
    if disturbed:
        lines += ["", f"Disturbed: other processes took the processor while {len(disturbed)} of these were timed."]
        lines += [f"  {row.result.case_id}: {percent(row.other_cpu_share)}" for row in disturbed]
    if split := bimodal_lines(rows, labels):
        lines += ["", "Bimodal: the processes of these fall into two groups, around"]
        lines += [f"  {line}" for line in split]
    if any(row.is_correct and row.num_processes == 1 for row in rows):
        lines += ["", f"{ONE_PROCESS}."]
    if run.num_remaining:
        lines += ["", f"Cases left: {run.num_remaining} of {run.run_lines[-1].num_cases}; --resume goes on."]
    missing = unavailable(run)
    if missing:
        lines += ["", "Unavailable here:"]
        lines += [f"  {name}: {one_line(why)}" for name, why in missing.items()]
    return [*lines, *_best(rows, labels)]


def _best(rows: Sequence[Row], labels: Labels) -> list[str]:
    """The largest speed-up of a row that approximates dense attention; of those without doubts where there are any."""
    ratios = [
        (row, row.dense, row.speedup)
        for row in rows
        if row.dense and row.speedup and not row.is_dense and row.result.case.claims.approximates_dense
    ]
    found = [r for r in ratios if not r[0].doubts and not r[1].doubts] or ratios
    if not found:
        return []
    row, dense, speedup = max(found, key=lambda r: r[2].value)
    case = row.result.case
    where = f"{labels.of(case)}, {case.passes} at {row.num_tokens:,} tokens"
    versus = f"{faster_words(speedup.value)} {labels.of(dense.result.case)} {interval_text(speedup)}"
    return ["", f"Largest speed-up: {where}, {versus}; ideal {format_ratio(row.ideal_speedup)}."]
