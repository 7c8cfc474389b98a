"""Query selection: which rows of each block are computed, and whose output the others take.

Inside a small 3D block most queries are near-duplicates. Each *group* of tokens (a 2x2x2 window, or the whole block)
keeps those that are least similar to its centre (cosine similarity); every other token copies the output of a kept
token of its group. Source: arXiv 2509.01085 (cosine similarity to a centre token, windowing); the rest are this
project's decisions, listed in `docs/methods/bsa.md`.

Shape legend: `B` batch, `H` heads, `N` query blocks, `M` slots a block, `G` groups a block, `W` slots a group,
`K` kept rows a block, `D` head size.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from bsa_kernels.grid import BlockGrid
from bsa_kernels.methods.bsa.options import Fill, QueryRule, kept_count

WINDOW = (2, 2, 2)
_MAX_PAIRS = 1 << 26


@dataclass(frozen=True)
class QuerySelection:
    """`kept_slots` [B, H, N, K], `num_kept` [B, H, N], `fill` [B, H, N, M] as in `BlockPlan`; `kept` [B, H, N, M]."""

    kept_slots: Tensor
    num_kept: Tensor
    fill: Tensor
    kept: Tensor


@dataclass(frozen=True)
class _Groups:
    """Geometry of the groups of a grid; tensors on one device.

    `members` [N, G, W] slots ascending, -1 tail; `keep` [N, G] how many to keep; `centre` [N, G, C] the slots whose
    mean is the centre, -1 tail; `group` [N, M] the group of each slot (0 for padding); `nearest` [N, G, W, W] sorting
    key of member j as a source for member i by 3D distance then index, `nearest_1d` the same by flat distance;
    `max_kept` is K.
    """

    members: Tensor
    keep: Tensor
    centre: Tensor
    group: Tensor
    nearest: Tensor
    nearest_1d: Tensor
    max_kept: int


_TABLES = ("members", "keep", "centre", "group", "nearest", "nearest_1d")


def select_queries(
    q_tiles: Tensor, grid: BlockGrid, *, query_keep: float, rule: QueryRule, fill: Fill
) -> QuerySelection:
    """Choose the computed query rows of each block and the fill of all others.

    Args:
        q_tiles: [B, H, N*M, D] tile-major queries as attention receives them (after norm and RoPE).
        grid: the query blocks.
        query_keep: share of each group's real tokens that is kept, above 0 and at most 1.
        rule: `window`: groups are the 2x2x2 windows of the block, centre (1,1,1). `block`: one group, centre at half of
            each side. `flat_half`: one group, centre at flat index M/2. `central_mean`: one group, centre the mean of
            the tokens in the middle of the block.
        fill: `nearest` in 3D, `similar` in cosine, `flat` nearest in flat order, `zero`.

    Similarities are fp32 (fp64 for fp64 queries); a token of zero norm has similarity 0; ties go to the lowest flat
    index. Nothing here is differentiable and nothing synchronises.
    """
    groups = _groups(grid, rule, query_keep, q_tiles.device)
    b, h = q_tiles.shape[:2]
    n, m = grid.num_blocks, grid.block_size
    real = grid.real_counts(q_tiles.device)
    if query_keep == 1:
        slots = torch.arange(m, dtype=torch.int32, device=q_tiles.device)
        kept = (slots < real.unsqueeze(-1)).expand(b, h, n, m)
        every = torch.where(kept, slots, -1)
        return QuerySelection(every, real.expand(b, h, n), every, kept)
    q = unit_rows(q_tiles).unflatten(2, (n, m))
    rank = _rank_in_group(_similarity(q, q_tiles, groups), groups)  # [B, H, N, G, W]
    kept_member = rank < groups.keep.unsqueeze(-1)
    kept = _scatter_members(kept_member, groups, m)
    position = kept.cumsum(-1) - 1
    slots = torch.arange(m, dtype=torch.int32, device=q.device).expand_as(position)
    kept_slots = torch.full((b, h, n, groups.max_kept + 1), -1, dtype=torch.int32, device=q.device)
    kept_slots = kept_slots.scatter_(-1, torch.where(kept, position, groups.max_kept), slots)[..., :-1]
    own = torch.where(kept, position, -1)
    if fill != "zero":
        source = _fill_source(kept_member, kept, q, groups, fill)
        own = torch.where(source >= 0, own.gather(-1, source.clamp(min=0)), -1)
    return QuerySelection(kept_slots, groups.keep.sum(-1, dtype=torch.int32).expand(b, h, n), own.int(), kept)


def kept_rows(grid: BlockGrid, rule: QueryRule, query_keep: float) -> int:
    """K: the kept rows of the block that keeps most, which is the first, for padding lies at the end of each axis."""
    if query_keep == 1:
        return grid.block_size
    sides = map(min, grid.grid, grid.block)
    points = [list(point) for point in itertools.product(*map(range, sides))]
    return sum(_block_groups(points, grid.block, rule, query_keep).counts)


def unit_rows(x: Tensor) -> Tensor:
    """Rows of length one in fp32 (fp64 stays); a zero row stays zero."""
    x = x if x.dtype == torch.float64 else x.float()
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / norm.masked_fill(norm == 0, 1)


def _similarity(q: Tensor, q_tiles: Tensor, groups: _Groups) -> Tensor:
    """[B, H, N, M]: cosine similarity of each unit row, `q` [B, H, N, M, D], to the centre of its group."""
    b, h, n, m, d = q.shape
    _, g, c = groups.centre.shape
    block = torch.arange(n, device=q.device).view(n, 1, 1) * m
    index = (groups.centre.clamp(min=0) + block).view(-1)
    if c > 1:
        # A mean of the tokens themselves, not of their directions.
        centre = q_tiles.index_select(2, index).view(b, h, n, g, c, d).to(q.dtype)
        weight = (groups.centre >= 0).unsqueeze(-1)
        centre = unit_rows((centre * weight).sum(-2) / weight.sum(-2))
    else:
        centre = q.flatten(2, 3).index_select(2, index).view(b, h, n, g, d)
    flat = groups.group + torch.arange(n, device=q.device).unsqueeze(-1) * g
    return (q * centre.flatten(2, 3).index_select(2, flat.view(-1)).view_as(q)).sum(-1)


def _rank_in_group(similarity: Tensor, groups: _Groups) -> Tensor:
    """[B, H, N, G, W]: rank of each member by ascending similarity, ties to the lower index; padding last."""
    b, h, n, _ = similarity.shape
    members = groups.members.view(1, 1, n, -1)
    value = similarity.gather(-1, members.clamp(min=0).expand(b, h, n, -1))
    value = value.masked_fill(members < 0, math.inf).view(b, h, *groups.members.shape)
    order = value.argsort(dim=-1, stable=True)
    return torch.empty_like(order).scatter_(
        -1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order)
    )


def _scatter_members(value: Tensor, groups: _Groups, m: int) -> Tensor:
    """Bring a bool of members [B, H, N, G, W] to slots [B, H, N, M]."""
    target = torch.where(groups.members >= 0, groups.members, m).flatten(1)
    out = torch.zeros(*value.shape[:3], m + 1, dtype=value.dtype, device=value.device)
    return out.scatter_(-1, target.expand(*value.shape[:3], -1), value.flatten(3))[..., :m]


def _fill_source(kept_member: Tensor, kept: Tensor, q: Tensor, groups: _Groups, fill: Fill) -> Tensor:
    """[B, H, N, M]: the kept slot whose output each slot takes (its own where it is kept), -1 for padding."""
    b, h, n, m = kept.shape
    w = groups.members.shape[-1]
    key = groups.nearest if fill == "nearest" else groups.nearest_1d
    step = max(
        1, _MAX_PAIRS // (n * groups.members.shape[1] * w * w * (max(1, q.shape[-1] // 8) if fill == "similar" else 1))
    )
    out = []
    for part in range(0, b * h, step):
        member = kept_member.flatten(0, 1)[part : part + step]  # [P, N, G, W]
        if fill == "similar":
            rows = _member_rows(q.flatten(0, 1)[part : part + step], groups)
            score = (rows @ rows.transpose(-1, -2)).masked_fill_(~member.unsqueeze(-2), -math.inf)
            best = score.argmax(-1)
        else:
            best = key.masked_fill(~member.unsqueeze(-2), torch.iinfo(key.dtype).max).argmin(-1)
        slot = groups.members.expand(best.shape[0], *groups.members.shape).gather(-1, best)
        out.append(torch.where(groups.members >= 0, slot, -1))
    source = torch.cat(out).view(b, h, n, -1)
    target = torch.where(groups.members >= 0, groups.members, m).flatten(1).expand(b, h, n, -1)
    result = torch.full((b, h, n, m + 1), -1, dtype=torch.int64, device=q.device)
    result = result.scatter_(-1, target, source)[..., :m]
    slots = torch.arange(m, device=q.device)
    return torch.where(kept, slots, result)


def _member_rows(q: Tensor, groups: _Groups) -> Tensor:
    """Unit rows of the members: q [P, N, M, D] -> [P, N, G, W, D]."""
    _, n, m, _ = q.shape
    index = (groups.members.clamp(min=0) + torch.arange(n, device=q.device).view(n, 1, 1) * m).view(-1)
    return q.flatten(1, 2).index_select(1, index).view(q.shape[0], *groups.members.shape, -1)


@dataclass(frozen=True)
class GroupKinds:
    """The groups of a grid by kinds of blocks, at most eight: those with the same real slots share them. On the CPU.

    `of_block` [N] the kind of each block; `members` [kinds, G, W], `centres` [kinds, G, C] slots, -1 tails; `keep`
    [kinds, G] how many are kept; `points` [kinds, M, 3] the (t, h, w) of each slot inside its block.
    """

    of_block: Tensor
    members: Tensor
    centres: Tensor
    keep: Tensor
    points: Tensor


@lru_cache(maxsize=64)
def group_kinds(grid: BlockGrid, rule: QueryRule, keep: float) -> GroupKinds:
    """Group the slots of each kind of block."""
    device = torch.device("cpu")
    coords, real = grid.local_coords(device), grid.real_counts(device)
    kinds: dict[tuple[object, ...], int] = {}
    shapes: list[_Shape] = []
    points: list[Tensor] = []
    of_block: list[int] = []
    for block in range(grid.num_blocks):
        num_real = int(real[block])
        real_coords = coords[block, :num_real]
        signature = (num_real, *real_coords[-1].tolist())
        if signature not in kinds:
            kinds[signature] = len(shapes)
            shapes.append(_block_groups(real_coords.tolist(), grid.block, rule, keep))
            points.append(coords[block])
        of_block.append(kinds[signature])
    return GroupKinds(
        of_block=torch.tensor(of_block),
        members=_stack([shape.members for shape in shapes]),
        centres=_stack([shape.centres for shape in shapes]),
        keep=torch.tensor([shape.counts for shape in shapes]),
        points=torch.stack(points),
    )


@lru_cache(maxsize=64)
def _groups(grid: BlockGrid, rule: QueryRule, keep: float, device: torch.device) -> _Groups:
    if device.type != "cpu":
        cpu = _groups(grid, rule, keep, torch.device("cpu"))
        tables = {name: getattr(cpu, name).to(device) for name in _TABLES}
        return _Groups(**tables, max_kept=cpu.max_kept)
    kinds = group_kinds(grid, rule, keep)
    coords = grid.local_coords(device)
    members, centre, keep_counts = (x[kinds.of_block] for x in (kinds.members, kinds.centres, kinds.keep))
    n, m = grid.num_blocks, grid.block_size
    g, w = members.shape[1:]
    group = torch.zeros(n, m + 1, dtype=torch.int64)
    group.scatter_(
        1, torch.where(members >= 0, members, m).flatten(1), torch.arange(g).repeat_interleave(w).expand(n, -1)
    )
    point = coords.gather(1, members.clamp(min=0).flatten(1).unsqueeze(-1).expand(-1, -1, 3)).view(n, g, w, 3)
    flat = (point[..., 0] * grid.block[1] + point[..., 1]) * grid.block[2] + point[..., 2]
    squared = (point.unsqueeze(-2) - point.unsqueeze(-3)).square().sum(-1)
    one_d = (flat.unsqueeze(-1) - flat.unsqueeze(-2)).abs()
    index = torch.arange(w)
    return _Groups(
        members=members,
        keep=keep_counts,
        centre=centre,
        group=group[:, :m].contiguous(),
        nearest=(squared * w + index).int(),
        nearest_1d=(one_d * w + index).int(),
        max_kept=int(keep_counts.sum(-1).max()),
    )


@dataclass(frozen=True)
class _Shape:
    """The groups of one block: slots of the members, how many to keep, slots of the centre."""

    members: list[list[int]]
    counts: list[int]
    centres: list[list[int]]


def _block_groups(points: list[list[int]], block: tuple[int, int, int], rule: QueryRule, keep: float) -> _Shape:
    """Group one block, given the local (t, h, w) of its real slots."""
    members, counts, centres = [], [], []
    size = WINDOW if rule == "window" else block
    for corner, targets in _nominal_centres(block, rule):
        inside = [
            i for i, p in enumerate(points) if all(c <= x < c + s for c, x, s in zip(corner, p, size, strict=True))
        ]
        members.append(inside)
        counts.append(kept_count(len(inside), keep) if inside else 0)
        exact = [i for i in inside if tuple(points[i]) in targets]
        if not exact and inside:
            exact = [min(inside, key=lambda i: min(math.dist(points[i], t) for t in targets))]
        centres.append(exact)
    return _Shape(members, counts, centres)


def _nominal_centres(
    block: tuple[int, int, int], rule: QueryRule
) -> list[tuple[tuple[int, ...], list[tuple[int, ...]]]]:
    """The first corner of each group and the local (t, h, w) whose mean is its centre."""
    whole = (0, 0, 0)
    if rule == "window":
        corners = itertools.product(*(range(0, b, s) for b, s in zip(block, WINDOW, strict=True)))
        return [(corner, [tuple(c + 1 for c in corner)]) for corner in corners]
    if rule == "central_mean":
        # The tokens on either side of the middle: 1 and 2 of a side of 4, 1 of a side of 3.
        return [(whole, list(itertools.product(*(sorted({(b - 1) // 2, b // 2}) for b in block))))]
    if rule == "flat_half":
        row, w = divmod(math.prod(block) // 2, block[2])
        return [(whole, [(*divmod(row, block[1]), w)])]
    return [(whole, [tuple(b // 2 for b in block)])]


def _stack(tables: list[list[list[int]]]) -> Tensor:
    """Stack ragged nested lists into one int64 tensor, the tails -1."""
    width = max(len(group) for table in tables for group in table)
    return torch.tensor([[group + [-1] * (width - len(group)) for group in table] for table in tables])
