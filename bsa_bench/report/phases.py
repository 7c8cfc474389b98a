"""The phase stack: how the time of each sparse row divides into its phases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bsa_bench.report import style
from bsa_bench.report.findings import groups
from bsa_bench.report.kit import Kit, Plot, doubts, panels
from bsa_bench.report.labels import timer_label
from bsa_bench.report.page import series_label
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
    "coarse": style.WINE,
    "combine": style.SAND,
    "mix": style.INDIGO,
    "fill_lse": style.OLIVE,
    "simulate": style.TEAL,
    "split": style.MAGENTA,
    "join": style.BROWN,
}
"""A colour for each phase of the methods that come with the bench; its backward has the same and is hatched."""


def phase_stack(rows: Sequence[Row], kit: Kit) -> Plot | None:
    """Draw a bar for each row, a panel for each shape; where there are too many, those of the longest workloads."""
    ordered = [
        row for group in groups([row for row in rows if not row.is_dense and row.phases]).values() for row in group
    ]
    if not ordered:
        return None
    longest = sorted(ordered, key=lambda row: row.num_tokens, reverse=True)[:MAX_BARS]
    kept = {id(row) for row in longest}
    shown = panels([row for row in ordered if id(row) in kept])
    title = f"Where the time goes, {kit.passes}"
    left_out = f" ({len(longest)} of {len(ordered)} rows)" if len(longest) < len(ordered) else ""
    figure, lines = kit.page.stack([len(each) for each in shown], title=title + left_out)
    all_axes = [line[0] for line in lines]
    names = [name for name in PHASES if any(name in row.phases for row in longest)]
    names += sorted({name for row in longest for name in row.phases} - set(PHASES))
    colours = phase_colours(names)
    for axes, each in zip(all_axes, shown, strict=True):
        kit.page.panel_title(axes, kit.shape(each[0]), width=60)
        _draw_bars(axes, each, names, colours, kit)
        kit.page.row_labels(axes, [_bar_label(row, kit) for row in each])
    share = (
        "Share [%]; at the right: median" if kit.page.is_paper else "Share of the phases' sum [%]; at the right: median"
    )
    all_axes[-1].set_xlabel(kit.page.words(share, f"of the whole operator, {timer_label(longest)}"))
    kit.page.legend(figure, all_axes, more=kit.share_note(len(longest), len(ordered)))
    return kit.save(figure, "phases", title)


def phase_colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each phase, and its backward the same; unknown ones get those that are left, each its own."""
    bases = list(dict.fromkeys(name.removesuffix("_backward") for name in names))
    free = [colour for base, colour in COLOURS.items() if base not in bases]
    unknown = [base for base in bases if base not in COLOURS]
    given = COLOURS | {base: free[place] if place < len(free) else style.GREY for place, base in enumerate(unknown)}
    return {name: given[name.removesuffix("_backward")] for name in names}


def _bar_label(row: Row, kit: Kit) -> str:
    """`bsa@gather  1,024`, and what casts doubt on it, for a bar cannot be hollow."""
    text = f"{kit.label(row)}  {row.num_tokens:,}"
    return f"{text} ({', '.join(doubts(row))})" if doubts(row) else text


def _draw_bars(axes: Axes, rows: Sequence[Row], names: Sequence[str], colours: dict[str, str], kit: Kit) -> None:
    totals = [sum(row.phases.values()) or 1.0 for row in rows]
    left = [0.0] * len(rows)
    # On paper the label stands above the bar.
    lower = 0.16 if kit.page.is_paper else 0.0
    for name in names:
        widths = [100 * row.phases.get(name, 0.0) / total for row, total in zip(rows, totals, strict=True)]
        axes.barh(
            [y + lower for y in range(len(rows))],
            widths,
            left=left,
            height=0.36 if kit.page.is_paper else 0.72,
            label=series_label(name.replace("_", " ")),
            color=kit.page.colour(colours[name]),
            hatch="////" if name.endswith("_backward") else None,
            edgecolor=kit.page.background,
            linewidth=0.4,
        )
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for y, row in enumerate(rows):
        axes.text(
            101,
            y + lower,
            format_seconds(row.whole.median if row.whole else None),
            va="center",
            fontsize=kit.page.small,
        )
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 100)
