"""What the public functions say to wrong arguments: the parameter, what was expected, what was given."""

import pytest
import torch
from kernel_helpers import DEVICE

from bsa_kernels import BlockGrid, block_sparse_attention, bsa_attention, full_plan, make_bsa_plan
from bsa_kernels.engines import get_engine

GRID = (2, 3, 4)


def inputs(length=24, head_dim=4, dtype=torch.float32, heads=2):
    return tuple(torch.randn(1, heads, length, head_dim, device=DEVICE).to(dtype) for _ in range(3))


OPTIONS = [
    ({"grid": (2, 3)}, r"grid: expected three integers \(t, h, w\) of at least 1, got \(2, 3\)"),
    ({"grid": (2, 3, 0)}, r"grid: expected three integers .* got \(2, 3, 0\)"),
    ({"grid": (2, 3.0, 4)}, r"grid: expected three integers .* got \(2, 3.0, 4\)"),
    ({"grid": (True, 3, 8)}, r"grid: expected three integers .* got \(True, 3, 8\)"),
    ({"grid": (2, 3, 5)}, r"q: expected L = T\*H\*W of grid \(2, 3, 5\), got L = 24 in \[1, 2, 24, 4\]"),
    ({"block": (4, 4)}, r"block: expected three integers .* got \(4, 4\)"),
    ({"block": (4, 4, -4)}, r"block: expected three integers .* got \(4, 4, -4\)"),
    ({"query_block": (4, 0, 8)}, r"query_block: expected three integers .* got \(4, 0, 8\)"),
    ({"query_keep": 0}, "query_keep: expected a share above 0 and at most 1, got 0"),
    ({"query_keep": 1.5}, "query_keep: expected a share above 0 and at most 1, got 1.5"),
    ({"query_keep": float("nan")}, "query_keep: expected a share above 0 and at most 1, got nan"),
    ({"kv_density": -0.1}, "kv_density: expected a share above 0 and at most 1, got -0.1"),
    ({"kv_density": "0.1"}, "kv_density: expected a share above 0 and at most 1, got '0.1'"),
    ({"query_rule": "windows"}, "query_rule: expected one of window, block, flat_half, central_mean; got 'windows'"),
    ({"kv_rule": "top_k"}, "kv_rule: expected one of statistical, topk, mass, softmax_stat; got 'top_k'"),
    ({"fill": None}, "fill: expected one of nearest, similar, flat, zero; got None"),
]


@pytest.mark.parametrize(
    ("options", "message"), OPTIONS, ids=[f"{next(iter(o))}-{i}" for i, (o, _) in enumerate(OPTIONS)]
)
def test_a_wrong_option_is_named_by_plan_and_operator_alike(options, message):
    q, k, v = inputs()
    with pytest.raises(ValueError, match=message):
        make_bsa_plan(q, k, **{"grid": GRID, **options})
    with pytest.raises(ValueError, match=message):
        bsa_attention(q, k, v, **{"grid": GRID, **options})


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("q", lambda x: x[0], r"q: expected a floating \[B, H, L, D\], got torch.float32 \[2, 24, 4\]"),
        ("q", lambda x: x.long(), r"q: expected a floating \[B, H, L, D\], got torch.int64 \[1, 2, 24, 4\]"),
        ("q", lambda x: x[:, :, 1:], r"q: expected L = T\*H\*W of grid \(2, 3, 4\), got L = 23"),
        ("k", lambda x: x[:, :1], r"k: expected q's \[1, 2, 24, 4\] torch.float32 on .*, got \[1, 1, 24, 4\]"),
        ("k", lambda x: x.half(), r"k: expected q's .* torch.float32 on .*, got .* torch.float16"),
        ("v", lambda x: x[..., :3], r"v: expected q's \[1, 2, 24, 4\] .*, got \[1, 2, 24, 3\]"),
        ("v", lambda x: x.to("meta"), "v: expected a tensor with data, got one on the device meta"),
    ],
)
def test_a_wrong_tensor_is_named_by_operator_and_plan_runner_alike(name, change, message):
    tensors = dict(zip("qkv", inputs(), strict=True))
    tensors[name] = change(tensors[name])
    plan = full_plan(1, 2, BlockGrid(GRID, (4, 4, 4)), device=DEVICE)
    with pytest.raises(ValueError, match=message):
        bsa_attention(**tensors, grid=GRID)
    with pytest.raises(ValueError, match=message):
        block_sparse_attention(**tensors, plan=plan)


def test_a_plan_for_other_heads_is_refused():
    plan = full_plan(1, 3, BlockGrid(GRID, (4, 4, 4)), device=DEVICE)
    with pytest.raises(ValueError, match=r"plan: expected \(B, H\) = \(1, 2\) on .*, got \(1, 3\) on "):
        block_sparse_attention(*inputs(), plan)


def test_a_plan_on_another_device_is_refused():
    plan = full_plan(1, 2, BlockGrid(GRID, (4, 4, 4)), device=torch.device("meta"))
    with pytest.raises(ValueError, match=r"plan: expected .*, got \(1, 2\) on meta"):
        block_sparse_attention(*inputs(), plan)


@pytest.mark.parametrize("call", [bsa_attention, None])
def test_an_unknown_engine_is_refused_with_the_list_of_known_ones(call):
    message = "engine: expected one of auto, reference, gather, flex, triton, gluon, cpu; got 'cuda'"
    with pytest.raises(ValueError, match=message):
        bsa_attention(*inputs(), grid=GRID, engine="cuda") if call else get_engine("cuda")


def test_an_engine_that_cannot_run_raises_with_its_reason():
    with pytest.raises(ValueError, match="engine 'flex': FlexAttention does not take float64; use float32"):
        bsa_attention(*inputs(dtype=torch.float64), grid=GRID, engine="flex")


@pytest.mark.skipif(DEVICE.type == "cuda", reason="FlexAttention is differentiated on GPUs")
def test_flex_on_a_cpu_raises_where_gradients_are_wanted():
    q, k, v = inputs()
    q.requires_grad_()
    with pytest.raises(
        ValueError, match=r"engine 'flex': FlexAttention has no backward on CPUs.*use the engine gather"
    ):
        bsa_attention(q, k, v, grid=GRID, engine="flex")
