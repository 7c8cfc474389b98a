"""The samples as they came: in order, process by process, with the clock and with what disturbed them."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from bsa_bench.report import axes as axis
from bsa_bench.report import style
from bsa_bench.report.kit import Kit, Plot, doubts
from bsa_bench.result import Result, Timing
from bsa_bench.store.derive import DISTURBED_SHARE, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_PANELS = {"screen": 12, "paper": 4}


def samples(rows: Sequence[Row], kit: Kit) -> Plot | None:
    """Draw a panel for each row; where there are too many, those of the longest workloads."""
    timed = sorted((row for row in rows if row.timings), key=lambda row: row.num_tokens, reverse=True)
    shown = timed[: MAX_PANELS[kit.page.style]]
    if not shown:
        return None
    title = f"Samples in order, {kit.passes}"
    left_out = f" ({len(shown)} of {len(timed)} rows; --case shows others)" if len(shown) < len(timed) else ""
    figure, all_axes = kit.page.figure(len(shown), title=title + left_out, height=2.6)
    for axes, row in zip(all_axes, shown, strict=True):
        kit.page.panel_title(axes, f"{kit.label(row)}, {row.num_tokens:,} tokens", width=60)
        _draw_row(axes, row, kit)
    columns = 1 if kit.page.is_paper else min(len(shown), 2)
    for axes in all_axes[-columns:]:
        axes.set_xlabel("Sample, in order")
    entries = [*_clock_entries(shown, kit), *kit.share_note(len(shown), len(timed))]
    kit.legend(figure, all_axes, shown, more=entries)
    return kit.save(figure, "samples", title)


def _draw_row(axes: Axes, row: Row, kit: Kit) -> None:
    """Draw the samples of each process behind those of the one before, its median, and what disturbed it."""
    look = kit.looks[kit.merged_label(row)]
    measured = [(each, each.timing) for each in row.processes if each.timing]
    factor, unit = axis.time_unit(max(max(timing.samples) for _, timing in measured))
    starts = [0]
    marker: dict[str, Any] = {"marker": "o", "markersize": 3, "linestyle": "none", "color": look.colour, "zorder": 3}
    if doubts(row):
        marker["markerfacecolor"] = kit.page.background
    for result, timing in measured:
        start, end = starts[-1], starts[-1] + len(timing.samples)
        own = [sample * factor for sample in timing.samples]
        axes.plot(range(start + 1, end + 1), own, **marker)
        axes.plot([start + 0.5, end + 0.5], [median(own)] * 2, color=kit.page.ink, linewidth=1.2, zorder=2)
        _mark_disturbance(axes, result, timing, (start + 0.5, end + 0.5), kit)
        starts.append(end)
    for place in starts[1:-1]:
        axes.axvline(place + 0.5, color=kit.page.grey, linewidth=0.7, zorder=1)
    if len(measured) > 1:
        for (result, _), start, end in zip(measured, starts, starts[1:], strict=False):
            _write(axes, (start + end + 1) / 2, 0.98, str(result.process_index + 1), kit, va="top")
    low, high = axes.get_ylim()
    # Room for the texts above and below.
    axes.set_ylim(low - 0.22 * (high - low) * (row.is_disturbed or row.is_throttled), high + 0.2 * (high - low))
    axes.set_xlim(0.5, starts[-1] + 0.5)
    axes.locator_params(axis="x", nbins=6, integer=True)
    axes.locator_params(axis="y", nbins=5)
    axes.set_ylabel(f"Latency [{unit}]")
    _draw_clock(axes, [(each, len(timing.samples)) for each, timing in measured], kit)


def _write(axes: Axes, x: float, height: float, text: str, kit: Kit, *, va: str) -> None:
    """Write a text at a sample, at a share of the panel's height."""
    box = {"facecolor": kit.page.background, "edgecolor": "none", "pad": 0.8}
    where = axes.get_xaxis_transform()
    axes.text(x, height, text, transform=where, ha="center", va=va, fontsize=kit.page.small, bbox=box, zorder=5)


def _mark_disturbance(axes: Axes, result: Result, timing: Timing, ends: tuple[float, float], kit: Kit) -> None:
    """Hatch the stretch of a process that others disturbed, or that the device throttled, and write by how much."""
    state = result.state
    share = (state.other_cpu_share or 0.0) if state and timing.timer == "host" else 0.0
    throttled_s = sum((state.throttle_ns or {}).values()) / 1e9 if state else 0.0
    hatched: dict[str, Any] = {
        "facecolor": "none",
        "edgecolor": kit.page.grey,
        "alpha": 0.35,
        "linewidth": 0,
        "zorder": 0,
    }
    texts = []
    if share > DISTURBED_SHARE:
        axes.axvspan(*ends, hatch="///", **hatched)
        texts.append(f"{100 * share:.0f}%")
    if throttled_s > 0:
        axes.axvspan(*ends, hatch="xxx", **hatched)
        texts.append(f"{throttled_s:.2g} s")
    if texts:
        _write(axes, sum(ends) / 2, 0.03, ", ".join(texts), kit, va="bottom")


def _draw_clock(axes: Axes, processes: Sequence[tuple[Result, int]], kit: Kit) -> None:
    """Draw the SM clock of each process, its lowest to its highest and its median, on an axis of its own."""
    if not any(result.state and result.state.sm_clock_hz for result, _ in processes):
        return
    twin = axes.twinx()
    colour, start = kit.page.colour(style.VERMILLION), 0.5
    highest = 0.0
    for result, count in processes:
        clock = result.state.sm_clock_hz if result.state else None
        if clock:
            low, middle, high = (value / 1e9 for value in clock)
            highest = max(highest, high)
            twin.fill_between([start, start + count], low, high, color=colour, alpha=0.25, linewidth=0)
            twin.plot([start, start + count], [middle] * 2, color=colour, linestyle="--", linewidth=1.2)
        start += count
    # Above the samples, where it hides none.
    twin.set_ylim(0, highest * 1.1)
    twin.grid(visible=False)
    twin.spines["right"].set_visible(True)
    twin.set_ylabel("SM clock [GHz]")


def _clock_entries(rows: Sequence[Row], kit: Kit) -> list[object]:
    """The legend: only of what is there."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    grey, ink, clock = kit.page.grey, kit.page.ink, kit.page.colour(style.VERMILLION)
    found: list[object] = [
        Line2D([], [], color=grey, marker="o", markersize=3, linestyle="none", label="sample"),
        Line2D([], [], color=ink, linewidth=1.2, label="median of a process"),
    ]
    if any(row.num_processes > 1 for row in rows):
        found.append(Line2D([], [], color=grey, linewidth=0.7, label="next process; its number on top"))
    if any(row.is_disturbed for row in rows):
        label = "disturbed: others took this share of the processor"
        found.append(Patch(facecolor="none", edgecolor=grey, hatch="///", alpha=0.6, label=label))
    if any(row.is_throttled for row in rows):
        found.append(Patch(facecolor="none", edgecolor=grey, hatch="xxx", alpha=0.6, label="throttled for so long"))
    states = [each.state for row in rows for each in row.processes if each.state]
    if any(state.sm_clock_hz for state in states):
        found.append(Line2D([], [], color=clock, linestyle="--", linewidth=1.2, label="SM clock, median"))
        found.append(Patch(facecolor=clock, alpha=0.25, label="SM clock, lowest to highest"))
    else:
        found.append(Line2D([], [], linestyle="none", label="no clock was recorded"))
    return found
