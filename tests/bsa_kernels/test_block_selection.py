"""Which KV blocks a row of block scores keeps."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_bsa import chosen_blocks
from selection_helpers import assert_selects_like_the_naive_loops, plan_for, random_qk

from bsa_kernels import make_bsa_plan
from bsa_kernels.grid import BlockGrid
from bsa_kernels.methods.bsa.blocks import pool_kept, pool_real, select_blocks

RULES = ["statistical", "topk", "mass", "softmax_stat"]
DENSITY = st.floats(0.001, 1)


def row(scores, density, rule="statistical"):
    """The blocks kept of one row of scores."""
    mask = select_blocks(torch.tensor([[[scores]]], dtype=torch.float64), kv_density=density, rule=rule)
    return mask[0, 0, 0].nonzero().flatten().tolist()


def random_scores(num_blocks, seed, rows=5):
    return torch.randn(1, 1, rows, num_blocks, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("density", [0.05, 0.1, 0.5, 0.9, 1])
@pytest.mark.parametrize("rule", RULES)
def test_kept_blocks_equal_the_naive_loops(rule, density):
    q, k = random_qk((5, 7, 9), batch=2, heads=2, head_dim=5)
    assert_selects_like_the_naive_loops(q, k, grid=(5, 7, 9), block=(3, 3, 3), kv_rule=rule, kv_density=density)
    assert_selects_like_the_naive_loops(
        q, k, grid=(5, 7, 9), block=(2, 3, 4), query_block=(4, 4, 8), kv_rule=rule, kv_density=density, scale=3.0
    )


@settings(max_examples=60, deadline=None)
@given(num_blocks=st.integers(1, 40), density=DENSITY, rule=st.sampled_from(RULES), seed=st.integers(0, 1 << 16))
def test_rows_of_scores_equal_the_naive_loops_and_are_never_empty(num_blocks, density, rule, seed):
    scores = random_scores(num_blocks, seed)
    mask = select_blocks(scores, kv_density=density, rule=rule)
    assert mask.any(-1).all()
    assert mask.gather(-1, scores.argmax(-1, keepdim=True)).all()
    for kept, values in zip(mask[0, 0].tolist(), scores[0, 0].tolist(), strict=True):
        assert {j for j, sees in enumerate(kept) if sees} == chosen_blocks(values, density, rule)


@settings(max_examples=60, deadline=None)
@given(
    num_blocks=st.integers(1, 40),
    densities=st.tuples(DENSITY, DENSITY).map(sorted),
    rule=st.sampled_from(["statistical", "topk", "softmax_stat"]),
    seed=st.integers(0, 1 << 16),
)
def test_a_higher_density_keeps_all_that_a_lower_one_keeps(num_blocks, densities, rule, seed):
    scores = random_scores(num_blocks, seed)
    fewer, more = (select_blocks(scores, kv_density=d, rule=rule) for d in densities)
    assert (more | ~fewer).all()


@settings(max_examples=40, deadline=None)
@given(num_blocks=st.integers(1, 200), density=DENSITY)
def test_topk_keeps_its_share_rounded_half_up(num_blocks, density):
    mask = select_blocks(random_scores(num_blocks, 0), kv_density=density, rule="topk")
    assert (mask.sum(-1) == max(1, math.floor(density * num_blocks + 0.5))).all()


def test_the_statistical_rule_is_the_normal_quantile_of_the_row():
    # Mean 0, population deviation 1; Phi^-1(0.9) = 1.2816, Phi^-1(0.6) = 0.2533, Phi^-1(0.5) = 0, Phi^-1(0.1).
    scores = [-1.4142135623730951, -0.7071067811865476, 0.0, 0.7071067811865476, 1.4142135623730951]
    assert row(scores, 0.1) == [4]
    assert row(scores, 0.4) == [3, 4]
    assert row(scores, 0.5) == [2, 3, 4]
    assert row(scores, 0.9) == [1, 2, 3, 4]
    assert row([100 + 7 * s for s in scores], 0.4) == [3, 4]
    assert row(scores, 0.001) == [4]


def test_the_density_that_is_reached_is_near_the_one_asked_for_on_normal_scores():
    scores = random_scores(2000, 3, rows=20)
    for density in (0.05, 0.1, 0.3, 0.5):
        mask = select_blocks(scores, kv_density=density, rule="statistical")
        assert float(mask.double().mean()) == pytest.approx(density, abs=0.01)


@pytest.mark.parametrize("value", [0.0, 2.5, -1e30, 1e-30])
@pytest.mark.parametrize("rule", ["statistical", "softmax_stat"])
def test_a_constant_row_keeps_all(rule, value):
    assert row([value] * 9, 0.05, rule) == list(range(9))


def test_a_row_that_is_constant_but_for_rounding_keeps_all():
    eps = 2.0**-52
    assert row([3.0, 3.0 * (1 + 5 * eps), 3.0 * (1 - 5 * eps)], 0.1) == [0, 1, 2]
    assert row([3.0, 3.0 * (1 + 40 * eps), 3.0], 0.1) == [1]


def test_topk_and_mass_keep_their_number_of_a_constant_row_from_the_lowest_index():
    assert row([1.0] * 10, 0.3, "topk") == [0, 1, 2]
    assert row([1.0] * 16, 0.3, "mass") == list(range(15))
    assert row([1.0] * 3, 0.3, "mass") == [0, 1, 2]


def test_mass_collects_nine_tenths_and_at_least_four():
    assert row([10.0, 0.0, 1.0, 0.5, 0.2, 0.1], 0.1, "mass") == [0, 2, 3, 4]
    # Five equal blocks hold a fifth each: 0.8 is too little, all five are needed.
    assert row([0.0, 5.0, 5.0, 5.0, 5.0, 5.0], 0.1, "mass") == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("rule", RULES)
def test_density_one_keeps_every_block(rule):
    q, k = random_qk((5, 6, 13))
    plan = plan_for(q, k, grid=(5, 6, 13), kv_density=1, kv_rule=rule)
    assert plan.block_mask.all()


@pytest.mark.parametrize("rule", RULES)
def test_a_single_block_is_always_seen(rule):
    q, k = random_qk((3, 2, 4))
    plan = plan_for(q, k, grid=(3, 2, 4), kv_density=0.01, kv_rule=rule)
    assert plan.kv_counts.flatten().tolist() == [1]


@pytest.mark.parametrize("content", ["q", "k"])
def test_zero_queries_or_equal_keys_see_everything(content):
    q, k = random_qk((5, 6, 7))
    if content == "q":
        q = torch.zeros_like(q)
    else:
        k = k[:, :, :1].expand_as(k)
    assert plan_for(q, k, grid=(5, 6, 7), kv_density=0.1).block_mask.all()


def test_equal_keys_see_everything_in_single_precision_too():
    q, k = (x.float() for x in random_qk((8, 8, 12), head_dim=64))
    assert plan_for(q, k[:, :, :1].expand_as(k), grid=(8, 8, 12), kv_density=0.1).block_mask.all()


def test_list_lengths_differ_from_row_to_row():
    q, k = random_qk((5, 7, 9), head_dim=8)
    plan = plan_for(q, k, grid=(5, 7, 9), block=(2, 2, 2), kv_density=0.2)
    assert plan.kv_counts.unique().numel() > 3


def test_means_leave_padding_out():
    grid = BlockGrid((1, 1, 5), (1, 1, 4))
    x = torch.tensor([1.0, 2, 3, 4, 50]).view(1, 1, 5, 1)
    tiles = grid.permute(x)
    assert pool_real(tiles, grid).flatten().tolist() == [2.5, 50]
    kept = torch.tensor([[True, False, False, True], [True, False, False, False]]).view(1, 1, 2, 4)
    assert pool_kept(tiles, kept, kept.sum(-1)).flatten().tolist() == [2.5, 50]


def test_half_precision_means_are_summed_in_fp32():
    grid = BlockGrid((4, 4, 4), (4, 4, 4))
    x = torch.full((1, 1, 64, 1), 1 + 2.0**-7, dtype=torch.bfloat16)
    x[0, 0, 0] = 300
    expected = (300 + 63 * (1 + 2.0**-7)) / 64
    assert float(pool_real(x, grid)) == pytest.approx(expected, rel=1e-6)
    assert pool_real(x, grid).dtype == torch.float32
    huge = torch.full((1, 1, 64, 1), 60000.0, dtype=torch.float16)
    kept = torch.ones(1, 1, 1, 64, dtype=torch.bool)
    assert float(pool_kept(huge, kept, kept.sum(-1))) == 60000


def test_a_negative_scale_prefers_the_keys_least_like_the_query():
    q, k = random_qk((4, 4, 16))
    plan = plan_for(q, k, grid=(4, 4, 16), kv_rule="topk", kv_density=0.5, scale=1.0)
    opposite = plan_for(q, k, grid=(4, 4, 16), kv_rule="topk", kv_density=0.5, scale=-1.0)
    assert torch.equal(opposite.block_mask, ~plan.block_mask)


def test_a_wider_query_block_shares_one_list_among_its_rows():
    q, k = random_qk((4, 8, 16))
    plan = make_bsa_plan(q, k, grid=(4, 8, 16), query_block=(4, 4, 8))
    assert (plan.q_grid.num_blocks, plan.kv_grid.num_blocks) == (4, 8)
    assert plan.shape == (1, 1, 4, 64)
    assert plan.kv_counts.shape == (1, 1, 4)


def test_equal_keys_whose_scores_cancel_keep_every_block():
    """The spread of such a row is rounding of the pooled means, large against its scores, small against |q| |k|."""
    generator = torch.Generator().manual_seed(0)
    grid, dim = (5, 7, 9), 64
    key = torch.randn(dim, generator=generator)
    q = torch.randn(1, 1, 315, dim, generator=generator)
    q -= (q @ key).unsqueeze(-1) * key / (key @ key)  # orthogonal: each product cancels
    plan = make_bsa_plan(q, key.expand(1, 1, 315, dim), grid=grid, kv_density=0.1)
    assert (plan.kv_counts == plan.kv_grid.num_blocks).all()
