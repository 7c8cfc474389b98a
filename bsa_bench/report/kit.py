"""What all plots share: series, panels, looks, and points with their interval bars."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bsa_bench.report import style
from bsa_bench.report.axes import Segment, annotate_points
from bsa_bench.report.labels import Labels, shape_label
from bsa_bench.report.page import Page
from bsa_bench.result import Ceiling, PassName
from bsa_bench.store.derive import Ratio, Row, scope
from bsa_bench.store.reader import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Plot:
    """A plot on disk and what it shows."""

    title: str
    files: tuple[Path, ...]

    @property
    def png(self) -> Path:
        """The file as PNG, which is there where that format was asked for."""
        return self._file(".png")

    @property
    def svg(self) -> Path:
        """The file as SVG, which is there where that format was asked for."""
        return self._file(".svg")

    def _file(self, suffix: str) -> Path:
        return next(path for path in self.files if path.suffix == suffix)


@dataclass(frozen=True)
class Source:
    """What the plots need of a run but its rows: its name, its device, and the ceilings measured before its cases."""

    run_id: str
    device_name: str
    ceilings: tuple[Ceiling, ...]

    @classmethod
    def of(cls, run: Run) -> Source:
        """Of a run as read; the ceilings of its last start that measured some."""
        ceilings = next((line.ceilings for line in reversed(run.run_lines) if line.ceilings), [])
        return cls(run.run_id, run.environment.device_name, tuple(ceilings))


@dataclass(frozen=True)
class Point:
    """A figure with its interval; `low` and `high` equal `middle` where there is none."""

    middle: float
    low: float
    high: float

    @classmethod
    def of(cls, ratio: Ratio) -> Point:
        """A speed-up as a point."""
        return cls(ratio.value, ratio.low, ratio.high)


@dataclass(frozen=True)
class Kit:
    """What the plots of one pass share.

    A label names a series with its options; a merged label leaves out the density option, so that the densities of one
    implementation make one series and share one look. Several `sources` are several runs: then a label ends with the
    name of its run.
    """

    passes: PassName
    labels: Labels
    looks: dict[str, style.Look]
    folder: Path
    page: Page = field(default_factory=Page)
    sources: tuple[Source, ...] = ()

    def label(self, row: Row) -> str:
        """The label of a row."""
        return label_of(row, self.labels, self.sources)

    def merged_label(self, row: Row) -> str:
        """The label of a row without its density."""
        return label_of(row, self.labels, self.sources, without_density=True)

    def setting(self, row: Row) -> str:
        """The part of `label` that names options, behind the method where there are several."""
        return self.labels.setting(row.result.case)

    def shape(self, row: Row, *, with_tokens: bool = False) -> str:
        """A panel's title: the workload of a row, on paper in few words."""
        workload = row.result.case.workload
        tokens = f"{workload.num_tokens:,} tokens"
        if self.page.is_paper:
            shape = f"{workload.heads}x{workload.head_dim} {workload.dtype}"
            return f"{tokens}, {shape}" if with_tokens else f"{shape}, {workload.input.label}"
        return f"{tokens}, {shape_label(workload)}" if with_tokens else shape_label(workload)

    def legend(
        self,
        figure: Figure,
        axes: Sequence[Axes],
        rows: Sequence[Row],
        *,
        of_ratios: bool = False,
        more: Sequence[Any] = (),
    ) -> None:
        """The legend of a figure, with `more` handles, and what its hollow points mean."""
        from matplotlib.lines import Line2D

        words = list(dict.fromkeys(word for row in rows for word in doubts(row, of_ratios=of_ratios)))
        hollow = Line2D(
            [],
            [],
            color=self.page.grey,
            marker="o",
            linestyle="none",
            markerfacecolor=self.page.background,
            label=f"hollow: {' or '.join(words)}",
        )
        self.page.legend(figure, axes, more=[*more, *([hollow] if words else [])])

    def share_note(self, num_shown: int, num_rows: int) -> list[Any]:
        """On paper, where no title says so, an entry of the legend that not all rows are drawn; none where all are."""
        from matplotlib.lines import Line2D

        if num_shown == num_rows or not self.page.is_paper:
            return []
        return [Line2D([], [], linestyle="none", label=f"{num_shown} of {num_rows} rows are drawn")]

    def save(self, figure: Figure, kind: str, title: str) -> Plot:
        """Write a figure as `KIND-PASS`."""
        name = f"{kind}-{self.passes.replace('+', '-')}"
        return Plot(title, self.page.save(figure, self.folder, name))

    def draw_line(
        self,
        axes: Axes,
        xs: Sequence[float],
        points: Sequence[Point],
        rows: Sequence[Row],
        *,
        label: str,
        joined: bool = True,
        of_ratios: bool = False,
        across: bool = False,
    ) -> None:
        """Draw the points of rows with their interval bars, joined by a line or not; doubtful ones hollow.

        `across`: `points` are drawn along x, and `xs` along y.
        """
        look = self.looks[label]
        line = look.line if joined else look.line | {"linestyle": "none"}
        bars = [[p.middle - p.low for p in points], [p.high - p.middle for p in points]]
        places = [(p.middle, x) if across else (x, p.middle) for x, p in zip(xs, points, strict=True)]
        own_xs, own_ys = [x for x, _ in places], [y for _, y in places]
        x_bars, y_bars = (bars, None) if across else (None, bars)
        axes.errorbar(own_xs, own_ys, xerr=x_bars, yerr=y_bars, label=label, elinewidth=1.2, **line)
        hollow = [place for place, row in zip(places, rows, strict=True) if doubts(row, of_ratios=of_ratios)]
        if hollow:
            axes.plot(*zip(*hollow, strict=True), **look.hollow(self.page.background))

    def annotate(
        self,
        figure: Figure,
        axes: Axes,
        points: Sequence[tuple[float, float, str]],
        *,
        avoid: Sequence[Segment] = (),
    ) -> None:
        """Write a text at each point, across none of the lines to avoid; where some find no room, say how many."""
        left_out = annotate_points(figure, axes, points, colour=self.page.ink, avoid=avoid)
        if left_out:
            texts = "text has" if left_out == 1 else "texts have"
            axes.annotate(
                f"{left_out} {texts} no room",
                (1, 1),
                (-2, 2),
                xycoords="axes fraction",
                textcoords="offset points",
                ha="right",
                fontsize=8,
                color=self.page.grey,
                annotation_clip=False,
            )

    def series(self, rows: Sequence[Row], *, merged: bool = False) -> dict[str, list[Row]]:
        """Rows by label, each in the order of length, then density."""
        found: dict[str, list[Row]] = {}
        for row in sorted(rows, key=lambda r: (r.num_tokens, r.density or 0)):
            found.setdefault(self.merged_label(row) if merged else self.label(row), []).append(row)
        return found


def label_of(row: Row, labels: Labels, sources: Sequence[Source], *, without_density: bool = False) -> str:
    """The label of a row: what it is, and of several runs its own."""
    label = labels.of(row.result.case, without_density=without_density)
    return f"{label} ({row.result.run_id})" if len(sources) > 1 else label


def looks(
    measured: Sequence[Row], labels: Labels, page: Page | None = None, sources: Sequence[Source] = ()
) -> dict[str, style.Look]:
    """One look for each label, merged or not: the same in all plots of a report."""
    found: dict[str, style.Look] = {}
    for without_density in (False, True):
        series = {label_of(row, labels, sources, without_density=without_density): row.is_dense for row in measured}
        found |= style.looks(series, page.theme if page else "light")
    return found


def doubts(row: Row, *, of_ratios: bool = False) -> tuple[str, ...]:
    """Why a point is drawn hollow: `unverified`, `disturbed`, `bimodal`; of a ratio, the dense row's doubts too."""
    own = ("unverified",) * row.is_unverified + row.doubts
    return own + row.dense.doubts if of_ratios and row.dense else own


def panels(rows: Sequence[Row], key: Callable[[Row], Hashable] | None = None) -> list[list[Row]]:
    """Rows by shape (everything of the workload but its length), or by another key; a panel each."""
    found: dict[Hashable, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row) if key else scope(row.result.case.workload), []).append(row)
    return list(found.values())


def num_lengths(rows: Sequence[Row]) -> int:
    """How many different lengths there are."""
    return len({row.num_tokens for row in rows})


def speedups(rows: Sequence[Row]) -> list[Point]:
    """The whole operator's speed-up of rows that all have one."""
    return [Point.of(row.speedup) for row in rows if row.speedup]
