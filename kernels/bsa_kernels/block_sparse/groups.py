"""Which query blocks share a list: neighbours, grouped along the axis where their lists are most alike.

Blocks stand in cells of (2, 2, 2). A cell is grouped in one of three ways, all its groups alike: pairs along t, h or w;
fours across w, h or t. The way is chosen for each head and cell by the blocks' own lists, the one whose unions are
shortest (the first of equals), so that what moves along an axis is not paired across its motion. How many groups there
are does not depend on the choice.

Shape legend: `B` batch, `H` heads, `Nq` query blocks, `W` words of 32 KV blocks, `R` groups of `G` query blocks, `C`
ways to group a cell.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from bsa_kernels.bits import count_bits
from bsa_kernels.grid import BlockGrid

#: Groups of a cell at most: pairs of eight blocks.
MAX_GROUPS_OF_CELL = 4
_CELL = (2, 2, 2)


@dataclass(frozen=True, eq=False)
class GroupTables:
    """The ways to group the blocks of a grid.

    Attributes:
        candidates: [C, R, G] int32, the members of each group, ascending, -1 where there are fewer.
        first, size: [R] int32, of the cell that a group belongs to: its first group, and how many it has.
    """

    candidates: Tensor
    first: Tensor
    size: Tensor


@lru_cache(maxsize=64)
def group_tables(grid: BlockGrid, size: int, device: torch.device) -> GroupTables:
    """Make the tables of a grid for groups of 1, 2 or 4; cached. Cells at the end of an axis have fewer blocks.

    Raises:
        ValueError: another size.
    """
    if size not in {1, 2, 4}:
        raise ValueError(f"groups: expected a size of 1, 2 or 4, got {size!r}")
    if device.type != "cpu":
        made = group_tables(grid, size, torch.device("cpu"))
        return GroupTables(made.candidates.to(device), made.first.to(device), made.size.to(device))
    if size == 1:
        blocks = torch.arange(grid.num_blocks, dtype=torch.int32)
        return GroupTables(blocks.view(1, -1, 1), blocks, torch.ones_like(blocks))
    ways: list[list[list[int]]] = [[], [], []]
    first, sizes = [], []
    for cell in itertools.product(*(range(0, side, 2) for side in grid.blocks)):
        span = tuple(min(2, side - start) for side, start in zip(grid.blocks, cell, strict=True))
        start = len(ways[0])
        for way in range(3):
            ways[way] += _groups_of_cell(grid.blocks, cell, span, size, way)
        count = len(ways[0]) - start
        first += [start] * count
        sizes += [count] * count
    tensors = (torch.tensor(values, dtype=torch.int32) for values in (ways, first, sizes))
    return GroupTables(*tensors)


def _groups_of_cell(
    blocks: tuple[int, int, int], cell: tuple[int, ...], span: tuple[int, ...], size: int, way: int
) -> list[list[int]]:
    """The groups of a cell in one way: 0, 1, 2 are pairs along t, h, w, or fours across w, h, t."""
    numbers = {
        step: ((cell[0] + step[0]) * blocks[1] + cell[1] + step[1]) * blocks[2] + cell[2] + step[2]
        for step in itertools.product(*map(range, span))
    }
    long = [axis for axis in range(3) if span[axis] == 2]
    if len(numbers) <= size:
        groups = [list(numbers.values())]
    elif size == 2:
        along = way if way in long else long[0]
        groups = [
            [number, numbers[tuple(step[axis] + (axis == along) for axis in range(3))]]
            for step, number in numbers.items()
            if step[along] == 0
        ]
    else:  # eight blocks
        across = 2 - way
        groups = [[number for step, number in numbers.items() if step[across] == side] for side in (0, 1)]
    return [group + [-1] * (size - len(group)) for group in groups]


def group_count(grid: BlockGrid, size: int) -> int:
    """R: how many groups there are; by arithmetic, for an operator's fake must not make the tables: they are kept."""
    # Along an axis: how many cells have so many blocks.
    cells = [((2, side // 2), (1, side % 2)) for side in grid.blocks]
    return sum(
        math.prod(number for _, number in cell) * -(-math.prod(span for span, _ in cell) // size)
        for cell in itertools.product(*cells)
    )


def choose_groups(bits: Tensor, grid: BlockGrid, size: int) -> Tensor:
    """The members [B, H, R, G] int32 of each group, -1 where there are fewer; two launches, nothing synchronises.

    Args:
        bits: [B, H, Nq, W] int32, `BlockPlan.block_bits`, on a device where Triton runs.
        grid: the query blocks.
        size: G.
    """
    tables = group_tables(grid, size, bits.device)
    if len(tables.candidates) == 1:
        return tables.candidates[0].expand(*bits.shape[:2], -1, -1).contiguous()
    from bsa_kernels.block_sparse.triton_lists import launch_choose, launch_count

    _, counts = launch_count(bits.contiguous(), tables.candidates.flatten(0, 1), torch.zeros_like(bits[0, 0, 0]))
    return launch_choose(counts, tables)


def choose_groups_reference(bits: Tensor, grid: BlockGrid, size: int) -> Tensor:
    """Do what `choose_groups` does in plain torch, on any device."""
    tables = group_tables(grid, size, bits.device)
    costs = []
    for members in tables.candidates:
        unions = union_counts(bits, members)  # [B, H, R]
        ends = torch.nn.functional.pad(unions.cumsum(-1), (1, 0))
        costs.append(ends[..., (tables.first + tables.size).long()] - ends[..., tables.first.long()])
    best = torch.stack(costs).argmin(0)  # [B, H, R]; the first of equals
    rows = torch.arange(best.shape[-1], device=bits.device)
    return tables.candidates[best, rows]


def words_of(bits: Tensor, members: Tensor) -> Tensor:
    """The words [B, H, R, G, W] of the members, [R, G] or [B, H, R, G]; zero where there is none."""
    at = members.clamp(min=0).long()
    if members.dim() == 2:
        words = bits[:, :, at]
    else:
        b, h, r, g = members.shape
        words = bits.gather(2, at.view(b, h, r * g, 1).expand(-1, -1, -1, bits.shape[-1])).view(b, h, r, g, -1)
    return words.masked_fill((members < 0).unsqueeze(-1), 0)


def union_counts(bits: Tensor, members: Tensor) -> Tensor:
    """[B, H, R] int32: the length of the list that each group shares."""
    words = words_of(bits, members)
    union = words[..., 0, :]
    for member in range(1, words.shape[-2]):
        union = union | words[..., member, :]
    return count_bits(union)
