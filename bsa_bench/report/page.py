"""The page that plots are drawn on: for a screen, with titles, or for one column of a paper; light or dark."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bsa_bench.report import style
from bsa_bench.report.style import Format, StyleName, Theme
from bsa_bench.text import num_cells, shortened, visible, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase

COLUMN_INCHES = 3.35
LEGEND_LETTERS = 36
"""On a screen a longer label takes the next line, for the legend takes its width from the panels."""
PAPER_LETTERS, LABEL_LETTERS, TITLE_LETTERS = 48, 72, 144
"""Longer ones are shortened in the middle: on paper, beside a row, and in titles and legends."""
LINE_LETTERS = 50
"""A longer label of a row takes several lines, of `LEGEND_LETTERS`."""


@dataclass(frozen=True)
class Page:
    """A style, a theme and the formats that each figure is written in.

    `screen` has a title, several panels in a row and a legend at the right; `paper` has neither title nor second lines,
    a column of 3.35 in, 8 pt throughout, and the legend below.
    """

    style: StyleName = "screen"
    theme: Theme = "light"
    formats: tuple[Format, ...] = ("png", "svg")

    @property
    def is_paper(self) -> bool:
        """Whether it is a column of a paper."""
        return self.style == "paper"

    @property
    def suffix(self) -> str:
        """What names of files end with, so that no page replaces another's."""
        return "-paper" * self.is_paper + "-dark" * (self.theme == "dark")

    @property
    def grey(self) -> str:
        """The colour of lines of reference and of notes."""
        return self.colour(style.GREY)

    @property
    def ink(self) -> str:
        """The colour of text."""
        return self.colour(style.BLACK)

    @property
    def background(self) -> str:
        """The colour of the page."""
        return style.BACKGROUNDS[self.theme]

    @property
    def small(self) -> float:
        """The size of notes, in points."""
        return 8.0 if self.is_paper else 9.0

    def colour(self, colour: str) -> str:
        """A colour of the palette as this page shows it."""
        return style.themed(colour, self.theme)

    def words(self, short: str, *more: str) -> str:
        """A label: all lines on a screen, the first on paper."""
        return short if self.is_paper else "\n".join([short, *more])

    @contextmanager
    def settings(self) -> Iterator[None]:
        """Have matplotlib draw with this page's settings."""
        with style.drawing(self.style, self.theme):
            yield

    def figure(self, panels: int, *, title: str, height: float = 4.6, columns: int = 2) -> tuple[Figure, list[Axes]]:
        """Make a figure of one panel, or of up to `columns` a row, without pyplot's global state.

        On paper panels stand below each other, 0.52 times as high.
        """
        columns = 1 if self.is_paper else min(panels, columns)
        lines = math.ceil(panels / columns)
        width = COLUMN_INCHES if self.is_paper else 8.2 if columns == 1 else 11.5
        figure = self.empty_figure(width, (0.52 if self.is_paper else 1.0) * height * lines, title=title)
        grid = figure.subplots(lines, columns, squeeze=False)
        axes = list(grid.flat)
        for spare in axes[panels:]:
            spare.remove()
        return figure, axes[:panels]

    def stack(self, bars: Sequence[int], *, title: str, columns: int = 1) -> tuple[Figure, list[list[Axes]]]:
        """Make a figure of panels one below another, each as high as its number of bars asks for; rows of axes."""
        bar, frame, edge = (0.38, 0.2, 0.75) if self.is_paper else (0.34, 0.85, 0.9)
        heights = [bar * count + frame for count in bars]
        width = COLUMN_INCHES if self.is_paper else 8.2 if columns == 1 else 11.5
        figure = self.empty_figure(width, sum(heights) + edge, title=title)
        grid = figure.subplots(len(bars), columns, squeeze=False, height_ratios=heights, sharey="row")
        return figure, [list(line) for line in grid]

    def empty_figure(self, width: float, height: float, *, title: str) -> Figure:
        """Make a figure without panels; sizes in inches."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width, height), layout="constrained")
        figure.set_label(title)
        if not self.is_paper:
            figure.suptitle(wrapped(visible(title), 96), x=0.01, ha="left", fontsize=12.5, fontweight="bold")
        return figure

    def panel_title(self, axes: Axes, text: str, *, width: int | None = None) -> None:
        """Set a panel's title, in lines of `width` letters, or of as many as fit in the panel; on paper in one line."""
        grid = axes.get_gridspec()
        fitting = {1: 84, 2: 48}.get(grid.ncols if grid else 1, 32)
        shown = shortened(visible(text), PAPER_LETTERS if self.is_paper else TITLE_LETTERS)
        axes.set_title(shown if self.is_paper else wrapped(shown, width or fitting))

    def row_labels(self, axes: Axes, labels: Sequence[str], *, up: float = -1.0) -> None:
        """Label rows at 0, 1, ... at the left; on paper, where that would leave them no width, above each.

        `up` is -1 where the axis points down.
        """
        labels = [shortened(visible(label), PAPER_LETTERS if self.is_paper else LABEL_LETTERS) for label in labels]
        if not self.is_paper:
            lines = [label if num_cells(label) <= LINE_LETTERS else wrapped(label, LEGEND_LETTERS) for label in labels]
            axes.set_yticks(range(len(labels)), labels=lines)
            return
        axes.set_yticks([])
        where = axes.get_yaxis_transform()
        for y, label in enumerate(labels):
            axes.text(0.01, y + up * 0.3, label, transform=where, va="center", fontsize=self.small)

    def legend(self, figure: FigureBase, axes: Sequence[Axes], *, more: Sequence[Any] = ()) -> None:
        """One legend where it hides no data; lines stand in the order of their right ends, `more` handles behind."""
        entries: dict[str, Any] = {}
        for each in axes:
            for handle, label in zip(*each.get_legend_handles_labels(), strict=True):
                entries.setdefault(label, handle)
        names = sorted(entries, key=lambda name: _right_end(entries[name]), reverse=True)
        handles = [*(entries[name] for name in names), *more]
        if not handles:
            return
        names += [str(handle.get_label()) for handle in more]
        names = [visible(name) for name in names]
        if self.is_paper:
            self._legend_below(figure, handles, [shortened(name, PAPER_LETTERS) for name in names])
            return
        texts = [wrapped(shortened(name, TITLE_LETTERS), LEGEND_LETTERS) for name in names]
        num_lines = sum(text.count("\n") + 1 for text in texts)
        _grow(figure, 0.9 + 0.21 * num_lines)
        figure.legend(handles, texts, loc="outside right center", handlelength=2.8)

    def _legend_below(self, figure: FigureBase, handles: Sequence[Any], names: Sequence[str]) -> None:
        columns = 2 if max(map(len, names)) <= 20 else 1
        _grow(figure, 0.0, more=0.15 * math.ceil(len(names) / columns) + 0.1)
        figure.legend(
            handles,
            names,
            loc="outside lower center",
            ncols=columns,
            handlelength=2.2,
            labelspacing=0.25,
            columnspacing=1,
        )

    def save(self, figure: Figure, folder: Path, name: str) -> tuple[Path, ...]:
        """Write a figure in the page's formats."""
        return style.save(figure, folder, f"{name}{self.suffix}", self.formats)


def series_label(text: str) -> str:
    """A label that legends list; matplotlib leaves out those that begin with an underscore, so a blank precedes it."""
    return f" {visible(text)}" if text.startswith("_") else visible(text)


def _grow(figure: FigureBase, least: float, *, more: float = 0.0) -> None:
    """Make a figure at least so many inches high, or `more` higher."""
    whole = figure.get_figure(root=True)
    assert whole is not None
    whole.set_figheight(max(whole.get_figheight() + more, least))


def _right_end(handle: Any) -> float:
    """Height of the last point of a line or an errorbar, infinite without points; the same for all bars."""
    line = handle.lines[0] if hasattr(handle, "has_yerr") else handle
    if not hasattr(line, "get_ydata"):
        return 0.0
    heights = line.get_ydata()
    return float(heights[-1]) if len(heights) else math.inf
