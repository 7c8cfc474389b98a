from pathlib import Path

import pytest
from test_static_ttgir import compile_forward

from bsa_bench.static.coalescing import read_coalescing
from bsa_bench.static.ttgir import read_ttgir

DATA = Path(__file__).parent / "data_static"

# x[m, d] with 64 columns of bf16; what stands in braces is changed by the tests.
KERNEL = """\
#blocked = #ttg.blocked<{{sizePerThread = [1, 8], threadsPerWarp = [4, 8], warpsPerCTA = [4, 1], order = [1, 0]}}>
module attributes {{"ttg.num-ctas" = 1 : i32, "ttg.num-warps" = 4 : i32, ttg.target = "cuda:90"}} {{
  tt.func public @kernel(%x: !tt.ptr<bf16> {{tt.divisibility = 16 : i32}}, %s: i32 {divisible}, %n: i32) {{
    %r = tt.make_range {{end = 64 : i32, start = 0 : i32}} : tensor<64xi32, #ttg.slice<{{dim = 1, parent = #blocked}}>>
    %c = tt.make_range {{end = 64 : i32, start = 0 : i32}} : tensor<64xi32, #ttg.slice<{{dim = 0, parent = #blocked}}>>
    %m = tt.expand_dims %r {{axis = 1 : i32}} : tensor<64xi32, #ttg.slice<{{dim = 1, parent = #blocked}}>> -> \
tensor<64x1xi32, #blocked>
    %d = tt.expand_dims %c {{axis = 0 : i32}} : tensor<64xi32, #ttg.slice<{{dim = 0, parent = #blocked}}>> -> \
tensor<1x64xi32, #blocked>
    %p = tt.splat %s : i32 -> tensor<64x1xi32, #blocked>
    %q = tt.splat {bound} : i32 -> tensor<1x64xi32, #blocked>
    %rows = {rows} : tensor<64x1xi32, #blocked>
    %b0 = tt.broadcast %rows : tensor<64x1xi32, #blocked> -> tensor<64x64xi32, #blocked>
    %b1 = tt.broadcast %d : tensor<1x64xi32, #blocked> -> tensor<64x64xi32, #blocked>
    %o = arith.addi %b0, %b1 : tensor<64x64xi32, #blocked>
    %xs = tt.splat %x : !tt.ptr<bf16> -> tensor<64x64x!tt.ptr<bf16>, #blocked>
    %a = tt.addptr %xs, %o : tensor<64x64x!tt.ptr<bf16>, #blocked>, tensor<64x64xi32, #blocked>
    %k = arith.cmpi {predicate}, %d, %q : tensor<1x64xi32, #blocked>
    %kk = tt.broadcast %k : tensor<1x64xi1, #blocked> -> tensor<64x64xi1, #blocked>
    %v = tt.load %a, %kk : tensor<64x64x!tt.ptr<bf16>, #blocked>
    tt.return
  }}
}}
"""
ALIGNED = "{tt.divisibility = 16 : i32}"
ROWS = "arith.muli %m, %p"


def judged(*, rows=ROWS, divisible=ALIGNED, bound="%s", predicate="slt"):
    (found,) = read_coalescing(KERNEL.format(rows=rows, divisible=divisible, bound=bound, predicate=predicate))
    return found


def by_line(name):
    found = read_coalescing((DATA / f"{name}.ttgir").read_text())
    return {f"{c.line.line} {c.kind} {c.vector_bytes}": c for c in found}


def test_rows_at_an_aligned_stride_are_coalesced_in_full_vectors():
    found = judged()
    assert (found.verdict, found.vector_bytes, found.sectors, found.ideal_sectors) == ("coalesced", 16, 16, 16)
    assert found.line is None


def test_rows_at_a_stride_of_unknown_alignment_lose_their_vectors():
    found = judged(divisible="", bound="%n")
    assert (found.verdict, found.vector_bytes) == ("uncoalesced", 2)


def test_a_mask_that_may_end_within_a_vector_narrows_it():
    assert judged(bound="%n").vector_bytes == 2
    assert judged(bound="%n").verdict == "uncoalesced"
    assert judged(bound="%s", predicate="sle").vector_bytes == 2  # `<=` ends one past an aligned bound
    assert judged(bound="%s", predicate="sge").vector_bytes == 16


def test_an_address_that_is_not_followed_is_unknown_and_says_why():
    found = judged(rows="arith.remsi %m, %p")
    assert (found.verdict, found.sectors, found.vector_bytes) == ("unknown", None, None)
    assert "arith.remsi" in found.reason


# 3.6 gives this load the layout of the transposed one, whose lanes lie nearer together.
@pytest.mark.parametrize(("version", "sectors"), [("3.6", 8), ("3.9", 32)])
def test_steps_along_the_contiguous_axis_are_uncoalesced(version, sectors):
    found = read_coalescing((DATA / f"strided.90.v{version}.ttgir").read_text())
    two, argument, transposed, row, store = found
    assert (two.verdict, two.vector_bytes, two.sectors, two.ideal_sectors) == ("uncoalesced", 2, sectors, 2)
    assert (argument.verdict, argument.sectors) == ("uncoalesced", 32)
    # Down a column the compiler turns the layout around: neighbours in memory are neighbours in a thread.
    assert (transposed.verdict, transposed.vector_bytes) == ("coalesced", 16)
    assert row.verdict == "uncoalesced"
    assert (store.kind, store.verdict, store.vector_bytes) == ("store", "coalesced", 16)


def test_a_layout_against_the_contiguous_axis_is_uncoalesced():
    text = (DATA / "strided.90.v3.9.ttgir").read_text()
    turned = text.replace(
        "{sizePerThread = [8, 1], threadsPerWarp = [8, 4], warpsPerCTA = [1, 4], order = [0, 1]}",
        "{sizePerThread = [1, 1], threadsPerWarp = [1, 32], warpsPerCTA = [4, 1], order = [1, 0]}",
    )
    assert turned != text
    found = read_coalescing(turned)[2]
    assert (found.verdict, found.sectors, found.ideal_sectors) == ("uncoalesced", 32, 2)


def test_gathered_rows_are_coalesced_and_gathered_elements_are_not():
    found = by_line("gather.90.v3.6")
    assert found["29 load 16"].verdict == "coalesced"
    assert found["31 load 2"].verdict == "uncoalesced"
    assert found["31 load 2"].sectors == 32


def test_pointers_that_a_loop_moves_on_are_followed():
    found = read_coalescing((DATA / "nested.90.v3.9.ttgir").read_text())
    assert {c.loop for c in found} == {0, 1}
    assert {(c.verdict, c.vector_bytes) for c in found} == {("coalesced", 16)}


def test_a_pointer_whose_pattern_changes_from_trip_to_trip_is_unknown():
    text = (DATA / "nested.90.v3.9.ttgir").read_text()
    lines = text.splitlines()
    # Each trip now adds the tile of offsets, which is not the same for all lanes.
    step = next(line for line in lines if " = tt.addptr %a_ptrs_34, " in line)
    tile = next(line.split()[0] for line in lines if "arith.addi" in line and "tensor<64x64xi32" in line)
    parts = step.split(", ")
    changed = text.replace(step, step.replace(parts[1].split(" : ")[0], tile, 1))
    assert changed != text
    assert "unknown" in {c.verdict for c in read_coalescing(changed)}


@pytest.mark.slow
def test_the_projects_forward_reads_keys_and_values_in_full_vectors():
    for text in compile_forward().values():
        loop = [c for c in read_coalescing(text) if c.loop == 0 and c.element_bytes == 2]
        assert len(loop) == 2
        assert {(c.kind, c.verdict, c.vector_bytes) for c in loop} == {("cp.async", "coalesced", 16)}
        assert {access.loop for access in read_ttgir(text).accesses} == {None, 0}
