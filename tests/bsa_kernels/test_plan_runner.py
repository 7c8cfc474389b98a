"""`block_sparse_attention` with plans of every kind, through the engines that take them, against the definition."""

from dataclasses import replace

import pytest
import torch
from kernel_helpers import DEVICE, max_error
from plan_oracle import given, made_plan, oracle

from bsa_kernels import CAUSAL, FULL, BlockGrid, ElementRule, block_sparse_attention, full_plan, merge_streams
from bsa_kernels.block_engine import lse_runner
from bsa_kernels.engines.kept import GATHER

GRID = BlockGrid((2, 3, 5), (2, 2, 4))
KEYS = BlockGrid((2, 3, 5), (1, 2, 3))
OTHER = BlockGrid((1, 4, 6), (1, 2, 3))
PLANS = {
    "causal": {"rule": CAUSAL},
    "band": {"rule": ElementRule.band(7, 2)},
    "empty rows": {"rule": ElementRule(after=-3)},
    "prefix": {"prefix": 7},
    "causal with prefix": {"rule": CAUSAL, "prefix": 4},
    "other keys": {"kv_grid": OTHER},
    "other keys with prefix": {"kv_grid": OTHER, "prefix": 5, "zero_fill": True},
}
EXACT = ["reference", "gather"]
ENGINES = [*EXACT, "triton"]


def made(**kind):
    return made_plan(GRID, kind.pop("kv_grid", KEYS), **{"density": 0.5, "keep": 0.5, **kind})


def tolerance(engine):
    return 1e-9 if engine in EXACT else 2e-5


def numbers(x, engine):
    """The inputs in a format that the engine takes."""
    if engine in EXACT:
        return x
    q, k, v = (t.detach().float().requires_grad_() for t in (x.q, x.k, x.v))
    return replace(x, q=q, k=k, v=v, do=x.do.float(), dlse=x.dlse.float())


def finite(lse):
    return lse.masked_fill(lse == -torch.inf, 0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("engine", ENGINES)
def test_every_plan_runs_and_trains(engine, kind):
    plan = made(**kind)
    x = numbers(given(plan.plan), engine)
    out, exact = block_sparse_attention(x.q, x.k, x.v, plan.plan, scale=0.3, engine=engine), oracle(plan, x)[0]
    assert max_error(out, exact) < tolerance(engine)
    leaves = (x.q, x.k, x.v)
    found, right = (torch.autograd.grad(o, leaves, x.do.to(o.dtype)) for o in (out, exact))
    assert all(max_error(one, other) < tolerance(engine) for one, other in zip(found, right, strict=True))


@pytest.mark.slow
def test_flex_runs_a_plan_with_rule_and_prefix_forward():
    plan = made(rule=CAUSAL, prefix=4)
    x = given(plan.plan)
    with torch.no_grad():
        out = block_sparse_attention(x.q.float(), x.k.float(), x.v.float(), plan.plan, scale=0.3, engine="flex")
    assert max_error(out, oracle(plan, x)[0]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("kind", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("engine", ENGINES)
def test_the_log_sum_exp_of_each_token_comes_with_it_and_is_differentiable(engine, kind):
    plan = made(**kind)
    x = numbers(given(plan.plan), engine)
    out, lse = block_sparse_attention(x.q, x.k, x.v, plan.plan, scale=0.3, engine=engine, return_lse=True)
    exact, exact_lse = oracle(plan, x)
    assert max_error(out, exact) < tolerance(engine)
    assert lse.shape == x.q.shape[:3]
    assert torch.equal(lse == -torch.inf, exact_lse == -torch.inf)
    assert max_error(finite(lse), finite(exact_lse)) < tolerance(engine)
    leaves = (x.q, x.k, x.v)
    found, right = (
        torch.autograd.grad((o * x.do).sum() + (finite(s) * x.dlse).sum(), leaves)
        for o, s in ((out, lse), (exact, exact_lse))
    )
    assert all(max_error(one, other) < tolerance(engine) for one, other in zip(found, right, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_attention_over_parts_of_the_keys_merges_to_that_over_all(engine):
    every = grid_plan(prefix=5)
    x = numbers(given(every), engine)
    parts = [
        block_sparse_attention(x.q, x.k[:, :, 5:], x.v[:, :, 5:], grid_plan(prefix=0), engine=engine, return_lse=True),
        block_sparse_attention(x.q, x.k[:, :, :5], x.v[:, :, :5], context_plan(5), engine=engine, return_lse=True),
    ]
    whole = block_sparse_attention(x.q, x.k, x.v, every, engine=engine)
    merged, _ = merge_streams([o for o, _ in parts], [lse for _, lse in parts])
    assert max_error(merged, whole) < tolerance(engine)


def grid_plan(*, prefix):
    return full_plan(1, 2, GRID, device=DEVICE, kv_grid=OTHER, prefix=prefix)


def context_plan(num_tokens):
    return full_plan(1, 2, GRID, device=DEVICE, kv_grid=BlockGrid((1, 1, num_tokens), (1, 1, 3)))


@pytest.mark.parametrize(
    ("kind", "num_keys", "message"),
    [
        ({"prefix": 7}, 30, r"k: expected the plan's 37 keys, \[1, 2, 37, 4\] .*, got \[1, 2, 30, 4\]"),
        ({"kv_grid": OTHER}, 30, r"k: expected the plan's 24 keys, \[1, 2, 24, 4\] .*, got \[1, 2, 30, 4\]"),
        ({"rule": CAUSAL}, 31, r"k: expected the plan's 30 keys, \[1, 2, 30, 4\] .*, got \[1, 2, 31, 4\]"),
        ({"rule": FULL}, 31, r"k: expected q's \[1, 2, 30, 4\] .*, got \[1, 2, 31, 4\]"),
    ],
)
def test_keys_that_do_not_fit_the_plan_are_named(kind, num_keys, message):
    plan = made(**kind).plan
    q, k = torch.zeros(1, 2, 30, 4, device=DEVICE), torch.zeros(1, 2, num_keys, 4, device=DEVICE)
    with pytest.raises(ValueError, match=message):
        block_sparse_attention(q, k, k, plan, engine="gather")


def test_an_engine_without_a_log_sum_exp_says_so():
    with pytest.raises(ValueError, match="engine 'gather': it gives no log-sum-exp; use the engine gather"):
        lse_runner(replace(GATHER, gives_lse=False))
