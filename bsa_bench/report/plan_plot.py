"""A plan as a picture: which KV blocks a query block sees, and which of its query tokens are computed, on frames."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bsa_bench.report import style
from bsa_bench.report.kit import Plot
from bsa_bench.report.page import COLUMN_INCHES, Page

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

MAX_PICTURES = 16


@dataclass(frozen=True)
class PlanPicture:
    """What a method planned for one query block of one head of a case; token grids are (T, H, W).

    Attributes:
        case_id, label: of the case.
        grid: T, H, W.
        head, query_block, num_query_blocks: which it is.
        num_seen, num_kv_blocks: how many KV blocks it sees, of how many.
        seen: [T, H, W] bool, tokens of these KV blocks.
        kv_block: [T, H, W], the number of each token's KV block.
        in_block, kept: [T, H, W] bool, tokens of the query block, and those of them that are computed.
        frames: [T, h, w, 3] uint8, the first picture of each latent frame; None where the input is no video.
        source: what the input is.
        is_cut: whether a rule of single tokens hides some of what is seen.
        is_measured: whether it is the plan of the stored result; None where none is stored.
    """

    case_id: str
    label: str
    grid: tuple[int, int, int]
    head: int
    query_block: int
    num_query_blocks: int
    num_seen: int
    num_kv_blocks: int
    seen: NDArray[np.bool_]
    kv_block: NDArray[np.int64]
    in_block: NDArray[np.bool_]
    kept: NDArray[np.bool_]
    frames: NDArray[np.uint8] | None
    source: str
    is_cut: bool
    is_measured: bool | None

    @property
    def notes(self) -> list[str]:
        """What to know of the picture."""
        found = []
        if self.frames is None:
            found.append(f"input {self.source} has no frames")
        if self.is_cut:
            found.append("causality or a window hides some tokens of the blocks that are seen")
        if self.is_measured is not None:
            found.append(
                "the plan that was measured"
                if self.is_measured
                else "not the plan that was measured: another version, engine or device"
            )
        return found


def draw_plan(plan: PlanPicture, folder: Path, page: Page) -> Plot:
    """Draw the KV blocks on top, a picture for each run of latent frames of one pattern, and below the query tokens."""
    groups = _groups(plan)
    shown = _evenly(groups, 6 if page.is_paper else MAX_PICTURES)
    steps = _evenly([t for t in range(plan.grid[0]) if plan.in_block[t].any()], 4 if page.is_paper else 8)
    columns = min(len(shown), 2 if page.is_paper else 4)
    lines = math.ceil(len(shown) / columns)
    width = COLUMN_INCHES if page.is_paper else 10.5
    aspect = plan.grid[1] / plan.grid[2]
    picture = width / columns
    height = lines * (picture * min(max(aspect, 0.15), 1.2) + 0.3)
    first, last = _ends(plan)
    zoom_aspect = (last[0] - first[0] + 1) / (last[1] - first[1] + 1)
    zoom = min(width / max(len(steps), 2 if page.is_paper else 4) * min(max(zoom_aspect, 0.15), 1.2), 2.2) + 0.3
    title = f"Plan of {plan.label}"
    with page.settings():
        figure = page.empty_figure(width, height + zoom + (0.9 if page.is_paper else 1.6), title=title)
        (above,), (below,) = figure.subfigures(2, 1, height_ratios=[height + 0.3, zoom + 0.3], squeeze=False)
        left_out = f" ({len(shown)} of {len(groups)} pictures)" if len(shown) < len(groups) else ""
        where = f"head {plan.head}, query block {plan.query_block} of {plan.num_query_blocks}"
        seen = f"{plan.num_seen} of {plan.num_kv_blocks} KV blocks seen"
        _heading(above, f"{seen}{left_out}" if page.is_paper else f"{where}: {seen}{left_out}", page)
        for axes, group in zip(_pictures(above, len(shown), columns), shown, strict=False):
            _draw_blocks(axes, plan, group, page)
        num_kept, num_queries = int(plan.kept.sum()), int(plan.in_block.sum())
        by_frame = ", by latent frame" * page.is_paper
        _heading(below, f"{num_kept} of {num_queries} query tokens computed{by_frame}", page)
        for axes, t in zip(_pictures(below, len(steps), max(len(steps), 2)), steps, strict=False):
            _draw_queries(axes, plan, t, page)
        from matplotlib.lines import Line2D
        from matplotlib.patches import Patch

        blue, red = page.colour(style.SKY), page.colour(style.VERMILLION)
        handles: list[Any] = [
            Patch(facecolor="none", edgecolor=blue, linewidth=1.5, label="KV block that is seen"),
            Patch(facecolor=page.grey, alpha=0.72, label="not seen, or not computed"),
            Patch(facecolor="none", edgecolor=red, linewidth=2.0, linestyle="--", label="query block"),
            Line2D([], [], color=red, marker="o", markersize=4, linestyle="none", label="computed query token"),
        ]
        notes = [] if page.is_paper else [Line2D([], [], linestyle="none", label=note) for note in plan.notes]
        everything = [*handles, *notes]
        figure.legend(
            everything,
            [str(handle.get_label()) for handle in everything],
            loc="outside lower center",
            ncols=1 if page.is_paper else 4,
            handlelength=2.2,
            labelspacing=0.3,
        )
        return Plot(title, page.save(figure, folder, "plan"))


def _groups(plan: PlanPicture) -> list[tuple[int, int]]:
    """Runs of latent frames, first and last, in which the same blocks stand and are seen."""
    ends: list[tuple[int, int]] = []
    for t in range(plan.grid[0]):
        same = ends and all((table[t] == table[t - 1]).all() for table in (plan.kv_block, plan.seen, plan.in_block))
        if same:
            ends[-1] = (ends[-1][0], t)
        else:
            ends.append((t, t))
    return ends


def _evenly(items: list[Any], most: int) -> list[Any]:
    """At most so many items, evenly chosen, the first and the last among them."""
    if len(items) <= most:
        return items
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]


def _heading(figure: Any, text: str, page: Page) -> None:
    figure.suptitle(text, x=0.01, ha="left", fontsize=8 if page.is_paper else 10.5, color=page.ink)


def _pictures(figure: Any, count: int, columns: int) -> list[Axes]:
    grid = figure.subplots(math.ceil(count / columns), columns, squeeze=False)
    axes = list(grid.flat)
    for spare in axes[count:]:
        spare.remove()
    for each in axes[:count]:
        each.set_xticks([])
        each.set_yticks([])
        each.grid(visible=False)
        each.spines[:].set_visible(False)
    return axes[:count]


def _draw_blocks(axes: Axes, plan: PlanPicture, group: tuple[int, int], page: Page) -> None:
    """The frame of a run of latent frames; what is not seen is veiled, what is seen has an outline."""
    first, last = group
    _draw_frame(axes, plan, first)
    _veil(axes, plan, ~plan.seen[first], page)
    _outline(axes, plan, first, page)
    if plan.in_block[first].any():
        _frame_block(axes, plan, first, page)
    frames = f"latent frame {first + 1}" if first == last else f"latent frames {first + 1} to {last + 1}"
    axes.set_title(frames, fontsize=page.small, color=page.grey)


def _draw_queries(axes: Axes, plan: PlanPicture, t: int, page: Page) -> None:
    """The query block in one latent frame, close up: a point on each computed token, a veil over the others."""
    import numpy as np

    _draw_frame(axes, plan, t)
    _veil(axes, plan, plan.in_block[t] & ~plan.kept[t], page)
    ys, xs = np.nonzero(plan.kept[t])
    red = page.colour(style.VERMILLION)
    axes.plot(xs + 0.5, ys + 0.5, color=red, marker="o", markersize=4, linestyle="none", markeredgecolor="white")
    _frame_block(axes, plan, t, page)
    (top, left), (bottom, right) = _ends(plan)
    axes.set_xlim(left - 0.4, right + 1.4)
    axes.set_ylim(bottom + 1.4, top - 0.4)
    axes.set_title(str(t + 1) if page.is_paper else f"latent frame {t + 1}", fontsize=page.small, color=page.grey)


def _ends(plan: PlanPicture) -> tuple[tuple[int, int], tuple[int, int]]:
    """(top, left) and (bottom, right) of the query block, in tokens, over all its latent frames."""
    import numpy as np

    ys, xs = np.nonzero(plan.in_block.any(0))
    return (int(ys.min()), int(xs.min())), (int(ys.max()), int(xs.max()))


def _draw_frame(axes: Axes, plan: PlanPicture, t: int) -> None:
    import numpy as np

    _, height, width = plan.grid
    picture = plan.frames[t] if plan.frames is not None else np.full((1, 1, 3), 0x99, dtype=np.uint8)
    axes.imshow(picture, extent=(0, width, height, 0), interpolation="antialiased")


def _veil(axes: Axes, plan: PlanPicture, hidden: NDArray[np.bool_], page: Page) -> None:
    import numpy as np
    from matplotlib.colors import to_rgba

    _, height, width = plan.grid
    veil = np.zeros((height, width, 4))
    veil[hidden] = to_rgba(page.grey, 0.72)
    axes.imshow(veil, extent=(0, width, height, 0), interpolation="nearest")


def _outline(axes: Axes, plan: PlanPicture, t: int, page: Page) -> None:
    """Draw the edges of the KV blocks that are seen."""
    blocks, seen = plan.kv_block[t], plan.seen[t]
    for number in sorted(set(blocks[seen].tolist())):
        _draw_edges(axes, blocks == number, {"color": page.colour(style.SKY), "linewidth": 1.4})


def _frame_block(axes: Axes, plan: PlanPicture, t: int, page: Page) -> None:
    look = {"color": page.colour(style.VERMILLION), "linewidth": 2.2, "linestyle": (0, (2.5, 1.2))}
    _draw_edges(axes, plan.in_block[t], look)


def _draw_edges(axes: Axes, inside: NDArray[np.bool_], look: dict[str, Any]) -> None:
    """Draw the border of a set of tokens [H, W] along their edges."""
    import numpy as np
    from matplotlib.collections import LineCollection

    padded = np.pad(inside, 1)
    ys, xs = np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1])
    lines = [((x, y), (x + 1, y)) for y, x in zip(ys.tolist(), xs.tolist(), strict=True)]
    ys, xs = np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1])
    lines += [((x, y), (x, y + 1)) for y, x in zip(ys.tolist(), xs.tolist(), strict=True)]
    axes.add_collection(LineCollection(lines, clip_on=False, zorder=4, **look))
