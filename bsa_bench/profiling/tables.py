"""The files of a profile that are drawn from its trace: operators and allocations as CSV, memory as a plot."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bsa_bench.profiling.trace import Allocation, OperatorTime, Span

OPERATORS_FILE, MEMORY_FILE, MEMORY_PLOT = "operators.csv", "memory.csv", "memory"
_LETTER = 0.0105
"""A letter's width in the plot, over that of the axes."""


def write_operators(operators: Iterable[OperatorTime], folder: Path) -> None:
    """Write every operator and kernel of every phase, per call, the longest first."""
    _write(
        folder / OPERATORS_FILE,
        ["phase", "kind", "name", "calls", "self_s"],
        ([each.phase, each.kind, each.name, f"{each.num_calls:g}", f"{each.self_s:.9f}"] for each in operators),
    )


def write_memory(allocations: Iterable[Allocation], folder: Path) -> None:
    """Write every change of allocated memory of a call."""
    _write(
        folder / MEMORY_FILE,
        ["time_s", "phase", "change_bytes", "allocated_bytes"],
        ([f"{each.seconds:.9f}", each.phase, each.change_bytes, each.allocated_bytes] for each in allocations),
    )


def draw_memory(allocations: Sequence[Allocation], phases: Sequence[Span], folder: Path, *, title: str) -> None:
    """Draw allocated memory over the time of a call, its phases behind it; PNG and SVG."""
    from bsa_bench.report import style
    from bsa_bench.report.axes import bytes_unit, time_unit
    from bsa_bench.report.page import Page

    page = Page()
    end_s = max((phase.end for phase in phases), default=0.0) or 1.0
    time_factor, time_name = time_unit(end_s)
    bytes_factor, bytes_name = bytes_unit(max((each.allocated_bytes for each in allocations), default=0))
    times = [0.0, *(each.seconds * time_factor for each in allocations), end_s * time_factor]
    levels = [0.0, *(each.allocated_bytes * bytes_factor for each in allocations)]
    levels.append(levels[-1])
    with page.settings():
        figure, (axes,) = page.figure(1, title="Memory of one call, under the profiler")
        page.panel_title(axes, title)
        axes.step(times, levels, where="post", color=style.BLUE)
        axes.fill_between(times, levels, step="post", color=style.BLUE, alpha=0.18, linewidth=0)
        for index, phase in enumerate(phases):
            if index % 2:
                axes.axvspan(phase.start * time_factor, phase.end * time_factor, color="#F1F1F1", zorder=0)
            axes.axvline(phase.start * time_factor, color=style.GREY, linewidth=0.6, zorder=1)
            words = phase.name.split("_")
            if (phase.end - phase.start) / end_s >= _LETTER * max(map(len, words)):  # there is room for its name
                middle = (phase.start + phase.end) / 2 * time_factor
                axes.annotate(
                    "\n".join(words),
                    (middle, 0.985),
                    xycoords=("data", "axes fraction"),
                    ha="center",
                    va="top",
                    fontsize=9,
                    color=style.GREY,
                )
        axes.set_xlim(0, end_s * time_factor)
        axes.set_ylim(min(0.0, *levels), (max(levels) * 1.18) or 1)
        axes.set_xlabel(f"Time since the call began [{time_name}]")
        axes.set_ylabel(f"Allocated above the inputs [{bytes_name}]")
        page.save(figure, folder, MEMORY_PLOT)


def _write(path: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(rows)
