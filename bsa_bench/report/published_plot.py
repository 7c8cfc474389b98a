"""TFLOP/s against tokens, where others published TFLOP/s of the same lengths: grey reference lines, never a series."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bsa_bench.imports.record import Published
from bsa_bench.report import style
from bsa_bench.report.kit import Kit, Plot, Point, draw_line, num_lengths, panels
from bsa_bench.report.labels import shape_label, timer_label
from bsa_bench.report.published import shape_words
from bsa_bench.store.derive import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DASHES = ((0, (1, 1)), (0, (6, 2)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = "o^sDv"
LABEL_LETTERS = 38
"""A longer label takes the next line, for the legend takes its width from the panels."""

Lines = dict[str, dict[int, float]]
"""TFLOP/s by length, of each label."""


def throughput_among_published(rows: Sequence[Row], kit: Kit, published: Sequence[Published]) -> Plot | None:
    """Draw TFLOP/s executed against tokens; None where no published figure lies within the axes.

    A figure is drawn in a panel if its pass, head dim and mask are the panel's, as far as its file says, and its length
    is within the panel's lengths.
    """
    timed = [row for row in rows if _point(row)]
    shown = [(each, lines) for each in panels(timed) if (lines := matching_lines(each, kit, published))]
    if not shown:
        return None
    title = f"TFLOP/s executed, with published figures of other hardware, {kit.passes}"
    figure, all_axes = style.new_figure(len(shown), title=title)
    looks: dict[str, int] = {}
    for axes, (each, lines) in zip(all_axes, shown, strict=True):
        style.panel_title(axes, shape_label(each[0].result.case.workload))
        ends = [value for points in lines.values() for value in points.values()]
        for label, points in lines.items():
            _draw_reference(axes, label, points, looks.setdefault(label, len(looks)), whole=num_lengths(each) == 1)
        for label, line in kit.series(each).items():
            found = [point for row in line if (point := _point(row))]
            ends += [end for point in found for end in (point.low, point.high)]
            draw_line(axes, [row.num_tokens for row in line], found, label=label, look=kit.looks[label])
        style.tokens_axis(axes, [row.num_tokens for row in each])
        style.plain_log_axis(axes, "y", ends)
        axes.set_ylabel(f"TFLOP/s executed (log)\n{timer_label(each)}")
    num_lines = sum(label.count("\n") + 1 for label in {*looks, *(kit.label(row) for row in timed)})
    figure.set_figheight(max(figure.get_figheight(), 0.9 + 0.2 * num_lines))
    style.legend(figure, all_axes)
    return Plot(title, *style.save(figure, kit.folder, kit.name("tflops-published")))


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
        label = "\n".join(textwrap.wrap(text, LABEL_LETTERS, break_on_hyphens=False)).replace("$", r"\$")
        lines.setdefault(label, {})[length] = each.value / 1e12
    return lines


def _draw_reference(axes: Axes, label: str, points: dict[int, float], place: int, *, whole: bool) -> None:
    """Draw thin grey points joined by dashes; where there is one length only, a dash across the panel."""
    dash, marker = DASHES[place % len(DASHES)], MARKERS[place % len(MARKERS)]
    lengths = sorted(points)
    if whole:
        axes.axhline(points[lengths[0]], color=style.GREY, linewidth=0.9, linestyle=dash, label=label, zorder=2)
        return
    axes.plot(
        lengths,
        [points[length] for length in lengths],
        color=style.GREY,
        linewidth=0.9,
        linestyle=dash,
        marker=marker,
        markersize=3.5,
        markerfacecolor="white",
        markeredgewidth=0.9,
        label=label,
        zorder=2,
    )


def _point(row: Row) -> Point | None:
    """TFLOP/s executed, with the ends of the latency's interval."""
    work, whole = row.result.work, row.whole
    if work is None or not work.flops_executed or whole is None or not whole.low:
        return None
    tflop = work.flops_executed / 1e12
    return Point(tflop / whole.median, tflop / whole.high, tflop / whole.low)
