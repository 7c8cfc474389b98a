"""The look of the plots: a palette for colour-blind readers, one look a series, axes that say their unit."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito, "Color universal design", 2008; its yellow is left out, too pale on white.
BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
BLACK, ORANGE, SKY = "#000000", "#E69F00", "#56B4E9"
GREY = "#6B6B6B"
SPARSE_COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
#: What stands for those that a dark page would swallow.
ON_DARK = {BLACK: "#F2F2F2", GREY: "#A9A9A9", BLUE: "#3D9BE0"}
DENSE_COLOURS = (BLACK, ORANGE, SKY, PURPLE, GREEN, VERMILLION, BLUE)
MARKERS = "osD^vPX<>*hp"
RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titlecolor": GREY,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.7,
    "lines.markersize": 6.5,
    "errorbar.capsize": 2.5,
    "savefig.facecolor": "white",
    "hatch.linewidth": 0.7,
    "svg.hashsalt": "bsa-bench",
}
PNG_DPI = 160
# Mantissas of a logarithmic axis in tenths, coarse to fine.
TICK_TENTHS: tuple[Sequence[int], ...] = (
    (10,),
    (10, 30),
    (10, 20, 50),
    range(10, 100, 10),
    range(10, 100, 5),
    range(10, 100),
)


@dataclass(frozen=True)
class Look:
    """How one series is drawn; the same in all plots of a report. Dense rows are hollow and dashed."""

    colour: str
    marker: str
    is_dense: bool

    @property
    def line(self) -> dict[str, Any]:
        """Keywords for `plot` and `errorbar`."""
        return {
            "color": self.colour,
            "marker": self.marker,
            "linestyle": (0, (4, 2)) if self.is_dense else "-",
            "markerfacecolor": "white" if self.is_dense else self.colour,
            "markeredgecolor": self.colour,
            "zorder": 3,
        }


def looks(series: dict[str, bool]) -> dict[str, Look]:
    """Give each series (label -> whether it is dense) a look.

    Colours run apart for sparse and dense, and no marker recurs before all are used.
    """
    found: dict[str, Look] = {}
    counts = {True: 0, False: 0}
    for name, dense in series.items():
        palette = DENSE_COLOURS if dense else SPARSE_COLOURS
        found[name] = Look(palette[counts[dense] % len(palette)], MARKERS[len(found) % len(MARKERS)], dense)
        counts[dense] += 1
    return found


def new_figure(panels: int, *, title: str, height: float = 4.6) -> tuple[Figure, list[Axes]]:
    """Make a figure of one panel, or of two a row, without pyplot's global state."""
    from matplotlib.figure import Figure

    columns = min(panels, 2)
    lines = math.ceil(panels / columns)
    figure = Figure(figsize=(8.2 if columns == 1 else 11.5, height * lines), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=12.5, fontweight="bold")
    grid = figure.subplots(lines, columns, squeeze=False)
    axes = list(grid.flat)
    for spare in axes[panels:]:
        spare.remove()
    return figure, axes[:panels]


def new_stack(bars: Sequence[int], *, title: str) -> tuple[Figure, list[Axes]]:
    """Make a figure of panels one below another, each as high as its number of bars asks for."""
    from matplotlib.figure import Figure

    heights = [0.34 * count + 0.3 for count in bars]
    figure = Figure(figsize=(8.2, sum(heights) + 0.55 * len(bars) + 0.9), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=12.5, fontweight="bold")
    return figure, list(figure.subplots(len(bars), 1, squeeze=False, height_ratios=heights).flat)


def panel_title(axes: Axes, text: str, *, width: int | None = None) -> None:
    """Set a panel's title, in lines of `width` letters, or of as many as fit in the panel."""
    grid = axes.get_gridspec()
    fitting = 48 if grid and grid.ncols > 1 else 84
    axes.set_title("\n".join(textwrap.wrap(text, width or fitting)))


def save(figure: Figure, folder: Path, name: str) -> tuple[Path, Path]:
    """Write PNG and SVG; the same figure gives the same bytes."""
    png, svg = folder / f"{name}.png", folder / f"{name}.svg"
    figure.savefig(png, dpi=PNG_DPI, metadata={"Software": None})
    figure.savefig(svg, metadata={"Date": None, "Creator": None})
    return png, svg


def legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend beside the panels, where it hides no data; lines stand in the order of their right ends."""
    entries: dict[str, Any] = {}
    for each in axes:
        for handle, label in zip(*each.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    names = sorted(entries, key=lambda name: _right_end(entries[name]), reverse=True)
    figure.set_figheight(max(figure.get_figheight(), 0.9 + 0.21 * len(names)))
    figure.legend([entries[n] for n in names], names, loc="outside right center", handlelength=2.8)


def _right_end(handle: Any) -> float:
    """Height of the last point of a line or an errorbar, infinite without points; the same for all bars."""
    line = handle.lines[0] if hasattr(handle, "has_yerr") else handle
    if not hasattr(line, "get_ydata"):
        return 0.0
    heights = line.get_ydata()
    return float(heights[-1]) if len(heights) else math.inf


def annotate_points(figure: Figure, axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Write a text beside each point where it covers neither a point nor another text; where there is no room, none."""
    size, gap = 8.0, 7.0
    figure.draw_without_rendering()
    scale = figure.dpi / 72
    centres = [axes.transData.transform((x, y)) / scale for x, y, _ in points]
    taken = [Box(x - 5, y - 5, x + 5, y + 5) for x, y in centres]
    frame = axes.get_window_extent()
    for (px, py), (x, y, text) in zip(centres, points, strict=True):
        width = 0.6 * size * len(text)
        for dx, dy, align in (
            (gap, 0.0, "left"),
            (-gap, 0.0, "right"),
            (0.0, gap + 2, "center"),
            (0.0, -gap - 2, "center"),
        ):
            left = px + dx - {"left": 0.0, "right": width, "center": width / 2}[align]
            box = Box(left, py + dy - size / 2, left + width, py + dy + size / 2)
            if box.left * scale < frame.x0 or box.right * scale > frame.x1 or any(map(box.overlaps, taken)):
                continue
            axes.annotate(
                text, (x, y), (dx, dy), textcoords="offset points", ha=align, va="center", fontsize=size, color=GREY
            )
            taken.append(box)
            break


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


def ratio_axis(axes: Axes, values: Sequence[float]) -> None:
    """A log2 axis of speed-ups, with a line at 1: `0.5x, 1x, 2x`; quarter steps where the values span little."""
    axes.axhline(1, color=GREY, linewidth=1.1, zorder=1, label="fastest dense (1x)")
    axes.set_yscale("log", base=2)
    low, high = math.log2(min([*values, 1.0])), math.log2(max([*values, 1.0]))
    margin = max(0.06 * (high - low), 0.1)
    axes.set_ylim(2 ** (low - margin), 2 ** (high + margin))
    steps = range(math.floor(low - margin), math.ceil(high + margin) + 1)
    fine = (1.0, 1.25, 1.5, 1.75) if len(steps) <= 3 else (1.0,)
    ticks = [t for s in steps for f in fine if low - margin <= math.log2(t := f * 2.0**s) <= high + margin]
    fix_ticks(axes, "y", ticks, [f"{t:g}x" for t in ticks])


def plain_log_axis(axes: Axes, which: str, values: Sequence[float]) -> None:
    """A log10 axis with the coarsest round ticks that number at least three, with thousands separators."""
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
    fix_ticks(axes, which, ticks, [f"{t:,.10g}" for t in ticks])


def fix_ticks(axes: Axes, which: str, ticks: Sequence[float], texts: Sequence[str]) -> None:
    """Put exactly these ticks, and no minor ones."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_ticks(list(ticks), labels=list(texts))
    axis.set_ticks([], minor=True)


def time_unit(longest_s: float) -> tuple[float, str]:
    """The factor and the name of the unit in which a plot shows times."""
    return (1.0, "s") if longest_s >= 10 else (1e3, "ms") if longest_s >= 1e-3 else (1e6, "us")


def bytes_unit(largest: float) -> tuple[float, str]:
    """The factor and the name of the unit in which a plot shows memory."""
    return (2.0**-30, "GiB") if largest >= 2**31 else (2.0**-20, "MiB")
