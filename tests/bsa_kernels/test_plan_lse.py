"""The log-sum-exp of plan engines, and streams of disjoint keys merged by it."""

from dataclasses import replace

import pytest
import torch
from kernel_helpers import DEVICE, PORTABLE, max_error, random_mask
from plan_oracle import GRIDS, given, made_plan, oracle, run_plan, token_mask

from bsa_kernels import BlockGrid, BlockPlan, full_plan, merge_streams
from bsa_kernels.rules import CAUSAL, FULL, ElementRule

KINDS = [(FULL, 0), (ElementRule.band(6, 2), 0), (ElementRule(after=-4), 0), (CAUSAL, 5)]


def assert_same_lse(found, exact, tolerance=1e-9):
    empty = exact == -torch.inf
    assert torch.equal(found == -torch.inf, empty)
    assert max_error(found.masked_fill(empty, 0), exact.masked_fill(empty, 0)) < tolerance


def finite(lse):
    """A sum of it that can be differentiated: rows that see nothing left out."""
    return lse.masked_fill(lse == -torch.inf, 0)


@pytest.mark.parametrize(("rule", "prefix"), KINDS)
@pytest.mark.parametrize(("q_grid", "kv_grid"), GRIDS)
@pytest.mark.parametrize("zero_fill", [False, True])
@pytest.mark.parametrize("engine", PORTABLE)
def test_lse_and_gradients_through_it_are_those_of_the_definition(engine, q_grid, kv_grid, rule, prefix, zero_fill):
    made = made_plan(q_grid, kv_grid, rule=rule, prefix=prefix, density=0.3, zero_fill=zero_fill)
    x = given(made.plan)
    (out, lse), (exact, exact_lse) = run_plan(engine, made.plan, x, lse=True), oracle(made, x)
    assert max_error(out, exact) < 1e-9
    assert_same_lse(lse, exact_lse)
    leaves = (x.q, x.k, x.v)
    found, right = (
        torch.autograd.grad((o * x.do).sum() + (finite(s) * x.dlse).sum(), leaves)
        for o, s in ((out, lse), (exact, exact_lse))
    )
    for one, other in zip(found, right, strict=True):
        assert max_error(one, other) < 1e-9


@pytest.mark.parametrize("engine", PORTABLE)
def test_lse_alone_has_gradients_of_q_and_k_and_none_of_v(engine):
    made = made_plan(*GRIDS[0], rule=CAUSAL)
    x = given(made.plan)
    lse, exact = run_plan(engine, made.plan, x, lse=True)[1], oracle(made, x)[1]
    found = torch.autograd.grad((finite(lse) * x.dlse).sum(), (x.q, x.k, x.v), allow_unused=True)
    right = torch.autograd.grad((finite(exact) * x.dlse).sum(), (x.q, x.k))
    assert max(max_error(one, other) for one, other in zip(found, right, strict=False)) < 1e-9
    assert found[2] is None or (found[2] == 0).all()


@pytest.mark.parametrize("engine", PORTABLE)
def test_attention_and_attention_with_lse_give_the_same_output(engine):
    made = made_plan(*GRIDS[0], rule=ElementRule.band(9, 3))
    x = given(made.plan, dtype=torch.float32)
    out, lse = run_plan(engine, made.plan, x, lse=True)
    assert torch.equal(out, run_plan(engine, made.plan, x))
    assert lse.dtype == torch.float32


@pytest.mark.parametrize("engine", PORTABLE)
def test_lse_of_half_precision_is_in_fp32(engine):
    made = made_plan(*GRIDS[0])
    x = given(made.plan, 16, dtype=torch.bfloat16)
    lse = run_plan(engine, made.plan, x, lse=True)[1]
    assert lse.dtype == torch.float32
    assert_same_lse(lse, oracle(made, x)[1], 1e-5)


@pytest.mark.parametrize("engine", PORTABLE)
def test_lse_of_large_logits_does_not_overflow(engine):
    made = made_plan(*GRIDS[0], rule=CAUSAL)
    x = given(made.plan, dtype=torch.float32, scale=64)
    lse, exact = run_plan(engine, made.plan, x, lse=True)[1], oracle(made, x)[1]
    assert exact.max() > 1000
    assert_same_lse(lse, exact, 1e-6 * float(finite(exact.detach()).abs().max()))


@pytest.mark.slow
def test_flex_under_a_rule_with_a_prefix_gives_output_and_lse_of_the_definition():
    made = made_plan(*GRIDS[0], rule=ElementRule.band(9, 2), prefix=5, zero_fill=True)
    x = given(made.plan, 32, dtype=torch.float32)
    with torch.no_grad():
        out, lse = run_plan("flex", made.plan, x, lse=True)
    exact, exact_lse = oracle(made, x)
    assert max_error(out, exact) < 1e-5
    assert_same_lse(lse, exact_lse, 1e-5)


def test_a_zero_filled_token_has_no_lse_and_its_source_gets_no_gradient_of_it():
    grid = BlockGrid((1, 1, 4), (1, 1, 4))
    plan = BlockPlan.from_mask(
        grid,
        grid,
        torch.ones(1, 1, 1, 1, dtype=torch.bool, device=DEVICE),
        kept_slots=torch.tensor([[[[1, 3]]]], device=DEVICE),
        fill=torch.tensor([[[[-1, 0, 1, 1]]]], device=DEVICE),
        has_zero_fill=True,
    )
    plan.check()
    kept = torch.tensor([[[[5.0, 7.0]]]], device=DEVICE, requires_grad=True)
    lse = plan.fill_lse(kept)
    assert lse.tolist() == [[[-torch.inf, 5, 7, 7]]]
    assert torch.autograd.grad(lse[..., 1:].sum(), kept)[0].tolist() == [[[[1, 2]]]]
    assert torch.autograd.grad(finite(plan.fill_lse(kept)).sum(), kept)[0].tolist() == [[[[1, 2]]]]


def split_plans(engine_grids, *, rule=FULL):
    """One plan, and two that list its blocks in two disjoint parts; the second part lists nothing for block 0."""
    q_grid, kv_grid = engine_grids
    mask = random_mask(q_grid, kv_grid, 0.6)
    left = random_mask(q_grid, kv_grid, 0.5, seed=5) & mask
    left[:, :, 0] = mask[:, :, 0]
    return [BlockPlan.from_mask(q_grid, kv_grid, part, rule=rule) for part in (mask, left, mask & ~left)]


@pytest.mark.parametrize("rule", [FULL, CAUSAL])
@pytest.mark.parametrize("engine", PORTABLE)
def test_two_disjoint_plans_merged_are_one_plan(engine, rule):
    whole, *parts = split_plans(GRIDS[0], rule=rule)
    x = given(whole)
    streams = [run_plan(engine, part, x, lse=True) for part in parts]
    out, lse = merge_streams([o for o, _ in streams], [s for _, s in streams])
    exact, exact_lse = run_plan("reference", whole, x, lse=True)
    torch.testing.assert_close(out, exact)
    assert_same_lse(lse, exact_lse)
    leaves = (x.q, x.k, x.v)
    found, right = (
        torch.autograd.grad((o * x.do).sum() + (finite(s) * x.dlse).sum(), leaves)
        for o, s in ((out, lse), (exact, exact_lse))
    )
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("engine", PORTABLE)
def test_a_band_a_past_and_a_prefix_merged_are_causal_attention_with_the_prefix(engine):
    """Three streams with three block shapes, which one plan could not list."""
    length, prefix = 30, 5
    rules = [(CAUSAL, 7, prefix), (ElementRule(before=6, after=0), 4, 0), (ElementRule(after=-7), 5, 0)]

    def plan_of(rule, block, prefix):
        return full_plan(1, 2, BlockGrid((1, 1, length), (1, 1, block)), device=DEVICE, rule=rule, prefix=prefix)

    whole, band, past = (plan_of(*rule) for rule in rules)
    x = given(whole)
    own = replace(x, k=x.k[:, :, prefix:], v=x.v[:, :, prefix:])
    text = replace(x, k=x.k[:, :, :prefix], v=x.v[:, :, :prefix])
    cross = full_plan(1, 2, band.q_grid, kv_grid=BlockGrid((1, 1, prefix), (1, 1, 4)), device=DEVICE)
    pairs = ((band, own), (past, own), (cross, text))
    streams = [run_plan(engine, plan, inputs, lse=True) for plan, inputs in pairs]
    out, lse = merge_streams(*zip(*streams, strict=True))
    exact, exact_lse = run_plan("reference", whole, x, lse=True)
    torch.testing.assert_close(out, exact)
    torch.testing.assert_close(lse, exact_lse)
    assert sum(int(plan.num_pairs().sum()) for plan, _ in pairs) == int(whole.num_pairs().sum())


def test_merging_is_safe_for_rows_of_nothing_and_for_large_lse():
    outs = [torch.tensor([[2.0], [3.0], [0.0]], requires_grad=True), torch.tensor([[4.0], [0.0], [0.0]])]
    lses = [torch.tensor([1000.0, 1.0, -torch.inf], requires_grad=True), torch.tensor([1000.0, -torch.inf, -torch.inf])]
    out, lse = merge_streams(outs, lses)
    assert out.tolist() == [[3], [3], [0]]
    assert lse.tolist() == pytest.approx([1000 + torch.tensor(2.0).log().item(), 1, -torch.inf])
    grads = torch.autograd.grad(out.sum() + finite(lse).sum(), (outs[0], lses[0]))
    assert grads[0].flatten().tolist() == [0.5, 1, 0]
    # d lse = 1/2, and d out = (2 - 4) / 4 for the first row.
    assert grads[1].tolist() == [0, 1, 0]


def test_merging_keeps_the_format_of_the_streams():
    outs = [torch.ones(2, 3, dtype=torch.bfloat16), torch.ones(2, 3, dtype=torch.bfloat16)]
    out, lse = merge_streams(outs, [torch.zeros(2), torch.zeros(2)])
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize(
    ("outs", "lses", "message"),
    [
        ([], [], "expected one log-sum-exp for each stream, got 0 and 0"),
        ([(2, 3)], [(2,), (2,)], "expected one log-sum-exp for each stream, got 1 and 2"),
        ([(2, 3), (3, 3)], [(2,), (3,)], r"expected \[2, 3\] and \[2\] for every stream, got \[3, 3\] and \[3\]"),
        ([(2, 3)], [(2, 1)], r"expected \[2, 3\] and \[2\] for every stream, got \[2, 3\] and \[2, 1\]"),
    ],
)
def test_streams_that_do_not_belong_together_are_refused(outs, lses, message):
    with pytest.raises(ValueError, match=message):
        merge_streams([torch.zeros(shape) for shape in outs], [torch.zeros(shape) for shape in lses])


def test_the_masks_of_the_parts_are_disjoint():
    whole, left, right = (plan.dense_mask() for plan in split_plans(GRIDS[0], rule=CAUSAL))
    assert not (left & right).any()
    assert torch.equal(left | right, whole)
    assert not right[:, :, 0].any()
    made = made_plan(*GRIDS[0], rule=CAUSAL)
    assert torch.equal(made.plan.dense_mask(), token_mask(made)[0])
