"""Attention KV block by KV block, which the engine gather takes where query blocks hold few rows."""

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from kernel_helpers import DEVICE, assert_inside, error_budgets, hand_plan, max_error, qkv, random_mask, run
from plan_oracle import given, made_plan, oracle
from torch.utils.flop_counter import FlopCounterMode

from bsa_kernels import BlockGrid, BlockPlan
from bsa_kernels.engines import by_key, gather, reference
from bsa_kernels.rules import CAUSAL, FULL, ElementRule

SCALE = 0.3
RULES = [FULL, CAUSAL, ElementRule.band(7, 3), ElementRule(after=-6), ElementRule(before=-2, after=11)]
GRIDS = [
    # grid, query block, KV block
    (BlockGrid((2, 3, 5), (1, 1, 1)), BlockGrid((2, 3, 5), (2, 2, 2))),
    (BlockGrid((1, 1, 37), (1, 1, 1)), BlockGrid((1, 1, 37), (1, 1, 9))),
    (BlockGrid((3, 4, 5), (1, 2, 2)), BlockGrid((3, 4, 5), (3, 4, 3))),
    (BlockGrid((1, 1, 26), (1, 1, 3)), BlockGrid((1, 1, 26), (1, 1, 26))),
]
SIDES = st.tuples(*(st.integers(1, 4),) * 3)
PASSES = ("forward", "backward", "forward+backward")


def attend(plan, x, *, scale=SCALE):
    """Output and log-sum-exp in natural order."""
    q, k, v = plan.q_grid.permute(x.q), plan.kv_tiles(x.k), plan.kv_tiles(x.v)
    out, lse = by_key.attend(plan.gather_kept(q), k, v, plan, by_key.prepare(plan), scale=scale)
    return plan.fill_output(out), plan.fill_lse(lse)


def finite(lse):
    return torch.where(lse == -torch.inf, 0, lse)


def assert_same(found, right, x, *, tolerance=1e-9):
    """Output, log-sum-exp and the gradients of q, k and v through both."""
    (out, lse), (exact, exact_lse) = found, right
    assert max_error(out, exact) < tolerance
    assert torch.equal(lse == -torch.inf, exact_lse == -torch.inf)
    assert max_error(finite(lse), finite(exact_lse)) < tolerance
    leaves = (x.q, x.k, x.v)
    grads = [
        torch.autograd.grad((o * x.do).sum() + (finite(s) * x.dlse).sum(), leaves)
        for o, s in ((out, lse), (exact, exact_lse))
    ]
    for one, other in zip(*grads, strict=True):
        assert max_error(one, other) < tolerance


@pytest.mark.parametrize("prefix", [0, 5])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("q_grid", "kv_grid"), GRIDS)
def test_output_lse_and_gradients_are_those_of_the_definition(q_grid, kv_grid, rule, prefix):
    made = made_plan(q_grid, kv_grid, rule=rule, prefix=prefix, keep=0.6, zero_fill=True, batch=2)
    x = given(made.plan)
    assert_same(attend(made.plan, x), oracle(made, x, scale=SCALE), x)


@pytest.mark.parametrize("rule", [FULL, CAUSAL])
def test_gather_goes_by_key_where_query_blocks_hold_few_rows(rule):
    plan = made_plan(BlockGrid((1, 1, 37), (1, 1, 1)), BlockGrid((1, 1, 37), (1, 1, 16)), rule=rule).plan
    x = given(plan)
    q, k, v = plan.q_grid.permute(x.q), plan.kv_tiles(x.k), plan.kv_tiles(x.v)
    prepared = gather.prepare(plan)
    out, lse = by_key.attend(plan.gather_kept(q), k, v, plan, by_key.prepare(plan), scale=SCALE)
    assert torch.equal(gather.attend(q, k, v, plan, prepared, scale=SCALE), out)
    for found, right in zip(gather.attend_lse(q, k, v, plan, prepared, scale=SCALE), (out, lse), strict=True):
        assert torch.equal(found, right)
    assert torch.equal(gather.log_sum_exp(q, k, plan, prepared, scale=SCALE), lse)
    assert [gather.executed_flop(plan, 4, which) for which in PASSES] == [
        by_key.executed_flop(plan, 4, which) for which in PASSES
    ]


def test_gather_chooses_by_the_shapes_of_blocks():
    def goes_by_key(rows, keys):
        q_grid, kv_grid = BlockGrid((1, 1, 128), (1, 1, rows)), BlockGrid((1, 1, 128), (1, 1, keys))
        plan = hand_plan(q_grid, kv_grid, random_mask(q_grid, kv_grid, 0.5), keep=1)
        return isinstance(gather.prepare(plan), by_key.RowLists)

    assert all((goes_by_key(1, 16), goes_by_key(8, 128)))
    assert not any((goes_by_key(1, 15), goes_by_key(8, 127), goes_by_key(9, 256), goes_by_key(32, 64)))


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@drawn(
    grid=SIDES,
    q_block=SIDES,
    kv_block=SIDES,
    rule=st.sampled_from(RULES),
    prefix=st.integers(0, 9),
    keep=st.sampled_from([0.3, 1]),
    seed=st.integers(0, 99),
)
def test_any_plan_gives_what_the_engine_reference_gives(grid, q_block, kv_block, rule, prefix, keep, seed):
    q_grid, kv_grid = BlockGrid(grid, q_block), BlockGrid(grid, kv_block)
    plan = made_plan(q_grid, kv_grid, rule=rule, prefix=prefix, keep=keep, seed=seed, batch=2).plan
    x = given(plan, seed=seed)
    tiles = plan.q_grid.permute(x.q), plan.kv_tiles(x.k), plan.kv_tiles(x.v)
    out, lse = reference.attend_lse(*tiles, plan, reference.prepare(plan), scale=SCALE)
    assert_same(attend(plan, x), (plan.fill_output(out), plan.fill_lse(lse)), x)


@pytest.mark.slow
@pytest.mark.parametrize("rule", [FULL, CAUSAL])
@pytest.mark.parametrize("piece_bytes", [1, 200])
def test_pieces_of_any_size_give_the_definition(piece_bytes, rule, monkeypatch):
    made = made_plan(*GRIDS[1], rule=rule, prefix=4, batch=2)
    x = given(made.plan)
    lists = by_key.prepare(made.plan)
    whole = len(list(by_key._pieces(made.plan, lists, torch.float64)))
    monkeypatch.setattr(by_key, "_PIECE_BYTES_CPU", piece_bytes)
    monkeypatch.setattr(by_key, "_PIECE_BYTES_GPU", piece_bytes)
    pieces = list(by_key._pieces(made.plan, lists, torch.float64))
    assert len(pieces) > 2 * whole
    assert max(len(piece.rows) for piece in pieces) == max(1, piece_bytes // (9 * 8))
    assert_same(attend(made.plan, x), oracle(made, x, scale=SCALE), x)


# fp64 at 16 would be compared with an fp64 that errs as much: its logits are in the thousands.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(torch.float64, 1), *((dtype, x) for dtype in (torch.float32, torch.bfloat16, torch.float16) for x in (1, 4, 16))],
)
def test_every_format_stays_inside_its_budget(dtype, scale):
    q_grid, kv_grid = BlockGrid((5, 7, 9), (1, 1, 1)), BlockGrid((5, 7, 9), (4, 4, 4))
    plan = hand_plan(q_grid, kv_grid, random_mask(q_grid, kv_grid, 0.3))
    inputs = qkv((5, 7, 9), 16, dtype, scale=scale)
    exact = run("reference", inputs.to(torch.float64), plan)
    out, lse = attend(plan, inputs, scale=0.25)
    grads = torch.autograd.grad(out, (inputs.q, inputs.k, inputs.v), inputs.do)
    found = {"o": out, **dict(zip(("dq", "dk", "dv"), grads, strict=True))}
    assert {x.dtype for x in found.values()} == {dtype}
    assert lse.dtype == torch.promote_types(dtype, torch.float32)
    assert_inside(error_budgets(inputs, plan, exact), found, exact, "by key")


def test_rows_that_see_nothing_give_zero_and_no_gradient():
    """Tokens of the first half list later keys alone, which the rule hides; the others list nothing."""
    q_grid, kv_grid = BlockGrid((1, 1, 16), (1, 1, 1)), BlockGrid((1, 1, 16), (1, 1, 8))
    mask = torch.zeros(1, 1, 16, 2, dtype=torch.bool, device=DEVICE)
    mask[:, :, :8, 1] = True
    plan = BlockPlan.from_mask(q_grid, kv_grid, mask, rule=CAUSAL)
    x = given(plan)
    out, lse = attend(plan, x)
    assert (out == 0).all()
    assert (lse == -torch.inf).all()
    nan_lse = torch.full_like(lse, torch.nan)
    for grad in torch.autograd.grad((out, lse), (x.q, x.k, x.v), (x.do, nan_lse)):
        assert (grad == 0).all()


def test_the_log_sum_exp_alone_is_that_beside_the_output():
    made = made_plan(*GRIDS[1], rule=CAUSAL, prefix=3)
    plan, x = made.plan, given(made.plan)
    q = plan.gather_kept(plan.q_grid.permute(x.q))
    found = by_key.log_sum_exp(q, plan.kv_tiles(x.k), plan, by_key.prepare(plan), scale=SCALE)
    assert not found.requires_grad
    assert torch.equal(plan.fill_lse(found), attend(plan, x)[1])


def test_results_and_gradients_do_not_vary_from_run_to_run():
    made = made_plan(*GRIDS[1], rule=CAUSAL)
    x = given(made.plan, dtype=torch.float32)

    def once():
        out, _ = attend(made.plan, x)
        return out, *torch.autograd.grad(out, (x.q, x.k, x.v), x.do)

    for one, other in zip(once(), once(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("rule", [FULL, CAUSAL])
@pytest.mark.parametrize("prefix", [0, 5])
@pytest.mark.parametrize(("q_grid", "kv_grid"), GRIDS)
def test_the_executed_flop_are_those_of_the_products_made(q_grid, kv_grid, prefix, rule):
    plan = made_plan(q_grid, kv_grid, prefix=prefix, rule=rule, batch=2).plan
    x = given(plan, 6)
    q, k, v = plan.q_grid.permute(x.q), plan.kv_tiles(x.k), plan.kv_tiles(x.v)
    lists = by_key.prepare(plan)
    with FlopCounterMode(display=False) as forward:
        out, _ = by_key.attend(plan.gather_kept(q), k, v, plan, lists, scale=SCALE)
    with FlopCounterMode(display=False) as backward:
        torch.autograd.grad(out, (x.q, x.k, x.v), torch.ones_like(out))
    counts = [forward.get_total_flops(), backward.get_total_flops()]
    assert [*counts, sum(counts)] == [by_key.executed_flop(plan, 6, which) for which in PASSES]
    assert counts[0] > 0
