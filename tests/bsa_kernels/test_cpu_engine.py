"""The engine `cpu`: random plans against the reference, formats, threads, executed FLOP, and what torch asks of it."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from kernel_helpers import DEVICE, assert_close_to_reference, hand_plan, max_error, qkv, random_mask, run
from plan_oracle import given, made_plan
from torch.utils.checkpoint import checkpoint

from bsa_kernels import CAUSAL, FULL, BlockGrid, ElementRule, block_sparse_attention, bsa_attention, full_plan
from bsa_kernels.cpp import library
from bsa_kernels.cpp.build import build
from bsa_kernels.engines import get_engine
from bsa_kernels.engines.cpu import ops
from bsa_kernels.operator import Operator
from bsa_kernels.stages import plan_stages

pytestmark = pytest.mark.skipif(DEVICE.type != "cpu", reason="the inputs of these tests are on the GPU")
FP64, FP32, BF16, FP16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
GRID = (4, 4, 7)


@pytest.fixture
def num_threads(monkeypatch):
    """Sets torch's number of threads, all of which start however small a call is; one again at the end."""
    monkeypatch.setattr(library, "PRODUCTS_A_THREAD", 1)
    yield torch.set_num_threads
    torch.set_num_threads(1)


def everything(name, plan, x, *, tiled=False):
    """Output, log-sum-exp and gradients of q, k and v through both, in natural order."""
    state = Operator(plan_stages(get_engine(name, tiled=tiled), plan, scale=0.3, lse="lse")).run(
        {"q": x.q, "k": x.k, "v": x.v}
    )
    lse = state["lse"].masked_fill(state["lse"] == -torch.inf, 0)
    total = (state["o"] * x.do).sum() + (lse * x.dlse.to(lse.dtype)).sum()
    return [state["o"].detach(), lse.detach(), *torch.autograd.grad(total, (x.q, x.k, x.v))]


def drawn_plan(seed):
    """A random plan: grids, blocks, rule, prefix, kept rows, fills, lists; and random inputs in fp64."""
    make = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return int(torch.randint(low, high + 1, (), generator=make))

    def grid(sides):
        return BlockGrid(sides, tuple(draw(1, 4) for _ in range(3)))

    sides = tuple(draw(1, 6) for _ in range(3))
    rule = [FULL, CAUSAL, ElementRule.band(draw(0, 9), draw(0, 9)), ElementRule(before=draw(-3, 5))][draw(0, 3)]
    others = tuple(draw(1, 6) for _ in range(3)) if rule.is_full and draw(0, 1) else sides
    keep = [0.05, 0.5, 1][draw(0, 2)]
    zero_fill, prefix = bool(draw(0, 1)) and keep < 1, draw(0, 9) * draw(0, 1)
    made = made_plan(
        grid(sides),
        grid(others),
        rule=rule,
        prefix=prefix,
        density=[0, 0.3, 1][draw(0, 2)],
        keep=keep,
        zero_fill=zero_fill,
        seed=seed,
        batch=draw(1, 2),
    )
    return made.plan, given(made.plan, draw(1, 19), seed=seed)


@pytest.mark.slow
@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("part", range(4))
def test_two_hundred_random_plans_are_those_of_the_reference(part, tiled, num_threads):
    num_threads(1 + part % 3)
    for seed in range(25 * part + 100 * tiled, 25 * part + 100 * tiled + 25):
        plan, x = drawn_plan(seed)
        found, right = everything("cpu", plan, x, tiled=tiled), everything("reference", plan, x)
        for one, other in zip(found, right, strict=True):
            assert max_error(one, other) < 1e-9, f"seed {seed}: {plan}"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [FP32, BF16, FP16])
@pytest.mark.parametrize("head_dim", [1, 8, 20, 33, 100, 256])
def test_any_head_dim_stays_inside_the_budget(head_dim, dtype):
    grid = BlockGrid((4, 5, 6), (2, 4, 4))
    plan = hand_plan(grid, grid, random_mask(grid, grid, 0.5))
    assert_close_to_reference("cpu", qkv(grid.grid, head_dim, dtype), plan)


@pytest.mark.parametrize(("q_size", "kv_size", "keep"), [(130, 200, 1), (300, 1, 0.5), (1, 300, 1), (70, 65, 0.97)])
def test_blocks_of_more_than_a_tile_and_of_one_token_stay_inside_the_budget(q_size, kv_size, keep):
    q_grid, kv_grid = (BlockGrid((1, 1, 300), (1, 1, size)) for size in (q_size, kv_size))
    plan = hand_plan(q_grid, kv_grid, random_mask(q_grid, kv_grid, 0.4), keep=keep)
    assert_close_to_reference("cpu", qkv((1, 1, 300), 16), plan)


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_results_are_the_same_bits_for_any_number_of_threads(dtype, num_threads):
    grid = BlockGrid((5, 8, 9), (2, 4, 4))
    made = made_plan(grid, grid, rule=ElementRule.band(200, 150), prefix=5)
    x = given(made.plan, 20, dtype=dtype)
    num_threads(1)
    expected = everything("cpu", made.plan, x)
    for threads in (2, 3, 8, 64):
        num_threads(threads)
        for one, other in zip(everything("cpu", made.plan, x), expected, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize(("length", "threads"), [(64, 1), (128, 2), (1024, 16), (4096, 64)])
def test_a_tiny_call_starts_as_many_threads_as_it_has_work_for(length, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    grid = BlockGrid((1, 1, length), (1, 1, 16))
    tables = ops.make_tables(full_plan(1, 1, grid, device=DEVICE), "natural")
    q = torch.zeros(1, 1, length, 64)  # two products, each of length^2 * 64, and a thread for each 64 rows at most
    named, geometry = tables._asdict(), library.Geometry.decode(tables.code)
    del named["code"]
    assert library.load().threads(library.make_problem({"q": q}, named, geometry, 1.0)) == threads


def test_memory_stays_flat_over_a_thousand_calls(num_threads):
    num_threads(2)
    grid = BlockGrid((4, 8, 8), (2, 4, 4))
    plan = full_plan(1, 2, grid, device=DEVICE)
    q = torch.randn(1, 2, 256, 32, requires_grad=True)

    def call():
        block_sparse_attention(q, q, q, plan, engine="cpu").sum().backward()

    def resident_bytes():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    for _ in range(100):
        call()
    before = resident_bytes()
    for _ in range(1000):
        call()
    assert resident_bytes() - before < 4 << 20  # a leak of the packed keys of one call in ten would be 13 MB


def test_two_python_threads_at_once_give_what_one_gives(num_threads):
    num_threads(2)
    grid = BlockGrid((4, 8, 8), (2, 4, 4))
    cases = [(made_plan(grid, grid, seed=seed).plan, seed) for seed in range(2)]
    expected = [everything("cpu", plan, given(plan, 32, seed=seed, dtype=FP32)) for plan, seed in cases]
    wrong = []

    def repeat(i):
        plan, seed = cases[i]
        for _ in range(10):
            found = everything("cpu", plan, given(plan, 32, seed=seed, dtype=FP32))
            wrong.extend(not torch.equal(one, other) for one, other in zip(found, expected[i], strict=True))

    threads = [threading.Thread(target=repeat, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 100
    assert not any(wrong)


@pytest.mark.slow
def test_a_child_of_fork_computes_what_its_parent_does():
    code = """
import os, torch
from bsa_kernels import BlockGrid, block_sparse_attention, full_plan
torch.set_num_threads(2)
grid = BlockGrid((1, 1, 256), (1, 1, 64))
q = torch.randn(1, 2, 256, 32)
attend = lambda: block_sparse_attention(q, q, q, full_plan(1, 2, grid, device=q.device), engine="cpu")
plan, expected = full_plan(1, 2, grid, device=q.device), attend()
child = os.fork()
if not child:
    torch.set_num_threads(2)
    os._exit(0 if torch.equal(block_sparse_attention(q, q, q, plan, engine="cpu"), expected) else 3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=300)


# Formats


def own_value_plan(length):
    """Each token sees itself alone, so that its output is its value."""
    grid = BlockGrid((1, 1, length), (1, 1, 1))
    mask = torch.eye(length, dtype=torch.bool).view(1, 1, length, length)
    return hand_plan(grid, grid, mask, keep=1)


@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_every_number_of_16_bits_is_read_and_written_unchanged(dtype):
    v = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype).view(1, 1, 256, 256)
    q = torch.zeros_like(v)
    o = block_sparse_attention(q, q, v, own_value_plan(256), engine="cpu")
    torch.testing.assert_close(o, v, rtol=0, atol=0, equal_nan=True)
    is_plain = ~v.isnan() & (v != 0)  # a sum that begins with zero has no negative zero
    assert torch.equal(o.view(torch.int16)[is_plain], v.view(torch.int16)[is_plain])


@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_outputs_of_16_bits_are_rounded_as_torch_rounds(dtype):
    make = torch.Generator().manual_seed(0)
    v = torch.randint(-(1 << 15), 1 << 15, (1, 1, 512, 64), generator=make).to(torch.int16).view(dtype)
    v = torch.where(v.isfinite(), v, 0)
    grid = BlockGrid((1, 1, 512), (1, 1, 2))
    plan = hand_plan(grid, grid, torch.eye(256, dtype=torch.bool).view(1, 1, 256, 256), keep=1)
    o = block_sparse_attention(torch.zeros_like(v), torch.zeros_like(v), v, plan, engine="cpu")
    mean = (v.float().view(1, 1, 256, 2, 64).sum(3) * 0.5).to(dtype)
    assert torch.equal(o.view(1, 1, 256, 2, 64), mean.unsqueeze(3).expand(-1, -1, -1, 2, -1))


def test_nan_in_a_key_reaches_all_that_see_it_and_nobody_else():
    grid = BlockGrid((1, 1, 32), (1, 1, 8))
    plan = hand_plan(grid, grid, torch.eye(4, dtype=torch.bool).view(1, 1, 4, 4), keep=1)
    q, k = torch.randn(1, 1, 32, 16), torch.randn(1, 1, 32, 16)
    k[0, 0, 11, 3] = torch.nan
    is_nan = block_sparse_attention(q, k, q, plan, engine="cpu").isnan().all(-1).flatten()
    assert is_nan.tolist() == [8 <= token < 16 for token in range(32)]


@pytest.mark.parametrize("name", ["q", "k", "v", "do"])
@pytest.mark.parametrize("size", [1, 4, 24])
def test_what_is_no_number_stays_with_those_that_list_it_where_blocks_share_vectors(name, size):
    grid = BlockGrid((1, 1, 4 * size), (1, 1, size))
    mask = torch.tensor([[1, 0, 1, 1], [0, 1, 0, 1], [0, 0, 1, 1], [0, 0, 0, 1]], dtype=torch.bool)
    plan = hand_plan(grid, grid, mask.view(1, 1, 4, 4), keep=1)
    x = given(plan, 16)
    with torch.no_grad():
        getattr(x, name)[0, 0, size, 3] = torch.nan  # of block 1, which lists 1 and 3
    o, _, *grads = everything("cpu", plan, x)
    found = [set((y.isnan().any(-1).flatten().nonzero() // size).flatten().tolist()) for y in (o, *grads)]
    assert set().union(*found)
    for blocks, may in zip(found, ({1}, {1}, {1, 3}, {1, 3}), strict=True):
        assert blocks <= may


def test_a_last_dimension_with_gaps_and_an_expanded_gradient_are_read_right():
    inputs = qkv(GRID, 8)
    grid = BlockGrid(GRID, (2, 4, 4))
    plan = hand_plan(grid, grid, random_mask(grid, grid, 0.5))
    wide = torch.zeros(*inputs.q.shape, 2)
    wide[..., 0] = inputs.q.detach()
    q = wide[..., 0].requires_grad_()
    assert q.stride(-1) == 2
    k, v = inputs.k.detach(), inputs.v.detach()
    expected = run("reference", inputs, plan, backward=False)["o"]
    out = block_sparse_attention(q, k, v, plan, engine="cpu")
    torch.testing.assert_close(out, expected)
    (found,) = torch.autograd.grad(out.sum(), q)
    out = block_sparse_attention(inputs.q, k, v, plan, engine="reference")
    torch.testing.assert_close(found, torch.autograd.grad(out.sum(), inputs.q)[0])


# Executed FLOP


def test_executed_flop_of_a_plan_by_hand():
    grid = BlockGrid((1, 1, 40), (1, 1, 16))  # the last block has 8 keys
    mask = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 1, 1]], dtype=torch.bool).view(1, 1, 3, 3)
    plan = hand_plan(grid, grid, mask, keep=0.5)
    assert plan.num_kept.flatten().tolist() == [8, 8, 4]
    lanes = 16 if supports("avx512f") else 8 if supports("avx") else 4  # of float
    # Of KV blocks of 16, 16 and 8 keys the vectors with a row that lists them, and the rows from the first that lists
    # to the last. The query blocks follow each other, 8 lanes each: in vectors of 16 the second is among two that list.
    vectors = {16: (2, 2, 2), 8: (2, 2, 2), 4: (3, 3, 3)}[lanes]
    rows = {16: (20, 12, 20), 8: (12, 12, 12), 4: (12, 12, 12)}[lanes]
    width = 2 * lanes  # a head dim of two vectors needs no padding
    by_rows = sum(v * k for v, k in zip(vectors, (16, 16, 8), strict=True)) * lanes * width
    by_numbers = sum(r * k for r, k in zip(rows, (16, 16, 8), strict=True)) * width
    count = get_engine("cpu").executed_flop
    assert count(plan, width, "forward", dtype=FP32) == 2 * 2 * by_rows
    assert count(plan, width, "backward", dtype=FP32) == 2 * (3 * by_rows + 2 * by_numbers)
    assert count(plan, width, "forward+backward") == 2 * (5 * by_rows + 2 * by_numbers)


def supports(feature):
    return feature in Path("/proc/cpuinfo").read_text(encoding="utf-8").split()


@pytest.mark.slow
def test_executed_flop_is_what_the_products_count(monkeypatch):
    counting = library.Library(build(flags=["-DBSA_COUNT_FLOP"]))
    counting.functions.bsa_counted_flop.restype = library.ctypes.c_int64
    monkeypatch.setattr(library, "_loaded", [counting])
    engine = get_engine("cpu")
    for seed in range(30):
        plan, x = drawn_plan(seed)
        counting.functions.bsa_counted_flop()
        out = block_sparse_attention(x.q, x.k, x.v, plan, engine="cpu")
        assert counting.functions.bsa_counted_flop() == engine.executed_flop(plan, x.q.shape[3], "forward", dtype=FP64)
        torch.autograd.grad(out, x.q, x.do)
        assert counting.functions.bsa_counted_flop() == engine.executed_flop(plan, x.q.shape[3], "backward", dtype=FP64)


# Inside torch


def attend(q, k, v, **options):
    return bsa_attention(q, k, v, **{"grid": GRID, "kv_density": 0.6, "engine": "cpu", **options})


def results(function, inputs):
    leaves = (inputs.q, inputs.k, inputs.v)
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, inputs.do)]


def assert_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def by_plan():
    """Attention by a plan made before, as a function of q, k and v, and inputs for it."""
    grid = BlockGrid(GRID, (4, 4, 4))
    plan = hand_plan(grid, grid, random_mask(grid, grid, 0.6))
    return lambda q, k, v: block_sparse_attention(q, k, v, plan, engine="cpu"), qkv(GRID, 16)


@pytest.mark.slow
def test_compile_traces_attention_by_a_plan_whole_and_gives_the_same():
    function, inputs = by_plan()
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert_equal(results(compiled, inputs), results(function, inputs))


@pytest.mark.slow
def test_compile_traces_the_whole_of_bsa_attention_as_auto_and_gives_the_same():
    torch._dynamo.reset()
    inputs = qkv(GRID, 16)
    compiled = torch.compile(lambda q, k, v: attend(q, k, v, engine="auto"), fullgraph=True, backend="aot_eager")
    assert_equal(results(compiled, inputs), results(attend, inputs))


@pytest.mark.slow
def test_an_exported_program_gives_the_same():
    function, inputs = by_plan()

    class Attention(torch.nn.Module):
        def forward(self, q, k, v):
            return function(q, k, v)

    q, k, v = (x.detach() for x in (inputs.q, inputs.k, inputs.v))
    program = torch.export.export(Attention(), (q, k, v))
    assert torch.equal(program.module()(q, k, v), function(q, k, v))


@pytest.mark.slow
def test_an_exported_bsa_attention_gives_the_same():
    class Attention(torch.nn.Module):
        def forward(self, q, k, v):
            return attend(q, k, v)

    inputs = qkv(GRID, 16)
    q, k, v = (x.detach() for x in (inputs.q, inputs.k, inputs.v))
    program = torch.export.export(Attention(), (q, k, v))
    assert torch.equal(program.module()(q, k, v), attend(q, k, v))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_the_operators_pass_the_checks_of_torch(dtype):
    grid = BlockGrid(GRID, (4, 4, 4))
    plan = hand_plan(grid, grid, random_mask(grid, grid, 0.6))
    inputs = qkv(GRID, 16, dtype)
    tables = get_engine("cpu").prepare(plan, inputs.q)
    strided = (x.detach().transpose(1, 2).contiguous().transpose(1, 2) for x in (inputs.q, inputs.k, inputs.v))
    q, k, v = (x.requires_grad_() for x in strided)
    operators = torch.ops.bsa_kernels
    torch.library.opcheck(operators.cpu_attend.default, (q, k, v, *tables, 0.25))
    o, lse = operators.cpu_attend(q, k, v, *tables, 0.25)
    saved = [x.detach() for x in (q, k, v, o, lse)]
    for grad_lse in (None, torch.ones_like(saved[-1])):
        torch.library.opcheck(operators.cpu_attend_backward.default, (inputs.do, grad_lse, *saved, *tables, 0.25))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_gives_the_same_gradients(use_reentrant):
    inputs = qkv(GRID, 16)
    expected = results(attend, inputs)
    leaves = [x.detach().requires_grad_() for x in (inputs.q, inputs.k, inputs.v)]
    out = checkpoint(attend, *leaves, use_reentrant=use_reentrant)
    out.backward(inputs.do)
    assert_equal([out.detach(), *(x.grad for x in leaves)], expected)


def test_autocast_converts_first_and_gradients_come_back_in_the_inputs_format():
    function, inputs = by_plan()
    expected = results(function, inputs.to(BF16))
    with torch.autocast("cpu", dtype=BF16):
        out = function(inputs.q, inputs.k, inputs.v)
    assert out.dtype == BF16
    gradients = torch.autograd.grad(out, (inputs.q, inputs.k, inputs.v), inputs.do.to(BF16))
    assert {x.dtype for x in gradients} == {FP32}
    assert_equal([out.detach(), *gradients], [expected[0], *(x.float() for x in expected[1:])])


def test_a_double_backward_is_refused():
    inputs = qkv(GRID, 16)
    out = attend(inputs.q, inputs.k, inputs.v)
    (grad,) = torch.autograd.grad(out, inputs.q, inputs.do, create_graph=True)
    with pytest.raises(RuntimeError, match="cpu_attend_backward"):
        grad.sum().backward()


def test_the_engine_says_what_it_does_not_run():
    unsupported = get_engine("cpu").unsupported
    assert unsupported(torch.device("cpu"), FP32, 64, backward=True) is None
    assert unsupported(torch.device("cuda"), FP32, 64, backward=True) == (
        "the kernels run on CPUs, not on cuda; move the tensors, or use the engine triton."
    )
    assert unsupported(torch.device("cpu"), torch.int8, 64, backward=True) == (
        "the kernels take float32, float64, bfloat16, float16, not int8; convert."
    )


def test_too_little_memory_is_an_error(monkeypatch):
    grid = BlockGrid((1, 1, 8), (1, 1, 8))
    plan = full_plan(1, 1, grid, device=DEVICE)
    monkeypatch.setattr(library.load().functions, "bsa_forward", lambda problem: 1)
    q = torch.zeros(1, 1, 8, 8)
    with pytest.raises(MemoryError, match="engine 'cpu': too little memory"):
        block_sparse_attention(q, q, q, plan, engine="cpu")


def test_gradients_over_many_keys_with_a_common_part_err_no_more_than_three_times_as_much_as_sdpas():
    make = torch.Generator().manual_seed(0)
    q, k, v, do = (torch.randn(1, 1, 2048, 64, generator=make) for _ in range(4))
    k, v = k + 0.5, v + 0.5  # errors of a row's sums reach the gradient of q through the mean of k

    def gradients(attend, dtype):
        leaves = [x.to(dtype).requires_grad_() for x in (q, k, v)]
        return [x.double() for x in torch.autograd.grad(attend(*leaves), leaves, do.to(dtype))]

    def dense(q, k, v):
        return bsa_attention(q, k, v, grid=(8, 16, 16), query_keep=1.0, kv_density=1.0, engine="cpu")

    sdpa = torch.nn.functional.scaled_dot_product_attention
    exact = gradients(sdpa, FP64)
    for name, ours, theirs, right in zip("qkv", gradients(dense, FP32), gradients(sdpa, FP32), exact, strict=True):
        assert (ours - right).norm() < 3 * (theirs - right).norm(), f"grad_{name}"
