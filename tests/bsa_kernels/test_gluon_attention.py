"""The warp-specialised forward against the reference: simulated on a CPU, see `gluon_simulator`.

`test_triton_gpu` has what only a device can show. The backward of this engine is that of `triton`.
"""

import importlib.util
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from gluon_simulator import Barrier, SimulatedKernel, SimulationError
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_helpers import (
    assert_close_to_reference,
    assert_tiles_close,
    hand_plan,
    poison_empty,
    qkv,
    random_mask,
    run,
)

from bsa_kernels import BlockGrid, bsa_attention, full_plan, make_bsa_plan
from bsa_kernels.block_sparse import gluon_attend
from bsa_kernels.block_sparse.groups import group_count
from bsa_kernels.engines import gluon

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="simulates on a CPU what a GPU runs")

CPU = torch.device("cpu")
FP16 = torch.float16
KERNEL = gluon_attend.attend_kernel
ONE = (4, 4, 4)


@pytest.fixture(autouse=True)
def simulated(monkeypatch):
    """The engine runs here, its kernel in the simulator."""
    monkeypatch.setattr(gluon.GluonEngine, "unsupported", lambda *_, **__: None)
    return simulate(monkeypatch)


def simulate(monkeypatch, *, seed=0, module=gluon_attend):
    kernel = SimulatedKernel(module, KERNEL if module is gluon_attend else module.attend_kernel, seed)
    monkeypatch.setattr(gluon_attend, "attend_kernel", kernel)
    return kernel


def tiles_of(plan, head_dim):
    return gluon.GLUON.layout_for(plan, head_dim=head_dim, dtype=FP16).tiles


def inputs_of(grid, head_dim=64, **more):
    return qkv(grid, head_dim, FP16, device=CPU, **more)


def assert_forward_agrees(inputs, plan, **options):
    return assert_close_to_reference("gluon", inputs, plan, backward=False, **options)["o"]


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(
    ("grid", "density"), [((8, 8, 8), 0.3), ((5, 7, 9), 0.4), ((4, 4, 4), 1.0), ((3, 2, 21), 0.5), ((9, 4, 4), 0.1)]
)
def test_output_and_gradients_agree_with_the_reference(grid, density, head_dim, simulated):
    inputs = inputs_of(grid, head_dim, heads=1)
    plan = make_bsa_plan(inputs.q, inputs.k, grid=grid, kv_density=density)
    assert_close_to_reference("gluon", inputs, plan)
    assert simulated.programs == group_count(plan.q_grid, 4)


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(
    ("block", "query_block", "keep", "group"),
    [
        (ONE, ONE, 1.0, 2),
        (ONE, (4, 4, 8), 1.0, 1),
        (ONE, (4, 4, 8), 0.6, 1),
        (ONE, (4, 4, 8), 0.5, 2),
        ((2, 4, 8), (2, 4, 8), 0.5, 4),
        ((1, 8, 8), (4, 4, 4), 0.2, 4),
        ((1, 1, 64), (1, 1, 64), 0.75, 4),
    ],
)
def test_blocks_of_other_sides_agree(block, query_block, keep, group, head_dim):
    grid = (5, 8, 9)
    inputs = inputs_of(grid, head_dim, heads=1)
    q_grid, kv_grid = BlockGrid(grid, query_block), BlockGrid(grid, block)
    plan = hand_plan(q_grid, kv_grid, random_mask(q_grid, kv_grid, 0.6, heads=1, device=CPU), keep=keep)
    assert tiles_of(plan, head_dim).attend.group == group
    assert_forward_agrees(inputs, plan)


@pytest.mark.slow
@pytest.mark.parametrize("is_tiled", [False, True])
@pytest.mark.parametrize("grid", [(8, 8, 4), (6, 7, 5)])
def test_tile_major_tokens_agree(grid, is_tiled):
    inputs = inputs_of(grid, heads=2)
    plan = make_bsa_plan(inputs.q, inputs.k, grid=grid, kv_density=0.5)
    assert_tiles_close(inputs, plan, tiles_of(plan, 64), is_tiled=is_tiled)


@pytest.mark.slow
@pytest.mark.parametrize("zero_fill", [False, True])
def test_dead_and_popular_blocks_and_empty_lists_agree(zero_fill, monkeypatch):
    grid = BlockGrid((8, 7, 9), ONE)
    mask = random_mask(grid, grid, 0.3, device=CPU)
    mask[..., 2] = False  # nobody chooses block 2
    mask[..., 3] = True  # everybody chooses block 3
    mask[:, 0, 1] = False  # query block 1 of head 0 sees nothing
    mask[:, 1] = False  # head 1 sees nothing at all
    poison_empty(monkeypatch)
    o = assert_forward_agrees(inputs_of(grid.grid), hand_plan(grid, grid, mask, zero_fill=zero_fill))
    assert (o[:, 1] == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "sees",
    [
        lambda block, other: block == other,  # lists of one, all different: each half skips what the other asked for
        lambda block, other: torch.ones_like(block == other),
        lambda block, other: other % 2 == block // 2 % 2,  # the halves of a group have nothing in common
        lambda block, other: (other < 20) == (block // 2 % 2 == 0),  # one waits long for the other
        lambda block, other: block % 4 == 0,  # only the first of each group sees anything
    ],
    ids=["own", "all", "disjoint", "one after the other", "one of four"],
)
def test_lists_of_any_likeness_agree(sees):
    grid = BlockGrid((8, 8, 40), ONE)
    block = torch.arange(grid.num_blocks)
    mask = sees(block.view(-1, 1), block).expand(1, 1, len(block), len(block))
    assert_forward_agrees(inputs_of(grid.grid, heads=1), hand_plan(grid, grid, mask))


@pytest.mark.slow
@given(
    grid=st.tuples(*[st.integers(1, 9)] * 3),
    density=st.floats(0, 1),
    keep=st.sampled_from([0.1, 0.5, 0.7, 1.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_any_lists_on_any_grid_agree_under_any_schedule(grid, density, keep, seed):
    made = BlockGrid(grid, ONE)
    plan = hand_plan(made, made, random_mask(made, made, density, seed=seed, device=CPU), keep=keep, seed=seed)
    with pytest.MonkeyPatch.context() as monkeypatch:
        simulate(monkeypatch, seed=seed)
        assert_forward_agrees(inputs_of(grid, seed=seed), plan)


@pytest.mark.slow
def test_the_schedule_changes_no_bit(monkeypatch):
    grid = (8, 8, 12)
    inputs = inputs_of(grid, heads=1)
    plan = make_bsa_plan(inputs.q, inputs.k, grid=grid, kv_density=0.4)
    outputs = []
    for seed in range(12):
        simulate(monkeypatch, seed=seed)
        outputs.append(run("gluon", inputs, plan, backward=False)["o"])
    assert all(torch.equal(a, b) for a, b in pairwise(outputs))


@pytest.mark.parametrize("scale", [4, 16])
def test_large_inputs_agree(scale):
    grid = (4, 5, 8)
    inputs = inputs_of(grid, scale=scale)
    assert_forward_agrees(inputs, make_bsa_plan(inputs.q, inputs.k, grid=grid, kv_density=0.5), scale=-0.1)


def test_equal_scores_give_the_mean_of_what_is_seen():
    grid = BlockGrid((4, 4, 7), ONE)
    inputs = inputs_of(grid.grid, heads=1)
    plan = full_plan(1, 1, grid, device=CPU)
    same = replace(inputs, k=torch.ones_like(inputs.k), q=torch.ones_like(inputs.q))
    o = assert_forward_agrees(same, plan)
    assert torch.allclose(o, inputs.v.mean(2, keepdim=True).expand_as(o), atol=1e-3)


@pytest.mark.slow
def test_strided_misaligned_and_batched_inputs_agree(simulated):
    grid = BlockGrid((4, 6, 8), ONE)
    inputs = inputs_of(grid.grid, batch=2, heads=3)
    plan = hand_plan(grid, grid, random_mask(grid, grid, 0.5, batch=2, heads=3, device=CPU))
    by_token = [x.detach().transpose(1, 2).contiguous().transpose(1, 2) for x in (inputs.q, inputs.k, inputs.v)]
    wide = torch.zeros(*inputs.v.shape[:3], 67, dtype=FP16)
    wide[..., 1:65] = inputs.v.detach()
    odd = wide[..., 1:65]  # neither its address nor its stride is a multiple of 16 bytes
    assert not gluon_attend._is_aligned(odd)
    expected = assert_forward_agrees(inputs, plan)
    assert torch.equal(
        assert_forward_agrees(replace(inputs, **dict(zip("qkv", by_token, strict=True))), plan), expected
    )
    assert torch.equal(assert_forward_agrees(replace(inputs, v=odd), plan), expected)
    assert simulated.programs == 3 * (2 * 3)  # three calls; a launch for each of 2 entries: 3 heads, one group


@pytest.mark.slow
def test_the_whole_operator_agrees_with_the_engine_triton():
    grid = (5, 6, 8)
    inputs = inputs_of(grid)
    q, k, v = (x.detach() for x in (inputs.q, inputs.k, inputs.v))
    ours, theirs = (
        bsa_attention(q, k, v, grid=grid, kv_density=0.5, engine=engine).float() for engine in ("gluon", "triton")
    )
    assert (ours - theirs).abs().max() <= 4 * torch.finfo(FP16).eps * theirs.abs().max()


def test_boxes_keep_their_shape_at_the_end_of_an_axis():
    grid = BlockGrid((2, 3, 3), (2, 2, 2))
    boxes = gluon_attend.box_tokens(grid, is_tiled=False, device=CPU)
    assert boxes.tolist() == [
        [0, 1, 3, 4, 9, 10, 12, 13],
        [2, -1, 5, -1, 11, -1, 14, -1],
        [6, 7, -1, -1, 15, 16, -1, -1],
        [8, -1, -1, -1, 17, -1, -1, -1],
    ]
    tiled = gluon_attend.box_tokens(grid, is_tiled=True, device=CPU)
    assert tiled[1].tolist() == [8, 9, 10, 11, -1, -1, -1, -1]


# What it cannot run


def test_a_reason_with_a_remedy_stands_for_what_it_cannot_run(monkeypatch):
    monkeypatch.undo()

    def reason(dtype=FP16, head_dim=64, device="cuda", capability=(9, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        return gluon.unsupported(torch.device(device), dtype, head_dim, backward=True) or ""

    assert "float16 and bfloat16, not float32; convert, or use the engine triton" in reason(torch.float32)
    assert "head sizes 64 and 128, got 96; use the engine triton" in reason(head_dim=96)
    assert "compute capability 9.0, not on cpu; use the engine triton" in reason(device="cpu")
    assert "needs compute capability 9.0, this GPU has 10.0; use the engine triton" in reason(capability=(10, 0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("block", "query_block", "message"),
    [
        ((4, 4, 8), (4, 4, 8), r"expected KV blocks of 64 tokens whose sides are powers of two, got block \(4, 4, 8\)"),
        ((1, 1, 65), ONE, r"got block \(1, 1, 65\); use the engine triton"),
        (ONE, (4, 8, 8), "expected at most 128 kept rows in a query block, got 256; use the engine triton"),
    ],
)
def test_blocks_that_it_cannot_take_are_named(block, query_block, message):
    grid = (4, 8, 65)
    inputs = inputs_of(grid, heads=1)
    options = {"grid": grid, "block": block, "query_block": query_block, "query_keep": 1.0}
    with pytest.raises(ValueError, match=message):
        bsa_attention(inputs.q, inputs.k, inputs.v, engine="gluon", **options)


# The simulator itself


def mutant(tmp_path, old, new):
    """The kernel's module with one place of its source changed."""
    source = Path(gluon_attend.__file__).read_text(encoding="utf-8")
    assert source.count(old) >= 1
    path = tmp_path / f"mutant_{abs(hash((old, new)))}.py"
    path.write_text(source.replace(old, new, 1), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ARRIVE_K, ARRIVE_V = (f"mbarrier.arrive({x}_empty.index(stage))\n" for x in "kv")
ARRIVE_OLD_V = "mbarrier.arrive(v_empty.index(old_stage))\n"
WAIT_FOR_K, WAIT_FOR_V = (f"mbarrier.wait({x}_full.index(stage), phase)\n" for x in "kv")
WAIT_FOR_OLD_V = "mbarrier.wait(v_full.index(old_stage), old_phase)\n"
WAIT_FOR_SCORES = "scores = warpgroup_mma_wait(0, deps=[scores])\n"
WAIT_FOR_OUTPUT = "acc, weights, new_weights = warpgroup_mma_wait(0, deps=[acc, weights, new_weights])\n"
IN, RUN = " " * 12, " " * 16


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (f"        {WAIT_FOR_K}", ""),
        (f"{RUN}{WAIT_FOR_K}", ""),
        (f"{RUN}{WAIT_FOR_OLD_V}", ""),
        (f"{IN}{WAIT_FOR_V}{IN}acc", f"{IN}acc"),
        ("        mbarrier.wait(k_empty.index(stage), phase)\n", ""),
        ("        mbarrier.wait(v_empty.index(stage), phase)\n", ""),
        (f"{IN}{WAIT_FOR_SCORES}{IN}{ARRIVE_K}", f"{IN}{ARRIVE_K}{IN}{WAIT_FOR_SCORES}"),
        (f"{RUN}{WAIT_FOR_OUTPUT}{RUN}{ARRIVE_OLD_V}", f"{RUN}{ARRIVE_OLD_V}{RUN}{WAIT_FOR_OUTPUT}"),
        ("warpgroup_mma_wait(1, deps=[scores])", "warpgroup_mma_wait(2, deps=[scores])"),
        ("mbarrier.init(k_empty.index(stage), 2)", "mbarrier.init(k_empty.index(stage), 1)"),
        ("mbarrier.init(v_empty.index(stage), 2)", "mbarrier.init(v_empty.index(stage), 3)"),
        (f"{IN}{ARRIVE_K}{IN}{WAIT_FOR_V}", f"{IN}{WAIT_FOR_V}"),
        (f"{IN}{WAIT_FOR_V}{IN}{ARRIVE_V}{IN}step", f"{IN}{ARRIVE_V}{IN}step"),
        (f"{RUN}{ARRIVE_K}", f"{RUN}{ARRIVE_K}{RUN}{ARRIVE_K}"),
        ("    phase = 1  # of a fresh", "    phase = 0  # of a fresh"),
        ("            phase ^= 1\n    return", "            phase ^= 0\n    return"),
        ("_KEYS * D * k_desc.dtype.primitive_bitwidth // 8", "_KEYS * D"),
    ],
    ids=[
        "K multiplied before it has come",
        "K of a run multiplied before it has come",
        "V of a run multiplied before it has come",
        "V multiplied before it has come",
        "K overwritten while it is multiplied",
        "V overwritten while it is multiplied",
        "K given away while it is multiplied",
        "V of a run given away while it is multiplied",
        "scores taken before they are there",
        "K given away by one half",
        "V never given away",
        "skipped K not given away",
        "skipped V given away before it has come",
        "K of a run given away twice",
        "loader waits for the wrong phase",
        "multipliers wait for the wrong phase",
        "too few bytes announced",
    ],
)
def test_the_simulator_finds_what_a_gpu_would_not_forgive(old, new, tmp_path, monkeypatch):
    grid = BlockGrid((8, 8, 24), ONE)
    mask = random_mask(grid, grid, 0.2, heads=1, device=CPU)
    mask[:, :, : grid.num_blocks // 2] = (
        True  # one half multiplies all, the other skips most and is as far ahead as it may
    )
    plan = hand_plan(grid, grid, mask)
    inputs = inputs_of(grid.grid, 128, heads=1)
    module = mutant(tmp_path, old, new)

    def agrees(seed):
        simulate(monkeypatch, seed=seed, module=module)
        try:
            assert_forward_agrees(inputs, plan)
        except AssertionError:  # SimulationError, or a wrong result
            return False
        return True

    assert not all(agrees(seed) for seed in range(20))


def test_a_barrier_ends_its_phase_with_its_arrivals_and_bytes():
    barrier = Barrier(2, 2)
    barrier.arrive()
    assert barrier.phase == 0
    barrier.bytes += 8
    barrier.arrive()
    assert barrier.phase == 0
    barrier.deliver(8)
    assert (barrier.phase, barrier.pending) == (1, 2)
    with pytest.raises(SimulationError, match="more arrivals at a barrier than it counts"):
        barrier.arrive(3)
    with pytest.raises(SimulationError, match="nobody initialised"):
        Barrier().arrive()
