"""The lists of block plans: how long they are, how well groups share them, and how unequal they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bsa_bench.report.kit import Kit, Plot, panels
from bsa_bench.result import Work
from bsa_bench.store.derive import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_LINES = 30
SHARES = "Union efficiency (eta)"
IMBALANCES = "Longest / mean list"


def lists(rows: Sequence[Row], kit: Kit) -> Plot | None:
    """Draw for each row the lengths of its lists, shortest to longest, and next to it eta and the imbalance."""
    counted = [row for row in rows if (work := row.result.work) and work.list_length_mean is not None]
    if not counted:
        return None
    longest = sorted(counted, key=lambda row: row.num_tokens, reverse=True)[:MAX_LINES]
    kept = {id(row) for row in longest}
    shown = panels([row for row in counted if id(row) in kept], key=lambda row: row.result.case.workload.digest)
    title = f"Lists of KV blocks, {kit.passes}"
    left_out = f" ({len(longest)} of {len(counted)} rows)" if len(longest) < len(counted) else ""
    columns = 1 if kit.page.is_paper else 3
    figure, lines = kit.page.stack([len(each) for each in shown], title=title + left_out, columns=columns)
    for axes_of_line, each in zip(lines, shown, strict=True):
        first = axes_of_line[0]
        kit.page.panel_title(first, kit.shape(each[0], with_tokens=True), width=60)
        _draw_lengths(first, each, kit)
        if len(axes_of_line) == 3:
            _draw_shares(axes_of_line[1], each, kit)
            _draw_imbalance(axes_of_line[2], each, kit)
        kit.page.row_labels(first, [_line_label(row, kit) for row in each])
        first.set_ylim(len(each) - 0.5, -0.5)
    lines[-1][0].set_xlabel("KV blocks in a list")
    if len(lines[-1]) == 3:
        lines[-1][1].set_xlabel(SHARES)
        lines[-1][2].set_xlabel(IMBALANCES)
    note = kit.share_note(len(longest), len(counted))
    kit.page.legend(figure, [axes for line in lines for axes in line], more=note)
    return kit.save(figure, "lists", title)


def _line_label(row: Row, kit: Kit) -> str:
    """The row, and on paper, where there is one column, eta and the imbalance in figures."""
    work = _work(row)
    eta = f", eta {work.union_efficiency:.2f}" if kit.page.is_paper and work.union_efficiency else ""
    imbalance = f", {work.row_imbalance:.1f}x" if kit.page.is_paper and work.row_imbalance else ""
    return f"{kit.label(row)}{eta}{imbalance}"


def _draw_lengths(axes: Axes, rows: Sequence[Row], kit: Kit) -> None:
    """Shortest to longest own list as a bar, their mean as a point, and the mean of those that the engine walks."""
    ends, means, walked = [], [], []
    for y, row in enumerate(rows):
        work, colour = _work(row), kit.looks[kit.merged_label(row)].colour
        least, most = work.list_length_min or 0, work.list_length_max or 0
        axes.plot([least, most], [y, y], color=colour, linewidth=4, alpha=0.45, solid_capstyle="butt", zorder=2)
        axes.plot([work.list_length_mean or 0.0], [y], color=colour, marker="o", linestyle="none", zorder=3)
        ends.append(most)
        means.append(work.list_length_mean)
        if work.list_mean is not None and work.list_mean != work.list_length_mean:
            walked.append(work.list_max or 0)
            axes.plot([work.list_mean], [y], color=kit.page.ink, marker="|", markersize=11, linestyle="none", zorder=4)
    grey = kit.page.grey
    axes.plot([], [], color=grey, linewidth=4, alpha=0.45, label="lists, shortest to longest")
    axes.plot([], [], color=grey, marker="o", linestyle="none", label="mean list")
    if walked:
        label = "mean list that is walked (shared)"
        axes.plot([], [], color=kit.page.ink, marker="|", markersize=11, linestyle="none", label=label)
    axes.set_xlim(0, max([*ends, *walked, 1]) * 1.05)
    axes.locator_params(axis="x", nbins=6, integer=True)


def _draw_shares(axes: Axes, rows: Sequence[Row], kit: Kit) -> None:
    known = [(y, share) for y, row in enumerate(rows) if (share := _work(row).union_efficiency) is not None]
    _draw_stems(axes, rows, known, kit, start=0.0)
    axes.set_xlim(0, 1.05)
    axes.locator_params(axis="x", nbins=5)


def _draw_imbalance(axes: Axes, rows: Sequence[Row], kit: Kit) -> None:
    known = [(y, ratio) for y, row in enumerate(rows) if (ratio := _work(row).row_imbalance) is not None]
    _draw_stems(axes, rows, known, kit, start=1.0)
    axes.set_xlim(1, max([ratio for _, ratio in known] + [1.5]) * 1.08)
    axes.locator_params(axis="x", nbins=5)


def _draw_stems(axes: Axes, rows: Sequence[Row], known: Sequence[tuple[int, float]], kit: Kit, *, start: float) -> None:
    for y, value in known:
        colour = kit.looks[kit.merged_label(rows[y])].colour
        axes.plot([start, value], [y, y], color=colour, linewidth=1.2, zorder=2)
        axes.plot([value], [y], color=colour, marker="o", linestyle="none", zorder=3, clip_on=False)
    axes.tick_params(axis="y", left=False, labelleft=False)
    for y in sorted(set(range(len(rows))) - {y for y, _ in known}):
        axes.text(start, y, " not recorded", va="center", fontsize=kit.page.small, color=kit.page.grey)


def _work(row: Row) -> Work:
    assert row.result.work is not None
    return row.result.work
