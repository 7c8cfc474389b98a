"""What the source promises of addresses and asks of a loop stands above what the text of TTGIR and the launch say."""

from functools import cache
from pathlib import Path

import pytest
from compile_cache import compile_once
from test_static_iteration import HEAD, LAYOUT

from bsa_bench.static.analyse import Analysis, analyse, devices_for
from bsa_bench.static.coalescing import read_coalescing
from bsa_bench.static.config import ARCH_NAMES, KernelConfig
from bsa_bench.static.loop_attributes import attributes_for, read_loop_attributes
from bsa_bench.static.sass import SourceLine

PROMISES = Path(__file__).parent / "static_toys" / "promises.py"
TILE = 64

# Compiled


def promise(name, *, kernel=None, constants=None, signature=None, num_stages=3):
    pointers = {"a_ptr": "*bf16", "b_ptr": "*bf16", "c_ptr": "*fp32"}
    return KernelConfig(
        name=name,
        kernel=f"{PROMISES}:{kernel or name}",
        signature={**pointers, **(signature or {}), "num_steps": "i32"},
        constexprs={"TILE": TILE, **(constants or {})},
        num_stages=num_stages,
    )


@cache
def promises():
    """The analyses by name and architecture."""
    pytest.importorskip("triton")
    configs = [
        promise("never", kernel="rare", constants={"EVERY": 0}),
        promise("rare", constants={"EVERY": 4}),
        promise("skipping", signature={"flags_ptr": "*i32"}),
        promise("wrapped_rows", signature={"width": "i32"}),
        promise("gathered", signature={"list_ptr": "*i32"}),
        promise("more stages", kernel="staged", constants={"STAGES": 4}, num_stages=2),
        promise("one stage", kernel="staged", constants={"STAGES": 1}, num_stages=4),
        promise("unrolled"),
    ]
    done = analyse(
        compile_once([(config, arch) for config in configs for arch in ARCH_NAMES]), devices_for(ARCH_NAMES, [])
    )
    assert not [each for each in done if not isinstance(each, Analysis)]
    return {(each.name, each.arch): each for each in done}


@pytest.fixture(params=ARCH_NAMES)
def toy(request):
    return lambda name: promises()[name, request.param]


def findings(analysis):
    return [text for text in analysis.findings if not text.startswith("one CTA")]


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])  # on sm_100 each iteration takes the sum out of tensor memory
def test_work_of_every_fourth_iteration_leaves_the_ceiling(arch):
    never, rare = (promises()[name, arch].ceilings[0] for name in ("never", "rare"))
    assert rare.overlapped_flop_per_s == pytest.approx(never.overlapped_flop_per_s, rel=0.05)
    assert sum(each.optional_clocks for each in rare.resources) > 2 * sum(
        each.optional_clocks for each in never.resources
    )
    assert promises()["rare", arch].reading.optional_traffic.l2_bytes == TILE * TILE * 4


@pytest.mark.slow
def test_a_loop_that_skips_iterations_has_the_ceiling_of_one_that_does_not(toy):
    never, skipping = (toy(name).ceilings[0] for name in ("never", "skipping"))
    assert skipping.overlapped_flop_per_s == pytest.approx(never.overlapped_flop_per_s, rel=0.05)
    assert toy("skipping").reading.traffic.l2_bytes == 2 * TILE * TILE * 2 + 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wrapped_rows", "gathered"])
def test_no_finding_contradicts_what_the_source_promises_of_addresses(toy, name):
    assert findings(toy(name)) == []
    judged = [each for each in toy(name).reading.coalescing if each.element_bytes == 2]
    assert {(each.verdict, each.vector_bytes) for each in judged} == {("coalesced", 16)}
    widths = {each.bytes_per_lane for each in toy(name).reading.main.accesses if each.kind == "cp.async"}
    assert widths == {16}


@pytest.mark.slow
def test_the_loops_own_stages_stand_above_the_launchs(toy):
    more, one = toy("more stages").reading, toy("one stage").reading
    assert (more.compiled.config.num_stages, more.num_stages) == (2, 4)
    assert more.depth == more.wanted_depth == (3 if more.compiled.arch == "sm_80" else 4)
    assert (one.num_stages, one.wanted_depth, one.depth) == (1, 1, 1)
    assert findings(toy("more stages")) == []
    assert not any("num_stages" in text for text in findings(toy("one stage")))


@pytest.mark.slow
def test_a_buffer_is_named_by_what_is_loaded_not_by_the_product_that_it_is_an_argument_of(toy):
    assert [each.name for each in toy("more stages").reading.tile_buffers] == ["a_ptr", "b_ptr"]


@pytest.mark.slow
def test_an_unrolled_loop_loads_for_all_the_products_that_it_makes(toy):
    reading = toy("unrolled").reading
    num_products = reading.flop_per_trip // (2 * TILE**3)
    assert num_products >= 2
    assert reading.traffic.l2_bytes == num_products * 2 * TILE * TILE * 2
    assert findings(toy("unrolled")) == []


# TTIR and TTGIR

TTIR = """
#loc = loc("k.py":1:0)
#loc1 = loc("k.py":7:4)
#loc2 = loc("k.py":9:8)
#loc3 = loc(callsite(#loc2 at #loc1))
module {
  tt.func public @kernel(%n: i32) {
    %0 = scf.for %i = %c0 to %n step %c1 iter_args(%a = %b) -> (i32)  : i32 {
      scf.if %x {
        scf.for %j = %c0 to %n step %c1  : i32 {
        } {tt.num_stages = 4 : i32, tt.warp_specialize} loc(#loc3)
      } else {
      } loc(#loc2)
      scf.yield %a : i32 loc(#loc2)
    } {tt.flatten} loc(#loc1)
    scf.while (%z = %c0) : (i32) -> i32 {
      scf.condition(%x) %z : i32
    } do {
    } attributes {} loc(#loc1)
    scf.for %i = %c0 to %n step %c1  : i32 {
    } loc(#loc1)
  } loc(#loc)
} loc(#loc)
"""


def test_what_a_loop_asks_for_is_read_from_ttir():
    outer = (SourceLine("k.py", 7),)
    inner = (SourceLine("k.py", 9), SourceLine("k.py", 7))
    loops = read_loop_attributes(TTIR)
    assert loops[:2] == [(outer, {"tt.flatten": ""}), (inner, {"tt.num_stages": "4", "tt.warp_specialize": ""})]
    assert [source for source, _ in loops] == [outer, inner, outer, outer]
    assert attributes_for(loops, outer, 2) == {}
    assert attributes_for(loops, outer, 7) == {"tt.flatten": ""}  # a loop that a pass made of the first one
    assert attributes_for(loops, (SourceLine("k.py", 8),), 0) == {}
    assert read_loop_attributes("") == []  # Gluon has no TTIR


NUMBERS = f"tensor<512xi32, {LAYOUT}>"
TILES = f"tensor<512x!tt.ptr<f32>, {LAYOUT}>"


def judged(*lines, widths=None):
    """The load of 512 numbers at %x + %o, each lane's four side by side if %o says so."""
    body = "\n".join(f"    {line}" for line in lines)
    text = f"""{HEAD}
  tt.func public @kernel(%x: !tt.ptr<f32> {{tt.divisibility = 16 : i32}}, %n: i32) {{
    %r = tt.make_range {{end = 512 : i32, start = 0 : i32}} : {NUMBERS}
    %m = tt.splat %n : i32 -> {NUMBERS}
{body}
    %xs = tt.splat %x : !tt.ptr<f32> -> {TILES}
    %a = tt.addptr %xs, %o : {TILES}, {NUMBERS}
    %v = tt.load %a : {TILES}
    tt.return
  }}
}}
"""
    found = read_coalescing(text, widths=widths)[-1]
    return found.verdict, found.vector_bytes, found.sectors


def test_a_remainder_whose_runs_are_promised_is_followed():
    assert judged(f"%o = arith.remsi %r, %m : {NUMBERS}")[0] == "unknown"
    hint = "{tt.contiguity = dense<512> : tensor<1xi32>, tt.divisibility = dense<512> : tensor<1xi32>}"
    assert judged(f"%o = arith.remsi %r, %m {hint} : {NUMBERS}") == ("coalesced", 16, 16)


def test_loaded_numbers_come_in_the_runs_that_the_source_promises():
    pointers = f"tensor<512x!tt.ptr<i32>, {LAYOUT}>"
    load = [
        "%y = tt.int_to_ptr %n : i32 -> !tt.ptr<i32>",
        f"%ys = tt.splat %y : !tt.ptr<i32> -> {pointers}",
        f"%p = tt.addptr %ys, %r : {pointers}, {NUMBERS}",
    ]
    hint = "{{tt.contiguity = dense<{0}> : tensor<1xi32>, tt.divisibility = dense<{0}> : tensor<1xi32>}}"
    assert judged(*load, f"%o = tt.load %p : {pointers}") == ("uncoalesced", 4, 32)
    # A lane's four are side by side, the lanes apart; then eight numbers, a sector, side by side.
    assert judged(*load, f"%o = tt.load %p {hint.format(4)} : {pointers}") == ("uncoalesced", 16, 32)
    assert judged(*load, f"%o = tt.load %p {hint.format(8)} : {pointers}") == ("coalesced", 16, 16)


def test_a_scalar_that_is_promised_to_be_a_multiple_keeps_the_vectors():
    lines = (
        "%k = arith.muli %n, %n {hint}: i32",
        f"%ks = tt.splat %k : i32 -> {NUMBERS}",
        f"%o = arith.addi %r, %ks : {NUMBERS}",
    )
    assert judged(lines[0].format(hint=""), *lines[1:])[1] == 4
    promised = "{tt.divisibility = dense<16> : tensor<1xi32>} "
    assert judged(lines[0].format(hint=promised), *lines[1:]) == ("coalesced", 16, 16)


def test_an_access_is_no_narrower_than_in_the_machine_code():
    lines = f"%ks = tt.splat %n : i32 -> {NUMBERS}", f"%o = arith.addi %r, %ks : {NUMBERS}"
    assert judged(*lines) == ("coalesced", 4, 4) or judged(*lines)[1] == 4
    assert judged(*lines, widths={("load", ()): {16}}) == ("coalesced", 16, 16)
    assert judged(*lines, widths={("load", ()): {4, 16}})[1] == 4  # one of two on a line may be that narrow
    assert judged(*lines, widths={("store", ()): {16}})[1] == 4
