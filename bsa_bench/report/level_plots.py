"""Plots of what was measured as such: latency and memory against tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from bsa_bench.report import axes as axis_of
from bsa_bench.report.kit import Kit, Plot, Point, doubts, num_lengths, panels
from bsa_bench.report.labels import timer_label
from bsa_bench.store.derive import Row
from bsa_bench.units import three_digits

if TYPE_CHECKING:
    from matplotlib.axes import Axes

APART = 0.04  # octaves between lines that would hide one another


def latency(rows: Sequence[Row], kit: Kit) -> Plot | None:
    """Draw the median latency with its interval, log-log."""
    factor, unit = axis_of.time_unit(max((row.whole.high for row in rows if row.whole), default=0.0))

    def value(row: Row) -> Point | None:
        whole = row.whole
        return Point(whole.median * factor, whole.low * factor, whole.high * factor) if whole and whole.low else None

    def axis(shown: Sequence[Row]) -> str:
        return kit.page.words(f"Median latency [{unit}] (log)", timer_label(shown))

    return _levels(rows, kit, "latency", f"Latency, {kit.passes}", value=value, axis=axis)


def memory(rows: Sequence[Row], kit: Kit) -> Plot | None:
    """Draw the peak memory above the inputs, log-log; lines stand a little apart, for many would coincide."""
    peaks = [m.peak_above_inputs_bytes for row in rows if (m := row.result.memory) and m.peak_above_inputs_bytes]
    factor, unit = axis_of.bytes_unit(max(peaks, default=0))

    def value(row: Row) -> Point | None:
        peak = row.result.memory.peak_above_inputs_bytes if row.result.memory else None
        return Point(peak * factor, peak * factor, peak * factor) if peak else None

    def axis(_: Sequence[Row]) -> str:
        return f"Peak above inputs [{unit}] (log)" if kit.page.is_paper else f"Peak memory above inputs [{unit}] (log)"

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
    if listed:
        figure, lines = kit.page.stack([len(each) for each in shown], title=title)
        all_axes = [line[0] for line in lines]
    else:
        figure, all_axes = kit.page.figure(len(shown), title=title)
    for axes, each in zip(all_axes, shown, strict=True):
        points = {id(row): point for row in each if (point := value(row))}
        ends = [end for point in points.values() for end in (point.low, point.high)]
        if num_lengths(each) == 1:
            _list_points(axes, each, points, kit)
            axis_of.plain_log_axis(axes, "x", ends, most=5 if kit.page.is_paper else 10)
            axes.set_xlabel(axis(each))
            continue
        series = kit.series(each)
        for place, (label, line) in enumerate(series.items()):
            shift = 2 ** (apart * (place - (len(series) - 1) / 2))
            lengths = [row.num_tokens * shift for row in line]
            kit.draw_line(axes, lengths, [points[id(row)] for row in line], line, label=label)
        kit.page.panel_title(axes, kit.shape(each[0]))
        axis_of.tokens_axis(axes, [row.num_tokens for row in each])
        if apart and len(series) > 1 and not kit.page.is_paper:
            axes.set_xlabel("Tokens (log2; lines are set a little apart, for some coincide)")
        axis_of.plain_log_axis(axes, "y", ends)
        axes.set_ylabel(axis(each))
    drawn = [row for each in shown for row in each]
    kit.legend(figure, [] if listed else all_axes, drawn)
    return kit.save(figure, kind, title)


def _list_points(axes: Axes, rows: Sequence[Row], points: dict[int, Point], kit: Kit) -> None:
    """Draw one row below another, the lowest figure on top."""
    kit.page.panel_title(axes, kit.shape(rows[0], with_tokens=True), width=60)
    ordered = sorted(rows, key=lambda row: points[id(row)].middle, reverse=True)
    for y, row in enumerate(ordered):
        point, look = points[id(row)], kit.looks[kit.merged_label(row)]
        bars = [[point.middle - point.low], [point.high - point.middle]]
        axes.errorbar([point.middle], [y], xerr=bars, elinewidth=1.2, **look.line)
        if doubts(row):
            axes.plot([point.middle], [y], **look.hollow(kit.page.background))
        where = axes.get_yaxis_transform()
        axes.text(1.01, y, three_digits(point.middle), transform=where, va="center", fontsize=kit.page.small)
    kit.page.row_labels(axes, [kit.label(row) for row in ordered], up=1.0)
    axes.set_ylim(-0.6, len(ordered) - 0.4)
