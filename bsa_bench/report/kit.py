"""What all plots share: series, panels, looks, and points with their interval bars."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bsa_bench.report import style
from bsa_bench.report.labels import Labels
from bsa_bench.result import PassName
from bsa_bench.store.derive import Ratio, Row, scope

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Plot:
    """A plot on disk and what it shows."""

    title: str
    png: Path
    svg: Path


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
    implementation make one series and share one look.
    """

    passes: PassName
    labels: Labels
    looks: dict[str, style.Look]
    folder: Path

    def name(self, kind: str) -> str:
        """A file's stem."""
        return f"{kind}-{self.passes.replace('+', '-')}"

    def label(self, row: Row) -> str:
        """The label of a row."""
        return self.labels.of(row.result.case)

    def merged_label(self, row: Row) -> str:
        """The label of a row without its density."""
        return self.labels.of(row.result.case, without_density=True)

    def series(self, rows: Sequence[Row], *, merged: bool = False) -> dict[str, list[Row]]:
        """Rows by label, each in the order of length, then density."""
        found: dict[str, list[Row]] = {}
        for row in sorted(rows, key=lambda r: (r.num_tokens, r.density or 0)):
            found.setdefault(self.merged_label(row) if merged else self.label(row), []).append(row)
        return found


def looks(correct: Sequence[Row], labels: Labels) -> dict[str, style.Look]:
    """One look for each label of the run, merged or not: the same in all plots of a report."""
    found: dict[str, style.Look] = {}
    for without_density in (False, True):
        series = {labels.of(row.result.case, without_density=without_density): row.is_dense for row in correct}
        found |= style.looks(series)
    return found


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


def draw_line(
    axes: Axes, xs: Sequence[float], points: Sequence[Point], *, label: str, look: style.Look, joined: bool = True
) -> None:
    """Draw points with their interval bars, joined by a line or not."""
    line = look.line if joined else look.line | {"linestyle": "none"}
    bars = [[p.middle - p.low for p in points], [p.high - p.middle for p in points]]
    axes.errorbar(xs, [p.middle for p in points], yerr=bars, label=label, elinewidth=1.2, **line)
