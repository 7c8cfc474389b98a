"""The table that ends `bsa-bench run`, for a terminal or for a pipe."""

from __future__ import annotations

import re
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
    input_caveats,
    latency_text,
    one_line,
    percent,
    scientific,
    speedup_text,
    workload_label,
)
from bsa_bench.report.verdicts import HOLDS_ONE, Verdicts
from bsa_bench.result import Status
from bsa_bench.store.derive import Ratio, Row, derive
from bsa_bench.store.reader import Run
from bsa_bench.text import visible
from bsa_bench.units import format_ratio, format_seconds

#: Counters of a row that are named; the report has all.
MAX_COUNTERS = 8
HEAD = ("implementation", "latency", "speed-up", "ideal", "achieved", "error vs dense", "status")


#: Columns that a narrow terminal does without, in this order: achieved, ideal, error vs dense.
LEAST_FIRST = (4, 3, 5)
_PROCESSES = re.compile(r"( \(one process\)|, \d+ processes)$")


def print_table(run: Run, console: Console) -> None:
    """Print each workload and pass with the rows that can run here, the fastest first, then what cannot and why.

    On a terminal long cells fold; elsewhere lines are plain and as long as they need to be, so that nothing is cut.
    """
    rows = derive(run.latest())
    labels = Labels(row.result.case for row in rows)
    verdicts = Verdicts(rows, run.environment.device_kind)
    shown = groups(row for row in rows if not is_unavailable(run, row.result))
    sections = [
        (_title(group), [_cells(row, labels, verdicts) for row in _in_order(group)])
        for group in shown.values()
        if any(row.result.status is not Status.NOT_MEASURED for row in group)
    ]
    lines = [cells for _, body in sections for cells in body]
    widths = [max(len(cells[i]) for cells in [HEAD, *lines]) for i in range(len(HEAD))]
    narrow, shown_columns = _narrow(lines, console.width)
    short = dict(zip(lines, narrow, strict=True))
    for title, body in sections:
        console.print()
        if console.is_terminal:
            _print_rich(title, [short[cells] for cells in body], shown_columns, console)
        else:
            _print_plain([title, *(_aligned(cells, widths) for cells in [HEAD, *body])], console)
    notes = _notes(run, rows, labels, verdicts)
    if console.is_terminal:
        for note in notes:
            console.print(Text(visible(note)))
    else:
        _print_plain(notes, console)


def _title(group: Sequence[Row]) -> str:
    case = group[0].result.case
    return f"{case.passes}: {workload_label(case)}"


def _in_order(group: Sequence[Row]) -> list[Row]:
    return sorted(group, key=lambda row: row.whole.median if row.whole else float("inf"))


def _cells(row: Row, labels: Labels, verdicts: Verdicts) -> tuple[str, ...]:
    checks = row.result.correctness
    return (
        labels.of(row.result.case),
        latency_text(row.whole),
        verdicts.baseline(row) if row.is_baseline else speedup_text(row.speedup),
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
        console.print(Text(visible(line)), soft_wrap=True)


def _print_rich(title: str, body: Sequence[Sequence[str]], shown: Sequence[int], console: Console) -> None:
    table = Table(
        title=Text(title), title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    for i in shown:
        table.add_column(HEAD[i], justify="left" if i in {0, len(HEAD) - 1} else "right", overflow="fold")
    for cells in body:
        style = "dim" if cells[1] == "-" else None
        table.add_row(*(Text(cells[i]) for i in shown), style=style)
    console.print(table)


def _narrow(lines: Sequence[tuple[str, ...]], width: int) -> tuple[list[tuple[str, ...]], list[int]]:
    """Fit lines into a terminal: first without the number of processes, which the footnote has, then without columns.

    Returns:
        The lines, and the indices of the columns that are shown.
    """
    shown = list(range(len(HEAD)))
    lines = [*lines]
    if not _fits(lines, shown, width):
        lines = [(*cells[:2], _PROCESSES.sub("", cells[2]), *cells[3:]) for cells in lines]
    for column in LEAST_FIRST:
        if not _fits(lines, shown, width):
            shown.remove(column)
    return lines, shown


def _fits(lines: Sequence[Sequence[str]], shown: Sequence[int], width: int) -> bool:
    return sum(max(len(cells[i]) for cells in [HEAD, *lines]) for i in shown) + 2 * (len(shown) - 1) <= width


def _notes(run: Run, rows: Sequence[Row], labels: Labels, verdicts: Verdicts) -> list[str]:
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
    if caveats := input_caveats(row.result for row in rows):
        lines += [
            "",
            "Inputs that are hardly the film that was asked for:",
            *(f"  {text.replace('`', '')}" for text in caveats),
        ]
    disturbed = [row for row in rows if row.is_disturbed]
    if disturbed:
        lines += ["", f"Disturbed: other processes took the processor while {len(disturbed)} of these were timed."]
        lines += [f"  {_where(row, labels)}: {percent(row.other_cpu_share)}" for row in disturbed]
    held_back = [row for row in rows if row.quota_wait_s]
    if held_back:
        lines += ["", f"Held back: a CPU quota kept {len(held_back)} of these from running while they were timed, for"]
        lines += [f"  {_where(row, labels)}: {format_seconds(row.quota_wait_s)}" for row in held_back]
    if split := bimodal_lines(rows, labels):
        lines += ["", "Bimodal: the processes of these fall into two groups, around"]
        lines += [f"  {line}" for line in split]
    if any(row.is_correct and row.num_processes == 1 for row in rows):
        lines += ["", f"{ONE_PROCESS}."]
    if any(len(set(verdicts.num_dense(row.result.case))) > 1 for row in rows if row.is_baseline):
        lines += [
            "",
            "Baseline (1 of 4), say: one of four dense engines was measured, the others are left.",
        ]
    if run.num_remaining:
        lines += ["", f"Cases left: {run.num_remaining} of {run.run_lines[-1].num_cases}; --resume goes on."]
    missing = unavailable(run)
    if missing:
        lines += ["", "Unavailable here:"]
        lines += [f"  {name}: {one_line(why)}" for name, why in missing.items()]
    return [*lines, *_best(rows, labels, verdicts)]


def _best(rows: Sequence[Row], labels: Labels, verdicts: Verdicts) -> list[str]:
    """The largest speed-up that is a verdict, of rows that approximate dense attention; else what is nearest to one."""
    ratios: list[tuple[Row, Ratio]] = [
        (row, row.speedup)
        for row in rows
        if row.dense and row.speedup and not row.is_dense and row.result.case.claims.approximates_dense
    ]
    faster = [each for each in ratios if each[1].value > 1 and verdicts.doubt(each[0]) is None]
    doubtful = [each for each in ratios if each[1].value > 1 and verdicts.doubt(each[0]) not in {None, HOLDS_ONE}]
    if faster:
        head, found = "Largest speed-up: ", faster
    elif doubtful:
        head, found = "No speed-up is a verdict; the largest: ", doubtful
    elif ratios:
        head, found = "No row is faster than the fastest dense; the closest: ", ratios
    else:
        return []
    row = max(found, key=lambda each: each[1].value)[0]
    said = (
        f"{verdicts.measured(row, labels)}, {verdicts.doubt(row)}" if found is doubtful else verdicts.words(row, labels)
    )
    ideal = "" if row.ideal_speedup is None else f"; ideal {format_ratio(row.ideal_speedup)}"
    return ["", f"{head}{_where(row, labels)}, {said}{ideal}."]


def _where(row: Row, labels: Labels) -> str:
    """`bsa@gather, forward at 4,096 tokens`."""
    return f"{labels.of(row.result.case)}, {row.result.case.passes} at {row.num_tokens:,} tokens"
