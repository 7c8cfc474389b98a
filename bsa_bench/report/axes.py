"""Axes that say their unit, and texts at points that cover nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Mantissas of a logarithmic axis in tenths, coarse to fine.
TICK_TENTHS: tuple[Sequence[int], ...] = (
    (10,),
    (10, 30),
    (10, 20, 50),
    range(10, 100, 10),
    range(10, 100, 5),
    range(10, 100),
)


Segment = tuple[tuple[float, float], tuple[float, float]]


def annotate_points(
    figure: Figure,
    axes: Axes,
    points: Sequence[tuple[float, float, str]],
    *,
    colour: str,
    avoid: Sequence[Segment] = (),
    size: float = 8.0,
) -> int:
    """Write a text at each point where it covers neither a point nor another text; a line leads to those further off.

    Args:
        figure, axes: where.
        points: x, y and the text.
        colour: of the texts.
        avoid: lines along x or y, by both ends, that no text may cross.
        size: of the texts, in points.

    Returns:
        How many texts found no room and were left out; the caller says so.
    """
    figure.draw_without_rendering()
    scale = figure.dpi / 72
    centres = [axes.transData.transform((x, y)) / scale for x, y, _ in points]
    frame = axes.get_window_extent()
    taken = [Box(x - 5, y - 5, x + 5, y + 5) for x, y in centres]
    for ends in avoid:
        (x0, y0), (x1, y1) = (axes.transData.transform(end) / scale for end in ends)
        taken.append(Box(min(x0, x1) - 1, min(y0, y1) - 1, max(x0, x1) + 1, max(y0, y1) + 1))
    left_out = 0
    for (px, py), (x, y, text) in zip(centres, points, strict=True):
        box = next(
            (
                box
                for box in _places(px, py, width=0.6 * size * len(text), height=size + 2)
                if frame.x0 <= box.left * scale
                and box.right * scale <= frame.x1
                and frame.y0 <= box.bottom * scale
                and box.top * scale <= frame.y1
                and not any(map(box.overlaps, taken))
            ),
            None,
        )
        if box is None:
            left_out += 1
            continue
        taken.append(box)
        dx, dy = (box.left + box.right) / 2 - px, (box.bottom + box.top) / 2 - py
        is_far = max(abs(dx) - (box.right - box.left) / 2, abs(dy) - (box.top - box.bottom) / 2) > 8
        axes.annotate(
            text,
            (x, y),
            (dx, dy),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=size,
            color=colour,
            bbox={"facecolor": axes.get_facecolor(), "edgecolor": "none", "alpha": 0.85, "pad": 0.5},
            zorder=6,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3}
            if is_far
            else None,
        )
    return left_out


def _places(x: float, y: float, *, width: float, height: float) -> Iterator[Box]:
    """Boxes round a point, the nearest first; right, left, above, below and between."""
    directions = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
    for gap in (6.0, 16.0, 28.0, 42.0, 60.0):
        for right, up in directions:
            cx = x + right * (gap + width / 2)
            cy = y + up * (gap + height / 2)
            yield Box(cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)


@dataclass(frozen=True)
class Box:
    """A rectangle in points."""

    left: float
    bottom: float
    right: float
    top: float

    def overlaps(self, other: Box) -> bool:
        """Whether the two share any area."""
        across = self.left < other.right and other.left < self.right
        return across and self.bottom < other.top and other.bottom < self.top


def tokens_axis(axes: Axes, lengths: Iterable[int]) -> None:
    """A log2 axis whose ticks are measured lengths, thinned where they would touch."""
    measured = sorted(set(lengths))
    axes.set_xscale("log", base=2)
    ends = math.log2(measured[0]), math.log2(measured[-1])
    margin = max(0.06 * (ends[1] - ends[0]), 0.15)
    axes.set_xlim(2 ** (ends[0] - margin), 2 ** (ends[1] + margin))
    gap = (ends[1] - ends[0]) / 7
    ticks: list[int] = [measured[-1]]
    for length in reversed(measured[:-1]):
        if math.log2(ticks[-1] / length) >= gap:
            ticks.append(length)
    fix_ticks(axes, "x", ticks, [f"{t:,}" for t in ticks])
    axes.set_xlabel("Tokens (log2)")


def ratio_axis(axes: Axes, values: Sequence[float], *, colour: str) -> None:
    """A log2 axis of speed-ups, with a line at 1: `0.5x, 1x, 2x`; quarter steps where the values span little."""
    axes.axhline(1, color=colour, linewidth=1.1, zorder=1, label="fastest dense (1x)")
    axes.set_yscale("log", base=2)
    low, high = math.log2(min([*values, 1.0])), math.log2(max([*values, 1.0]))
    margin = max(0.06 * (high - low), 0.1)
    axes.set_ylim(2 ** (low - margin), 2 ** (high + margin))
    steps = range(math.floor(low - margin), math.ceil(high + margin) + 1)
    fine = (1.0, 1.25, 1.5, 1.75) if len(steps) <= 3 else (1.0,)
    ticks = [t for s in steps for f in fine if low - margin <= math.log2(t := f * 2.0**s) <= high + margin]
    fix_ticks(axes, "y", ticks, [f"{t:g}x" for t in ticks])


def plain_log_axis(axes: Axes, which: str, values: Sequence[float], *, most: int = 10) -> None:
    """A log10 axis with the coarsest round ticks that number at least three, with thousands separators.

    Ticks nearer than a `most`-th of the axis to the one above are left out, so that they do not touch.
    """
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    low, high = math.log10(min(values)), math.log10(max(values))
    margin = max(0.06 * (high - low), 0.06)
    (axes.set_xlim if which == "x" else axes.set_ylim)(10 ** (low - margin), 10 ** (high + margin))
    decades = range(math.floor(low - margin), math.ceil(high + margin) + 1)
    ticks: list[float] = []
    for tenths in TICK_TENTHS:
        ticks = [
            t for d in decades for f in tenths if low - margin <= math.log10(t := f * 10.0**d / 10) <= high + margin
        ]
        if len(ticks) >= 3:
            break
    kept: list[float] = []
    for tick in reversed(ticks):
        if not kept or math.log10(kept[-1] / tick) >= (high - low + 2 * margin) / most:
            kept.append(tick)
    fix_ticks(axes, which, kept, [f"{t:,.10g}" for t in kept])


def fix_ticks(axes: Axes, which: str, ticks: Sequence[float], texts: Sequence[str]) -> None:
    """Put exactly these ticks, and no minor ones."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_ticks(list(ticks), labels=list(texts))
    axis.set_ticks([], minor=True)


def round_tokens(length: float) -> int:
    """A length that was interpolated, to two digits: 4,321 -> 4,300."""
    digits = max(math.floor(math.log10(length)) - 1, 0)
    return int(round(length, -digits))


def time_unit(longest_s: float) -> tuple[float, str]:
    """The factor and the name of the unit in which a plot shows times."""
    return (1.0, "s") if longest_s >= 10 else (1e3, "ms") if longest_s >= 1e-3 else (1e6, "us")


def bytes_unit(largest: float) -> tuple[float, str]:
    """The factor and the name of the unit in which a plot shows memory."""
    return (2.0**-30, "GiB") if largest >= 2**31 else (2.0**-20, "MiB")
