"""The compiled Triton kernels at real sizes, on a GPU."""

from dataclasses import replace

import pytest
import torch
from kernel_helpers import BUDGET_FACTOR, DEVICE, assert_close_to_reference, max_error, qkv, run

from bsa_kernels import make_bsa_plan
from bsa_kernels.engines import triton
from bsa_kernels.engines.reference import masked_attention

pytestmark = pytest.mark.gpu

WAN_480P = (21, 30, 52)  # 81 frames at 480x832
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def real_case(dtype, head_dim, grid=WAN_480P):
    inputs = qkv(grid, head_dim, dtype)
    return inputs, make_bsa_plan(inputs.q, inputs.k, grid=grid, kv_density=0.1)


@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_a_real_video_errs_no_more_than_gathering_does(dtype, head_dim):
    inputs, plan = real_case(dtype, head_dim)
    exact = run("gather", inputs.to(torch.float64), plan)
    gathered = run("gather", inputs, plan)
    for name, result in run("triton", inputs, plan).items():
        floor = torch.finfo(dtype).eps * float(exact[name].abs().max())
        assert max_error(result, exact[name]) <= BUDGET_FACTOR * max_error(gathered[name], exact[name]) + floor, name


@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_sampled_rows_of_a_real_video_follow_the_definition(dtype):
    inputs, plan = real_case(dtype, 128)
    q, k, v = (plan.kv_grid.permute(x.detach()) for x in (inputs.q, inputs.k, inputs.v))
    out = triton.attend(q, k, v, plan, triton.prepare(plan), scale=0.1)
    q_kept = plan.gather_kept(q)
    real = plan.kv_grid.token_of_slot(DEVICE) >= 0
    for block in range(0, plan.q_grid.num_blocks, 97):
        for head in range(plan.shape[1]):
            listed = plan.block_mask[0, head, block]
            keys, values = (x[0, head].unflatten(0, real.shape)[listed][real[listed]].double() for x in (k, v))
            exact = masked_attention(q_kept[0, head, block].double(), keys, values, None, scale=0.1)
            rows = int(plan.num_kept[0, head, block])
            error = max_error(out[0, head, block, :rows], exact[:rows])
            # One rounding of the output, one of the weights, which average out.
            assert error <= torch.finfo(dtype).eps * float(values.abs().max()), (block, head)


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
@pytest.mark.parametrize("engine", ["triton", "gather", "flex"])
def test_every_engine_agrees_on_the_same_plan(engine, dtype):
    inputs, plan = real_case(dtype, 64, grid=(8, 14, 16))
    assert_close_to_reference(engine, inputs, plan)


def test_two_runs_give_the_same_bits_at_real_size():
    inputs, plan = real_case(BF16, 128)
    first, second = run("triton", inputs, plan), run("triton", inputs, plan)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_kernels_run_on_the_current_stream():
    inputs, plan = real_case(BF16, 64, grid=(8, 16, 16))
    expected = run("triton", inputs, plan)
    late = qkv((8, 16, 16), 64, BF16, scale=0, seed=1)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        with torch.no_grad():
            for name in ("q", "k", "v", "do"):
                getattr(late, name).copy_(getattr(inputs, name))
        result = run("triton", late, plan)
    stream.synchronize()
    assert all(torch.equal(result[name], expected[name]) for name in expected)


def test_heads_beyond_two_to_the_31_numbers_are_computed_like_any_other():
    heads, head_dim, grid = 260, 128, (16, 64, 64)
    if torch.cuda.mem_get_info()[0] < 60 << 30:
        pytest.skip("needs 60 GB of free GPU memory")
    assert heads * head_dim * grid[0] * grid[1] * grid[2] > 1 << 31
    inputs = qkv(grid, head_dim, BF16, heads=1)
    plan = make_bsa_plan(inputs.q, inputs.k, grid=grid, kv_density=0.01)
    tables = ("kept_slots", "num_kept", "fill", "block_bits")
    wide = replace(
        plan,
        **{name: getattr(plan, name).expand(-1, heads, *[-1] * (getattr(plan, name).dim() - 2)) for name in tables},
    )
    tiles = [plan.kv_grid.permute(x.detach()) for x in (inputs.q, inputs.k, inputs.v)]
    results = {}
    for case, used in (("one", plan), ("many", wide)):
        leaves = [x.expand(-1, used.shape[1], -1, -1).contiguous().requires_grad_() for x in tiles]
        out = triton.attend(*leaves, used, triton.prepare(used), scale=0.1)
        results[case] = [out.detach(), *torch.autograd.grad(out, leaves, torch.ones_like(out))]
        results[case] = [x[:, -1].clone() for x in results[case]]
    assert all(torch.equal(one, many) for one, many in zip(results["one"], results["many"], strict=True))
