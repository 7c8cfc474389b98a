"""Plots of what was measured as such: latency and memory against tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from bsa_bench.report import style
from bsa_bench.report.kit import Kit, Plot, Point, draw_line, num_lengths, panels
from bsa_bench.report.labels import shape_label, timer_label
from bsa_bench.store.derive import Row
from bsa_bench.units import three_digits

if TYPE_CHECKING:
    from matplotlib.axes import Axes

APART = 0.04  # octaves between lines that would hide one another


def latency(rows: Sequence[Row], kit: Kit) -> Plot | None:
    """Draw the median latency with its interval, log-log."""
    factor, unit = style.time_unit(max(row.whole.high for row in rows if row.whole))

    def value(row: Row) -> Point | None:
        whole = row.whole
        return Point(whole.median * factor, whole.low * factor, whole.high * factor) if whole and whole.low else None

    def axis(shown: Sequence[Row]) -> str:
        return f"Median latency [{unit}] (log)\n{timer_label(shown)}"

    return _levels(rows, kit, "latency", f"Latency, {kit.passes}", value=value, axis=axis)


def memory(rows: Sequence[Row], kit: Kit) -> Plot | None:
    """Draw the peak memory above the inputs, log-log; lines stand a little apart, for many would coincide."""
    peaks = [m.peak_above_inputs_bytes for row in rows if (m := row.result.memory) and m.peak_above_inputs_bytes]
    factor, unit = style.bytes_unit(max(peaks, default=0))

    def value(row: Row) -> Point | None:
        peak = row.result.memory.peak_above_inputs_bytes if row.result.memory else None
        return Point(peak * factor, peak * factor, peak * factor) if peak else None

    def axis(_: Sequence[Row]) -> str:
        return f"Peak memory above inputs [{unit}] (log)"

    return _levels(rows, kit, "memory", f"Peak memory, {kit.passes}", value=value, axis=axis, apart=APART)


def _levels(
    rows: Sequence[Row],
    kit: Kit,
    kind: str,
    title: str,
    *,
    value: Callable[[Row], Point | None],
    axis: Callable[[Sequence[Row]], str],
    apart: float = 0.0,
) -> Plot | None:
    """Draw lines against tokens; for a shape with a single length a list of points instead."""
    shown = panels([row for row in rows if value(row)])
    if not shown:
        return None
    listed = all(num_lengths(each) == 1 for each in shown)
    tallest = 1.6 + 0.32 * max(len(each) for each in shown)
    figure, all_axes = style.new_figure(len(shown), title=title, height=tallest if listed else 4.6)
    for axes, each in zip(all_axes, shown, strict=True):
        points = {id(row): point for row in each if (point := value(row))}
        ends = [end for point in points.values() for end in (point.low, point.high)]
        if num_lengths(each) == 1:
            _list_points(axes, each, points, kit)
            style.plain_log_axis(axes, "x", ends)
            axes.set_xlabel(axis(each))
            continue
        series = kit.series(each)
        for place, (label, line) in enumerate(series.items()):
            shift = 2 ** (apart * (place - (len(series) - 1) / 2))
            lengths = [row.num_tokens * shift for row in line]
            draw_line(axes, lengths, [points[id(row)] for row in line], label=label, look=kit.looks[label])
        style.panel_title(axes, shape_label(each[0].result.case.workload))
        style.tokens_axis(axes, [row.num_tokens for row in each])
        if apart and len(series) > 1:
            axes.set_xlabel("Tokens (log2; lines are set a little apart, for some coincide)")
        style.plain_log_axis(axes, "y", ends)
        axes.set_ylabel(axis(each))
    if not listed:
        style.legend(figure, all_axes)
    return Plot(title, *style.save(figure, kit.folder, kit.name(kind)))


def _list_points(axes: Axes, rows: Sequence[Row], points: dict[int, Point], kit: Kit) -> None:
    """Draw one row below another, the lowest figure on top."""
    workload = rows[0].result.case.workload
    style.panel_title(axes, f"{workload.num_tokens:,} tokens, {shape_label(workload)}")
    ordered = sorted(rows, key=lambda row: points[id(row)].middle, reverse=True)
    for y, row in enumerate(ordered):
        point, look = points[id(row)], kit.looks[kit.merged_label(row)]
        bars = [[point.middle - point.low], [point.high - point.middle]]
        axes.errorbar([point.middle], [y], xerr=bars, elinewidth=1.2, **look.line)
        axes.text(1.01, y, three_digits(point.middle), transform=axes.get_yaxis_transform(), va="center", fontsize=9)
    axes.set_yticks(range(len(ordered)), labels=[kit.label(row) for row in ordered])
    axes.set_ylim(-0.6, len(ordered) - 0.4)
