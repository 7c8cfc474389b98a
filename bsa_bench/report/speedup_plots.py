"""Plots of speed-ups: against tokens and against density, with what the density alone would give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bsa_bench.report import axes as axis
from bsa_bench.report.kit import Kit, Plot, num_lengths, panels, speedups
from bsa_bench.report.labels import timer_label
from bsa_bench.store.break_even import BreakEven, break_even_densities, break_even_lengths
from bsa_bench.store.derive import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

IDEAL_LINES = (":", "-.", (0, (1, 4)))


def speedup_by_tokens(rows: Sequence[Row], kit: Kit) -> Plot | None:
    """Draw speed-up against tokens, with the ideal and the break-even, for each shape with several lengths."""
    shown = [each for each in panels(compared(rows)) if num_lengths(each) > 1]
    if not shown:
        return None
    title = f"Speed-up over the fastest dense attention, {kit.passes}"
    figure, all_axes = kit.page.figure(len(shown), title=title)
    options = {kit.setting(row): None for each in shown for row in each}
    lines = dict(zip(options, IDEAL_LINES, strict=False)) if len(options) <= len(IDEAL_LINES) else {}
    for axes, each in zip(all_axes, shown, strict=True):
        kit.page.panel_title(axes, kit.shape(each[0]))
        _draw_ideals(axes, each, kit, lines)
        for label, line in kit.series(each).items():
            lengths = [float(row.num_tokens) for row in line]
            kit.draw_line(axes, lengths, speedups(line), line, label=label, of_ratios=True)
        axis.tokens_axis(axes, [row.num_tokens for row in each])
        _speedup_axis(axes, each, kit)
    found = [point for each in shown for point in break_even_lengths(each)]
    marks = _mark_break_evens(all_axes, shown, kit, found, "lengths")
    kit.legend(figure, all_axes, _all(shown), of_ratios=True, more=marks)
    _annotate_break_evens(figure, all_axes, shown, kit, found, lambda at: f"{axis.round_tokens(at):,}")
    return kit.save(figure, "speedup", title)


def speedup_by_density(rows: Sequence[Row], kit: Kit) -> Plot | None:
    """Draw speed-up against realised density, with the ideal, where one series has at least two densities."""
    by_workload = panels(compared(rows), key=lambda row: row.result.case.workload.digest)
    shown = [
        each
        for each in by_workload
        if max(len({row.density for row in line}) for line in kit.series(each, merged=True).values()) > 1
    ]
    if not shown or not kit.labels.density:
        return None
    title = f"Speed-up over the fastest dense, against density, {kit.passes}"
    figure, all_axes = kit.page.figure(len(shown), title=title)
    for axes, each in zip(all_axes, shown, strict=True):
        kit.page.panel_title(axes, kit.shape(each[0], with_tokens=True))
        densities = sorted({row.density for row in each if row.density})
        ideal = [1 / density for density in densities]
        axes.plot(densities, ideal, color=kit.page.grey, linestyle=":", label="ideal, 1/density", zorder=2)
        for label, line in kit.series(each, merged=True).items():
            line.sort(key=lambda row: row.density or 1.0)
            xs = [row.density or 1.0 for row in line]
            kit.draw_line(axes, xs, speedups(line), line, label=label, of_ratios=True)
        axis.plain_log_axis(axes, "x", densities)
        _speedup_axis(axes, each, kit)
        short, long = "Realised density (log)", "Realised density: pairs computed / all pairs (log)"
        axes.set_xlabel(short if kit.page.is_paper else long)
    found = [point for each in shown for point in break_even_densities(each)]
    marks = _mark_break_evens(all_axes, shown, kit, found, "densities")
    kit.legend(figure, all_axes, _all(shown), of_ratios=True, more=marks)
    _annotate_break_evens(figure, all_axes, shown, kit, found, lambda at: f"{1 / at:.2g}")
    return kit.save(figure, "density", title)


def compared(rows: Sequence[Row]) -> list[Row]:
    """The sparse rows that have a speed-up over a dense one, and a density that says what to expect."""
    return [row for row in rows if not row.is_dense and row.speedup and row.ideal_speedup]


def _speedup_axis(axes: Axes, rows: Sequence[Row], kit: Kit) -> None:
    ends = [end for point in speedups(rows) for end in (point.low, point.high)]
    ends += [row.ideal_speedup for row in rows if row.ideal_speedup]
    axis.ratio_axis(axes, ends, colour=kit.page.grey)
    short = "Speed-up (log2)" if kit.page.is_paper else "Speed-up, whole operator (log2)"
    axes.set_ylabel(kit.page.words(short, timer_label(rows)))


def _draw_ideals(axes: Axes, rows: Sequence[Row], kit: Kit, lines: dict[str, Any]) -> None:
    """Draw 1/density: a grey line a set of options, or, where those are too many, a dash in each row's colour."""
    ideals: dict[str, dict[int, float]] = {}
    for row in rows:
        ideals.setdefault(kit.setting(row), {})[row.num_tokens] = row.ideal_speedup or 1.0
    grey = kit.page.grey
    if lines and all(len(points) > 1 for points in ideals.values()):
        for options, points in ideals.items():
            label = f"ideal, 1/density ({options})" if options else "ideal, 1/density"
            lengths = sorted(points)
            axes.plot(
                lengths, [points[n] for n in lengths], color=grey, linestyle=lines[options], label=label, zorder=2
            )
        return
    for row in rows:
        colour = kit.looks[kit.label(row)].colour
        axes.plot([row.num_tokens], [row.ideal_speedup or 1.0], color=colour, marker="_", markersize=16, zorder=2)
    axes.plot([], [], color=grey, marker="_", markersize=16, linestyle="none", label="ideal, 1/density")


def _mark_break_evens(
    all_axes: Sequence[Axes], shown: Sequence[Sequence[Row]], kit: Kit, found: Sequence[BreakEven], axis_name: str
) -> list[Any]:
    """Mark each interpolated break-even on the line of 1x; returns the legend's entry, which says so where none is."""
    from matplotlib.lines import Line2D

    size = 9 if kit.page.is_paper else 13
    line: dict[str, Any] = {"marker": "|", "markersize": size, "markeredgewidth": size / 6, "linestyle": "none"}
    num_marked = 0
    for axes, x, break_even in _places(all_axes, shown, found):
        look = kit.looks[_series_label(break_even, kit, axis_name)]
        axes.plot([x], [1.0], color=look.colour, zorder=5, **line)
        num_marked += 1
    if num_marked:
        return [Line2D([], [], color=kit.page.grey, label="break-even, interpolated", **line)]
    return [Line2D([], [], linestyle="none", label=f"no break-even within these {axis_name}")]


def _annotate_break_evens(
    figure: Figure,
    all_axes: Sequence[Axes],
    shown: Sequence[Sequence[Row]],
    kit: Kit,
    found: Sequence[BreakEven],
    text: Any,
) -> None:
    for axes in all_axes:
        points = [(x, 1.0, text(each.at)) for own, x, each in _places(all_axes, shown, found) if own is axes]
        left, right = axes.get_xlim()
        kit.annotate(figure, axes, points, avoid=[((left, 1.0), (right, 1.0))])


def _places(
    all_axes: Sequence[Axes], shown: Sequence[Sequence[Row]], found: Sequence[BreakEven]
) -> list[tuple[Axes, float, BreakEven]]:
    """The axes and the place on them of each interpolated break-even; a break-even along 1/density at its density."""
    places = []
    for each in found:
        if each.at is None or not each.is_interpolated:
            continue
        axes = next(
            axes for axes, rows in zip(all_axes, shown, strict=True) if any(row is each.rows[0] for row in rows)
        )
        is_density = len({row.num_tokens for row in each.rows}) == 1
        places.append((axes, 1 / each.at if is_density else each.at, each))
    return places


def _series_label(break_even: BreakEven, kit: Kit, axis_name: str) -> str:
    row = break_even.rows[0]
    return kit.label(row) if axis_name == "lengths" else kit.merged_label(row)


def _all(shown: Sequence[Sequence[Row]]) -> list[Row]:
    return [row for each in shown for row in each]
