"""The plan: its tables, what is derived from them, and what its fill does to outputs and gradients."""

from dataclasses import replace

import pytest
import torch
from kernel_helpers import DEVICE, hand_plan, random_mask
from naive_bsa import blocks_of
from torch.nn.attention.flex_attention import flex_attention

from bsa_kernels import BlockGrid, BlockPlan, full_plan, make_bsa_plan
from bsa_kernels.engines.reference import masked_attention
from bsa_kernels.engines.reference import prepare as slot_mask

SHAPES = [
    ((5, 7, 9), (4, 4, 4), (4, 4, 4)),
    ((1, 4, 4), (4, 4, 4), (4, 4, 4)),
    ((4, 4, 8), (4, 4, 4), (4, 4, 4)),
    ((3, 5, 2), (2, 3, 4), (3, 3, 3)),
    ((4, 5, 9), (4, 4, 8), (4, 4, 4)),
]


def made_by_hand(grid, q_block, kv_block, *, density=0.4, batch=2, **options):
    q_grid, kv_grid = BlockGrid(grid, q_block), BlockGrid(grid, kv_block)
    return hand_plan(q_grid, kv_grid, random_mask(q_grid, kv_grid, density, batch=batch), **options)


def small(**options):
    """Two blocks, the second with one real token in four slots; both rows see both blocks."""
    grid = BlockGrid((1, 1, 5), (1, 1, 4))
    return hand_plan(grid, grid, torch.ones(1, 1, 2, 2, dtype=torch.bool, device=DEVICE), **options)


def tokens_of(grid):
    """[N] lists of the real tokens of each block, by plain loops."""
    return [list(tokens.values()) for tokens in blocks_of(grid.grid, grid.block)]


def random_rows(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device=DEVICE, dtype=dtype)


@pytest.mark.parametrize(("grid", "q_block", "kv_block"), SHAPES)
def test_inverse_lists_are_the_transposed_lists(grid, q_block, kv_block):
    plan = made_by_hand(grid, q_block, kv_block)
    b, h, nq, _ = plan.shape
    counts, indices = plan.inverse
    assert (counts.dtype, indices.dtype) == (torch.int32, torch.int32)
    forward = plan.kv_indices.tolist()
    for i in range(b):
        for j in range(h):
            choosers = [[] for _ in range(plan.kv_grid.num_blocks)]
            for query in range(nq):
                for block in forward[i][j][query][: plan.kv_counts[i, j, query]]:
                    choosers[block].append(query)
            assert counts[i, j].tolist() == [len(c) for c in choosers]
            assert [row[: len(c)] for row, c in zip(indices[i, j].tolist(), choosers, strict=True)] == choosers


@pytest.mark.parametrize(("grid", "q_block", "kv_block"), SHAPES)
def test_dense_mask_is_kept_rows_times_listed_tokens(grid, q_block, kv_block):
    plan = made_by_hand(grid, q_block, kv_block)
    expected = torch.zeros(plan.dense_mask().shape, dtype=torch.bool)
    q_tokens, kv_tokens = tokens_of(plan.q_grid), tokens_of(plan.kv_grid)
    b, h, nq, _ = plan.shape
    for i in range(b):
        for j in range(h):
            for query in range(nq):
                rows = [q_tokens[query][s] for s in plan.kept_slots[i, j, query].tolist() if s >= 0]
                for block in plan.kv_indices[i, j, query, : plan.kv_counts[i, j, query]].tolist():
                    for row in rows:
                        expected[i, j, row, kv_tokens[block]] = True
    assert torch.equal(plan.dense_mask().cpu(), expected)


@pytest.mark.parametrize("zero_fill", [False, True])
@pytest.mark.parametrize(("grid", "q_block", "kv_block"), SHAPES)
def test_source_of_token_follows_fill_and_kept_slots(grid, q_block, kv_block, zero_fill):
    plan = made_by_hand(grid, q_block, kv_block, zero_fill=zero_fill)
    source = plan.source_of_token().tolist()
    b, h, _, _ = plan.shape
    for i in range(b):
        for j in range(h):
            for number, tokens in enumerate(tokens_of(plan.q_grid)):
                for slot, token in enumerate(tokens):
                    entry = int(plan.fill[i, j, number, slot])
                    expected = -1 if entry < 0 else tokens[int(plan.kept_slots[i, j, number, entry])]
                    assert source[i][j][token] == expected


@pytest.mark.parametrize(("grid", "q_block", "kv_block"), SHAPES)
def test_lists_and_block_mask_are_each_others_inverse(grid, q_block, kv_block):
    q_grid, kv_grid = BlockGrid(grid, q_block), BlockGrid(grid, kv_block)
    mask = random_mask(q_grid, kv_grid, 0.4)
    assert torch.equal(hand_plan(q_grid, kv_grid, mask).block_mask, mask)


def test_a_plan_of_a_mask_alone_keeps_every_row():
    grid = BlockGrid((1, 1, 5), (1, 1, 4))
    plan = BlockPlan.from_mask(grid, grid, torch.eye(2, dtype=torch.bool, device=DEVICE).expand(1, 2, 2, 2))
    plan.check()
    assert plan.num_kept.tolist() == [[[4, 1], [4, 1]]]
    assert not plan.keeps_every_row
    assert torch.equal(plan.dense_mask()[0, 0].any(-1), torch.ones(5, dtype=torch.bool, device=DEVICE))
    with pytest.raises(ValueError, match="expected kept_slots and fill together, or neither"):
        BlockPlan.from_mask(grid, grid, plan.block_mask, fill=plan.fill)


@pytest.mark.parametrize(("grid", "q_block", "kv_block"), SHAPES)
def test_flex_block_mask_lists_the_same_blocks_and_keeps_full_ones_apart(grid, q_block, kv_block):
    plan = made_by_hand(grid, q_block, kv_block)
    flex = plan.to_flex()
    assert torch.equal(flex.to_dense().bool(), plan.block_mask)
    assert tuple(flex.BLOCK_SIZE) == (plan.shape[3], plan.kv_grid.block_size)
    assert flex.shape == (*plan.shape[:2], plan.shape[2] * plan.shape[3], plan.kv_grid.num_slots)
    is_full = plan.kv_grid.real_counts(DEVICE) == plan.kv_grid.block_size
    assert torch.equal(flex.full_kv_num_blocks, (plan.block_mask & is_full).sum(-1).int())
    assert torch.equal(flex.kv_num_blocks, (plan.block_mask & ~is_full).sum(-1).int())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("grid", "q_block", "kv_block"), SHAPES)
def test_uncompiled_flex_attention_gives_masked_attention_under_the_converted_plan(grid, q_block, kv_block):
    plan = made_by_hand(grid, q_block, kv_block, batch=1)
    b, h, nq, kept = plan.shape
    q = random_rows(b, h, nq * kept, 8)
    k, v = random_rows(2, b, h, plan.kv_grid.num_slots, 8) + 1
    out = flex_attention(q, k, v, block_mask=plan.to_flex(), scale=0.3)
    torch.testing.assert_close(out, masked_attention(q, k, v, slot_mask(plan), scale=0.3))


@pytest.mark.parametrize("block", [(4, 4, 4), (2, 3, 4)])
def test_the_full_plan_computes_every_row_and_sees_every_token(block):
    grid = BlockGrid((4, 4, 5), block)
    plan = full_plan(2, 3, grid, device=DEVICE)
    plan.check()
    assert plan.dense_mask().all()
    assert (plan.source_of_token() == torch.arange(80, device=DEVICE)).all()
    assert (plan.kv_counts == grid.num_blocks).all()
    assert plan.keeps_every_row == grid.is_even
    x = random_rows(2, 3, 80, 4)
    assert torch.equal(plan.fill_output(plan.gather_kept(grid.permute(x))), x)
    q = random_rows(2, 3, 80, 4)
    assert make_bsa_plan(q, q, grid=(4, 4, 5), block=block, query_keep=1, kv_density=1).digest() == plan.digest()


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ("num_kept", lambda t: t[..., :1], r"plan.num_kept: expected torch.int32 \(1, 1, 2\), got .* \(1, 1, 1\)"),
        ("fill", lambda t: t[..., :3], r"plan.fill: expected torch.int32 \(1, 1, 2, 4\)"),
        ("block_bits", lambda t: t[..., :0], r"plan.block_bits: expected torch.int32 \(1, 1, 2, 1\)"),
        ("kept_slots", lambda t: t.long(), r"plan.kept_slots: expected torch.int32 .* got torch.int64"),
        ("num_kept", lambda t: t * 0, "plan.num_kept: expected counts between 1 and 2"),
        ("num_kept", lambda t: t + 1, "plan.num_kept: expected counts between 1 and 2"),
        ("kept_slots", lambda t: t.flip(-1), "plan.kept_slots: expected num_kept ascending slots"),
        ("kept_slots", lambda t: t[..., :1].expand_as(t), "plan.kept_slots"),
        ("kept_slots", lambda t: t.masked_fill(t < 0, 3), "plan.kept_slots"),
        ("kept_slots", lambda t: t.masked_fill(t < 0, -2), "plan.kept_slots"),
        ("kept_slots", lambda t: t + (t == 0), "plan.kept_slots"),
        ("kept_slots", lambda t: t.new_tensor([[[[2, 0], [0, -1]]]]), "plan.kept_slots"),
        ("fill", lambda t: t.masked_fill(t == 1, 2), "plan.fill: expected an entry below num_kept"),
        ("fill", lambda t: t.masked_fill(t < 0, 7), "plan.fill: expected an entry below num_kept"),
        ("fill", lambda t: t.masked_fill(t == 0, -1), "plan.fill: expected an entry below num_kept"),
        (
            "fill",
            lambda t: t.new_tensor([[[[1, 0, 1, 1], [0, -1, -1, -1]]]]),
            "plan.fill: a kept row must take its own output",
        ),
        ("block_bits", lambda t: t + 4, "plan.block_bits: expected zeros past the 2 KV blocks"),
        ("block_bits", lambda t: t - (1 << 31), "plan.block_bits: expected zeros past the 2 KV blocks"),
        ("keeps_every_row", lambda t: True, "plan.keeps_every_row: expected False"),
        ("q_grid", lambda t: BlockGrid((1, 1, 5), (1, 1, 2)), "plan: grids .* do not fit 2 query blocks"),
    ],
)
def test_check_names_the_table_that_is_wrong(table, change, message):
    plan = replace(
        small(),
        kept_slots=torch.tensor([[[[0, 2], [0, -1]]]], dtype=torch.int32, device=DEVICE),
        num_kept=torch.tensor([[[2, 1]]], dtype=torch.int32, device=DEVICE),
        fill=torch.tensor([[[[0, 0, 1, 1], [0, -1, -1, -1]]]], dtype=torch.int32, device=DEVICE),
    )
    plan.check()
    with pytest.raises(ValueError, match=message):
        replace(plan, **{table: change(getattr(plan, table))}).check()


def test_a_zero_filled_row_must_be_announced():
    plan = small(zero_fill=True)
    plan.check()
    with pytest.raises(ValueError, match=r"plan.fill: .* has_zero_fill"):
        replace(plan, has_zero_fill=False).check()


# `num_kept` is not among them: `kept_slots` says it too.
@pytest.mark.parametrize("table", ["kept_slots", "fill", "block_bits"])
def test_equal_plans_have_equal_digests_and_a_change_of_any_table_another(table):
    plan = made_by_hand((3, 5, 2), (2, 3, 4), (3, 3, 3))
    tables = ("kept_slots", "num_kept", "fill", "block_bits")
    assert len(plan.digest()) == 12
    assert replace(plan, **{name: getattr(plan, name).clone() for name in tables}).digest() == plan.digest()
    changed = getattr(plan, table).clone()
    changed[0, 0, 0] -= 1
    assert replace(plan, **{table: changed}).digest() != plan.digest()


def test_another_grid_has_another_digest():
    one, other = (full_plan(1, 1, BlockGrid(g, (4, 4, 4)), device=DEVICE) for g in ((4, 4, 8), (4, 8, 4)))
    assert one.digest() != other.digest()


@pytest.mark.parametrize("zero_fill", [False, True])
@pytest.mark.parametrize(("grid", "q_block", "kv_block"), SHAPES)
def test_fill_is_a_gather_and_its_backward_preserves_the_sum_of_gradients(grid, q_block, kv_block, zero_fill):
    plan = made_by_hand(grid, q_block, kv_block, zero_fill=zero_fill)
    b, h, nq, kept = plan.shape
    o_kept = random_rows(b, h, nq, kept, 3).requires_grad_()
    do = random_rows(b, h, plan.q_grid.num_tokens, 3)
    out = plan.fill_output(o_kept)
    (grad,) = torch.autograd.grad(out, o_kept, do)

    # The same by plain indexing, one row for each kept token.
    copy = o_kept.detach().clone().requires_grad_()
    rows, mine = [], torch.zeros_like(out)
    source = plan.source_of_token()
    for i in range(b):
        for j in range(h):
            row_of_token = {}
            for number, tokens in enumerate(tokens_of(plan.q_grid)):
                for entry, slot in enumerate(plan.kept_slots[i, j, number].tolist()):
                    if slot >= 0:
                        row_of_token[tokens[slot]] = copy[i, j, number, entry]
            rows += [
                row_of_token[s] if s >= 0 else torch.zeros(3, dtype=copy.dtype, device=DEVICE)
                for s in source[i, j].tolist()
            ]
    mine = torch.stack(rows).view_as(out)
    assert torch.equal(out, mine)
    torch.testing.assert_close(grad, torch.autograd.grad(mine, copy, do)[0])
    taken = do.masked_fill((source < 0).unsqueeze(-1), 0)
    torch.testing.assert_close(grad.sum((2, 3)), taken.sum(2))


def test_half_precision_gradients_of_many_tokens_are_summed_in_fp32():
    grid = BlockGrid((8, 8, 8), (8, 8, 8))
    plan = hand_plan(grid, grid, torch.ones(1, 1, 1, 1, dtype=torch.bool, device=DEVICE), keep=1 / 512)
    o_kept = torch.zeros(1, 1, 1, 1, 2, dtype=torch.bfloat16, device=DEVICE, requires_grad=True)
    do = torch.ones(1, 1, 512, 2, dtype=torch.bfloat16, device=DEVICE)
    (grad,) = torch.autograd.grad(plan.fill_output(o_kept), o_kept, do)
    assert grad.flatten().tolist() == [512, 512]


@pytest.mark.parametrize(("grid", "q_block", "kv_block"), SHAPES)
def test_gather_kept_takes_the_kept_rows_and_returns_their_gradients_only(grid, q_block, kv_block):
    plan = made_by_hand(grid, q_block, kv_block)
    tiles = random_rows(*plan.shape[:2], plan.q_grid.num_slots, 3).requires_grad_()
    rows = plan.gather_kept(tiles)
    m = plan.q_grid.block_size
    weight = random_rows(*rows.shape)
    is_row = plan.kept_slots >= 0
    (grad,) = torch.autograd.grad((rows * weight * is_row.unsqueeze(-1)).sum(), tiles)
    expected = torch.zeros_like(grad)
    for i, j, number, entry in is_row.nonzero().tolist():
        slot = number * m + int(plan.kept_slots[i, j, number, entry])
        assert torch.equal(rows[i, j, number, entry], tiles[i, j, slot])
        expected[i, j, slot] = weight[i, j, number, entry]
    assert torch.equal(grad, expected)


def test_gather_and_fill_pass_gradcheck():
    plan = made_by_hand((3, 2, 3), (2, 2, 2), (2, 2, 2), batch=1, zero_fill=True)
    tiles = random_rows(1, 2, plan.q_grid.num_slots, 1).requires_grad_()
    o_kept = random_rows(*plan.shape, 1).requires_grad_()
    is_row = (plan.kept_slots >= 0).unsqueeze(-1)
    assert torch.autograd.gradcheck(lambda x: plan.gather_kept(x) * is_row, (tiles,))
    assert torch.autograd.gradcheck(plan.fill_output, (o_kept,))


def test_blocks_may_keep_different_numbers_even_where_one_keeps_all():
    grid = BlockGrid((1, 1, 6), (1, 1, 3))
    plan = BlockPlan.from_mask(
        grid,
        grid,
        torch.ones(1, 1, 2, 2, dtype=torch.bool, device=DEVICE),
        kept_slots=torch.tensor([[[[0, 1, 2], [2, -1, -1]]]], device=DEVICE),
        fill=torch.tensor([[[[0, 1, 2], [0, 0, 0]]]], device=DEVICE),
    )
    plan.check()
    x = torch.arange(6.0, device=DEVICE).view(1, 1, 6, 1)
    assert plan.fill_output(plan.gather_kept(grid.permute(x))).flatten().tolist() == [0, 1, 2, 5, 5, 5]


@pytest.mark.parametrize("fill", ["nearest", "zero"])
@pytest.mark.parametrize("keep", [0.5, 0.97, 1])
@pytest.mark.parametrize("grid", [(4, 4, 8), (4, 5, 6)])
def test_the_flags_of_a_made_plan_are_true_only_when_they_hold(grid, keep, fill):
    q = random_rows(1, 2, grid[0] * grid[1] * grid[2], 4)
    plan = make_bsa_plan(q, q, grid=grid, query_keep=keep, fill=fill)
    plan.check()
    # 0.97 of 8 tokens of a window rounds to 8.
    assert plan.keeps_every_row == (grid == (4, 4, 8) and keep > 0.5)
    if not plan.has_zero_fill:
        assert (plan.source_of_token() >= 0).all()
