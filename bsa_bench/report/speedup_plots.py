"""Plots of speed-ups: against tokens, against density, and against the error that buys them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bsa_bench.report import style
from bsa_bench.report.kit import Kit, Plot, draw_line, num_lengths, panels, speedups
from bsa_bench.report.labels import shape_label, timer_label
from bsa_bench.store.derive import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

IDEAL_LINES = (":", "-.", (0, (1, 4)))


def speedup_by_tokens(rows: Sequence[Row], kit: Kit) -> Plot | None:
    """Draw speed-up against tokens, with the ideal, for each shape with several lengths."""
    shown = [each for each in panels(rows) if num_lengths(each) > 1]
    if not shown:
        return None
    title = f"Speed-up over the fastest dense attention, {kit.passes}"
    figure, all_axes = style.new_figure(len(shown), title=title)
    options = {kit.labels.setting(row.result.case): None for each in shown for row in each}
    lines = dict(zip(options, IDEAL_LINES, strict=False)) if len(options) <= len(IDEAL_LINES) else {}
    for axes, each in zip(all_axes, shown, strict=True):
        style.panel_title(axes, shape_label(each[0].result.case.workload))
        _draw_ideals(axes, each, kit, lines)
        for label, line in kit.series(each).items():
            lengths = [float(row.num_tokens) for row in line]
            draw_line(axes, lengths, speedups(line), label=label, look=kit.looks[label])
        style.tokens_axis(axes, [row.num_tokens for row in each])
        _speedup_axis(axes, each, with_ideal=True)
    style.legend(figure, all_axes)
    return Plot(title, *style.save(figure, kit.folder, kit.name("speedup-tokens")))


def speedup_by_density(rows: Sequence[Row], kit: Kit) -> Plot | None:
    """Draw speed-up against realised density, with the ideal, where one series has at least three densities."""
    if not kit.labels.density:
        return None
    by_workload = panels(rows, key=lambda row: row.result.case.workload.digest)
    shown = [
        each
        for each in by_workload
        if max(len({row.density for row in line}) for line in kit.series(each, merged=True).values()) > 2
    ]
    if not shown:
        return None
    title = f"Speed-up over the fastest dense, against density, {kit.passes}"
    figure, all_axes = style.new_figure(len(shown), title=title)
    for axes, each in zip(all_axes, shown, strict=True):
        workload = each[0].result.case.workload
        style.panel_title(axes, f"{workload.num_tokens:,} tokens, {shape_label(workload)}")
        densities = sorted({row.density for row in each if row.density})
        ideal = [1 / density for density in densities]
        axes.plot(densities, ideal, color=style.GREY, linestyle=":", label="ideal, 1/density", zorder=2)
        for label, line in kit.series(each, merged=True).items():
            xs = [row.density or 1.0 for row in line]
            draw_line(axes, xs, speedups(line), label=label, look=kit.looks[label])
        style.plain_log_axis(axes, "x", densities)
        _speedup_axis(axes, each, with_ideal=True)
        axes.set_xlabel("Realised density: pairs computed / all pairs (log)")
    style.legend(figure, all_axes)
    return Plot(title, *style.save(figure, kit.folder, kit.name("speedup-density")))


def error_against_speedup(rows: Sequence[Row], kit: Kit) -> Plot | None:
    """Draw speed-up against the error to dense attention: up and to the left is better."""
    known = [row for row in rows if row.result.correctness and row.result.correctness.dense]
    if not known:
        return None
    title = f"Fidelity against speed, {kit.passes}"
    shown = panels(known)
    figure, all_axes = style.new_figure(len(shown), title=title)
    for axes, each in zip(all_axes, shown, strict=True):
        style.panel_title(axes, f"{shape_label(each[0].result.case.workload)}; {_point_texts(each, kit)}")
        for label, line in kit.series(each, merged=True).items():
            errors = [_dense_error(row) for row in line]
            draw_line(axes, errors, speedups(line), label=label, look=kit.looks[label], joined=False)
        errors = [_dense_error(row) for row in each]
        if min(errors) > 0 and max(errors) / min(errors) > 10:
            style.plain_log_axis(axes, "x", errors)
        else:
            axes.set_xlim(0, (max(errors) or 1e-6) * 1.2)
            axes.locator_params(axis="x", nbins=6)
        _speedup_axis(axes, each, with_ideal=False)
        axes.set_xlabel("Error of the output against dense attention (relative L2)")
    style.legend(figure, all_axes)
    for axes, each in zip(all_axes, shown, strict=True):
        points = [(_dense_error(row), row.speedup.value, _point_text(row, each, kit)) for row in each if row.speedup]
        style.annotate_points(figure, axes, [point for point in points if point[2]])
    return Plot(title, *style.save(figure, kit.folder, kit.name("error-speedup")))


def _speedup_axis(axes: Axes, rows: Sequence[Row], *, with_ideal: bool) -> None:
    ends = [end for point in speedups(rows) for end in (point.low, point.high)]
    ends += [row.ideal_speedup for row in rows if row.ideal_speedup and with_ideal]
    style.ratio_axis(axes, ends)
    axes.set_ylabel(f"Speed-up, whole operator (log2)\n{timer_label(rows)}")


def _draw_ideals(axes: Axes, rows: Sequence[Row], kit: Kit, lines: dict[str, Any]) -> None:
    """Draw 1/density: a grey line a set of options, or, where those are too many, a dash in each row's colour."""
    ideals: dict[str, dict[int, float]] = {}
    for row in rows:
        ideals.setdefault(kit.labels.setting(row.result.case), {})[row.num_tokens] = row.ideal_speedup or 1.0
    if lines and all(len(points) > 1 for points in ideals.values()):
        for options, points in ideals.items():
            label = f"ideal, 1/density ({options})" if options else "ideal, 1/density"
            lengths = sorted(points)
            axes.plot(
                lengths, [points[n] for n in lengths], color=style.GREY, linestyle=lines[options], label=label, zorder=2
            )
        return
    for row in rows:
        colour = kit.looks[kit.label(row)].colour
        axes.plot([row.num_tokens], [row.ideal_speedup or 1.0], color=colour, marker="_", markersize=16, zorder=2)
    axes.plot([], [], color=style.GREY, marker="_", markersize=16, linestyle="none", label="ideal, 1/density")


def _dense_error(row: Row) -> float:
    checks = row.result.correctness
    assert checks is not None
    assert checks.dense is not None
    return checks.dense.relative_l2


def _point_texts(rows: Sequence[Row], kit: Kit) -> str:
    """What the texts beside the points say."""
    names = ["tokens"] * (num_lengths(rows) > 1)
    names += ["density"] * bool(kit.labels.density)
    if names:
        return f"beside the points: {', '.join(names)}"
    return f"{rows[0].num_tokens:,} tokens"


def _point_text(row: Row, rows: Sequence[Row], kit: Kit) -> str:
    parts = [f"{row.num_tokens:,}"] * (num_lengths(rows) > 1)
    if kit.labels.density and row.density:
        parts.append(f"{row.density:.2g}")
    return ", ".join(parts)
