"""The engine `triton` against the reference: in Triton's interpreter on a CPU, compiled on a GPU.

With the tiles that the table chooses; `test_triton_attention` has the others.
"""

import math
from dataclasses import replace

import pytest
import torch
from kernel_helpers import (
    DEVICE,
    assert_close_to_reference,
    error_budgets,
    hand_plan,
    make_tiles,
    max_error,
    poison_empty,
    prepare_tables,
    qkv,
    random_mask,
    run,
)
from torch.nn import functional

from bsa_kernels import BlockGrid, block_sparse_attention, full_plan, make_bsa_plan
from bsa_kernels.block_sparse.ops import attend as attend_tables
from bsa_kernels.engines import triton
from bsa_kernels.engines.reference import prepare

FP16, FP32 = torch.float16, torch.float32


def plan_of(inputs, grid, **options):
    plan = make_bsa_plan(inputs.q, inputs.k, grid=grid, **options)
    plan.check()
    return plan


@pytest.mark.slow
@pytest.mark.parametrize(
    ("grid", "block", "density", "dtype"),
    [
        ((5, 7, 9), (4, 4, 4), 0.3, FP16),
        ((5, 7, 9), (4, 4, 4), 0.3, FP32),
        ((4, 7, 9), (3, 5, 7), 0.5, FP16),
        ((1, 4, 4), (4, 4, 4), 0.5, FP32),
        ((4, 4, 4), (4, 4, 4), 0.1, FP16),
        ((5, 4, 13), (4, 4, 4), 0.1, FP32),
        ((2, 5, 8), (1, 3, 5), 0.2, FP16),
    ],
)
def test_output_and_gradients_agree_with_the_reference(grid, block, density, dtype):
    inputs = qkv(grid, 32, dtype, heads=1)
    assert_close_to_reference("triton", inputs, plan_of(inputs, grid, block=block, kv_density=density))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head_dim", "dtype"), [(8, FP16), (8, FP32), (64, FP32), (80, FP32), (128, FP32), (160, FP16), (160, FP32)]
)
def test_any_head_size_agrees(head_dim, dtype):
    inputs = qkv((4, 4, 7), head_dim, dtype, heads=1)
    assert_close_to_reference("triton", inputs, plan_of(inputs, (4, 4, 7), kv_density=0.7))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [FP16, FP32])
def test_large_inputs_and_another_scale_agree(dtype):
    inputs = qkv((4, 5, 8), 64, dtype, scale=16, heads=1)
    assert_close_to_reference("triton", inputs, plan_of(inputs, (4, 5, 8), kv_density=0.5), scale=-0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("block", "query_block", "keep"),
    [((4, 4, 4), (4, 4, 8), 0.5), ((4, 4, 4), (4, 8, 8), 1.0), ((4, 8, 8), (2, 4, 4), 1.0)],
    ids=["wide queries", "two tiles of rows", "tiles of keys with padding"],
)
def test_query_and_kv_blocks_of_other_sizes_agree(block, query_block, keep):
    grid = (3, 8, 9)
    inputs = qkv(grid, 16, FP16, heads=1)
    plan = plan_of(inputs, grid, block=block, query_block=query_block, query_keep=keep, kv_density=0.5)
    assert_close_to_reference("triton", inputs, plan)


@pytest.mark.slow
@pytest.mark.parametrize("query_rule", ["window", "block", "flat_half", "central_mean"])
def test_every_query_rule_agrees(query_rule):
    inputs = qkv((3, 4, 7), 16, FP16, heads=1)
    plan = plan_of(inputs, (3, 4, 7), query_rule=query_rule, query_keep=0.3, kv_density=0.5)
    assert_close_to_reference("triton", inputs, plan)


@pytest.mark.slow
def test_a_batch_of_heads_with_lists_of_very_different_lengths_agrees():
    grid = BlockGrid((4, 5, 12), (4, 4, 4))
    mask = random_mask(grid, grid, 0.2, batch=2, heads=2)
    mask[0, 1] = True
    mask[1, 0] = torch.eye(grid.num_blocks, dtype=torch.bool)
    inputs = qkv(grid.grid, 16, batch=2, heads=2)
    assert_close_to_reference("triton", inputs, hand_plan(grid, grid, mask))


@pytest.mark.slow
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


# What the interpreter computes for the gradients of padding keys overflows; it is stored nowhere.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
@pytest.mark.parametrize("dtype", [FP16, FP32])
def test_padding_has_no_weight_where_all_real_scores_are_far_below_zero(dtype):
    # A padding key scores 0, which is exp(200) times the weight of a real key here.
    grid = (4, 4, 5)
    inputs = qkv(grid, 16, dtype, heads=1)
    away = replace(inputs, q=(inputs.q * 0.1 + 7).detach(), k=(inputs.k * 0.1 - 7).detach())
    away = away.to(dtype)
    assert_close_to_reference("triton", away, plan_of(away, grid, kv_density=1), scale=0.25)


@pytest.mark.slow
def test_gradients_of_tile_major_padding_are_exact_zeros(monkeypatch):
    grid = (3, 5, 6)
    inputs = qkv(grid, 16)
    plan = plan_of(inputs, grid, kv_density=0.5)
    q, k, v = (plan.kv_grid.permute(x.detach()).requires_grad_() for x in (inputs.q, inputs.k, inputs.v))
    poison_empty(monkeypatch)
    tables = prepare_tables(plan, head_dim=16, dtype=FP32, is_tiled=True)
    out = attend_tables(q, k, v, tables, scale=0.25)
    is_padding = plan.kv_grid.token_of_slot(DEVICE).flatten() < 0
    for x in (out, *torch.autograd.grad(out, (q, k, v), torch.ones_like(out))):
        assert (x[:, :, is_padding] == 0).all()
        assert (x[:, :, ~is_padding] != 0).any()


@pytest.mark.slow
def test_gradients_of_pruned_queries_are_exact_zeros(monkeypatch):
    grid = (5, 3, 6)
    inputs = qkv(grid, 16)
    plan = plan_of(inputs, grid, kv_density=0.5)
    poison_empty(monkeypatch)
    dq = run("triton", inputs, plan)["dq"]
    kept = (plan.kept_rank >= 0).flatten(2).index_select(2, plan.q_grid.slot_of_token(DEVICE))
    assert (dq[~kept] == 0).all()
    assert (dq[kept] != 0).any(-1).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("grid", "dtype"), [((5, 4, 9), FP16), ((5, 6, 4), FP32), ((1, 4, 4), FP32), ((4, 4, 4), FP32), ((4, 4, 4), FP16)]
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


@pytest.mark.slow
def test_a_tensor_without_gradient_changes_no_other_s():
    inputs = qkv((4, 4, 5), 16)
    plan = plan_of(inputs, (4, 4, 5))
    expected = run("triton", inputs, plan)
    out = block_sparse_attention(inputs.q.detach(), inputs.k.detach(), inputs.v, plan, engine="triton")
    assert torch.equal(torch.autograd.grad(out, inputs.v, inputs.do)[0], expected["dv"])


@pytest.mark.parametrize(("group", "transposed"), [(1, False), (1, True), (2, False)])
def test_log_sum_exp_is_in_base_two_and_infinity_where_nothing_is_seen(group, transposed):
    from bsa_kernels.block_sparse.triton_attend import launch_attend

    grid = BlockGrid((4, 4, 9), (4, 4, 4))
    mask = torch.ones(1, 1, grid.num_blocks, grid.num_blocks, dtype=torch.bool, device=DEVICE)
    mask[:, :, 1] = False
    plan = hand_plan(grid, grid, mask, keep=0.3)
    inputs = qkv(grid.grid, 16, heads=1)
    tiles = make_tiles(32, keys=32, group=group, transposed=transposed)
    tables = prepare_tables(plan, head_dim=16, dtype=FP32, tiles=tiles)
    q, k, v = (x.detach() for x in (inputs.q, inputs.k, inputs.v))
    _, lse = launch_attend(q, k, v, tables, scale=0.25)
    scores = 0.25 * plan.gather_kept(grid.permute(q)).flatten(2, 3) @ grid.permute(k).transpose(-1, -2)
    expected = scores.masked_fill(~prepare(plan), -math.inf).logsumexp(-1).view_as(lse) / math.log(2)
    sees = (plan.kept_slots >= 0) & plan.block_mask.any(-1, keepdim=True)
    assert torch.allclose(lse[sees], expected[sees], rtol=1e-5)
    assert (lse[~sees] == math.inf).all()
    assert (~sees[:, :, 1]).all()
    assert (~sees[:, :, 2]).any()


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
