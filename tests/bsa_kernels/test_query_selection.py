"""Which queries are kept and whose output the others take, against plain Python loops."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_bsa import blocks_of
from selection_helpers import assert_selects_like_the_naive_loops, plan_for, random_qk

from bsa_kernels import make_bsa_plan

RULES = ["window", "block", "flat_half", "central_mean"]
FILLS = ["nearest", "similar", "flat", "zero"]
GRIDS = [(5, 7, 9), (1, 4, 4), (4, 4, 4), (3, 5, 2), (5, 6, 13)]
BLOCKS = [((4, 4, 4), None), ((2, 3, 4), None), ((3, 3, 3), None), ((4, 4, 4), (4, 4, 8))]


@pytest.mark.slow
@pytest.mark.parametrize(("block", "query_block"), BLOCKS)
@pytest.mark.parametrize("grid", GRIDS)
def test_kept_tokens_sources_and_blocks_equal_the_naive_loops(grid, block, query_block):
    q, k = random_qk(grid, seed=sum(grid))
    keeps = itertools.cycle([0.25, 0.5, 0.75, 1, 0.4])
    kv_rules = itertools.cycle(["statistical", "topk", "mass", "softmax_stat", "statistical", "topk", "mass"])
    for rule, fill in itertools.product(RULES, FILLS):
        assert_selects_like_the_naive_loops(
            q,
            k,
            grid=grid,
            block=block,
            query_block=query_block,
            query_rule=rule,
            fill=fill,
            query_keep=next(keeps),
            kv_rule=next(kv_rules),
        )


@pytest.mark.slow
@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_fill_and_keep_ratio_equals_the_naive_loops(rule, fill):
    grid = (3, 5, 6)
    q, k = random_qk(grid, batch=2, heads=2)
    for keep in (0.01, 0.25, 0.5, 0.75, 0.97, 1):
        for block in ((2, 3, 4), (3, 3, 3)):
            assert_selects_like_the_naive_loops(
                q, k, grid=grid, block=block, query_rule=rule, fill=fill, query_keep=keep, kv_density=0.4
            )


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    grid=st.tuples(*[st.integers(1, 6)] * 3),
    block=st.tuples(*[st.integers(1, 5)] * 3),
    query_block=st.none() | st.tuples(*[st.integers(1, 5)] * 3),
    rule=st.sampled_from(RULES),
    fill=st.sampled_from(FILLS),
    keep=st.sampled_from([0.1, 0.25, 0.5, 0.75, 0.9]),
    kv_rule=st.sampled_from(["statistical", "topk"]),
    seed=st.integers(0, 1 << 16),
)
def test_ties_go_to_the_lowest_index(grid, block, query_block, rule, fill, keep, kv_rule, seed):
    # With D = 1 a similarity is -1, 0 or 1: almost every comparison is a tie, and a tenth of the tokens are zero.
    make = torch.Generator().manual_seed(seed)
    length = grid[0] * grid[1] * grid[2]
    q, k = (torch.randint(-4, 5, (1, 1, length, 1), generator=make).double() for _ in range(2))
    assert_selects_like_the_naive_loops(
        q,
        k,
        grid=grid,
        block=block,
        query_block=query_block,
        query_rule=rule,
        fill=fill,
        query_keep=keep,
        kv_rule=kv_rule,
        kv_density=0.3,
    )


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("content", ["constant", "zero", "duplicates", "axes"])
def test_constant_zero_and_repeated_tokens_equal_the_naive_loops(content, rule, fill):
    grid, d = (3, 5, 6), 4
    make = torch.Generator().manual_seed(7)
    shape = (1, 1, 90, d)
    if content == "constant":
        q = torch.ones(shape)
    elif content == "zero":
        q = torch.zeros(shape)
    elif content == "duplicates":
        q = torch.randn(1, 1, 30, d, generator=make).repeat_interleave(3, dim=2)
        q[:, :, ::7] = 0
    else:
        # Along an axis, of length a power of two: lengths and similarities are exact.
        axis = torch.randint(d, shape[:3], generator=make)
        length = 2.0 ** torch.randint(-2, 3, (*shape[:3], 1), generator=make)
        q = torch.nn.functional.one_hot(axis, d) * length
    k = torch.randn(shape, generator=make)
    assert_selects_like_the_naive_loops(
        q.double(), k.double(), grid=grid, block=(2, 3, 4), query_rule=rule, fill=fill, query_keep=0.5, kv_density=0.4
    )


def test_the_default_window_keeps_the_four_tokens_least_like_local_111():
    # One window; similarity to the last token falls from token 0 to token 6.
    angle = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.0], dtype=torch.float64)
    q = torch.stack([angle.cos(), angle.sin()], -1).view(1, 1, 8, 2)
    plan = make_bsa_plan(q, q, grid=(2, 2, 2))
    assert plan.num_kept.tolist() == [[[4]]]
    # 0, 1, 2, 7 are pruned: neighbours of 0 (h, w, t) in order of index are 1, 2, 4, of which 4 is kept.
    assert plan.source_of_token().tolist() == [[[4, 3, 3, 3, 4, 5, 6, 3]]]


@pytest.mark.parametrize(
    ("num_real", "keep", "expected"), [(1, 0.25, 1), (2, 0.25, 1), (3, 0.5, 2), (5, 0.5, 3), (7, 0.9, 6)]
)
def test_a_partial_group_keeps_its_share_rounded_half_up_and_at_least_one(num_real, keep, expected):
    q, k = random_qk((1, 1, num_real))
    plan = make_bsa_plan(q, k, grid=(1, 1, num_real), block=(1, 1, 8), query_rule="block", query_keep=keep)
    assert plan.num_kept.unique().tolist() == [expected]


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    grid=st.tuples(*[st.integers(1, 7)] * 3),
    block=st.tuples(*[st.integers(1, 5)] * 3),
    rule=st.sampled_from(RULES),
    fill=st.sampled_from(FILLS),
    keep=st.floats(0.01, 1),
)
def test_plans_pass_their_own_check_and_account_for_every_kept_row(grid, block, rule, fill, keep):
    q, k = random_qk(grid)
    plan = make_bsa_plan(q, k, grid=grid, block=block, query_rule=rule, fill=fill, query_keep=keep, kv_density=0.5)
    plan.check()
    source = plan.source_of_token()
    is_kept = source == torch.arange(source.shape[-1], device=source.device)
    assert torch.equal(is_kept.sum(-1), plan.num_kept.sum(-1))
    if fill != "zero" or keep == 1:
        assert is_kept.gather(-1, source).all()


def test_a_window_never_takes_output_from_another():
    grid, block = (4, 5, 6), (4, 4, 4)
    q, k = random_qk(grid)
    for fill in ("nearest", "similar", "flat"):
        source = plan_for(q, k, grid=grid, block=block, fill=fill).source_of_token()[0, 0].tolist()
        for tokens in blocks_of(grid, block):
            window = {token: tuple(p // 2 for p in place) for place, token in tokens.items()}
            assert all(window[source[token]] == window[token] for token in window)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_inputs_select_as_the_same_numbers_in_fp32(dtype):
    grid = (5, 6, 7)
    q, k = (x.to(dtype) for x in random_qk(grid, head_dim=16))
    for rule, fill in itertools.product(RULES, FILLS):
        options = {"grid": grid, "query_rule": rule, "fill": fill, "kv_density": 0.3}
        assert make_bsa_plan(q, k, **options).digest() == make_bsa_plan(q.float(), k.float(), **options).digest()


def test_similarity_is_not_rounded_to_the_inputs_format():
    # Their cosines to the last token, the centre, are all 1 in bfloat16, so that the first four would be kept.
    wide = torch.tensor([[64.0, 0.25 * i] for i in (1, 2, 3, 4, 5, 6, 7, 0)])
    q = wide.bfloat16().view(1, 1, 8, 2)
    assert torch.equal(q.float().view(8, 2), wide)
    plan = make_bsa_plan(q, q, grid=(2, 2, 2))
    assert plan.kept_slots.tolist() == [[[[3, 4, 5, 6]]]]


def test_heads_and_batches_select_alone():
    grid = (3, 5, 6)
    q, k = random_qk(grid, batch=2, heads=3)
    whole = plan_for(q, k, grid=grid)
    for b, h in itertools.product(range(2), range(3)):
        alone = plan_for(q[b : b + 1, h : h + 1], k[b : b + 1, h : h + 1], grid=grid)
        assert torch.equal(whole.source_of_token()[b, h], alone.source_of_token()[0, 0])
        assert torch.equal(whole.block_mask[b, h], alone.block_mask[0, 0])


def test_selection_takes_no_part_in_autograd():
    q, k = (x.requires_grad_() for x in random_qk((4, 4, 4)))
    plan = make_bsa_plan(q, k, grid=(4, 4, 4))
    assert not any(t.requires_grad for t in (plan.kept_slots, plan.fill, plan.block_bits, plan.block_mask))
