"""What tier 1 counts: inputs that are the same everywhere, bytes by arithmetic, and what a call does on the host."""

import hashlib
from functools import lru_cache
from types import SimpleNamespace

import pytest
import torch

import bsa_kernels
from bsa_bench.catalog import load_engine
from bsa_bench.gate.count_host import (
    Recorder,
    UnsteadyError,
    count_host,
    count_python_calls,
    describe_launch,
    forget_caches,
    profile_torch,
    record_launches,
)
from bsa_bench.gate.count_inputs import make_inputs
from bsa_bench.gate.count_traffic import (
    TileWalk,
    compulsory_bytes,
    list_bytes,
    listed_keys,
    listed_rows,
    tile_bytes,
    tile_walk,
    traffic_of,
)
from bsa_bench.workload import Workload
from bsa_kernels import BlockGrid, BlockPlan


def test_inputs_are_these_numbers_on_every_machine():
    made = make_inputs(Workload(grid=(2, 3, 5), heads=2, head_dim=16, batch=2, dtype="bfloat16"))
    assert {name: (x.shape, x.dtype) for name, x in made.items()} == dict.fromkeys(
        "qkv", (torch.Size([2, 2, 30, 16]), torch.bfloat16)
    )
    raw = b"".join(x.contiguous().view(torch.int16).numpy().tobytes() for x in made.values())
    assert hashlib.sha256(raw).hexdigest()[:12] == "ccd57e218605"


# Bytes.


def plan_of(mask, *, grid=(2, 3, 5), block=(2, 2, 2), **tables):
    blocks = BlockGrid(grid, block)
    return BlockPlan.from_mask(blocks, blocks, mask, **tables)


def random_plan(**tables):
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(1, 2, 6, 6, generator=generator) < 0.4
    mask[..., 0] = True
    return plan_of(mask, **tables)


def test_tile_bytes_are_those_of_every_key_and_row_that_tiles_walk():
    plan = random_plan()
    members = torch.tensor([[0, 1], [2, 3], [4, 5]]).expand(1, 2, -1, -1).int()
    real = plan.kv_real_counts(plan.device).tolist()
    keys = rows = 0
    for head in plan.block_mask[0].tolist():
        for first, second in ((0, 1), (2, 3), (4, 5)):
            keys += sum(n for n, a, b in zip(real, head[first], head[second], strict=True) if a or b)
        rows += sum(real[i] * sum(row) for i, row in enumerate(head))
    assert (listed_keys(plan, members), listed_rows(plan)) == (keys, rows)
    walk = TileWalk(members, forward_tiles=2, backward_tiles=3, key_tiles=4)
    assert tile_bytes(plan, walk, "forward", row_bytes=10) == 2 * 10 * 2 * keys
    assert tile_bytes(plan, walk, "backward", row_bytes=10) == 2 * 10 * (3 * keys + 4 * rows)
    fused = TileWalk(members, key_tiles=4, is_fused=True)
    assert tile_bytes(plan, fused, "backward", row_bytes=10) == 2 * 10 * 4 * rows


def test_compulsory_bytes_are_each_tensor_once_and_the_lists():
    tensors = {name: torch.zeros(1, 2, 30, 16, dtype=torch.bfloat16) for name in "qkv"}
    tensors["gate"] = torch.zeros(1, 2, 30, dtype=torch.float32)
    one, gate = 2 * 30 * 16 * 2, 2 * 30 * 4
    assert compulsory_bytes(tensors, ("q", "k", "v"), "forward", lists=7) == 4 * one + gate + 7
    assert compulsory_bytes(tensors, ("q", "k", "v"), "backward", lists=7) == 8 * one + gate + 7
    assert compulsory_bytes(tensors, (*"qkv", "gate"), "backward") == 8 * one + 2 * gate


def test_lists_are_blocks_and_where_rows_are_pruned_kept_rows_and_fill():
    even = plan_of(torch.ones(1, 1, 2, 2, dtype=torch.bool), grid=(2, 2, 4))
    assert list_bytes(even) == 4 * 4
    padded = random_plan()
    assert list_bytes(padded) == 4 * (int(padded.block_mask.sum()) + 2 * 30 + 2 * 6 * 8)


@pytest.mark.parametrize(("forms", "is_fused"), [("quad", False), ("fused", True)])
def test_an_engine_s_tiles_say_how_lists_are_walked(forms, is_fused):
    plan = random_plan()
    like = torch.zeros(1, 2, 30, 64, dtype=torch.bfloat16)
    engine = load_engine(f"triton:{forms}")
    walk = tile_walk(plan, engine, like)
    assert (walk.is_fused, walk.forward_tiles) == (is_fused, 1)
    assert torch.equal(walk.members, engine.list_members(plan, like))
    assert tile_walk(plan, load_engine("gather"), like).members.shape[-1] == 1
    traffic = traffic_of(dict.fromkeys("qkv", like), tuple("qkv"), plan, engine, "forward")
    assert traffic.query_padding_share == traffic.key_padding_share == 1 - 30 / 48
    assert traffic.tile_bytes == tile_bytes(plan, walk, "forward", row_bytes=128)


# The host.


def test_python_calls_are_counted_by_module():
    def inner():
        return 1

    assert count_python_calls(lambda: [inner() for _ in range(5)]) == {__name__: 7}  # lambda, comprehension, 5 inner


def test_operators_and_the_peak_of_memory_are_those_of_the_call():
    x = torch.zeros(256)

    def call():
        return (x + 1).add_(1) * 2

    ops, peak = profile_torch(call)
    assert (ops["aten::add"], ops["aten::add_"], ops["aten::mul"]) == (1, 1, 1)
    assert 2 * 1024 <= peak < 2 * 1024 + 64  # two tensors at once, and the numbers that torch makes tensors of


def test_a_call_that_does_otherwise_the_second_time_is_refused():
    calls = []

    def grow():
        calls.append(1)
        return [str(i) for i in calls] and max(calls, key=lambda _: 0)

    with pytest.raises(UnsteadyError, match="two calls in a row differ in python_calls: "):
        count_host(grow, Recorder())


def test_forgotten_caches_are_made_anew(monkeypatch):
    made = []

    @lru_cache
    def cached():
        made.append(1)

    monkeypatch.setattr(bsa_kernels, "cached_for_a_test", cached, raising=False)
    for _ in range(2):
        cached()
    forget_caches()
    cached()
    assert len(made) == 2


def toy(x_ptr, y_ptr, n, N: "tl.constexpr", FLAG: "tl.constexpr" = True):  # noqa: F821
    """A kernel that is never compiled."""


def test_a_launch_is_noted_in_place_of_made_and_memory_is_zero_meanwhile():
    jit = pytest.importorskip("triton.runtime.jit")
    kernel = jit.JITFunction(toy)
    before = jit.JITFunction.run, torch.empty
    x = torch.zeros(2, 8)
    with record_launches() as recorder:
        noted = recorder.listen(lambda: kernel[(3, 2)](x, None, 5, N=16, num_warps=8))
        kernel[(1,)](x, x, 5, N=16)  # nobody listens
        assert not any(torch.empty(1 << 10, dtype=torch.int32).any() for _ in range(4))
    assert (jit.JITFunction.run, torch.empty) == before
    (found,) = noted
    assert (found.kernel, found.grid) == (f"{__name__}:toy", (3, 2))
    assert found.options == {"FLAG": True, "N": 16, "num_warps": 8}
    assert found.arguments == describe_launch(kernel, (x.clone(), None, 5), {"N": 32}, (1,)).arguments
    for other in ((x.t(), None, 5), (x, x, 5), (x, None, 6), (x.double(), None, 5)):
        assert describe_launch(kernel, other, {"N": 16}, (1,)).arguments != found.arguments
    assert describe_launch(kernel, (x, None, 5), {"N": 4}, lambda named: (named["N"] * 2,)).grid == (8,)
    with pytest.raises(TypeError, match="expected tensors, numbers and descriptors as arguments, got object"):
        describe_launch(kernel, (object(), None, 5), {"N": 4}, (1,))


def test_descriptors_are_described_by_what_they_cover():
    jit = pytest.importorskip("triton.runtime.jit")
    kernel = jit.JITFunction(toy)

    def digest(block):
        base = torch.zeros(4, 4)
        made = SimpleNamespace(base=base, shape=[4, 4], strides=[4, 1], block_shape=block)
        return describe_launch(kernel, (made, None, 1), {"N": 1}, (1,)).arguments

    assert digest([2, 2]) == digest([2, 2]) != digest([4, 2])
