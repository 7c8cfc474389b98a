"""The Triton kernels against the reference: in Triton's interpreter on a CPU, compiled on a GPU."""

import math
from dataclasses import replace

import pytest
import torch
from compile_kernels import compile_all
from kernel_helpers import (
    DEVICE,
    assert_close_to_reference,
    error_budgets,
    hand_plan,
    max_error,
    poison_empty,
    qkv,
    random_mask,
    run,
)
from torch.nn import functional

from bsa_kernels import BlockGrid, block_sparse_attention, full_plan, make_bsa_plan
from bsa_kernels.engines import get_engine, triton
from bsa_kernels.engines.reference import prepare

FP16, FP32 = torch.float16, torch.float32


def plan_of(inputs, grid, **options):
    plan = make_bsa_plan(inputs.q, inputs.k, grid=grid, **options)
    plan.check()
    return plan


@pytest.mark.parametrize("dtype", [FP16, FP32])
@pytest.mark.parametrize(
    ("grid", "block", "density"),
    [
        ((5, 7, 9), (4, 4, 4), 0.3),
        ((5, 7, 9), (3, 5, 7), 0.5),
        ((1, 4, 4), (4, 4, 4), 0.5),
        ((4, 4, 4), (4, 4, 4), 0.1),
        ((5, 6, 13), (4, 4, 4), 0.1),
        ((3, 8, 8), (1, 3, 5), 0.2),
    ],
)
def test_output_and_gradients_agree_with_the_reference(grid, block, density, dtype):
    inputs = qkv(grid, 32, dtype, heads=1)
    assert_close_to_reference("triton", inputs, plan_of(inputs, grid, block=block, kv_density=density))


@pytest.mark.parametrize("dtype", [FP16, FP32])
@pytest.mark.parametrize("head_dim", [8, 64, 80, 128, 160])
def test_any_head_size_agrees(head_dim, dtype):
    inputs = qkv((4, 5, 8), head_dim, dtype, heads=1)
    assert_close_to_reference("triton", inputs, plan_of(inputs, (4, 5, 8), kv_density=0.4))


@pytest.mark.parametrize("dtype", [FP16, FP32])
@pytest.mark.parametrize("scale", [1, 4, 16])
def test_large_inputs_agree(scale, dtype):
    inputs = qkv((4, 7, 8), 64, dtype, scale=scale, seed=scale)
    assert_close_to_reference("triton", inputs, plan_of(inputs, (4, 7, 8), kv_density=0.5))


@pytest.mark.parametrize("scale", [1, 0.0, -0.25])
def test_the_softmax_scale_is_the_callers(scale):
    inputs = qkv((4, 4, 8), 16, heads=1)
    assert_close_to_reference("triton", inputs, plan_of(inputs, (4, 4, 8), kv_density=1), scale=scale)


@pytest.mark.parametrize(
    ("block", "query_block", "keep"),
    [((4, 4, 4), (4, 4, 8), 0.5), ((4, 4, 4), (4, 8, 8), 1.0), ((4, 8, 8), (2, 4, 4), 1.0), ((8, 8, 8), None, 0.5)],
    ids=["wide queries", "two tiles of rows", "tiles of keys with padding", "512 slots"],
)
def test_query_and_kv_blocks_of_other_sizes_agree(block, query_block, keep):
    grid = (5, 8, 9)
    inputs = qkv(grid, 16, FP16, heads=1)
    plan = plan_of(inputs, grid, block=block, query_block=query_block, query_keep=keep, kv_density=0.5)
    assert_close_to_reference("triton", inputs, plan)


@pytest.mark.parametrize("query_rule", ["window", "block", "flat_half", "central_mean"])
def test_every_query_rule_agrees(query_rule):
    inputs = qkv((3, 4, 7), 16, FP16, heads=1)
    plan = plan_of(inputs, (3, 4, 7), query_rule=query_rule, query_keep=0.3, kv_density=0.5)
    assert_close_to_reference("triton", inputs, plan)


def test_a_batch_of_heads_with_lists_of_very_different_lengths_agrees():
    grid = BlockGrid((4, 8, 12), (4, 4, 4))
    mask = random_mask(grid, grid, 0.2, batch=2, heads=2)
    mask[0, 1] = True
    mask[1, 0] = torch.eye(grid.num_blocks, dtype=torch.bool)
    inputs = qkv(grid.grid, 16, batch=2, heads=2)
    assert_close_to_reference("triton", inputs, hand_plan(grid, grid, mask))


@pytest.mark.parametrize("dtype", [FP16, FP32])
def test_dead_and_popular_blocks_and_empty_lists_agree(dtype, monkeypatch):
    grid = BlockGrid((4, 6, 12), (4, 4, 4))
    mask = random_mask(grid, grid, 0.4)
    mask[..., 2] = False  # nobody chooses block 2
    mask[..., 3] = True  # everybody chooses block 3
    mask[:, 0, 1] = False  # query block 1 of head 0 sees nothing
    inputs = qkv(grid.grid, 32, dtype)
    plan = hand_plan(grid, grid, mask)
    poison_empty(monkeypatch)
    result = assert_close_to_reference("triton", inputs, plan)
    dead = grid.permute(torch.ones_like(inputs.k)).bool().unflatten(2, (grid.num_blocks, -1))
    for name in ("dk", "dv"):
        tiles = grid.permute(result[name]).unflatten(2, (grid.num_blocks, -1))
        assert (tiles[:, :, 2] == 0).all()
        assert (tiles[:, :, 3][dead[:, :, 3]] != 0).any()
    for name in ("o", "dq"):
        assert (grid.permute(result[name]).unflatten(2, (grid.num_blocks, -1))[:, 0, 1] == 0).all()


@pytest.mark.parametrize("dtype", [FP16, FP32])
def test_padding_has_no_weight_where_all_real_scores_are_far_below_zero(dtype):
    # A padding key scores 0, which is exp(200) times the weight of a real key here.
    grid = (4, 4, 5)
    inputs = qkv(grid, 16, dtype, heads=1)
    away = replace(inputs, q=(inputs.q * 0.1 + 7).detach(), k=(inputs.k * 0.1 - 7).detach())
    away = away.to(dtype)
    assert_close_to_reference("triton", away, plan_of(away, grid, kv_density=1), scale=0.25)


def test_gradients_of_padding_keys_are_exact_zeros(monkeypatch):
    grid = (3, 5, 6)
    inputs = qkv(grid, 16)
    plan = plan_of(inputs, grid, kv_density=0.5)
    q, k, v = (plan.kv_grid.permute(x.detach()).requires_grad_() for x in (inputs.q, inputs.k, inputs.v))
    poison_empty(monkeypatch)
    out = triton.attend(q, k, v, plan, triton.prepare(plan), scale=0.25)
    dk, dv = torch.autograd.grad(out, (k, v), torch.ones_like(out))
    is_padding = plan.kv_grid.token_of_slot(DEVICE).flatten() < 0
    assert (dk[:, :, is_padding] == 0).all()
    assert (dv[:, :, is_padding] == 0).all()
    assert (dv[:, :, ~is_padding] != 0).any()


def test_gradients_of_pruned_queries_are_exact_zeros(monkeypatch):
    grid = (5, 7, 6)
    inputs = qkv(grid, 16)
    plan = plan_of(inputs, grid, kv_density=0.5)
    poison_empty(monkeypatch)
    dq = run("triton", inputs, plan)["dq"]
    kept = (plan.kept_rank >= 0).flatten(2).index_select(2, plan.q_grid.slot_of_token(DEVICE))
    assert (dq[~kept] == 0).all()
    assert (dq[kept] != 0).any(-1).all()


def test_zero_fill_agrees_and_fills_zeros():
    grid = (4, 6, 5)
    inputs = qkv(grid, 16)
    plan = plan_of(inputs, grid, kv_density=0.5, fill="zero")
    result = assert_close_to_reference("triton", inputs, plan)
    assert (result["o"][plan.source_of_token() < 0] == 0).all()


@pytest.mark.parametrize(
    ("grid", "dtype"), [((5, 7, 9), FP16), ((5, 6, 4), FP32), ((1, 4, 4), FP32), ((4, 4, 4), FP32), ((4, 4, 4), FP16)]
)
def test_all_rows_and_all_blocks_equal_dense_attention(grid, dtype, monkeypatch):
    inputs = qkv(grid, 16, dtype, heads=1)
    plan = plan_of(inputs, grid, query_keep=1, kv_density=1)
    exact = inputs.to(torch.float64)
    out = functional.scaled_dot_product_attention(exact.q, exact.k, exact.v)
    gradients = torch.autograd.grad(out, (exact.q, exact.k, exact.v), exact.do)
    dense = dict(zip(("o", "dq", "dk", "dv"), (out, *gradients), strict=True))
    budgets = error_budgets(inputs, plan, dense)
    poison_empty(monkeypatch)
    for name, result in run("triton", inputs, plan).items():
        assert max_error(result, dense[name]) <= budgets[name], name


def test_inputs_and_gradients_need_not_be_contiguous():
    grid = (4, 5, 6)
    inputs = qkv(grid, 16)
    plan = plan_of(inputs, grid, kv_density=0.5)
    expected = run("triton", inputs, plan)
    strided = replace(
        inputs,
        **{
            name: getattr(inputs, name).detach().transpose(1, 2).contiguous().transpose(1, 2)
            for name in ("q", "k", "v")
        },
        do=inputs.do.transpose(2, 3).contiguous().transpose(2, 3),
    )
    assert not any(x.is_contiguous() for x in vars(strided).values())
    for x in (strided.q, strided.k, strided.v):
        x.requires_grad_()
    for name, result in run("triton", strided, plan).items():
        assert torch.equal(result, expected[name]), name


def test_two_runs_give_the_same_bits():
    inputs = qkv((4, 6, 8), 16, FP16)
    plan = plan_of(inputs, (4, 6, 8), kv_density=0.4)
    first, second = run("triton", inputs, plan), run("triton", inputs, plan)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_only_the_gradients_asked_for_are_computed(monkeypatch):
    from bsa_kernels.block_sparse import triton_backward

    def refuse(*args, **kwargs):
        raise AssertionError("not asked for")

    inputs = qkv((4, 4, 5), 16)
    plan = plan_of(inputs, (4, 4, 5))
    expected = run("triton", inputs, plan)
    frozen_q = inputs.q.detach()
    monkeypatch.setattr(triton_backward, "launch_grad_q", refuse)
    out = block_sparse_attention(frozen_q, inputs.k, inputs.v, plan, engine="triton")
    assert torch.equal(torch.autograd.grad(out, inputs.v, inputs.do)[0], expected["dv"])


def test_log_sum_exp_is_in_base_two_and_minus_infinity_for_a_row_that_sees_nothing():
    from bsa_kernels.block_sparse.triton_forward import launch_forward

    grid = BlockGrid((4, 4, 9), (4, 4, 4))
    mask = torch.ones(1, 1, grid.num_blocks, grid.num_blocks, dtype=torch.bool, device=DEVICE)
    mask[:, :, 1] = False
    plan = hand_plan(grid, grid, mask, keep=0.3)
    inputs = qkv(grid.grid, 16, heads=1)
    q, k, v = (grid.permute(x.detach()) for x in (inputs.q, inputs.k, inputs.v))
    _, lse = launch_forward(q, k, v, triton.prepare(plan), scale=0.25)
    scores = 0.25 * plan.gather_kept(q).flatten(2, 3) @ k.transpose(-1, -2)
    expected = scores.masked_fill(~prepare(plan), -math.inf).logsumexp(-1).view_as(lse) / math.log(2)
    has_row = plan.kept_slots >= 0
    assert torch.allclose(lse[has_row], expected[has_row], rtol=1e-5)
    assert (lse[:, :, 1] == -math.inf).all()
    assert (lse[~has_row] == -math.inf).all()


def test_executed_flop_counts_whole_tiles():
    grid = BlockGrid((4, 4, 8), (4, 4, 4))
    plan = full_plan(1, 3, grid, device=DEVICE)
    assert triton.executed_flop(plan, 64) == 4 * 64 * 128 * 128 * 3
    assert triton.executed_flop(plan, 80) == 4 * 128 * 128 * 128 * 3
    odd = BlockGrid((3, 5, 7), (3, 5, 7))
    assert triton.executed_flop(full_plan(1, 1, odd, device=DEVICE), 64) == 4 * 64 * 128 * 128
    assert get_engine("gather").executed_flop(full_plan(1, 1, odd, device=DEVICE), 64) == 4 * 64 * 105 * 105


def test_a_reason_with_a_remedy_stands_for_what_it_cannot_run(monkeypatch):
    def reason(dtype=FP32, head_dim=64, device="cpu"):
        return triton.unsupported(torch.device(device), dtype, head_dim, backward=True) or ""

    assert "float64; convert, or use the engine gather" in reason(torch.float64)
    assert "up to 256, got 257" in reason(head_dim=257)
    assert "not on meta" in reason(device="meta")
    monkeypatch.setattr(triton, "_is_interpreted", lambda: True)
    assert not reason()
    assert "bf16 dot is wrong; use float16 or float32" in reason(torch.bfloat16)
    monkeypatch.setattr(triton, "_installed", {"triton": "3.6.0", "numpy": "2.4.1"}.get)
    assert "pip install 'numpy<2.4' or 'triton>=3.7'" in reason()
    monkeypatch.setattr(triton, "_installed", {"triton": "3.7.1", "numpy": "2.4.1"}.get)
    assert not reason()
    monkeypatch.setattr(triton, "_is_interpreted", lambda: False)
    assert reason() == (
        "Triton runs on a CPU only in its interpreter, for verification; set TRITON_INTERPRET=1 before importing, "
        "or use the engine gather."
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "compute capability 8.0, this GPU has 7.5" in reason(device="cuda")
    monkeypatch.setattr(triton, "_installed", {}.get)
    assert "pip install 'triton>=3.6,<3.10'" in reason()


def test_the_operator_raises_with_the_reason():
    inputs = qkv((4, 4, 4), 16, torch.float64)
    with pytest.raises(
        ValueError, match=r"engine 'triton': the kernels take float16, bfloat16 and float32, not float64"
    ):
        run("triton", inputs, full_plan(1, 2, BlockGrid((4, 4, 4), (4, 4, 4)), device=DEVICE))


def test_kernels_compile_for_ampere_hopper_and_blackwell():
    records = compile_all(capabilities=[80, 90, 100], head_dims=[64, 128], rows=[32, 64], dtypes=["bf16"])
    assert len(records) == 3 * 2 * 2 * 3
    for record in records:
        # What consumer GPUs of compute capability 8.6 and 8.9 have; see CONFIGS.
        assert record["shared_bytes"] <= 99 * 1024, record
        assert record["stack_bytes"] <= 64, f"registers spill: {record}"
        if record["capability"] == 90 and (record["K"] == 64 or record["kernel"] == "grad_kv"):
            assert record["has_wgmma"], record


@pytest.mark.slow
def test_kernels_compile_in_every_format_and_for_the_largest_heads():
    assert len(compile_all(capabilities=[80, 90], head_dims=[256], rows=[128], dtypes=["fp16"])) == 6
    assert len(compile_all(capabilities=[80], head_dims=[128, 256], rows=[32], dtypes=["fp32"])) == 6
