"""Query blocks that share a list: the ways to group a cell, and the choice among them, kernel and torch twin."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_helpers import DEVICE, poison_empty
from torch._subclasses.fake_tensor import FakeTensorMode

from bsa_kernels import BlockGrid
from bsa_kernels.bits import pack_bits
from bsa_kernels.block_sparse.groups import (
    choose_groups,
    choose_groups_reference,
    group_count,
    group_tables,
    union_counts,
)
from bsa_kernels.block_sparse.lists import union_efficiency

CPU = torch.device("cpu")


def grid_of(blocks):
    return BlockGrid(blocks, (1, 1, 1))


def ways(blocks, size):
    return group_tables(grid_of(blocks), size, CPU).candidates.tolist()


def some_bits(heads, num_q, num_kv=40, density=0.3, seed=0):
    make = torch.Generator().manual_seed(seed)
    return pack_bits((torch.rand(1, heads, num_q, num_kv, generator=make) < density).to(DEVICE))


@pytest.mark.parametrize(
    ("blocks", "size", "expected"),
    [
        ((2, 2, 2), 1, [[[i] for i in range(8)]]),
        (
            (2, 2, 2),
            2,
            [
                [[0, 4], [1, 5], [2, 6], [3, 7]],
                [[0, 2], [1, 3], [4, 6], [5, 7]],
                [[0, 1], [2, 3], [4, 5], [6, 7]],
            ],
        ),
        ((2, 2, 2), 4, [[[0, 2, 4, 6], [1, 3, 5, 7]], [[0, 1, 4, 5], [2, 3, 6, 7]], [[0, 1, 2, 3], [4, 5, 6, 7]]]),
        # Where an axis ends, the ways that it does not offer are another's.
        ((1, 2, 2), 2, [[[0, 2], [1, 3]], [[0, 2], [1, 3]], [[0, 1], [2, 3]]]),
        ((1, 2, 2), 4, [[[0, 1, 2, 3]]] * 3),
        ((1, 1, 2), 4, [[[0, 1, -1, -1]]] * 3),
        ((1, 1, 1), 2, [[[0, -1]]] * 3),
        ((1, 1, 3), 2, [[[0, 1], [2, -1]]] * 3),
        ((3, 1, 1), 4, [[[0, 1, -1, -1], [2, -1, -1, -1]]] * 3),
    ],
)
def test_a_cell_is_grouped_in_three_ways(blocks, size, expected):
    assert ways(blocks, size) == expected


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("blocks", list(itertools.product((1, 2, 3, 5), repeat=3)))
def test_each_way_has_each_block_once_in_as_many_groups_and_cells_follow_each_other(blocks, size):
    grid = grid_of(blocks)
    tables = group_tables(grid, size, CPU)
    assert group_count(grid, size) == tables.first.numel() == tables.candidates.shape[1]
    for way in tables.candidates:
        assert way[way >= 0].sort().values.tolist() == list(range(grid.num_blocks))
        assert all(row[: len(row) - row.count(-1)] == sorted(m for m in row if m >= 0) for row in way.tolist())
    row = 0
    while row < tables.first.numel():
        count = int(tables.size[row])
        assert tables.first[row : row + count].tolist() == [row] * count
        assert tables.size[row : row + count].tolist() == [count] * count
        blocks_of_cell = [sorted(way[row : row + count].flatten().tolist()) for way in tables.candidates]
        assert blocks_of_cell == blocks_of_cell[:1] * len(blocks_of_cell)
        row += count
    assert row == tables.first.numel()


def test_counting_under_fake_tensors_leaves_none_behind():
    # A compiler asks for the number first, before any real call.
    grid = grid_of((3, 7, 5))
    with FakeTensorMode():
        count = group_count(grid, 2)
    bits = some_bits(1, grid.num_blocks)
    assert choose_groups(bits, grid, 2).shape == (1, 1, count, 2)


def test_tables_are_kept_and_other_sizes_are_refused():
    assert group_tables(grid_of((2, 3, 4)), 2, CPU) is group_tables(grid_of((2, 3, 4)), 2, CPU)
    with pytest.raises(ValueError, match="expected a size of 1, 2 or 4, got 3"):
        group_tables(grid_of((2, 2, 2)), 3, CPU)


@pytest.mark.parametrize(("axis", "way"), [(0, 2), (1, 1), (2, 0)])
def test_blocks_with_equal_lists_share_one(axis, way):
    blocks = (2, 4, 2)
    grid = grid_of(blocks)
    mask = torch.zeros(2, grid.num_blocks, 64, dtype=torch.bool, device=DEVICE)
    for number, place in enumerate(itertools.product(*map(range, blocks))):
        cell = place[1] // 2
        inside = (place[0], place[1] % 2, place[2])
        others = [side for at, side in enumerate(inside) if at != axis]
        mask[0, number, 8 * cell + 2 * others[0] + others[1]] = True  # pairs along the axis are alike
        mask[1, number, 8 * cell + inside[axis]] = True  # the four at one end of it are
    pairs, fours = (pack_bits(mask[at][None, None]) for at in (0, 1))
    chosen = choose_groups(pairs, grid, 2)
    assert float(union_efficiency(pairs, chosen)) == 1
    assert chosen[0, 0].tolist() == ways(blocks, 2)[axis]
    chosen = choose_groups(fours, grid, 4)
    assert float(union_efficiency(fours, chosen)) == 1
    assert chosen[0, 0].tolist() == ways(blocks, 4)[way]


def test_each_head_and_cell_chooses_for_itself():
    grid = grid_of((2, 2, 4))
    in_cell = {
        "t": lambda t, h, w: h * 2 + w,
        "h": lambda t, h, w: t * 2 + w,
        "w": lambda t, h, w: t * 2 + h,
    }
    wanted = [["t", "w"], ["h", "t"], ["w", "h"]]  # by head, by cell
    mask = torch.zeros(1, 3, 16, 8, dtype=torch.bool, device=DEVICE)
    for head, cells in enumerate(wanted):
        for t, h, w in itertools.product(range(2), range(2), range(4)):
            mask[0, head, (t * 2 + h) * 4 + w, in_cell[cells[w // 2]](t, h, w % 2) + 4 * (w // 2)] = True
    members = choose_groups(pack_bits(mask), grid, 2)
    step = {"t": 8, "h": 4, "w": 1}
    for head, cells in enumerate(wanted):
        for cell, axis in enumerate(cells):
            pairs = members[0, head, 4 * cell : 4 * cell + 4]
            assert (pairs[:, 1] - pairs[:, 0] == step[axis]).all()


def test_equal_ways_take_the_first():
    grid = grid_of((2, 2, 2))
    bits = pack_bits(torch.ones(1, 1, 8, 5, dtype=torch.bool, device=DEVICE))
    assert choose_groups(bits, grid, 2)[0, 0].tolist() == ways((2, 2, 2), 2)[0]
    assert choose_groups(bits * 0, grid, 4)[0, 0].tolist() == ways((2, 2, 2), 4)[0]


@pytest.mark.slow
@given(
    blocks=st.tuples(*[st.integers(1, 5)] * 3),
    size=st.sampled_from([1, 2, 4]),
    heads=st.integers(1, 3),
    num_kv=st.integers(1, 70),
    density=st.floats(0, 1),
    seed=st.integers(0, 9),
)
@settings(max_examples=30, deadline=None)
def test_the_kernel_chooses_as_plain_torch_does_and_no_way_is_better(blocks, size, heads, num_kv, density, seed):
    grid = grid_of(blocks)
    bits = some_bits(heads, grid.num_blocks, num_kv, density, seed)
    with pytest.MonkeyPatch.context() as monkeypatch:
        poison_empty(monkeypatch)
        members = choose_groups(bits, grid, size)
    assert members.dtype == torch.int32
    assert torch.equal(members, choose_groups_reference(bits, grid, size))
    least = union_counts(bits, members).sum(-1)
    for way in group_tables(grid, size, DEVICE).candidates:
        assert (least <= union_counts(bits, way).sum(-1)).all()
