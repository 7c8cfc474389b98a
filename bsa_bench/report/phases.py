"""The phase stack: how the time of each sparse row divides into its phases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bsa_bench.report import style
from bsa_bench.report.findings import groups
from bsa_bench.report.kit import Kit, Plot, panels
from bsa_bench.report.labels import shape_label, timer_label
from bsa_bench.store.derive import Row
from bsa_bench.store.frame import PHASES
from bsa_bench.units import format_seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_BARS = 30
COLOURS = {
    "permute": style.SKY,
    "select": style.ORANGE,
    "plan": style.PURPLE,
    "attend": style.BLUE,
    "fill": style.GREEN,
    "restore": style.VERMILLION,
}


def phase_stack(rows: Sequence[Row], kit: Kit) -> Plot:
    """Draw a bar for each row, a panel for each shape; where there are too many, those of the longest workloads."""
    ordered = [row for group in groups(rows).values() for row in group]
    longest = sorted(ordered, key=lambda row: row.num_tokens, reverse=True)[:MAX_BARS]
    kept = {id(row) for row in longest}
    shown = panels([row for row in ordered if id(row) in kept])
    title = f"Where the time goes, {kit.passes}"
    left_out = f" ({len(longest)} of {len(ordered)} rows)" if len(longest) < len(ordered) else ""
    figure, all_axes = style.new_stack([len(each) for each in shown], title=title + left_out)
    names = [name for name in PHASES if any(name in row.phases for row in longest)]
    names += sorted({name for row in longest for name in row.phases} - set(PHASES))
    for axes, each in zip(all_axes, shown, strict=True):
        style.panel_title(axes, shape_label(each[0].result.case.workload), width=44)
        _draw_bars(axes, each, names)
        axes.set_yticks(range(len(each)), labels=[f"{kit.label(row)}  {row.num_tokens:,}" for row in each])
    all_axes[-1].set_xlabel(f"Share of the phases' sum [%]; at the right: median of the whole\n{timer_label(longest)}")
    style.legend(figure, all_axes)
    return Plot(title, *style.save(figure, kit.folder, kit.name("phases")))


def _draw_bars(axes: Axes, rows: Sequence[Row], names: Sequence[str]) -> None:
    totals = [sum(row.phases.values()) or 1.0 for row in rows]
    left = [0.0] * len(rows)
    for name in names:
        widths = [100 * row.phases.get(name, 0.0) / total for row, total in zip(rows, totals, strict=True)]
        axes.barh(
            range(len(rows)),
            widths,
            left=left,
            height=0.72,
            label=name.replace("_", " "),
            color=COLOURS.get(name.removesuffix("_backward"), style.GREY),
            hatch="////" if name.endswith("_backward") else None,
            edgecolor="white",
            linewidth=0.4,
        )
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for y, row in enumerate(rows):
        axes.text(101, y, format_seconds(row.whole.median if row.whole else None), va="center", fontsize=9)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 100)
