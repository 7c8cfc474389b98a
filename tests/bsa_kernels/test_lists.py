"""Lists of KV blocks and of query blocks made from bits: the kernels, their torch twins, and plain loops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_helpers import DEVICE, hand_plan, poison_empty, random_mask

from bsa_kernels import BlockGrid
from bsa_kernels.bits import pack_bits
from bsa_kernels.block_sparse import lists
from bsa_kernels.block_sparse.groups import choose_groups
from bsa_kernels.block_sparse.lists import (
    launch_order,
    list_lengths,
    make_inverse,
    make_inverse_reference,
    make_lists,
    make_lists_reference,
    token_tables,
    union_efficiency,
)

ONE = (4, 4, 4)


def some_mask(*shape, density=0.3, seed=0):
    """Unlike `random_mask`, rows may be empty."""
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density).to(DEVICE)


def rows_of(made):
    """The lists as nested Python lists of items, without their starts."""
    items = made.items.tolist()
    places = zip(made.starts.flatten().tolist(), made.counts.flatten().tolist(), strict=True)
    return [items[start : start + count] for start, count in places]


def assert_same(made, twin):
    total = int(twin.counts.sum())
    assert len(made.items) > total
    assert torch.equal(made.items[:total], twin.items[:total])
    for name in ("starts", "num_full", "counts"):
        one, other = getattr(made, name), getattr(twin, name)
        assert (one.dtype, one.device) == (other.dtype, other.device)
        assert torch.equal(one, other), name


def naive_rows(mask, members, origins, is_full):
    """The definition, by loops: one list of items for each (batch, head, group)."""
    rows = []
    for head in mask.flatten(0, 1).tolist():
        for group in members.tolist():
            parts = {True: [], False: []}
            for j, full in enumerate(is_full.tolist()):
                activity = sum(1 << g for g, block in enumerate(group) if block >= 0 and head[block][j])
                if activity:
                    item = int(origins[j]) if full else j
                    item |= (activity << 28) if len(group) > 1 else 0
                    parts[full].append(item - 2**32 if item >= 2**31 else item)
            rows.append((parts[True] + parts[False], len(parts[True])))
    return rows


def tables(num_kv, seed=0, full=0.7):
    """Any origins, and any blocks full."""
    make = torch.Generator().manual_seed(seed)
    origins = torch.randint(1 << 28, (num_kv,), generator=make, dtype=torch.int32)
    return origins.to(DEVICE), (torch.rand(num_kv, generator=make) < full).to(DEVICE)


def members_of(num_q, size, seed=0):
    """Any blocks in groups of `size`, some with fewer members."""
    order = torch.randperm(num_q, generator=torch.Generator().manual_seed(seed))
    padded = torch.full((-(-num_q // size) * size,), -1)
    padded[:num_q] = order
    return padded.view(-1, size).sort(1, descending=True).values.int().to(DEVICE)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 20), st.integers(1, 140)),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([0, 0.05, 0.5, 1]),
    st.sampled_from([0, 0.5, 1]),
    st.integers(0, 1 << 16),
)
def test_kernels_and_twins_give_the_lists_of_the_definition(shape, size, density, full, seed):
    mask = some_mask(*shape, density=density, seed=seed)
    bits, members = pack_bits(mask), members_of(shape[2], size, seed)
    origins, is_full = tables(shape[3], seed, full)
    made = make_lists(bits, members, origins, is_full)
    assert_same(made, make_lists_reference(bits, members, origins, is_full))
    expected = naive_rows(mask, members, origins, is_full)
    assert rows_of(made) == [row for row, _ in expected]
    assert made.num_full.flatten().tolist() == [num for _, num in expected]


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 140), st.integers(1, 40)),
    st.sampled_from([0, 0.05, 0.5, 1]),
    st.integers(0, 1 << 16),
)
def test_inverse_lists_name_the_query_blocks_that_see_a_block(shape, density, seed):
    mask = some_mask(*shape, density=density, seed=seed)
    made = make_inverse(pack_bits(mask), shape[3])
    assert_same(made, make_inverse_reference(pack_bits(mask), shape[3]))
    assert made.counts.shape == (*shape[:2], shape[3])
    columns = mask.transpose(-1, -2).flatten(0, 2)
    assert rows_of(made) == [column.nonzero().flatten().tolist() for column in columns]
    assert torch.equal(made.num_full, made.counts)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize(
    ("grid", "q_block", "kv_block"),
    [((5, 7, 9), ONE, ONE), ((1, 4, 4), ONE, ONE), ((3, 5, 2), (2, 3, 4), (3, 3, 3)), ((4, 5, 9), (4, 4, 8), ONE)],
)
def test_lists_of_a_plan_lead_to_its_tokens(grid, q_block, kv_block, size, monkeypatch):
    q_grid, kv_grid = BlockGrid(grid, q_block), BlockGrid(grid, kv_block)
    plan = hand_plan(q_grid, kv_grid, random_mask(q_grid, kv_grid, 0.4, batch=2))
    table = token_tables(kv_grid, tiled=False, pad_to=16, device=DEVICE)
    members = choose_groups(plan.block_bits, q_grid, size)
    poison_empty(monkeypatch)
    made = make_lists(plan.block_bits, members, table.origins, table.full_bits)
    seen = torch.zeros(*plan.shape[:3], kv_grid.num_tokens, dtype=torch.bool)
    places = [(b, h, r) for b in range(2) for h in range(2) for r in range(members.shape[2])]
    for place, row, num_full in zip(places, rows_of(made), made.num_full.flatten().tolist(), strict=True):
        for number, item in enumerate(row):
            value = item & ((1 << 28) - 1)
            tokens = value + table.offsets if number < num_full else table.tokens[value]
            for g, block in enumerate(members[place].tolist()):
                if block >= 0 and (size == 1 or item >> (28 + g) & 1):
                    seen[place[0], place[1], block, tokens[tokens >= 0].cpu()] = True
    block_of_token = kv_grid.slot_of_token(DEVICE) // kv_grid.block_size
    assert torch.equal(seen, plan.block_mask[..., block_of_token].cpu())


def test_disjoint_and_identical_lists_of_a_pair():
    row = torch.arange(70, device=DEVICE) % 2 == 0
    mask = torch.stack([row, ~row, row, row]).view(1, 1, 4, 70)
    members = torch.tensor([[0, 1], [2, 3]], dtype=torch.int32, device=DEVICE)
    origins, is_full = torch.arange(70, dtype=torch.int32, device=DEVICE), torch.ones_like(row)
    disjoint, same = rows_of(make_lists(pack_bits(mask), members, origins, is_full))
    assert disjoint == [j | (1 + j % 2) << 28 for j in range(70)]
    assert same == [j | 3 << 28 for j in range(0, 70, 2)]
    eta = [float(union_efficiency(pack_bits(mask), group)) for group in (members[:1], members[1:], members)]
    assert eta == pytest.approx([0.5, 1, 140 / (2 * 70 + 2 * 35)])


@pytest.mark.slow
def test_dead_rows_dead_columns_and_a_column_that_all_see():
    mask = some_mask(2, 3, 20, 75)
    mask[:, 0, 7] = False
    mask[..., 40] = False
    mask[..., 33] = True
    mask[:, 1] = False
    mask[:, 2] = True
    bits = pack_bits(mask)
    origins, is_full = tables(75)
    for size in (1, 2, 4):
        members = members_of(20, size)
        made = make_lists(bits, members, origins, is_full)
        assert_same(made, make_lists_reference(bits, members, origins, is_full))
        assert (made.counts[:, 1] == 0).all()
        assert (made.counts[:, 2] == 75).all()
    made = make_inverse(bits, 75)
    assert_same(made, make_inverse_reference(bits, 75))
    assert made.counts[:, :, 40].tolist() == [[0, 0, 20]] * 2
    assert made.counts[:, :, 33].tolist() == [[20, 0, 20]] * 2


@pytest.mark.slow
@pytest.mark.parametrize(("num_kv", "num_q"), [(700, 3), (3, 700)])
def test_long_lists_are_made_in_steps(num_q, num_kv):
    mask = some_mask(1, 1, num_q, num_kv, density=0.5)
    bits, members = pack_bits(mask), members_of(num_q, 2)
    origins, is_full = tables(num_kv)
    assert_same(make_lists(bits, members, origins, is_full), make_lists_reference(bits, members, origins, is_full))
    assert_same(make_inverse(bits, num_kv), make_inverse_reference(bits, num_kv))


@pytest.mark.slow
def test_two_runs_write_the_same_and_every_item():
    bits = pack_bits(some_mask(1, 2, 35, 70, density=0.5))
    origins, is_full = tables(70)
    runs = []
    for poison in (-7, 9):
        with pytest.MonkeyPatch.context() as patch:
            make = torch.empty
            patch.setattr(torch, "empty", lambda *a, _make=make, _x=poison, **k: _make(*a, **k).fill_(_x))
            runs.append((make_lists(bits, members_of(35, 2), origins, is_full), make_inverse(bits, 70)))
    for first, second in zip(*runs, strict=True):
        assert_same(first, second)


@pytest.mark.slow
def test_lists_need_not_be_made_of_contiguous_bits():
    bits = pack_bits(some_mask(2, 2, 20, 90)).transpose(0, 1)
    origins, is_full = tables(90)
    assert_same(
        make_lists(bits, members_of(20, 2), origins, is_full),
        make_lists(bits.contiguous(), members_of(20, 2), origins, pack_bits(is_full)),
    )
    assert_same(make_inverse(bits, 90), make_inverse(bits.contiguous(), 90))


@pytest.mark.slow
def test_capacity_is_the_worst_case_or_what_was_counted_or_what_the_caller_says(monkeypatch):
    bits = pack_bits(some_mask(1, 2, 10, 40))
    origins, is_full = tables(40)
    members = members_of(10, 2)
    whole = make_lists(bits, members, origins, is_full)
    total = int(whole.counts.sum())
    assert len(whole.items) == 2 * 5 * 40 + 1
    assert len(make_inverse(bits, 40).items) == 2 * 40 * 10 + 1
    given_size = make_lists(bits, members, origins, is_full, capacity=total + 1)
    assert len(given_size.items) == total + 1
    monkeypatch.setattr(lists, "MAX_WORST_CASE", 2 * 5 * 40)
    counted = make_lists(bits, members, origins, is_full)
    assert len(counted.items) == total + 1
    assert_same(given_size, whole)
    assert_same(counted, whole)


@pytest.mark.skipif(DEVICE.type == "cuda", reason="a failed assertion on the device ends the process's use of it")
def test_a_capacity_that_is_too_small_is_refused():
    bits = pack_bits(torch.ones(1, 1, 3, 5, dtype=torch.bool))
    with pytest.raises(RuntimeError, match="capacity 15 is not above the number of items; give more, or None"):
        make_inverse(bits, 5, capacity=15)
    assert make_inverse(bits, 5, capacity=16).counts.tolist() == [[[3] * 5]]


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(
    st.tuples(*[st.integers(1, 9)] * 3),
    st.tuples(*[st.integers(1, 4)] * 3),
    st.booleans(),
    st.sampled_from([1, 16]),
)
def test_token_tables_say_where_permute_takes_and_puts_tokens(shape, block, tiled, pad_to):
    grid = BlockGrid(shape, block)
    table = token_tables(grid, tiled=tiled, pad_to=pad_to, device=DEVICE)
    n, m = grid.num_blocks, grid.block_size
    x = torch.arange(1, grid.num_tokens + 1, device=DEVICE).view(1, 1, -1, 1)
    tiles = grid.permute(x)[0, 0, :, 0]
    stored = tiles if tiled else x.flatten()
    assert all(getattr(table, name).dtype == torch.int32 for name in ("origins", "offsets", "tokens", "full_bits"))
    assert table.tokens.shape == (n, len(table.offsets))
    assert len(table.offsets) == -(-m // pad_to) * pad_to
    found = torch.where(table.tokens >= 0, stored[table.tokens.clamp(min=0).long()], 0)
    assert torch.equal(found[:, :m], tiles.view(n, m))
    assert (table.tokens[:, m:] == -1).all()
    real = grid.real_counts(DEVICE)
    assert torch.equal(table.is_full, real == table.tokens.shape[1])
    assert torch.equal(table.full_bits, pack_bits(table.is_full))
    assert torch.equal(table.origins, table.tokens[:, 0])
    whole = real == m
    assert torch.equal((table.origins.unsqueeze(1) + table.offsets)[whole, :m], table.tokens[whole, :m])
    assert (table.offsets[m:] == 0).all()


def test_a_grid_whose_tokens_do_not_fit_an_item_is_refused():
    with pytest.raises(ValueError, match=r"expected at most 2\*\*28 slots, got 268435520"):
        token_tables(BlockGrid((1, 1, (1 << 28) + 1), (1, 1, 64)), tiled=True, device=DEVICE)


def test_launch_order_is_longest_first_within_a_head_and_stable():
    counts = torch.tensor([[[2, 5, 2, 0, 5], [1, 1, 3, 1, 0]]], dtype=torch.int32, device=DEVICE)
    order = launch_order(counts)
    assert order.dtype == torch.int32
    assert order.tolist() == [[[1, 4, 0, 2, 3], [2, 0, 1, 3, 4]]]
    lengths = list_lengths(counts)
    assert (float(lengths.mean), int(lengths.longest)) == (2.0, 5)


def test_efficiency_is_what_members_ask_over_what_their_group_does():
    mask = some_mask(2, 2, 11, 45)
    bits = pack_bits(mask)
    for size in (1, 2, 4):
        members = members_of(11, size)
        asked = done = 0
        for group in members.tolist():
            rows = mask[:, :, [i for i in group if i >= 0]]
            asked += int(rows.sum())
            done += int(rows.any(2).sum()) * rows.shape[2]
        assert float(union_efficiency(bits, members)) == pytest.approx(asked / done)
    assert float(union_efficiency(bits, members_of(11, 1))) == 1
    assert float(union_efficiency(bits * 0, members_of(11, 2))) == 1
