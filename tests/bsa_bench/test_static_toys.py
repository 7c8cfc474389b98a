"""Kernels of which is known what they become: each is reported right on each architecture and release of Triton."""

import re

import pytest
from static_factory import HEAD_SIZE, TILE, TOYS, releases

from bsa_bench.static.config import ARCH_NAMES
from bsa_bench.static.diff import compare
from bsa_bench.static.findings import FASTEST_CLASS

pytest.importorskip("triton")
pytestmark = pytest.mark.slow

ATTEND_FLOP = 2 * 2 * TILE * TILE * HEAD_SIZE


@pytest.fixture(params=releases())
def release(request):
    return request.param


@pytest.fixture(params=ARCH_NAMES)
def arch(request):
    return request.param


@pytest.fixture
def toy(toys, release, arch):
    return lambda name: toys(release, name, arch)


@pytest.fixture
def same_code(toy, release, arch):
    """Toys of a compiler that makes the same code of the same source each time."""
    has_fixed_addresses = toy("clipped").reading.compiled.record.identity["fixed_addresses"]
    if (release, arch) == ("3.6.0", "sm_100") and not has_fixed_addresses:
        pytest.skip(
            "ptxas 12.9 orders instructions by addresses of its memory, and this system does not let them be fixed"
        )
    return toy


def line_of(text):
    """`toys.py:9` for the only line of the toys that has a text."""
    (number,) = [number for number, line in enumerate(TOYS.read_text().splitlines(), 1) if text in line]
    return f"{TOYS.name}:{number}"


def slow_parts(analysis):
    """The findings without that of occupancy, which is not what the toys are about."""
    return [finding for finding in analysis.findings if not finding.startswith("one CTA")]


def local_accesses(opcode, listing):
    """Addresses of its loads (LDL) or stores (STL) of local memory, found in the disassembly's text alone."""
    return [int(address, 16) for address in re.findall(rf"/\*([0-9a-f]+)\*/\s+(?:@!?\w+ )?{opcode}[. ]", listing)]


def test_the_release_and_the_architecture_asked_for_compiled_it(toy, release, arch):
    reading = toy("plain").reading
    assert reading.compiled.record.triton.partition("+")[0] == release
    assert reading.sass.target.removesuffix("a") == arch


def test_a_kernel_without_a_fault_has_no_finding(toy, arch):
    plain = toy("plain")
    reading = plain.reading
    assert slow_parts(plain) == []
    assert (reading.spill_loads, reading.spill_stores, reading.compiled.record.stack_bytes) == (0, 0, 0)
    assert local_accesses("LDL", reading.compiled.listing) == []
    assert reading.tensor_classes == (FASTEST_CLASS[arch],)
    assert {access.verdict for access in reading.coalescing} == {"coalesced"}


def test_spills_are_counted_in_the_main_loop_and_outside(toy):
    spilling = toy("spilling")
    reading, main = spilling.reading, spilling.reading.main
    assert reading.compiled.record.registers == 64
    inside = {}
    for opcode, kind, total in (
        ("LDL", "spill load", reading.spill_loads),
        ("STL", "spill store", reading.spill_stores),
    ):
        found = local_accesses(opcode, reading.compiled.listing)
        addresses = {each.address for each in main.instructions}
        inside[kind] = main.count(kind)
        assert inside[kind] == len(addresses.intersection(found)) > 0
        assert total == len(found) == inside[kind] + reading.outside.count(kind)
    stack = reading.compiled.record.stack_bytes
    assert stack >= 4
    first, second = slow_parts(spilling)
    assert re.fullmatch(
        f"registers spill inside the main loop: {inside['spill store']} stores and {inside['spill load']} loads of "
        rf"local memory a trip \(toys.py:\d+.*\); {stack} bytes of stack",
        first,
    )
    assert second.startswith("registers spill outside the loops: ")


def test_too_few_rows_fall_back_to_mma_sync(toy, arch):
    few, best = toy("few rows"), FASTEST_CLASS[arch]
    assert few.reading.tensor_classes == ("mma.sync",)
    assert {(count.shape, count.a_source) for count in few.reading.tensor} == {("m16n8k16", "registers")}
    lines = f"{line_of('tl.dot(q')}, {line_of('tl.dot(weights')}"
    why = f"dots fall back to mma.sync m16n8k16 instead of {best}: 32 rows are less than 64 ({lines})"
    assert [each for each in few.findings if "fall back" in each] == ([] if arch == "sm_80" else [why])


def test_an_index_loaded_in_the_loop_takes_a_buffer_of_each_tile(toy, arch):
    plain, inside = toy("plain"), toy("index in loop")
    # mma.sync takes its operands through registers: Triton gives it one buffer less than num_stages.
    wanted = 2 if arch == "sm_80" else 3
    assert [reading.wanted_depth for reading in (plain.reading, inside.reading)] == [wanted, wanted]
    assert [(each.name, each.depth) for each in plain.reading.tile_buffers] == [("k", wanted), ("v", wanted)]
    assert [(each.name, each.depth) for each in inside.reading.tile_buffers] == [("k", wanted - 1), ("v", wanted - 1)]
    assert (plain.reading.depth, inside.reading.depth) == (wanted, wanted - 1)
    (finding,) = slow_parts(inside)
    assert finding == (
        f"fewer buffers than num_stages = 3 asks for: k {wanted - 1}, v {wanted - 1} instead of {wanted}; an index "
        "that is loaded inside the loop does this, carry the next one as a loop variable"
    )


def test_numbers_that_do_not_lie_side_by_side_are_uncoalesced(toy):
    every_other = toy("every other")
    where = line_of("tl.load(x_ptr + offs)  # [KEYS, D]")
    (bad,) = [each for each in every_other.reading.coalescing if each.verdict == "uncoalesced"]
    assert (str(bad.line), bad.kind, bad.vector_bytes) == (where, "load", 2)
    # A lane has eight numbers of a row, which begin 32 bytes after those of the lane before: each is in its own sector.
    assert (bad.sectors, bad.ideal_sectors) == (32, 2)
    request = "2 bytes a lane, 32 sectors of 32 bytes a warp where 2 would do"
    assert [finding for finding in every_other.findings if not finding.startswith(("one CTA", "registers spill"))] == [
        f"uncoalesced load in the main loop ({where}): {request}",
        f"tiles of the main loop come by plain loads through registers, not by asynchronous copies ({where})",
    ]
    loads = [a for a in every_other.reading.main.accesses if a.kind == "plain" and a.bytes_per_lane == 2]
    assert sum(access.count for access in loads) == TILE * HEAD_SIZE // 128
    assert {str(line) for access in loads for line in access.lines} == {where}


def test_of_nested_loops_the_one_with_the_dots_is_main(toy, arch):
    nested = toy("nested")
    reading, main, depth = nested.reading, nested.reading.main, nested.reading.wanted_depth
    outer, inner = [loop for loop in reading.loops if not loop.is_wait]
    assert (inner, inner.parent, outer.parent) == (main, outer.loop, None)
    assert not {each.address for each in inner.instructions} & {each.address for each in outer.instructions}
    lines = {str(line) for count in main.tensor for line in count.lines}
    # The last wgmma, which ptxas makes the end of its group, is without a line of its own.
    loads = {line_of("a = tl.load(a_ptr + (tile")} if arch == "sm_90" else set()
    assert lines - loads == {line_of("acc = tl.dot(a, b, acc)")}
    # For tcgen05 the dot of an inner loop's first trip is moved out of it.
    assert outer.num_tensor == (main.num_tensor if arch == "sm_100" else 0)
    assert reading.flop_per_trip == 2 * TILE**3
    assert [(each.name, each.depth) for each in reading.tile_buffers] == [("a", depth), ("b", depth)]
    assert reading.traffic.l2_bytes == 2 * TILE * TILE * 2
    assert slow_parts(nested) == []


@pytest.mark.parametrize(
    ("name", "flop"),
    [("plain", ATTEND_FLOP), ("spilling", ATTEND_FLOP), ("few rows", ATTEND_FLOP // 2), ("nested", 2 * TILE**3)],
)
def test_the_instructions_do_the_flop_that_triton_states(toy, name, flop):
    reading = toy(name).reading
    assert reading.flop_per_trip == sum(dot.flop for dot in reading.dots) == flop


# What changes the digest, and what does not


def test_a_comment_gives_the_same_digest(same_code):
    before, after = same_code("clipped"), same_code("commented")
    assert before.reading.compiled.record.identity["source"] != after.reading.compiled.record.identity["source"]
    assert before.reading.digest == after.reading.digest
    (change,) = compare([before], [after])
    assert (change.verdict, change.lines) == ("same", ())


@pytest.mark.parametrize("name", ["changed", "other limit"])
def test_a_changed_constant_shows_the_instructions_that_have_it(same_code, name):
    before, after = same_code("clipped"), same_code(name)
    assert before.reading.digest != after.reading.digest
    (change,) = compare([before], [after])
    assert (change.verdict, change.figures, change.opcodes) == ("changed", {}, {})
    where = line_of("tl.minimum(")
    for sign, limit in (("-", "0.3000000"), ("+", "0.6000000")):
        lines = [line for line in change.lines if line.startswith(sign)]
        assert len(lines) == TILE * TILE // 128  # one of each number of the tile that a thread holds
        for line in lines:
            assert re.fullmatch(rf"\{sign} FMNMX R, R, {limit}\d+, PT +{where}", line)


def test_a_constant_is_the_same_in_the_source_and_as_a_constexpr(same_code):
    assert same_code("changed").reading.digest == same_code("other limit").reading.digest


def test_the_folder_of_the_sources_changes_nothing(same_code):
    here, elsewhere = (same_code(name).reading for name in ("clipped", "same"))
    assert not elsewhere.compiled.was_cached
    assert here.compiled.config.kernel != elsewhere.compiled.config.kernel
    assert (here.digest, here.main_digest) == (elsewhere.digest, elsewhere.main_digest)
    # So that a cache serves every checkout.
    assert here.compiled.folder.name == elsewhere.compiled.folder.name
    assert here.compiled.listing == elsewhere.compiled.listing
    assert here.compiled.ttgir == elsewhere.compiled.ttgir


def test_line_info_changes_nothing_but_that_there_are_lines(same_code):
    reading, without = (same_code(name).reading for name in ("clipped", "no lines"))
    assert reading.digest == without.digest
    assert any(each.source for each in reading.main.instructions)
    assert not any(each.source for each in without.main.instructions)
    assert (reading.flop_per_trip, reading.depth) == (without.flop_per_trip, without.depth)
    assert same_code("no lines").findings == same_code("clipped").findings
