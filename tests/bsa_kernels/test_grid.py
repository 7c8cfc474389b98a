"""The block grid: a permutation, its inverse, and what padding is."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_helpers import DEVICE
from naive_bsa import blocks_of

from bsa_kernels import BlockGrid

GRIDS = st.tuples(*[st.integers(1, 7)] * 3)
BLOCKS = st.tuples(*[st.integers(1, 5)] * 3)
NAMED = [
    ((5, 7, 9), (4, 4, 4)),
    ((1, 4, 4), (4, 4, 4)),
    ((4, 4, 4), (4, 4, 4)),
    ((3, 5, 2), (3, 3, 3)),
    ((5, 6, 13), (2, 3, 4)),
    ((1, 1, 1), (4, 4, 4)),
    ((1, 1, 7), (1, 1, 3)),
    ((5, 8, 9), (4, 4, 8)),
]


def numbered(length, *, batch=2, heads=2, head_dim=3, dtype=torch.float64):
    """Every number different, none zero."""
    count = batch * heads * length * head_dim
    return torch.arange(1, count + 1, dtype=dtype, device=DEVICE).view(batch, heads, length, head_dim)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(grid=GRIDS, block=BLOCKS)
def test_restore_is_the_inverse_of_permute(grid, block):
    made = BlockGrid(grid, block)
    x = numbered(made.num_tokens)
    assert torch.equal(made.restore(made.permute(x)), x)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(grid=GRIDS, block=BLOCKS)
def test_tables_equal_indices_computed_token_by_token(grid, block):
    made = BlockGrid(grid, block)
    blocks = blocks_of(grid, block)
    assert made.num_blocks == len(blocks)
    m = block[0] * block[1] * block[2]
    assert made.block_size == m
    assert made.real_counts(DEVICE).tolist() == [len(tokens) for tokens in blocks]
    assert made.real_counts(DEVICE).dtype == torch.int32
    expected = [list(tokens.values()) + [-1] * (m - len(tokens)) for tokens in blocks]
    assert made.token_of_slot(DEVICE).tolist() == expected
    slot_of_token = made.slot_of_token(DEVICE).tolist()
    for number, tokens in enumerate(blocks):
        assert [slot_of_token[token] for token in tokens.values()] == [number * m + s for s in range(len(tokens))]
        places = made.local_coords(DEVICE)[number].tolist()
        assert [tuple(p) for p in places[: len(tokens)]] == list(tokens)
        assert len({tuple(p) for p in places}) == m


@pytest.mark.parametrize(("grid", "block"), NAMED)
def test_real_tokens_stand_first_in_their_block_and_padding_is_zero(grid, block):
    made = BlockGrid(grid, block)
    x = numbered(made.num_tokens)
    tiles = made.permute(x).unflatten(2, (made.num_blocks, made.block_size))
    assert tiles.is_contiguous()
    for number, tokens in enumerate(blocks_of(grid, block)):
        real = list(tokens.values())
        assert torch.equal(tiles[:, :, number, : len(real)], x[:, :, real])
        assert (tiles[:, :, number, len(real) :] == 0).all()


@pytest.mark.parametrize(
    ("grid", "blocks", "is_even"),
    [
        ((16, 28, 52), 364, True),
        ((20, 28, 52), 455, True),
        ((21, 30, 52), 624, False),
        ((24, 36, 64), 864, True),
        ((40, 28, 52), 910, True),
        ((21, 45, 80), 1440, False),
        ((40, 48, 80), 2400, True),
    ],
)
def test_video_grids_have_the_published_number_of_blocks(grid, blocks, is_even):
    made = BlockGrid(grid, (4, 4, 4))
    assert (made.num_blocks, made.is_even) == (blocks, is_even)
    assert made.num_tokens == grid[0] * grid[1] * grid[2]
    assert made.num_slots == 64 * blocks
    assert made.is_even == (made.num_slots == made.num_tokens)


def test_infinite_numbers_do_not_leak_into_padding():
    made = BlockGrid((1, 3, 5), (1, 2, 4))
    x = torch.full((1, 1, 15, 2), torch.inf, device=DEVICE)
    tiles = made.permute(x)
    assert (tiles.isinf().sum(), (tiles == 0).sum()) == (30, 2 * (made.num_slots - 15))
    hollow = torch.full_like(tiles, torch.nan).masked_fill(tiles.isinf(), 1)
    assert (made.restore(hollow) == 1).all()


@pytest.mark.parametrize(("grid", "block"), NAMED)
def test_gradients_of_permute_and_restore_go_back_to_where_they_came_from(grid, block):
    made = BlockGrid(grid, block)
    x = numbered(made.num_tokens, batch=1, head_dim=2).requires_grad_()
    weight = numbered(made.num_slots, batch=1, head_dim=2)
    (grad,) = torch.autograd.grad((made.permute(x) * weight).sum(), x)
    assert torch.equal(grad, made.restore(weight))
    tiles = numbered(made.num_slots, batch=1, head_dim=2).requires_grad_()
    weight = numbered(made.num_tokens, batch=1, head_dim=2)
    (grad,) = torch.autograd.grad((made.restore(tiles) * weight).sum(), tiles)
    assert torch.equal(grad, made.permute(weight))


def test_permute_and_restore_pass_gradcheck():
    made = BlockGrid((3, 2, 3), (2, 2, 2))
    x = numbered(18, batch=1, head_dim=1).requires_grad_()
    tiles = numbered(made.num_slots, batch=1, head_dim=1).requires_grad_()
    assert torch.autograd.gradcheck(made.permute, (x,))
    assert torch.autograd.gradcheck(made.restore, (tiles,))


@pytest.mark.parametrize(("grid", "block"), [((4, 4, 8), (4, 4, 4)), ((3, 5, 2), (3, 3, 3))])
def test_strided_inputs_are_permuted_like_contiguous_ones(grid, block):
    made = BlockGrid(grid, block)
    x = numbered(made.num_tokens, dtype=torch.bfloat16)
    strided = x.transpose(1, 2).contiguous().transpose(1, 2)
    assert not strided.is_contiguous()
    assert torch.equal(made.permute(strided), made.permute(x))
    assert made.permute(x).dtype == torch.bfloat16


@pytest.mark.parametrize("value", [(0, 4, 4), (4, -1, 4), (4, 4), (4.0, 4, 4), (4, 4, 4, 4)])
def test_a_wrong_grid_or_block_is_named(value):
    for name, arguments in (("grid", (value, (4, 4, 4))), ("block", ((4, 4, 4), value))):
        with pytest.raises(ValueError, match=rf"{name}: expected three integers \(t, h, w\) of at least 1, got ") as e:
            BlockGrid(*arguments)
        assert str(value) in str(e.value)


def test_a_tensor_of_another_length_is_named_with_both_lengths():
    made = BlockGrid((3, 5, 2), (4, 4, 4))
    with pytest.raises(ValueError, match=r"expected \[B, H, 30, D\] for grid \(3, 5, 2\) .* got \[1, 2, 31, 4\]"):
        made.permute(torch.zeros(1, 2, 31, 4))
    with pytest.raises(ValueError, match=r"expected \[B, H, 30, D\].* got \[30, 4\]"):
        made.permute(torch.zeros(30, 4))
    with pytest.raises(ValueError, match=r"expected \[B, H, 128, D\] .* got \[1, 2, 30, 4\]"):
        made.restore(torch.zeros(1, 2, 30, 4))
