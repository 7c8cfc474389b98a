"""The public operator: dense attention where nothing is dropped, its own plan where something is."""

import itertools

import pytest
import torch
from attention_oracles import dense_attention, natural_attention
from kernel_helpers import DEVICE, error_budgets, max_error, qkv
from naive_bsa import blocks_of

from bsa_kernels import block_sparse_attention, bsa_attention, full_plan, make_bsa_plan
from bsa_kernels.grid import BlockGrid

FP64, FP32, FP16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
# The last is a video of 81 frames at 480x832, its token grid (21, 30, 52) divided by four.
GRIDS = [(5, 7, 9), (1, 4, 4), (4, 4, 4), (5, 6, 13), (6, 8, 13)]
TRAINED = ["reference", "gather"]


def results_of(inputs, *, backward=True, **options):
    """Output and gradients of the operator, by name."""
    with torch.set_grad_enabled(backward):
        out = bsa_attention(inputs.q, inputs.k, inputs.v, **options)
    if not backward:
        return {"o": out}
    gradients = torch.autograd.grad(out, (inputs.q, inputs.k, inputs.v), inputs.do)
    return dict(zip(("o", "dq", "dk", "dv"), (out.detach(), *gradients), strict=True))


def assert_inside_budget(results, inputs, plan, exact, **options):
    budgets = error_budgets(inputs, plan, exact, backward="dq" in results, **options)
    for name, result in results.items():
        assert result.dtype == inputs.q.dtype
        error = max_error(result, exact[name])
        assert error <= budgets[name], f"{name}: error {error:.3g}, budget {budgets[name]:.3g}"


def only_output(exact):
    return {"o": exact["o"]}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [FP64, FP32, BF16])
@pytest.mark.parametrize("engine", TRAINED)
@pytest.mark.parametrize("grid", GRIDS)
def test_keeping_all_queries_and_blocks_is_dense_attention(grid, engine, dtype):
    inputs = qkv(grid, 16, dtype)
    plan = full_plan(1, 2, BlockGrid(grid, (4, 4, 4)), device=DEVICE)
    results = results_of(inputs, grid=grid, query_keep=1, kv_density=1, engine=engine)
    assert_inside_budget(results, inputs, plan, dense_attention(inputs))


@pytest.mark.slow
@pytest.mark.parametrize("grid", [(5, 7, 9), (1, 4, 4), (4, 4, 4)])
def test_keeping_all_queries_and_blocks_is_dense_attention_with_flex(grid):
    inputs = qkv(grid, 16)
    plan = full_plan(1, 2, BlockGrid(grid, (4, 4, 4)), device=DEVICE)
    backward = DEVICE.type == "cuda"
    results = results_of(inputs, grid=grid, query_keep=1, kv_density=1, engine="flex", backward=backward)
    exact = dense_attention(inputs)
    assert_inside_budget(results, inputs, plan, exact if backward else only_output(exact))


@pytest.mark.parametrize("engine", TRAINED)
@pytest.mark.parametrize(
    "options", [{"block": (2, 3, 4)}, {"query_block": (4, 4, 8)}, {"kv_rule": "mass", "scale": 0.5}]
)
def test_dense_attention_does_not_depend_on_blocks_or_rules(engine, options):
    grid = (3, 5, 9)
    inputs = qkv(grid, 8, FP64, batch=2, heads=1)
    results = results_of(inputs, grid=grid, query_keep=1, kv_density=1, engine=engine, **options)
    for name, exact in dense_attention(inputs, scale=options.get("scale")).items():
        torch.testing.assert_close(results[name], exact, rtol=1e-11, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("engine", TRAINED)
@pytest.mark.parametrize("density", [0.05, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("grid", GRIDS)
def test_any_density_is_softmax_over_the_selected_tokens(grid, density, engine):
    inputs = qkv(grid, 16, FP64)
    options = {"grid": grid, "kv_density": density, "block": (3, 3, 3)}
    plan = make_bsa_plan(inputs.q, inputs.k, **options)
    assert_inside_budget(results_of(inputs, engine=engine, **options), inputs, plan, natural_attention(inputs, plan))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"query_rule": rule, "kv_rule": kv_rule, "fill": fill, "query_block": query_block, "query_keep": keep}
        for rule, kv_rule, fill, query_block, keep in (
            ("window", "statistical", "nearest", (4, 4, 8), 0.5),
            ("block", "topk", "similar", None, 0.25),
            ("flat_half", "mass", "flat", (2, 2, 3), 0.75),
            ("central_mean", "softmax_stat", "zero", None, 0.5),
        )
    ],
    ids=lambda o: o["query_rule"],
)
@pytest.mark.parametrize("engine", TRAINED)
def test_every_option_reaches_the_plan_and_the_output(engine, options):
    grid = (4, 5, 9)
    inputs = qkv(grid, 8, FP64, batch=2)
    plan = make_bsa_plan(inputs.q, inputs.k, grid=grid, kv_density=0.3, scale=0.7, **options)
    results = results_of(inputs, grid=grid, kv_density=0.3, scale=0.7, engine=engine, **options)
    exact = natural_attention(inputs, plan, scale=0.7)
    assert_inside_budget(results, inputs, plan, exact, scale=0.7)
    if options["fill"] == "zero":
        assert (results["o"][plan.source_of_token() < 0] == 0).all()


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16])
@pytest.mark.parametrize("scale", [1, 4, 16])
def test_large_inputs_stay_inside_the_budget(scale, dtype):
    grid = (5, 6, 7)
    inputs = qkv(grid, 32, dtype, scale=scale, seed=scale)
    plan = make_bsa_plan(inputs.q, inputs.k, grid=grid, kv_density=0.5)
    exact = natural_attention(inputs, plan)
    assert_inside_budget(results_of(inputs, grid=grid, kv_density=0.5, engine="gather"), inputs, plan, exact)


def test_the_operator_attends_by_the_plan_that_make_bsa_plan_returns():
    grid = (5, 6, 7)
    inputs = qkv(grid, 16)
    plan = make_bsa_plan(inputs.q, inputs.k, grid=grid)
    expected = block_sparse_attention(inputs.q, inputs.k, inputs.v, plan)
    out = bsa_attention(inputs.q, inputs.k, inputs.v, grid=grid)
    assert torch.equal(out, expected)
    assert out.shape == inputs.q.shape
    assert out.is_contiguous()


def test_a_pruned_query_takes_the_output_of_its_source_and_gets_no_gradient():
    grid = (5, 7, 9)
    inputs = qkv(grid, 16)
    source = make_bsa_plan(inputs.q, inputs.k, grid=grid).source_of_token()
    results = results_of(inputs, grid=grid)
    copied = results["o"].gather(2, source.unsqueeze(-1).expand_as(results["o"]))
    assert torch.equal(copied, results["o"])
    pruned = source != torch.arange(source.shape[-1], device=DEVICE)
    assert 0.4 < float(pruned.float().mean()) < 0.5
    assert (results["dq"][pruned] == 0).all()


def test_keys_and_values_of_blocks_nobody_chose_get_exact_zeros():
    grid = (8, 8, 12)
    inputs = qkv(grid, 16, heads=1)
    # One direction in all queries, and keys against it in block 5.
    direction = torch.zeros(16, device=DEVICE)
    direction[0] = 10
    with torch.no_grad():
        inputs.q.add_(direction)
        block = list(blocks_of(grid, (4, 4, 4))[5].values())
        inputs.k[:, :, block] -= direction
    results = results_of(inputs, grid=grid, kv_density=0.3)
    plan = make_bsa_plan(inputs.q, inputs.k, grid=grid, kv_density=0.3)
    assert plan.inverse[0][0, 0, 5] == 0
    others = [token for token in range(768) if token not in block]
    for name in ("dk", "dv"):
        assert (results[name][:, :, block] == 0).all()
        assert (results[name][:, :, others] != 0).any()


@pytest.mark.slow
def test_the_backward_holds_the_selection_constant():
    # Near the inputs nothing is selected differently, so that finite differences see the same plan.
    grid = (2, 3, 4)
    inputs = qkv(grid, 2, FP64, heads=1)
    options = {"grid": grid, "block": (2, 2, 2), "kv_density": 0.4}
    assert torch.autograd.gradcheck(
        lambda q, k, v: bsa_attention(q, k, v, engine="gather", **options), (inputs.q, inputs.k, inputs.v)
    )


def test_heads_and_batches_are_attended_alone():
    grid = (3, 5, 6)
    inputs = qkv(grid, 8, FP64, batch=2, heads=3)
    whole = bsa_attention(inputs.q, inputs.k, inputs.v, grid=grid, kv_density=0.4)
    for b, h in itertools.product(range(2), range(3)):
        alone = (x[b : b + 1, h : h + 1] for x in (inputs.q, inputs.k, inputs.v))
        out = bsa_attention(*alone, grid=grid, kv_density=0.4)
        torch.testing.assert_close(out[0, 0], whole[b, h], rtol=1e-12, atol=1e-12)


def test_inputs_in_the_layout_of_a_projection_give_the_same():
    grid = (4, 5, 6)
    inputs = qkv(grid, 16, heads=3)
    expected = results_of(inputs, grid=grid, kv_density=0.4)
    packed = torch.stack([x.detach().transpose(1, 2) for x in (inputs.q, inputs.k, inputs.v)], 2)  # [B, L, 3, H, D]
    packed = packed.contiguous().requires_grad_()
    q, k, v = (packed[:, :, i].transpose(1, 2) for i in range(3))
    assert not q.is_contiguous()
    out = bsa_attention(q, k, v, grid=grid, kv_density=0.4)
    (grad,) = torch.autograd.grad(out, packed, inputs.do)
    torch.testing.assert_close(out, expected["o"])
    for i, name in enumerate(("dq", "dk", "dv")):
        torch.testing.assert_close(grad[:, :, i].transpose(1, 2), expected[name])


def test_without_gradients_the_output_is_the_same_and_the_inputs_are_unchanged():
    grid = (5, 6, 7)
    inputs = qkv(grid, 16)
    copies = [x.detach().clone() for x in (inputs.q, inputs.k, inputs.v)]
    out = bsa_attention(inputs.q, inputs.k, inputs.v, grid=grid)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            quiet = bsa_attention(inputs.q, inputs.k, inputs.v, grid=grid)
        assert not quiet.requires_grad
        assert torch.equal(quiet, out)
    assert all(torch.equal(x, y) for x, y in zip((inputs.q, inputs.k, inputs.v), copies, strict=True))


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_a_single_input_may_need_a_gradient(name):
    grid = (4, 5, 6)
    inputs = qkv(grid, 16)
    expected = results_of(inputs, grid=grid)
    alone = {n: getattr(inputs, n).detach().requires_grad_(n == name) for n in ("q", "k", "v")}
    out = bsa_attention(**alone, grid=grid)
    assert torch.equal(torch.autograd.grad(out, alone[name], inputs.do)[0], expected[f"d{name}"])


@pytest.mark.parametrize("grid", [(1, 1, 1), (1, 1, 7), (2, 1, 1)])
def test_the_smallest_videos_are_attended(grid):
    inputs = qkv(grid, 4, FP64, heads=1)
    plan = make_bsa_plan(inputs.q, inputs.k, grid=grid)
    assert_inside_budget(results_of(inputs, grid=grid), inputs, plan, natural_attention(inputs, plan))


@pytest.mark.slow
def test_a_higher_density_brings_the_output_nearer_to_dense_attention():
    grid = (8, 8, 12)
    inputs = qkv(grid, 16, FP64)
    dense = dense_attention(inputs)["o"]
    outputs = [results_of(inputs, grid=grid, query_keep=1, kv_density=d)["o"] for d in (0.1, 0.3, 0.6, 0.9, 1)]
    errors = [float((o - dense).norm()) for o in outputs]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-12 * float(dense.norm())
