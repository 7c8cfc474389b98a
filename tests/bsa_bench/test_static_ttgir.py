from dataclasses import asdict
from functools import cache
from pathlib import Path

import pytest
from compile_cache import compile_once

from bsa_bench.static.config import ARCH_NAMES, KernelConfig
from bsa_bench.static.ttgir import read_ttgir
from bsa_kernels.configurations import shipped

DATA = Path(__file__).parent / "data_static"


def text_of(name):
    return (DATA / f"{name}.ttgir").read_text()


def read(name):
    return read_ttgir(text_of(name))


@cache
def compile_forward():
    """The forward kernel as the installed Triton writes it, by architecture."""
    pytest.importorskip("triton")
    (found,) = [asdict(each) for each in shipped() if each.name == "attend-bf16-d128-k64"]
    config = KernelConfig.model_validate(found | {"num_warps": 4, "num_stages": 2})
    return {done.arch: done.ttgir for done in compile_once([(config, arch) for arch in ARCH_NAMES])}


@pytest.mark.parametrize("version", ["3.6", "3.9"])
def test_nested_loops_are_told_apart_and_constant_bounds_give_the_trips(version):
    kernel = read(f"nested.90.v{version}")
    outer, inner = kernel.loops
    assert (outer.parent, outer.trips, inner.parent, inner.trips) == (None, None, 0, 4)
    assert outer.source[0].line < inner.source[0].line
    (dot,) = kernel.dots
    assert (dot.kind, dot.loop, dot.flop) == ("wgmma", 1, 2 * 64**3)
    assert kernel.depths(1) == (3, 3)
    assert kernel.depths(0) == ()  # what the outer loop copies is the beginning of the inner one's pipeline


@pytest.mark.parametrize(
    ("capability", "kind", "instruction", "place"),
    [
        (80, "mma.sync", (16, 8, 16), "registers"),
        (90, "wgmma", (64, 64, 16), "shared"),
        (100, "tcgen05", (64, 64, 16), "shared"),
    ],
)
def test_each_architecture_has_its_class_of_dot(capability, kind, instruction, place):
    kernel = read(f"nested.{capability}.v3.6")
    assert {(d.kind, d.instruction, d.a_from, d.b_from) for d in kernel.dots} == {(kind, instruction, place, place)}
    assert kernel.target == f"cuda:{capability}"


def test_a_dot_that_is_cut_along_k_keeps_its_flop():
    dots = [dot for dot in read("nested.80.v3.9").dots if dot.loop == 1]
    assert [dot.k for dot in dots] == [16] * 4
    assert sum(dot.flop for dot in dots) == 2 * 64**3


def test_an_operand_changed_by_arithmetic_comes_from_registers():
    kernel = read("rs_dot.90.v3.9")
    assert {(dot.a_from, dot.b_from) for dot in kernel.dots} == {("registers", "shared")}
    # acc = tl.dot(a, tl.load(b_ptr + ...), acc): a name of the load's own is not there.
    assert {(b.name, b.depth) for b in kernel.buffers} == {("a", 2), ("b_ptr", 3)}


def test_tma_copies_fill_buffers_and_barriers_are_no_data():
    kernel = read("tma.90.v3.9")
    data = [b for b in kernel.buffers if b.is_filled_by_copies]
    assert [(b.depth, b.tile, b.bytes) for b in data] == [(3, (128, 64), 49152), (3, (64, 64), 24576)]
    assert [b.depth for b in kernel.buffers if b.is_barrier] == [3]
    in_loop = [(a.kind, a.direction, a.bytes) for a in kernel.accesses if a.loop == 0]
    assert in_loop == [("tma", "load", 16384), ("tma", "load", 8192)]
    assert [(a.kind, a.direction) for a in kernel.accesses if a.direction != "load"] == [("tma", "store")]


def test_specialised_warps_keep_their_loops_and_share_buffers():
    kernel = read("ws.90.v3.6")
    assert (kernel.num_warps, kernel.partition_warps) == (4, (4, 4))
    assert [loop.partition for loop in kernel.loops] == ["default", "partition0", "partition1"]
    assert [dot.loop for dot in kernel.dots] == [1, 2]
    assert kernel.depths(0) == (3, 3, 3)
    blackwell = read("ws.100.v3.9")
    assert [loop.partition for loop in blackwell.loops] == ["partition0", "partition1"]
    # A partition's own names hide the function's: both buffers are found through what it captures.
    assert blackwell.depths(1) == (3, 3)
    assert [(d.kind, d.m, d.n, d.k) for d in blackwell.dots] == [("tcgen05", 128, 64, 64)]


def test_gathers_scatters_and_reductions_by_tma_are_accesses():
    moved = [(a.kind, a.direction, a.shape) for a in read("tma_gather.100.v3.9").accesses]
    assert moved == [("plain", "load", (64,)), ("tma", "load", (64, 64)), ("tma", "store", (64, 64))]
    moved = [(a.kind, a.direction, a.bytes) for a in read("desc_atomic.90.v3.9").accesses]
    assert moved == [("tma", "load", 16384), ("tma", "atomic", 16384)]


def test_an_allocation_that_is_not_indexed_is_one_tile():
    (tile, barrier) = read("desc_atomic.90.v3.9").buffers
    assert (tile.depth, tile.tile) == (1, (64, 64))
    assert barrier.is_barrier


def test_scalars_and_atomics_and_while_loops_are_read():
    kernel = read("atomics.90.v3.9")
    assert [(a.operation, a.shape, a.bytes, a.loop) for a in kernel.accesses] == [
        ("tt.load", (256,), 1024, None),
        ("tt.atomic_rmw", (256,), 1024, None),
        ("tt.load", (), 4, None),
        ("tt.atomic_cas", (), 4, 0),
        ("tt.atomic_rmw", (), 4, None),
    ]
    assert [loop.kind for loop in kernel.loops] == ["while"]


def test_a_scaled_dot_is_a_dot():
    (dot,) = read("scaled.100.v3.9").dots
    assert (dot.kind, dot.flop, dot.a_type, dot.instruction) == ("tcgen05", 2 * 128**3, "f8E4M3FN", (128, 128, 32))


@pytest.mark.slow
def test_the_projects_forward_is_read_on_every_architecture():
    for arch, places in {"sm_80": "registers", "sm_90": "registers", "sm_100": "tensor memory"}.items():
        kernel = read_ttgir(compile_forward()[arch])
        scores, output = sorted((d for d in kernel.dots if d.loop == 0), key=lambda dot: dot.n)
        assert (scores.m, scores.n, scores.k) == (64, 64, 128)
        assert (output.m, output.n, output.k, output.a_from) == (64, 128, 64, places)
        # mma.sync takes operands through registers, so that its pipeline needs one buffer less.
        assert kernel.depths(0) == ((1, 1) if arch == "sm_80" else (2, 2))
        filled = {b.name: b for b in kernel.buffers if b.is_filled_by_copies}
        assert {"k", "v"} <= filled.keys()
        inner, outer = filled["k"].source
        assert inner.line < outer.line  # the helper that loads, then its call


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ttng.warp_group_dot %", "ttng.warp_group_dot_next %", "ttng.warp_group_dot_next"),
        ("ttg.async_copy_global_to_local", "ttg.async_copy_somewhere", "ttg.async_copy_somewhere"),
        ("versionMajor = 3", "versionMajor = 7", "versionMajor = 7"),
        ('"ttg.num-ctas" = 1', '"ttg.num-ctas" = 2', "num_ctas=1"),
        ("    tt.return", "    tt.call @helper() : () -> ()\n    tt.return", "tt.call"),
        ("    tt.return", "    tt.store %nobody, %cst : !tt.ptr<f32>\n    tt.return", "%nobody"),
    ],
)
def test_what_would_be_counted_wrongly_raises(old, new, message):
    text = text_of("nested.90.v3.9")
    assert old in text
    with pytest.raises(ValueError, match=message):
        read_ttgir(text.replace(old, new))


@pytest.mark.parametrize("text", ["", "%0 = arith.constant 1 : i32", "\n".join("module {")])
def test_a_text_that_is_no_whole_module_raises(text):
    with pytest.raises(ValueError, match="TTGIR"):
        read_ttgir(text)


def test_a_text_that_is_cut_off_raises():
    text = text_of("nested.90.v3.9")
    with pytest.raises(ValueError, match="cut off"):
        read_ttgir(text[: text.index("tt.return")].rpartition("\n")[0])


def test_a_text_without_line_info_is_read_without_lines():
    text = "\n".join(line for line in text_of("nested.90.v3.9").splitlines() if not line.startswith("#loc"))
    kernel = read_ttgir(text)
    assert kernel.dots[0].source == ()
    assert kernel.depths(1) == (3, 3)
