"""What reaches the public operator from outside: other numbers, few heads, no heads, derivatives, plans by hand."""

import numpy as np
import pytest
import torch
from kernel_helpers import DEVICE
from torch.autograd import forward_ad

from bsa_kernels import BlockGrid, BlockPlan, block_sparse_attention, bsa_attention, full_plan, make_bsa_plan

GRID = (2, 4, 6)
ENGINES = ("reference", "gather", "cpu")
BLOCK = (2, 2, 2)


def inputs(*, batch=1, heads=2, kv_heads=None, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, n, 48, 8) for n in (heads, kv_heads or heads, kv_heads or heads)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype) for shape in shapes]


def attend(*tensors, **options):
    return bsa_attention(
        *tensors, **{"grid": GRID, "block": BLOCK, "kv_density": 0.5, "engine": "reference", **options}
    )


def gradients(tensors, call):
    leaves = [x.detach().requires_grad_() for x in tensors]
    out = call(*leaves)
    grads = torch.autograd.grad(
        out, leaves, torch.linspace(-1, 1, out.numel(), device=out.device).view(out.shape).to(out)
    )
    return [out.detach(), *grads]


NUMBERS = [
    {"query_keep": np.float32(0.5)},
    {"query_keep": torch.tensor(0.5)},
    {"kv_density": np.float64(0.5)},
    {"kv_density": torch.tensor(0.5, dtype=torch.float64)},
    {"scale": np.float32(0.25)},
    {"scale": torch.tensor(0.25)},
    {"scale": np.array(0.25)[()]},
    {"grid": np.array(GRID)},
    {"grid": torch.tensor(GRID)},
    {"grid": [np.int32(n) for n in GRID]},
    {"block": torch.Size(BLOCK)},
]


@pytest.mark.parametrize("options", NUMBERS, ids=lambda o: next(f"{k}-{type(v).__name__}" for k, v in o.items()))
def test_numbers_of_numpy_and_torch_are_numbers(options):
    tensors = inputs()
    plain = {"scale": 0.25}
    assert torch.equal(attend(*tensors, **{**plain, **options}), attend(*tensors, **plain))


WRONG = [
    ({"scale": float("nan")}, "scale: expected a finite number, got nan"),
    ({"scale": -float("inf")}, "scale: expected a finite number, got -inf"),
    ({"scale": 1e39}, r"scale: expected a finite number, got 1e\+39"),
    ({"scale": "x"}, "scale: expected a finite number, got 'x'"),
    ({"scale": True}, "scale: expected a finite number, got True"),
    ({"scale": torch.ones(2)}, "scale: expected a finite number, got tensor"),
    (
        {"scale": torch.tensor(1.0, requires_grad=True)},
        "scale: .* got a tensor that requires a gradient, which would get",
    ),
    ({"query_keep": True}, "query_keep: expected a share above 0 and at most 1, got True"),
    ({"kv_density": torch.tensor(2.0)}, r"kv_density: expected a share .*, got tensor\(2.\)"),
    ({"grid": None}, "grid: expected three integers .*, got None"),
    ({"grid": 48}, "grid: expected three integers .*, got 48"),
    ({"grid": "246"}, "grid: expected three integers .*, got '246'"),
    ({"block": 4}, "block: expected three integers .*, got 4"),
    ({"block": (10**12, 2, 2)}, r"block: expected one that fits the grid \(2, 4, 6\), got \(1000000000000, 2, 2\)"),
    ({"query_block": (64, 64, 64)}, r"block: expected one that fits the grid \(2, 4, 6\), got \(64, 64, 64\)"),
    ({"layout": "bldh"}, "layout: expected 'bhld' or 'blhd', got 'bldh'"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=[next(iter(o)) + f"-{i}" for i, (o, _) in enumerate(WRONG)])
def test_what_is_no_such_number_is_named(options, message):
    tensors = inputs()
    with pytest.raises(ValueError, match=message):
        attend(*tensors, **options)
    with pytest.raises(ValueError, match=message):
        make_bsa_plan(*tensors[:2], **{"grid": GRID, **options})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x: x.tolist(), TypeError, r"k: expected a torch.Tensor \[B, H, L, D\], got list"),
        (lambda x: None, TypeError, "k: expected a torch.Tensor .* got NoneType"),
        (lambda x: x.cpu().numpy(), TypeError, "k: expected a torch.Tensor .* got ndarray"),
        (lambda x: x.to_sparse(), ValueError, "k: expected a dense tensor, got one of layout torch.sparse_coo"),
        (lambda x: x.to("meta"), ValueError, "k: expected a tensor with data, got one on the device meta"),
        (
            lambda x: x.to(torch.float8_e4m3fn),
            ValueError,
            "k: expected float16, bfloat16, float32 or float64, got torch.f",
        ),
        (lambda x: x.to(torch.complex64), ValueError, r"k: expected a floating \[B, H, L, D\], got torch.complex64"),
        (lambda x: x[..., :0], ValueError, r"k: expected a head size of at least 1, got \[1, 2, 48, 0\]"),
        (lambda x: x[:, :0], ValueError, "k: expected as many heads as q, 2, or a divisor of them, got 0"),
    ],
)
def test_what_is_no_such_tensor_is_named(change, error, message):
    q, k, v = inputs()
    plan = full_plan(1, 2, BlockGrid(GRID, BLOCK), device=DEVICE)
    with pytest.raises(error, match=message):
        attend(q, change(k), change(k))
    with pytest.raises(error, match=message):
        make_bsa_plan(q, change(k), grid=GRID)
    with pytest.raises(error, match=message):
        block_sparse_attention(q, change(k), change(k), plan)
    assert attend(q, k, v).isfinite().all()


@pytest.mark.parametrize(("name", "given"), [("tiled", "no"), ("tiled", 1)])
def test_a_flag_is_true_or_false(name, given):
    with pytest.raises(TypeError, match=f"{name}: expected True or False, got {given!r}"):
        attend(*inputs(), **{name: given})


def test_what_is_no_plan_is_named():
    with pytest.raises(TypeError, match=r"plan: expected a BlockPlan, .* got dict"):
        block_sparse_attention(*inputs(), {})


@pytest.mark.parametrize("engine", ENGINES)
def test_blhd_is_the_same_attention_on_transposed_tensors(engine):
    tensors = inputs(dtype=torch.float64)
    expected = gradients(tensors, lambda *x: attend(*x, engine=engine))
    transposed = [x.transpose(1, 2).contiguous() for x in tensors]
    o, *grads = gradients(transposed, lambda *x: attend(*x, engine=engine, layout="blhd").transpose(1, 2))
    assert torch.equal(o, expected[0])
    for found, other in zip(grads, expected[1:], strict=True):
        assert torch.equal(found.transpose(1, 2), other)
    plan = make_bsa_plan(*transposed[:2], grid=GRID, block=BLOCK, kv_density=0.5, layout="blhd")
    by_plan, lse = block_sparse_attention(*transposed, plan, engine="reference", layout="blhd", return_lse=True)
    assert by_plan.shape == transposed[0].shape
    assert lse.shape == tensors[0].shape[:3]
    torch.testing.assert_close(by_plan.transpose(1, 2), attend(*tensors))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_few_heads_of_keys_serve_several_of_queries(engine, kv_heads):
    tensors = inputs(heads=4, kv_heads=kv_heads, dtype=torch.float64)
    o, dq, dk, dv = gradients(tensors, lambda *x: attend(*x, engine=engine))
    q, k, v = tensors
    whole = [q, *(x[:, torch.arange(4, device=DEVICE) // (4 // kv_heads)] for x in (k, v))]
    expected = gradients(whole, attend)
    torch.testing.assert_close(o, expected[0])
    torch.testing.assert_close(dq, expected[1])
    for found, of_all in ((dk, expected[2]), (dv, expected[3])):
        torch.testing.assert_close(found, of_all.unflatten(1, (kv_heads, -1)).sum(2))
    plan = make_bsa_plan(q, k, grid=GRID, block=BLOCK, kv_density=0.5)
    torch.testing.assert_close(block_sparse_attention(*tensors, plan, engine=engine), expected[0])


def test_heads_that_do_not_divide_are_refused():
    q, k, v = inputs(heads=4, kv_heads=3)
    with pytest.raises(ValueError, match="k: expected as many heads as q, 4, or a divisor of them, got 3"):
        attend(q, k, v)
    with pytest.raises(ValueError, match="k: expected q's"):
        attend(q, k[:, :2], v)


@pytest.mark.parametrize("engine", ["auto", *ENGINES])
@pytest.mark.parametrize("empty", [{"batch": 0}, {"heads": 0}])
def test_nothing_gives_nothing_forward_and_backward(engine, empty):
    tensors = inputs(**empty)
    o, *grads = gradients(tensors, lambda *x: attend(*x, engine=engine))
    assert [x.shape for x in (o, *grads)] == [tensors[0].shape] * 4
    plan = make_bsa_plan(*tensors[:2], grid=GRID, block=BLOCK)
    o, lse = block_sparse_attention(*tensors, plan, engine=engine, return_lse=True)
    assert (o.shape, lse.shape, lse.dtype) == (tensors[0].shape, tensors[0].shape[:3], torch.float32)
    assert torch.equal(plan.num_pairs(), torch.zeros(plan.shape[:2], dtype=torch.int64, device=DEVICE))


def test_the_smallest_share_keeps_one_row_and_one_block():
    q, k, _ = inputs()
    plan = make_bsa_plan(q, k, grid=GRID, block=BLOCK, kv_density=1e-17, query_keep=1e-17, kv_rule="topk")
    assert (plan.kv_counts == 1).all()
    assert (plan.num_kept == 1).all()


@pytest.mark.parametrize("engine", ["gather", "cpu"])
def test_a_second_derivative_raises_whatever_it_is_asked_of(engine):
    q, k, v = (x.requires_grad_() for x in inputs(dtype=torch.float64))
    loss = attend(q, k, v, engine=engine).square().sum() + q.pow(3).sum()
    (dq,) = torch.autograd.grad(loss, q, create_graph=True)
    for ask in (q, k, v):
        with pytest.raises(RuntimeError, match=r"second one|no autograd formula"):
            torch.autograd.grad(dq.sum(), ask, allow_unused=True, retain_graph=True)


def test_few_rows_by_key_refuse_a_second_derivative_too():
    q, k, v = (x.requires_grad_() for x in inputs(dtype=torch.float64))
    grid = BlockGrid(GRID, (1, 1, 1))
    plan = full_plan(1, 2, grid, kv_grid=BlockGrid(GRID, (2, 4, 6)), device=DEVICE)
    o = block_sparse_attention(q, k, v, plan, engine="gather")
    (dv,) = torch.autograd.grad(o.sum(), v, create_graph=True)
    with pytest.raises(RuntimeError, match="expected a first derivative, got a second one"):
        torch.autograd.grad(dv.sum(), k)


def test_the_reference_has_second_derivatives():
    plan = full_plan(1, 1, BlockGrid((1, 2, 3), BLOCK), device=DEVICE)
    tensors = [x[:, :1, :6, :2].clone().requires_grad_() for x in inputs(dtype=torch.float64)]

    def some(*x):
        return block_sparse_attention(*x, plan, engine="reference")

    assert torch.autograd.gradgradcheck(some, tensors, atol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("which", range(3))
def test_a_forward_mode_tangent_raises(engine, which):
    tensors = inputs()
    name = "qkv"[which]
    message = f"{name}: expected a tensor without a forward-mode tangent"
    with forward_ad.dual_level():
        tensors[which] = forward_ad.make_dual(tensors[which], torch.ones_like(tensors[which]))
        with pytest.raises(ValueError, match=message):
            attend(*tensors, engine=engine)
    plain = inputs()

    def of_one(x):
        return attend(*(x if i == which else other for i, other in enumerate(plain)), engine=engine)

    with pytest.raises(ValueError, match=message):
        torch.func.jvp(of_one, (plain[which],), (torch.ones_like(plain[which]),))


def table(shape, value, dtype=torch.int32):
    return torch.full(shape, value, dtype=dtype, device=DEVICE)


def by_hand(**tables):
    """A plan of one batch, two heads, its tables changed."""
    grid = BlockGrid(GRID, BLOCK)
    whole = full_plan(1, 2, grid, device=DEVICE)
    names = ("kept_slots", "num_kept", "fill", "block_bits")
    made = {name: tables.get(name, getattr(whole, name).clone()) for name in names}
    return BlockPlan(q_grid=grid, kv_grid=grid, keeps_every_row=True, **made)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"num_kept": table((1, 2, 6), 9)}, "plan.num_kept: expected counts"),
        (
            {"kept_slots": table((1, 2, 6, 8), 99)},
            "plan.kept_slots: expected num_",
        ),
        (
            {"fill": table((1, 2, 6, 8), -5)},
            "plan.fill: expected an entry below",
        ),
        (
            {"block_bits": table((1, 2, 6, 1), 255)},
            "plan.block_bits: expected ze",
        ),
        ({"block_bits": table((1, 2, 6, 1), 0, torch.float32)}, "plan.block_bits: expected torch.int32"),
    ],
    ids=["num_kept", "kept_slots", "fill", "bits", "dtype"],
)
def test_a_plan_made_by_hand_is_checked_when_it_enters(engine, tables, message):
    plan = by_hand(**tables)
    for _ in range(2):  # a check that failed is made again
        with pytest.raises(ValueError, match=message):
            block_sparse_attention(*inputs(), plan, engine=engine)


def test_a_plan_is_checked_once_and_one_of_ours_never(monkeypatch):
    calls = []
    check = BlockPlan.check
    monkeypatch.setattr(BlockPlan, "check", lambda plan: (calls.append(plan), check(plan)))
    tensors = inputs()
    plan = by_hand()
    for _ in range(3):
        block_sparse_attention(*tensors, plan, engine="reference")
    assert calls == [plan]
    made = make_bsa_plan(*tensors[:2], grid=GRID, block=BLOCK)
    block_sparse_attention(*tensors, made, engine="reference")
    assert calls == [plan]
