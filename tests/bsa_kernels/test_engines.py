"""The engines on one plan: the reference against natural order, the others against the reference."""

from dataclasses import replace

import pytest
import torch
from attention_oracles import natural_attention
from kernel_helpers import (
    DEVICE,
    PORTABLE,
    assert_close_to_reference,
    error_budgets,
    hand_plan,
    max_error,
    poison_empty,
    qkv,
    random_mask,
    run,
)

from bsa_kernels import BlockGrid, block_sparse_attention
from bsa_kernels.engines import ENGINES, auto_engine, explain_engine, flex, flex_needs, gather

SHAPES = [
    ((5, 7, 9), (4, 4, 4), (4, 4, 4)),
    ((1, 4, 4), (4, 4, 4), (4, 4, 4)),
    ((4, 4, 8), (4, 4, 4), (4, 4, 4)),
    ((3, 5, 2), (2, 3, 4), (3, 3, 3)),
    ((4, 5, 9), (4, 4, 8), (4, 4, 4)),
]
FP64, FP32, FP16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
TABLES = ("kept_slots", "num_kept", "fill", "block_bits")
# FlexAttention is differentiated on GPUs only.
HAS_FLEX_BACKWARD = DEVICE.type == "cuda"


def case(
    grid, q_block=(4, 4, 4), kv_block=(4, 4, 4), *, density=0.4, head_dim=16, dtype=FP32, batch=1, heads=2, **more
):
    """Inputs and a random plan for them."""
    q_grid, kv_grid = BlockGrid(grid, q_block), BlockGrid(grid, kv_block)
    mask = random_mask(q_grid, kv_grid, density, batch=batch, heads=heads)
    return qkv(grid, head_dim, dtype, batch=batch, heads=heads), hand_plan(q_grid, kv_grid, mask, **more)


def hard_case(dtype=FP32, *, grid=(5, 7, 9), head_dim=16, **more):
    """KV block 2 is chosen by nobody and block 3 by everybody; query block 1 of head 0 sees nothing."""
    made = BlockGrid(grid, (4, 4, 4))
    mask = random_mask(made, made, 0.3)
    mask[..., 2] = False
    mask[..., 3] = True
    mask[:, 0, 1] = False
    return qkv(grid, head_dim, dtype), hand_plan(made, made, mask, **more)


def assert_close(results, exact, budgets):
    for name, result in results.items():
        error = max_error(result, exact[name])
        assert error <= budgets[name], f"{name}: error {error:.3g}, budget {budgets[name]:.3g}"


@pytest.mark.slow
@pytest.mark.parametrize("zero_fill", [False, True])
@pytest.mark.parametrize("engine", PORTABLE)
@pytest.mark.parametrize(("grid", "q_block", "kv_block"), SHAPES)
def test_output_and_gradients_equal_rows_of_softmax_in_natural_order(grid, q_block, kv_block, engine, zero_fill):
    inputs, plan = case(grid, q_block, kv_block, dtype=FP64, batch=2, zero_fill=zero_fill)
    exact = natural_attention(inputs, plan)
    assert_close(run(engine, inputs, plan), exact, error_budgets(inputs, plan, exact))


@pytest.mark.slow
@pytest.mark.parametrize("engine", PORTABLE)
@pytest.mark.parametrize("zero_fill", [False, True])
def test_dead_blocks_and_empty_lists_equal_natural_order(engine, zero_fill):
    inputs, plan = hard_case(FP64, zero_fill=zero_fill)
    exact = natural_attention(inputs, plan)
    assert_close(run(engine, inputs, plan), exact, error_budgets(inputs, plan, exact))


@pytest.mark.parametrize("scale", [0.0, -0.25, 1.0])
@pytest.mark.parametrize("engine", PORTABLE)
def test_the_softmax_scale_is_the_callers(engine, scale):
    inputs, plan = case((3, 5, 6), dtype=FP64)
    exact = natural_attention(inputs, plan, scale=scale)
    assert_close(run(engine, inputs, plan, scale=scale), exact, error_budgets(inputs, plan, exact, scale=scale))


@pytest.mark.slow
@pytest.mark.parametrize("engine", [*PORTABLE, "triton", "flex"])
def test_the_same_plan_gives_the_same_output_on_every_engine(engine):
    inputs, plan = hard_case()
    assert_close_to_reference(engine, inputs, plan, backward=engine != "flex" or HAS_FLEX_BACKWARD)


@pytest.mark.slow
@pytest.mark.parametrize("engine", [*PORTABLE, "triton"])
def test_the_same_plan_gives_the_same_output_on_every_engine_in_half_precision(engine):
    inputs, plan = hard_case(FP16)
    assert_close_to_reference(engine, inputs, plan)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [FP32, BF16, FP16])
@pytest.mark.parametrize(("grid", "q_block", "kv_block"), SHAPES)
@pytest.mark.parametrize("engine", PORTABLE[1:])
def test_every_engine_stays_inside_the_budget_of_its_format(engine, grid, q_block, kv_block, dtype):
    assert_close_to_reference(engine, *case(grid, q_block, kv_block, dtype=dtype, batch=2))


@pytest.mark.parametrize("engine", PORTABLE)
@pytest.mark.parametrize("dtype", [FP32, BF16, FP16])
@pytest.mark.parametrize("scale", [1, 4, 16])
def test_large_inputs_stay_inside_the_budget(engine, dtype, scale):
    _, plan = case((4, 7, 8), density=0.5)
    assert_close_to_reference(engine, qkv((4, 7, 8), 64, dtype, scale=scale, seed=scale), plan)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "dtype"),
    [*((engine, dtype) for engine in PORTABLE for dtype in (FP32, BF16)), ("flex", FP32)],
)
def test_a_block_nobody_chose_has_exact_zero_gradients_and_an_empty_list_gives_exact_zeros(engine, dtype, monkeypatch):
    inputs, plan = hard_case(dtype)
    backward = engine != "flex" or HAS_FLEX_BACKWARD
    if engine == "flex":
        run(engine, inputs, plan, backward=backward)  # torch compiles it now, and wants its own `empty` for that
    poison_empty(monkeypatch)
    result = run(engine, inputs, plan, backward=backward)
    grid = plan.q_grid
    tiles = {name: grid.permute(x).unflatten(2, (grid.num_blocks, -1)) for name, x in result.items()}
    assert (tiles["o"][:, 0, 1] == 0).all()
    assert (tiles["o"][:, 1, 1, :4] != 0).any()
    if backward:
        assert (tiles["dq"][:, 0, 1] == 0).all()
        for name in ("dk", "dv"):
            assert (tiles[name][:, :, 2] == 0).all()
            assert (tiles[name][:, :, 3, 0] != 0).all()


@pytest.mark.parametrize("engine", PORTABLE)
def test_gradients_of_pruned_queries_are_exact_zeros(engine, monkeypatch):
    inputs, plan = case((5, 7, 9), density=0.5)
    poison_empty(monkeypatch)
    dq = run(engine, inputs, plan)["dq"]
    kept = plan.source_of_token() == torch.arange(dq.shape[2], device=DEVICE)
    assert (dq[~kept] == 0).all()
    assert (dq[kept] != 0).any(-1).all()


@pytest.mark.slow
@pytest.mark.parametrize("engine", PORTABLE)
def test_gradients_pass_gradcheck_with_the_plan_held_fixed(engine):
    inputs, plan = case((3, 2, 3), (2, 2, 2), (1, 2, 3), dtype=FP64, head_dim=2, heads=1)
    assert plan.kv_counts.min() < plan.kv_grid.num_blocks
    attend = lambda q, k, v: block_sparse_attention(q, k, v, plan, engine=engine)  # noqa: E731
    assert torch.autograd.gradcheck(attend, (inputs.q, inputs.k, inputs.v))


@pytest.mark.parametrize("engine", PORTABLE)
def test_inputs_gradients_and_tables_need_not_be_contiguous(engine):
    inputs, plan = case((4, 5, 6), heads=1)
    expected = run(engine, inputs, plan)
    strided = replace(
        inputs,
        **{
            n: getattr(inputs, n).detach().transpose(1, 2).expand(-1, -1, 3, -1).transpose(1, 2)
            for n in ("q", "k", "v")
        },
        do=inputs.do.expand(-1, 3, -1, -1).transpose(2, 3).contiguous().transpose(2, 3),
    )
    for x in (strided.q, strided.k, strided.v):
        x.requires_grad_()
    wide = replace(plan, **{n: getattr(plan, n).expand(-1, 3, *getattr(plan, n).shape[2:]) for n in TABLES})
    wide.check()
    assert not any(x.is_contiguous() for x in (*vars(strided).values(), wide.block_bits))
    for name, result in run(engine, strided, wide).items():
        torch.testing.assert_close(result, expected[name].expand_as(result), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("engine", PORTABLE)
def test_heads_and_batches_may_be_put_in_any_order(engine):
    inputs, plan = case((3, 5, 6), dtype=FP64, batch=2, heads=3)
    result = run(engine, inputs, plan)
    order = torch.tensor([4, 2, 0, 5, 1, 3], device=DEVICE)

    def moved(x):
        return x.detach().flatten(0, 1)[order].unflatten(0, (3, 2))

    other = replace(inputs, **{name: moved(x).requires_grad_(x.requires_grad) for name, x in vars(inputs).items()})
    other_plan = replace(plan, **{name: moved(getattr(plan, name)) for name in TABLES})
    for name, got in run(engine, other, other_plan).items():
        torch.testing.assert_close(got, moved(result[name]), rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("engine", PORTABLE)
def test_half_precision_gradients_of_a_popular_block_are_summed_in_fp32(engine, monkeypatch):
    for name in ("_BATCH_BYTES_CPU", "_BATCH_BYTES_GPU"):
        monkeypatch.setattr(gather, name, 1)
    # Every token sees the first token alone, with weight 1; bfloat16 counts up to 256 in steps of 1.
    grid = BlockGrid((1, 1, 600), (1, 1, 1))
    mask = torch.zeros(1, 1, 600, 600, dtype=torch.bool, device=DEVICE)
    mask[..., 0] = True
    inputs = qkv(grid.grid, 8, BF16, heads=1)
    result = run(engine, replace(inputs, do=torch.ones_like(inputs.do)), hand_plan(grid, grid, mask, keep=1))
    assert (result["dv"][:, :, 0] == 600).all()
    assert (result["dv"][:, :, 1:] == 0).all()


@pytest.mark.parametrize("batch_bytes", [1, 40_000])
def test_gather_gives_the_same_whatever_its_batches(batch_bytes, monkeypatch):
    inputs, plan = hard_case(FP64)
    expected = run("gather", inputs, plan)
    for name in ("_BATCH_BYTES_CPU", "_BATCH_BYTES_GPU"):
        monkeypatch.setattr(gather, name, batch_bytes)
    num_batches = len(gather._batches(plan, gather.prepare(plan), torch.zeros(1, 64, 16, dtype=FP64, device=DEVICE)))
    assert num_batches > plan.kv_counts.unique().numel() - 1
    for name, result in run("gather", inputs, plan).items():
        torch.testing.assert_close(result, expected[name], rtol=1e-12, atol=1e-12)


def test_auto_is_triton_on_cuda_the_kernels_on_a_cpu_and_gather_elsewhere():
    assert [auto_engine(torch.device(kind)) for kind in ("cuda", "cpu", "mps")] == ["triton", "cpu", "gather"]
    assert explain_engine("cuda") == "engine 'auto' is 'triton' on cuda: the kernels in Triton."
    assert explain_engine("cpu") == "engine 'auto' is 'cpu' on cpu: the kernels in C++, compiled for this machine."
    assert explain_engine("mps") == "engine 'auto' is 'gather' on mps: torch, for there are no kernels."
    assert set(ENGINES) == {"reference", "gather", "flex", "triton", "gluon", "cpu"}


def test_flex_says_what_it_cannot_run_and_what_to_do():
    def reason(dtype=FP32, device="cpu", head_dim=64, backward=False):
        return flex.unsupported(torch.device(device), dtype, head_dim, backward=backward) or ""

    assert not reason()
    assert reason(FP64) == "FlexAttention does not take float64; use float32, float16 or bfloat16."
    assert "no backward on CPUs; run it on a GPU, or use the engine gather" in reason(backward=True)
    assert not reason(device="cuda", backward=True)
    assert "head size of at least 16, got 8; use the engine gather" in reason(device="cuda", head_dim=8)
    assert "not for mps" in reason(device="mps")


def test_flex_on_a_cpu_needs_a_compiler(monkeypatch):
    monkeypatch.setattr(flex_needs.shutil, "which", lambda name: None)
    assert "needs a C++ compiler; install g++" in flex.unsupported(torch.device("cpu"), FP32, 64, backward=False)


@pytest.mark.slow
def test_flex_compiles_more_shapes_than_torch_allows_by_default():
    # The first shape is that of other tests, which costs nothing where they ran before. On a GPU the sides of a tile
    # are those of the blocks, and must be powers of two.
    other = case((3, 5, 2), (2, 3, 4), (3, 3, 3)) if DEVICE.type == "cpu" else case((4, 4, 12))
    with torch._dynamo.config.patch(recompile_limit=1, accumulated_recompile_limit=1):
        for inputs, plan in (hard_case(), other):
            assert_close_to_reference("flex", inputs, plan, backward=HAS_FLEX_BACKWARD)


@pytest.mark.slow
def test_flex_raises_where_torch_would_run_it_uncompiled(monkeypatch):
    run("flex", *hard_case(), backward=False)
    monkeypatch.setattr(flex, "_MAX_SHAPES", 1)
    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
        run("flex", *case((4, 4, 16)), backward=False)
