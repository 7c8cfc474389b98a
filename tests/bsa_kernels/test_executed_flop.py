"""The FLOP that engines say they execute against the products that their kernels make, counted while they run."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gluon_simulator import SimulatedKernel
from kernel_helpers import DEVICE, hand_plan, make_tiles, qkv, random_mask, triton_engine
from torch.utils.flop_counter import FlopCounterMode

from bsa_kernels import CAUSAL, BlockGrid, full_plan, make_bsa_plan
from bsa_kernels.block_sparse import gluon_attend, triton_gradients
from bsa_kernels.block_sparse.tile_table import padded
from bsa_kernels.engines.gluon import GLUON
from bsa_kernels.engines.kept import FLEX, GATHER, REFERENCE
from bsa_kernels.engines.triton import TRITON

pytestmark = pytest.mark.skipif(DEVICE.type == "cuda", reason="counts in Triton's interpreter and in a simulator")

FP16, FP32 = torch.float16, torch.float32
ONE = (4, 4, 4)
PASSES = ("forward", "backward", "forward+backward")


class Products:
    """FLOP of the matrix products that were made since it was last asked."""

    def __init__(self):
        self.flop = 0
        self.counts = True
        self.others = lambda: 0  # what somebody else counts, since ever
        self._before = 0

    def add(self, rows, columns, inner):
        self.flop += 2 * rows * columns * inner * self.counts

    def taken(self):
        flop, self.flop = self.flop, 0
        before, self._before = self._before, self.others()
        return flop + self._before - before


@pytest.fixture
def products(monkeypatch):
    """Count the products of the interpreter, but for that of `pack_rows_kernel`, which is none of rows and keys."""
    from triton.runtime.interpreter import InterpreterBuilder

    found = Products()
    dot, pack = InterpreterBuilder.create_dot, triton_gradients.launch_pack_rows

    def counted(self, a, b, *more):
        found.add(a.data.shape[0], b.data.shape[1], a.data.shape[1])
        return dot(self, a, b, *more)

    def uncounted(*arguments):
        found.counts = False
        rows = pack(*arguments)
        found.counts = True
        return rows

    monkeypatch.setattr(InterpreterBuilder, "create_dot", counted)
    monkeypatch.setattr(triton_gradients, "launch_pack_rows", uncounted)
    return found


def executed(engine, inputs, plan, products):
    """FLOP of the products of each pass."""
    leaves = (inputs.q, inputs.k, inputs.v)
    prepared = engine.prepare(plan, inputs.q)
    products.taken()  # of nothing that belongs to a pass
    out = engine.attend(*leaves, plan, prepared, scale=0.25)
    forward = products.taken()
    torch.autograd.grad(out, leaves, inputs.do)
    backward = products.taken()
    assert forward
    assert backward
    return dict(zip(PASSES, (forward, backward, forward + backward), strict=True))


def plan_on(grid, block=ONE, *, density=0.5, keep=0.5, heads=1, kv_block=None):
    q_grid, kv_grid = BlockGrid(grid, block), BlockGrid(grid, kv_block or block)
    return hand_plan(q_grid, kv_grid, random_mask(q_grid, kv_grid, density, heads=heads), keep=keep)


def told(engine, plan, head_dim, dtype):
    return {which: engine.executed_flop(plan, head_dim, which, dtype=dtype) for which in PASSES}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keep", "tiles"),
    [
        (0.5, make_tiles(32)),
        (1, make_tiles(32)),  # two tiles of rows a block
        (0.6, make_tiles(16)),  # three, the last of them not full
        (0.5, make_tiles(32, group=2)),
        (0.5, make_tiles(32, group=4, transposed=True)),
        (0.5, make_tiles(32, group=2, pack=2)),
        (0.5, make_tiles(32, keys=16, backward="fused")),
        (0.5, make_tiles(32, group=4, pack=2, backward="fused")),
        (1, make_tiles(32, backward="fused")),
    ],
    ids=["plain", "tiles", "ragged", "pair", "quad", "packed", "fused", "packed and fused", "fused tiles"],
)
def test_triton_executes_what_it_says_in_every_form(keep, tiles, products):
    plan = plan_on((5, 4, 9), keep=keep)
    inputs = qkv((5, 4, 9), 16, heads=1)
    assert executed(triton_engine(tiles), inputs, plan, products) == told(triton_engine(tiles), plan, 16, FP32)


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", [8, 24, 80])
def test_triton_pads_head_sizes_off_powers_of_two(head_dim, products):
    plan = plan_on((4, 4, 9))
    engine = triton_engine(make_tiles(32, group=2))
    found = executed(engine, qkv((4, 4, 9), head_dim, heads=1), plan, products)
    assert found == told(engine, plan, head_dim, FP32)
    assert found["forward"] % (4 * padded(head_dim)) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("block", "kv_block", "keys"), [((3, 3, 3), (3, 3, 3), 32), ((4, 4, 8), ONE, 64), (ONE, (4, 4, 8), 32)]
)
def test_triton_pads_blocks_of_other_sizes(block, kv_block, keys, products):
    plan = plan_on((4, 5, 9), block, kv_block=kv_block, keep=0.25)
    engine = triton_engine(make_tiles(32, keys=keys, group=2))
    assert executed(engine, qkv((4, 5, 9), 16, heads=1), plan, products) == told(engine, plan, 16, FP32)


@pytest.mark.slow
@pytest.mark.parametrize("tiles", [make_tiles(16, keys=16, group=2, pack=2), make_tiles(16, keys=16, backward="fused")])
def test_triton_executes_what_it_says_under_a_rule_and_with_a_prefix(tiles, products):
    grid = BlockGrid((2, 4, 6), (1, 4, 3))
    plan = full_plan(1, 1, grid, device=DEVICE, kv_grid=BlockGrid((2, 4, 6), (1, 4, 4)), rule=CAUSAL, prefix=18)
    inputs = qkv((2, 4, 6), 16, heads=1)
    keys = qkv((1, 1, plan.keys.num_keys), 16, heads=1)
    inputs = replace(inputs, k=keys.k, v=keys.v)
    assert executed(triton_engine(tiles), inputs, plan, products) == told(triton_engine(tiles), plan, 16, FP32)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [FP16, FP32])
def test_triton_executes_what_it_says_with_the_tiles_of_its_table(dtype, products):
    inputs = qkv((4, 4, 9), 64, dtype)
    plan = make_bsa_plan(inputs.q, inputs.k, grid=(4, 4, 9), kv_density=0.5)
    assert executed(TRITON, inputs, plan, products) == told(TRITON, plan, 64, dtype)


@pytest.mark.slow
def test_a_deterministic_backward_is_counted_as_the_split_form(products):
    plan = plan_on((4, 4, 9))
    engine = triton_engine(make_tiles(32, backward="fused"))
    fused = told(engine, plan, 16, FP32)
    torch.use_deterministic_algorithms(True)
    try:
        split = told(engine, plan, 16, FP32)
        assert executed(engine, qkv((4, 4, 9), 16, heads=1), plan, products) == split
    finally:
        torch.use_deterministic_algorithms(False)
    assert split["backward"] > fused["backward"]
    assert split["forward"] == fused["forward"]


@pytest.mark.slow
@pytest.mark.parametrize(("query_block", "keep", "group"), [(ONE, 0.5, 4), (ONE, 1.0, 2), ((4, 4, 8), 1.0, 1)])
def test_gluon_executes_what_it_says(query_block, keep, group, products, monkeypatch):
    kernel = SimulatedKernel(gluon_attend, gluon_attend.attend_kernel)
    monkeypatch.setattr(gluon_attend, "attend_kernel", kernel)
    products.others = lambda: kernel.flop
    inputs = qkv((4, 8, 9), 64, FP16, heads=1)
    plan = plan_on((4, 8, 9), query_block, keep=keep, kv_block=ONE)
    assert GLUON.layout_for(plan, head_dim=64, dtype=FP16).tiles.attend.group == group
    assert executed(GLUON, inputs, plan, products) == told(GLUON, plan, 64, FP16)


# The engines in torch: what torch's own counter finds. It has no formulas for SDPA's kernel on CPUs.


def flash_flop(q, k, v, *_, **__):
    return 2 * 2 * math.prod(q) * k[-2]


def flash_backward_flop(grad, q, k, v, *_, **__):
    return 2 * 5 * math.prod(q) * k[-2]


ATEN = torch.ops.aten
FORMULAS = {
    ATEN._scaled_dot_product_flash_attention_for_cpu: flash_flop,
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward: flash_backward_flop,
}


def counted(function):
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        made = function()
    return made, counter.get_total_flops()


@pytest.mark.parametrize("engine", [REFERENCE, GATHER], ids=lambda engine: engine.name)
@pytest.mark.parametrize(("grid", "block", "kv_block"), [((5, 6, 9), ONE, ONE), ((4, 5, 9), (4, 4, 8), (3, 3, 3))])
def test_engines_in_torch_execute_what_they_say(engine, grid, block, kv_block):
    plan = plan_on(grid, block, kv_block=kv_block, keep=0.6, heads=2)
    inputs = qkv(grid, 24)
    grids = {"q": plan.q_grid, "k": plan.kv_grid, "v": plan.kv_grid}
    tiles = [grid.permute(getattr(inputs, name).detach()).requires_grad_() for name, grid in grids.items()]
    prepared = engine.prepare(plan, tiles[0])
    out, forward = counted(lambda: engine.attend(*tiles, plan, prepared, scale=0.25))
    _, backward = counted(lambda: torch.autograd.grad(out, tiles, torch.ones_like(out)))
    found = dict(zip(PASSES, (forward, backward, forward + backward), strict=True))
    assert found == told(engine, plan, 24, FP32)


def test_flex_multiplies_the_slots_of_listed_blocks_as_often_as_torch_s_templates_do():
    templates = Path(torch.__file__).parent / "_inductor" / "kernel" / "flex" / "templates"
    dots = {
        name: (templates / f"{name}.py.jinja").read_text().count("tl.dot(") for name in ("common", "flex_backwards")
    }
    plan = plan_on((5, 6, 9), keep=0.6, heads=2)
    rows, slots = plan.shape[3], plan.kv_grid.block_size
    listed = sum(int(plan.block_mask[0, h, i].sum()) for h in range(2) for i in range(plan.shape[2]))
    product = 2 * 24 * rows * slots * listed
    forward, backward = dots["common"] * product, dots["flex_backwards"] * product
    found = dict(zip(PASSES, (forward, backward, forward + backward), strict=True))
    assert found == told(FLEX, plan, 24, FP32)
