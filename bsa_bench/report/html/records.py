"""A row of the table as the page holds it: its cells, what they sort by, what the filters ask, and its figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bsa_bench.report.labels import Labels, latency_text, percent, scientific, shape_label, speedup_text
from bsa_bench.report.verdicts import Verdicts
from bsa_bench.store.derive import Latency, Ratio, Row
from bsa_bench.units import format_bytes, format_ratio, three_digits

Cell = tuple[str, float | int | str | None]
"""What a cell shows, and what it sorts by; null sorts last, upwards and downwards."""


@dataclass(frozen=True)
class Column:
    """A column: its title, whether it holds figures, and what they are."""

    title: str
    is_figure: bool
    about: str


COLUMNS = (
    Column("Implementation", False, "method@engine, and the options that set it apart in these runs"),
    Column("Tokens", True, "length of the attention"),
    Column("Pass", False, "forward, backward, or both"),
    Column("Density", True, "pairs computed / all pairs, of the plan in use"),
    Column("Latency", True, "median of the whole operator, ± the wider half of its interval"),
    Column("Marks", False, "caveats of the latency, explained below"),
    Column("Speed-up", True, "over the fastest correct dense row of its run, workload and pass, with its interval"),
    Column("Ideal", True, "1 / density"),
    Column("Share of ideal", True, "speed-up / ideal"),
    Column("Status", False, "how the case ended"),
    Column("Error vs dense", True, "relative L2 error of the output against dense attention: what the method changes"),
    Column("Error / budget", True, "relative L2 error against the masked oracle, and what it may be"),
    Column("Memory", True, "peak memory above the inputs"),
    Column("Shape", False, "model, batch, heads x head size, dtype, input"),
)


def cells(row: Row, labels: Labels, verdicts: Verdicts) -> list[Cell]:
    """One for each of `COLUMNS`."""
    case, checks, memory, error = row.result.case, row.result.correctness, row.result.memory, row.worst_error
    dense = checks.dense.relative_l2 if checks and checks.dense else None
    peak = memory.peak_above_inputs_bytes if memory else None
    shows_ideal = not row.is_dense and row.whole is not None
    budget = error.budget if error else None
    caveats = ", ".join(marks(row))
    return [
        (labels.of(case), labels.of(case)),
        (f"{row.num_tokens:,}", row.num_tokens),
        (case.passes, case.passes),
        (three_digits(row.density) if row.density else "-", row.density),
        (latency_text(row.whole), row.whole.median if row.whole else None),
        (caveats or "-", caveats),
        (
            verdicts.baseline(row) if row.is_baseline else speedup_text(row.speedup),
            row.speedup.value if row.speedup else None,
        ),
        (format_ratio(row.ideal_speedup) if shows_ideal else "-", row.ideal_speedup if shows_ideal else None),
        (
            "-" if row.is_dense else percent(row.achieved_share),
            None if row.is_dense else row.achieved_share,
        ),
        (row.status_word, row.status_word),
        (scientific(dense), dense),
        (
            f"{scientific(error.relative_l2)} / {scientific(budget)}" if error else "-",
            error.relative_l2 / budget if error and budget else None,
        ),
        (format_bytes(peak), peak),
        (shape(row), shape(row)),
    ]


def marks(row: Row) -> list[str]:
    """What the footnote marks of the Markdown tables say, in words, and two that its caveats list."""
    found = {
        "† short interval": row.is_interval_short,
        "‡ not settled": not row.is_settled,
        "§ disturbed": row.is_disturbed,
        "¶ bimodal": row.is_bimodal,
        "throttled": row.is_throttled,
        "timers disagree": any(timing.timers_disagree for timing in row.timings),
    }
    return [word for word, holds in found.items() if holds]


def shape(row: Row) -> str:
    """What the charts' panels are made by."""
    case = row.result.case
    return f"{shape_label(case.workload)}{', causal' * case.claims.causal}"


def figures(row: Row, labels: Labels, series: str) -> dict[str, Any] | None:
    """What the charts draw of a row in the series; null for a row that is not correct, which none draws."""
    if not row.is_correct or row.whole is None:
        return None
    case, checks, memory = row.result.case, row.result.correctness, row.result.memory
    return {
        "series": series,
        "setting": labels.setting(case),
        "tokens": row.num_tokens,
        "density": row.density,
        "latency": _ends(row.whole),
        "speedup": _ends(row.speedup) if row.speedup and not row.is_dense else None,
        "ideal": None if row.is_dense else row.ideal_speedup,
        "memory": memory.peak_above_inputs_bytes if memory else None,
        "error": checks.dense.relative_l2 if checks and checks.dense and not row.is_dense else None,
        "phases": {} if row.is_dense else {name: rounded(value) for name, value in row.phases.items()},
        "timer": f"{row.result.timing.timer} timer, cache {row.result.timing.cache}" if row.result.timing else "",
    }


def rounded(value: float) -> float:
    """Five digits, which is more than any timer knows."""
    return float(f"{value:.5g}")


def _ends(figure: Latency | Ratio) -> list[float]:
    middle = figure.median if isinstance(figure, Latency) else figure.value
    return [rounded(middle), rounded(figure.low), rounded(figure.high)]
