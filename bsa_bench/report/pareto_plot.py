"""What speed costs: the error to dense attention against the time, and which rows no other one beats in both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bsa_bench.report import axes as axis
from bsa_bench.report.kit import Kit, Plot, Point, panels
from bsa_bench.report.labels import timer_label
from bsa_bench.store.derive import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ERROR_LABEL = "Error against dense attention (relative L2)"


def pareto(rows: Sequence[Row], kit: Kit) -> Plot | None:
    """Draw the error against dense attention over the latency, a panel for each workload: down and left is better."""
    known = [row for row in rows if not row.is_dense and row.is_correct and _error(row) is not None]
    shown = panels(known, key=lambda row: row.result.case.workload.digest)
    if not shown:
        return None
    title = f"Error against time, {kit.passes}"
    figure, all_axes = kit.page.figure(len(shown), title=title)
    factor, unit = axis.time_unit(max(row.whole.high for row in known if row.whole))
    for axes, each in zip(all_axes, shown, strict=True):
        beside = ", with its density" if kit.labels.density and not kit.page.is_paper else ""
        kit.page.panel_title(axes, f"{kit.shape(each[0], with_tokens=True)}{beside}")
        times = [time for row in each if row.whole for time in (row.whole.low, row.whole.high) if time > 0]
        base = next((row.dense for row in each if row.dense), None)
        if base and base.whole:
            times.append(base.whole.median)
            dense = f"fastest dense ({kit.label(base)}), error 0"
            axes.axvline(base.whole.median * factor, color=kit.page.grey, linewidth=1.1, label=dense, zorder=1)
        _draw_frontier(axes, each, factor, kit)
        for label, line in kit.series(each, merged=True).items():
            _draw_points(axes, line, factor, kit, label)
        axis.plain_log_axis(axes, "x", [time * factor for time in times])
        errors = [_error(row) or 0.0 for row in each]
        if min(errors) > 0 and max(errors) / min(errors) > 10:
            axis.plain_log_axis(axes, "y", errors)
        else:
            axes.set_ylim(0, (max(errors) or 1e-6) * 1.2)
            axes.locator_params(axis="y", nbins=6)
        axes.set_ylabel("Error to dense (rel. L2)" if kit.page.is_paper else ERROR_LABEL)
        axes.set_xlabel(kit.page.words(f"Median latency [{unit}] (log)", timer_label(each)))
    kit.legend(figure, all_axes, known)
    for axes, each in zip(all_axes, shown, strict=True):
        points = [
            (row.whole.median * factor, _error(row) or 0.0, f"{row.density:.2g}")
            for row in each
            if row.whole and row.density and kit.labels.density
        ]
        bars = [
            ((row.whole.low * factor, _error(row) or 0.0), (row.whole.high * factor, _error(row) or 0.0))
            for row in each
            if row.whole
        ]
        kit.annotate(figure, axes, points, avoid=bars)
    return kit.save(figure, "pareto", title)


def _draw_points(axes: Axes, line: Sequence[Row], factor: float, kit: Kit, label: str) -> None:
    points = [Point(w.median * factor, w.low * factor, w.high * factor) for row in line if (w := row.whole)]
    errors = [_error(row) or 0.0 for row in line]
    kit.draw_line(axes, errors, points, line, label=label, joined=False, across=True)


def _draw_frontier(axes: Axes, rows: Sequence[Row], factor: float, kit: Kit) -> None:
    """Draw the stairs of the rows that no other row beats in both time and error."""
    ordered = sorted((row.whole.median * factor, _error(row) or 0.0) for row in rows if row.whole)
    best: list[tuple[float, float]] = []
    for time, error in ordered:
        if not best or error < best[-1][1]:
            best.append((time, error))
    xs, ys = [x for x, _ in best], [y for _, y in best]
    axes.plot(
        xs,
        ys,
        drawstyle="steps-post",
        color=kit.page.grey,
        linestyle=":",
        label="frontier: none is better in both",
        zorder=2,
    )


def _error(row: Row) -> float | None:
    checks = row.result.correctness
    return checks.dense.relative_l2 if checks and checks.dense else None
