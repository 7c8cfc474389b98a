"""Element rules: blocks that a rule touches and covers, plans under it on every engine, and exact counts of pairs."""

import time

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from kernel_helpers import DEVICE, PORTABLE, max_error
from naive_bsa import blocks_of
from plan_oracle import GRIDS, assert_runs, given, made_plan, obeys, oracle, run_flex_mask, run_plan, token_mask

from bsa_kernels import BlockGrid, BlockPlan, full_plan
from bsa_kernels.engines import get_engine
from bsa_kernels.operator import Operator
from bsa_kernels.rules import CAUSAL, FULL, ElementRule
from bsa_kernels.stages import plan_stages

RULES = [CAUSAL, ElementRule.band(7, 3), ElementRule(before=2), ElementRule(after=-6), ElementRule(before=-2, after=11)]
SIDES = st.tuples(*(st.integers(1, 5),) * 3)
BOUNDS = st.none() | st.integers(-12, 40)


def brute(rule, q_grid, kv_grid, decide):
    """[Nq, Nk] by the definition, pair of tokens by pair."""
    q_blocks, kv_blocks = (blocks_of(grid.grid, grid.block) for grid in (q_grid, kv_grid))
    return [
        [decide(obeys(rule, i, j) for i in queries.values() for j in keys.values()) for keys in kv_blocks]
        for queries in q_blocks
    ]


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@drawn(SIDES, SIDES, SIDES, BOUNDS, BOUNDS)
def test_touches_and_covers_are_those_of_the_pairs_of_tokens(grid, q_block, kv_block, before, after):
    if before is not None and after is not None and before + after < 0:
        before, after = -before, -after
    rule = ElementRule(before, after)
    q_grid, kv_grid = BlockGrid(grid, q_block), BlockGrid(grid, kv_block)
    assert rule.touches(q_grid, kv_grid, DEVICE).tolist() == brute(rule, q_grid, kv_grid, any)
    assert rule.covers(q_grid, kv_grid, DEVICE).tolist() == brute(rule, q_grid, kv_grid, all)


def test_a_band_can_pass_between_the_tokens_of_a_block():
    """Key block 0 is tokens 0, 1, 8, 9 of rows of 8: query 5 sees 4 to 6, inside the ends of the block and in none."""
    rule = ElementRule.band(1, 1)
    touched = rule.touches(BlockGrid((1, 2, 8), (1, 1, 1)), BlockGrid((1, 2, 8), (1, 2, 2)), DEVICE)
    assert touched[5].tolist() == [False, False, True, True]


def test_the_full_rule_touches_and_covers_everything_on_any_grids():
    grids = BlockGrid((2, 3, 4), (2, 2, 2)), BlockGrid((1, 1, 7), (1, 1, 3))
    assert FULL.touches(*grids, DEVICE).shape == FULL.covers(*grids, DEVICE).shape == (4, 3)
    assert FULL.touches(*grids, DEVICE).all()
    assert FULL.covers(*grids, DEVICE).all()
    assert FULL.is_full
    assert not CAUSAL.is_full


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"before": 1.5}, "before: expected an integer or None, got 1.5"),
        ({"after": True}, "after: expected an integer or None, got True"),
        ({"before": 2, "after": -3}, "expected at least 0, got before=2 and after=-3"),
    ],
)
def test_a_wrong_bound_is_refused(bounds, message):
    with pytest.raises(ValueError, match=message):
        ElementRule(**bounds)


def test_a_rule_needs_one_grid():
    q_grid, kv_grid = BlockGrid((1, 1, 8), (1, 1, 4)), BlockGrid((1, 1, 9), (1, 1, 3))
    mask = torch.ones(1, 1, 2, 3, dtype=torch.bool, device=DEVICE)
    BlockPlan.from_mask(q_grid, kv_grid, mask).check()
    with pytest.raises(ValueError, match=r"rule: expected FULL where .* \(1, 1, 8\) and \(1, 1, 9\), got .*after=0"):
        BlockPlan.from_mask(q_grid, kv_grid, mask, rule=CAUSAL)
    with pytest.raises(ValueError, match="rule: expected FULL"):
        CAUSAL.touches(q_grid, kv_grid, DEVICE)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("q_grid", "kv_grid"), GRIDS)
def test_the_dense_mask_is_the_definition(q_grid, kv_grid, rule):
    made = made_plan(q_grid, kv_grid, rule=rule)
    sees, source = token_mask(made)
    assert torch.equal(made.plan.dense_mask(), sees)
    assert torch.equal(made.plan.source_of_token(), source)


@pytest.mark.parametrize("keep", [0.5, 1])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("q_grid", "kv_grid"), GRIDS)
@pytest.mark.parametrize("engine", PORTABLE)
def test_output_and_gradients_under_a_rule_are_those_of_the_definition(engine, q_grid, kv_grid, rule, keep):
    made = made_plan(q_grid, kv_grid, rule=rule, keep=keep, zero_fill=keep == 0.5, batch=2)
    assert_runs(engine, made, given(made.plan))


@pytest.mark.parametrize("engine", PORTABLE)
def test_lists_of_touched_blocks_alone_give_the_same_output(engine):
    q_grid, kv_grid = GRIDS[0]
    rule = ElementRule.band(9, 4)
    every, touched = (made_plan(q_grid, kv_grid, rule=rule, density=1, touched=only).plan for only in (False, True))
    assert touched.kv_counts.sum() < every.kv_counts.sum()
    x = given(every)
    torch.testing.assert_close(run_plan(engine, touched, x), run_plan(engine, every, x))


@pytest.mark.parametrize("prefix", [0, 3])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("q_grid", "kv_grid"), GRIDS)
def test_the_block_mask_of_flex_under_a_rule_is_the_definition(q_grid, kv_grid, rule, prefix):
    made = made_plan(q_grid, kv_grid, rule=rule, prefix=prefix)
    x = given(made.plan)
    assert max_error(run_flex_mask(made.plan, x), oracle(made, x)[0]) < 1e-9


def test_flex_masks_only_blocks_that_the_rule_cuts():
    grid = BlockGrid((1, 1, 32), (1, 1, 8))
    flex = full_plan(1, 1, grid, device=DEVICE, rule=CAUSAL).to_flex()
    assert flex.full_kv_num_blocks.tolist() == [[[0, 1, 2, 3]]]
    assert flex.kv_num_blocks.tolist() == [[[1, 1, 1, 1]]]


def test_gather_masks_only_query_blocks_with_a_block_that_the_rule_cuts():
    from bsa_kernels.engines import gather

    grid = BlockGrid((1, 1, 32), (1, 1, 8))
    mask = torch.eye(4, dtype=torch.bool, device=DEVICE).roll(-1, 0).view(1, 1, 4, 4)  # each sees the next, 3 sees 0
    plan = BlockPlan.from_mask(grid, grid, mask, rule=ElementRule(after=15))
    runs = gather.prepare(plan).runs
    assert [(run.past_last - run.first, run.length, run.is_cut) for run in runs] == [(4, 1, False)]
    plan = BlockPlan.from_mask(grid, grid, mask, rule=CAUSAL)
    runs = gather.prepare(plan).runs
    assert [(run.past_last - run.first, run.length, run.is_cut) for run in runs] == [(1, 1, False), (3, 1, True)]
    # Three blocks list only later keys: their rows see nothing.
    x = given(plan)
    out = run_plan("gather", plan, x)
    assert (out[:, :, :24] == 0).all()
    assert all(torch.isfinite(grad).all() for grad in torch.autograd.grad(out, (x.q, x.k, x.v), x.do))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gather_under_a_rule_keeps_half_precision(dtype):
    made = made_plan(*GRIDS[0], rule=CAUSAL)
    x = given(made.plan, 16, dtype=dtype)
    out = run_plan("gather", made.plan, x)
    assert out.dtype == dtype
    assert (out.double() - oracle(made, x)[0]).abs().max() < 0.03


@pytest.mark.slow
@settings(deadline=None, max_examples=50)
@drawn(
    grid=SIDES,
    q_block=SIDES,
    kv_block=SIDES,
    rule=st.sampled_from([FULL, *RULES]),
    prefix=st.integers(0, 9),
    keep=st.sampled_from([0.3, 1]),
    seed=st.integers(0, 99),
)
def test_the_number_of_pairs_is_the_sum_of_the_mask(grid, q_block, kv_block, rule, prefix, keep, seed):
    made = made_plan(
        BlockGrid(grid, q_block), BlockGrid(grid, kv_block), rule=rule, prefix=prefix, keep=keep, seed=seed, batch=2
    )
    pairs = made.plan.num_pairs()
    assert pairs.dtype == torch.int64
    assert torch.equal(pairs, token_mask(made)[0].sum((2, 3)))
    assert torch.equal(pairs, made.plan.dense_mask().sum((2, 3)))


@pytest.mark.parametrize("rule", [FULL, CAUSAL, ElementRule.band(500, 500)])
def test_pairs_of_a_long_head_are_counted_without_its_scores(rule):
    grid, length = BlockGrid((8, 64, 64), (4, 4, 4)), 8 * 64 * 64
    plan = full_plan(1, 1, grid, device=DEVICE, rule=rule)
    start = time.perf_counter()
    pairs = int(plan.num_pairs())
    # 0.5 s at most on an idle machine; the scores of this head would be 10^9.
    assert time.perf_counter() - start < 5
    assert pairs == {FULL: length**2, CAUSAL: length * (length + 1) // 2}.get(rule, length * 1001 - 500 * 501)


def test_digests_of_plans_without_rule_and_prefix_are_those_stored_before_there_were_any():
    def of_squares(grid, q_block, kv_block):
        q_grid, kv_grid = BlockGrid(grid, q_block), BlockGrid(grid, kv_block)
        number = torch.arange(2 * q_grid.num_blocks * kv_grid.num_blocks)
        mask = (number * number % 7 < 3).view(1, 2, q_grid.num_blocks, -1)
        return BlockPlan.from_mask(q_grid, kv_grid, mask).digest()

    assert of_squares((5, 7, 9), (4, 4, 4), (4, 4, 4)) == "b709f3db93d6"
    assert of_squares((3, 5, 2), (2, 3, 4), (3, 3, 3)) == "7f254c2f59c2"
    assert of_squares((4, 5, 9), (1, 1, 1), (4, 4, 4)) == "49d66869364d"
    grid = BlockGrid((1, 1, 6), (1, 1, 3))
    kept, fill = torch.tensor([[[[0, 1, 2], [2, -1, -1]]]]), torch.tensor([[[[0, 1, 2], [0, 0, 0]]]])
    every = torch.ones(1, 1, 2, 2, dtype=torch.bool)
    assert BlockPlan.from_mask(grid, grid, every, kept_slots=kept, fill=fill).digest() == "0db72be465e8"
    assert full_plan(1, 2, BlockGrid((4, 4, 8), (4, 4, 4)), device=DEVICE).digest() == "bdd133bcd759"


def test_a_rule_and_a_prefix_change_the_digest():
    grid = BlockGrid((1, 1, 32), (1, 1, 32))
    choices = [(FULL, 0), (CAUSAL, 0), (ElementRule(before=0), 0), (FULL, 3), (FULL, 4), (CAUSAL, 4)]
    digests = {full_plan(1, 1, grid, device=DEVICE, rule=rule, prefix=n).digest() for rule, n in choices}
    assert len(digests) == len(choices)


def test_the_specialised_kernel_refuses_what_it_has_not():
    engine = get_engine("gluon")
    grid, other = BlockGrid((1, 1, 64), (1, 1, 64)), BlockGrid((1, 1, 128), (1, 1, 64))
    assert engine.unsupported_plan(full_plan(1, 1, grid, device=DEVICE)) is None
    for special in ({"rule": CAUSAL}, {"prefix": 2}, {"kv_grid": other}):
        plan = full_plan(1, 1, grid, device=DEVICE, **special)
        q = torch.zeros(1, 1, 64, 64, dtype=torch.float16, device=DEVICE)
        k = torch.zeros(1, 1, plan.keys.num_keys, 64, dtype=torch.float16, device=DEVICE)
        with pytest.raises(ValueError, match=r"engine 'gluon': .* without an element rule .*; use the engine triton\."):
            Operator(plan_stages(engine, plan, scale=1.0)).forward({"q": q, "k": k, "v": k})
        assert get_engine("triton").unsupported_plan(plan) is None
