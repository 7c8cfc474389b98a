"""TFLOP/s against tokens, where others published TFLOP/s of the same lengths: grey reference lines, never a series."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bsa_bench.imports.record import Published
from bsa_bench.report import axes as axis
from bsa_bench.report.kit import Kit, Plot, num_lengths, panels
from bsa_bench.report.labels import timer_label
from bsa_bench.report.page import Page, series_label
from bsa_bench.report.published import shape_words
from bsa_bench.report.tflops_plot import throughput
from bsa_bench.store.derive import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DASHES = ((0, (1, 1)), (0, (6, 2)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = "o^sDv"

Lines = dict[str, dict[int, float]]
"""TFLOP/s by length, of each label."""


def throughput_among_published(rows: Sequence[Row], kit: Kit, published: Sequence[Published]) -> Plot | None:
    """Draw TFLOP/s executed against tokens; None where no published figure lies within the axes.

    A figure is drawn in a panel if its pass, head dim and mask are the panel's, as far as its file says, and its length
    is within the panel's lengths.
    """
    timed = [row for row in rows if throughput(row)]
    shown = [(each, lines) for each in panels(timed) if (lines := matching_lines(each, kit, published))]
    if not shown:
        return None
    title = f"TFLOP/s executed, with published figures of other hardware, {kit.passes}"
    figure, all_axes = kit.page.figure(len(shown), title=title)
    looks: dict[str, int] = {}
    for axes, (each, lines) in zip(all_axes, shown, strict=True):
        kit.page.panel_title(axes, kit.shape(each[0]))
        ends = [value for points in lines.values() for value in points.values()]
        for label, points in lines.items():
            place = looks.setdefault(label, len(looks))
            _draw_reference(axes, label, points, place, kit.page, whole=num_lengths(each) == 1)
        for label, line in kit.series(each).items():
            found = [point for row in line if (point := throughput(row))]
            ends += [end for point in found for end in (point.low, point.high)]
            kit.draw_line(axes, [row.num_tokens for row in line], found, line, label=label)
        axis.tokens_axis(axes, [row.num_tokens for row in each])
        axis.plain_log_axis(axes, "y", ends)
        axes.set_ylabel(kit.page.words("TFLOP/s executed (log)", timer_label(each)))
    kit.legend(figure, all_axes, timed)
    return kit.save(figure, "tflops-published", title)


def matching_lines(rows: Sequence[Row], kit: Kit, published: Sequence[Published]) -> Lines:
    """The published throughputs within the axes of a panel with these rows, in TFLOP/s."""
    workload = rows[0].result.case.workload
    lengths = [row.num_tokens for row in rows]
    masks = {None, *("causal" if row.result.case.claims.causal else "none" for row in rows)}
    matching = [
        (length, each)
        for each in published
        if each.metric == "throughput"
        and (length := each.axes.length)
        and min(lengths) <= length <= max(lengths)
        and each.axes.length_kv in {None, length}
        and each.axes.passes == kit.passes
        and each.axes.head_dim in {None, workload.head_dim}
        and each.axes.mask in masks
    ]
    words = [set(shape_words(each)) for _, each in matching]
    shared = set.intersection(*words) if words else set()
    lines: Lines = {}
    for length, each in matching:
        own = [word for word in shape_words(each) if word not in shared or word == each.axes.dtype]
        text = f"{each.origin}: {', '.join([each.name, *own])}"
        label = series_label(text)
        lines.setdefault(label, {})[length] = each.value / 1e12
    return lines


def _draw_reference(axes: Axes, label: str, points: dict[int, float], place: int, page: Page, *, whole: bool) -> None:
    """Draw thin grey points joined by dashes; where there is one length only, a dash across the panel."""
    dash, marker = DASHES[place % len(DASHES)], MARKERS[place % len(MARKERS)]
    lengths = sorted(points)
    if whole:
        axes.axhline(points[lengths[0]], color=page.grey, linewidth=0.9, linestyle=dash, label=label, zorder=2)
        return
    axes.plot(
        lengths,
        [points[length] for length in lengths],
        color=page.grey,
        linewidth=0.9,
        linestyle=dash,
        marker=marker,
        markersize=3.5,
        markerfacecolor=page.background,
        markeredgewidth=0.9,
        label=label,
        zorder=2,
    )
