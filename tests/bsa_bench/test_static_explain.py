import re
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console
from static_examples import EXAMPLE, WIDTHS, compile_examples

from bsa_bench.static.analyse import analyse
from bsa_bench.static.devices import DEVICES
from bsa_bench.static.explain import explain
from bsa_bench.static.findings import findings
from bsa_bench.static.reading import read
from bsa_bench.static.regions import AccessCount
from bsa_bench.static.sass import SourceLine
from bsa_bench.units import three_digits

pytest.importorskip("triton")


@pytest.fixture(scope="module")
def compiled():
    return compile_examples()


@pytest.fixture(scope="module")
def analysis(compiled):
    return analyse(compiled[1:2], [DEVICES["H200-SXM"]])[0]


def explained(analysis, width=200, **more):
    console = Console(file=StringIO(), width=width)
    explain(analysis, console, **more)
    return console.file.getvalue()


def by_line(text):
    """Line number -> (mark, instructions, rest) of the main loop's table."""
    table = text[text.index("main loop, one trip") :]
    found = re.findall(r"^([* ]) +(\d+) +(\d+)(.*)$", table, re.MULTILINE)
    return {int(line): (mark, int(count), rest) for mark, line, count, rest in found}


@pytest.mark.slow
def test_the_lines_of_a_trip_add_up_and_show_their_source(analysis):
    text = explained(analysis)
    lines = by_line(text)
    assert sum(count for _, count, _ in lines.values()) == analysis.reading.main.num_instructions
    source = EXAMPLE.with_name("dense_forward.py").read_text().splitlines()
    assert all(rest.endswith(source[line - 1].strip()) for line, (_, _, rest) in lines.items())
    assert "[:, None]" in text
    (dots,) = [rest for _, _, rest in lines.values() if "acc = tl.dot" in rest]
    assert int(dots.split()[0]) > 0
    assert "\ndense_forward.py\n" in text


@pytest.mark.slow
def test_lines_that_use_the_limiting_resource_are_marked(analysis):
    def marked(limit):
        first = analysis.ceilings[0]
        resources = sorted(first.resources, key=lambda each: each.name != limit)
        return explained(replace(analysis, ceilings=(replace(first, resources=tuple(resources)),)))

    text = marked("exp and other special functions")
    assert "; * uses exp and other special functions\n" in text
    sources = {re.split(r"\d  +", rest)[-1] for mark, _, rest in by_line(text).values() if mark == "*"}
    assert sources == {"weights = tl.exp2(scores - new_top[:, None])", "shrink = tl.exp2(top - new_top)"}
    sources = {re.split(r"\d  +", rest)[-1] for mark, _, rest in by_line(marked("L2")).values() if mark == "*"}
    assert sources == {"k = tl.load(k_ptr + tile)  # [KEYS, D]", "v = tl.load(v_ptr + tile)  # [KEYS, D]"}


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_an_explanation_fits_its_width_and_cuts_no_number(analysis, width):
    text = explained(analysis, width)
    assert max(map(len, text.splitlines())) <= width
    wide = by_line(explained(analysis, 200))
    for line, (mark, count, rest) in by_line(text).items():
        numbers = re.match(r"(?:\s+\d+)*(?=\s|$)", rest)[0].split()
        assert (mark, count) == wide[line][:2]
        assert wide[line][2].split()[: len(numbers)] == numbers
    assert (" source\n" in text) == (width >= 100)


def test_every_resource_is_listed_the_slowest_first_with_its_share(analysis):
    text, ceiling = explained(analysis), analysis.ceilings[0]
    assert (
        f"H200-SXM: at most {three_digits(ceiling.overlapped_flop_per_s / 1e12)} TFLOP/s, set by {ceiling.limited_by}; "
        in text
    )
    shares = [int(each) for each in re.findall(r"(\d+)%", text)]
    assert shares[0] == 100
    assert shares == sorted(shares, reverse=True)
    assert len(shares) == len(ceiling.resources)


def test_the_sass_of_the_main_loop_follows_under_its_lines(analysis):
    main = analysis.reading.main
    text = explained(analysis, with_sass=True)
    listed = re.findall(r"^  [* ] ([0-9a-f]{5})  (\S.*)$", text, re.MULTILINE)
    assert len(listed) == main.num_instructions
    assert int(listed[0][0], 16) == main.address
    assert sum("HGMMA" in each for _, each in listed) == main.num_tensor
    assert re.search(r"^dense_forward\.py:\d+  k = tl\.load\(k_ptr \+ tile\)", text, re.MULTILINE)
    assert text.startswith(explained(analysis).rstrip())


def test_a_kernel_without_a_main_loop_is_explained_as_far_as_it_goes(compiled):
    text = explained(analyse(compiled[2:], [DEVICES["H200-SXM"]])[0])
    assert "bytes of stack" in text
    assert text.endswith("no loop with matrix products, so nothing more to say about a main loop\n")


def test_where_the_source_is_gone_the_numbers_stay(analysis):
    main = analysis.reading.main
    gone = tuple(replace(each, line=SourceLine("gone.py", each.line.line)) for each in main.lines)
    text = explained(replace(analysis, reading=replace(analysis.reading, main=replace(main, lines=gone))))
    assert "\ngone.py\n" in text
    assert sum(count for _, count, _ in by_line(text).values()) == main.num_instructions


def test_what_has_no_source_line_is_counted_too(analysis):
    main = analysis.reading.main
    first, *others = main.lines
    lines = (*others, replace(first, line=None))
    text = explained(replace(analysis, reading=replace(analysis.reading, main=replace(main, lines=lines))))
    assert re.search(rf"\nno line info\n[* ]    \?  +{first.count} ", text)


# Findings


def found(analysis, *, main=None, record=None, **fields):
    reading = analysis.reading
    if main is not None:
        new = replace(reading.main, **main)
        fields |= {"main": new, "loops": tuple(new if each is reading.main else each for each in reading.loops)}
    if record is not None:
        fields["compiled"] = replace(reading.compiled, record=replace(reading.compiled.record, **record))
    return findings(replace(reading, **fields))


def test_a_good_kernel_has_no_finding(analysis):
    assert found(analysis) == []
    assert analysis.findings == ()


def test_spills_in_the_main_loop_name_counts_lines_and_stack(analysis):
    lines = (SourceLine("k.py", 7), SourceLine("k.py", 9))
    spills = {"spill store": 3, "spill load": 5}
    accesses = tuple(AccessCount(kind, "X", 4, count, lines) for kind, count in spills.items())
    main = {"mix": dict(analysis.reading.main.mix) | spills, "accesses": accesses}
    (finding,) = found(analysis, main=main, record={"stack_bytes": 24})
    where, _, stack = finding.partition("; ")
    counts = "3 stores and 5 loads of local memory a trip (k.py:7, k.py:9)"
    assert where == f"registers spill inside the main loop: {counts}"
    assert stack == "24 bytes of stack"


def test_spills_outside_the_loops_and_stack_that_nothing_uses_are_told_apart(analysis):
    outside = replace(analysis.reading.outside, mix={"spill store": 4})
    assert found(analysis, outside=outside, record={"stack_bytes": 16}) == [
        "registers spill outside the loops: 4 accesses to local memory; 16 bytes of stack"
    ]
    assert found(analysis, record={"stack_bytes": 16}) == [
        "16 bytes of stack are reserved, but no instruction uses them"
    ]


def test_fewer_buffers_than_asked_for_name_the_tiles(analysis):
    short = tuple(replace(each, depth=1) for each in analysis.reading.buffers)
    (finding,) = found(analysis, buffers=short)
    names = ", ".join(f"{each.name} 1" for each in short)
    assert finding == f"fewer buffers than num_stages = 3 asks for: {names} instead of 3"
    late = tuple(replace(each, waits_for_load=True) for each in short)
    assert found(analysis, buffers=late)[0].startswith(f"{finding}; an index that is loaded inside the loop does this")
    assert found(analysis, buffers=()) == [
        "num_stages = 3, but no tile of the main loop is loaded ahead into shared memory"
    ]


@pytest.mark.slow
def test_tensor_instructions_that_are_not_the_architectures_best_name_rows_and_lines(analysis, compiled):
    slow = tuple(
        replace(each, tensor_class="mma.sync", shape="m16n8k16", lines=(SourceLine("k.py", 3),))
        for each in analysis.reading.main.tensor[:1]
    )
    few = tuple(replace(dot, m=32) for dot in analysis.reading.dots)
    base = "dots fall back to mma.sync m16n8k16 instead of wgmma"
    assert found(analysis, main={"tensor": slow}, dots=few) == [f"{base}: 32 rows are less than 64 (k.py:3)"]
    assert found(analysis, main={"tensor": slow}) == [f"{base} (k.py:3)"]
    assert not [each for each in findings(read(compiled[0])) if "fall back" in each]  # sm_80 has nothing better


def test_occupancy_of_none_and_of_one_is_said_with_what_limits_it(analysis):
    one = replace(analysis.reading.occupancy, ctas=1, limited_by="registers", limits={"registers": 1, "warps": 16})
    assert found(analysis, occupancy=one) == ["one CTA of 4 warps on an SM (registers; warps would allow 16)"]
    assert found(analysis, occupancy=one, record={"num_warps": 8}) == []
    none = replace(one, ctas=0, limited_by="shared memory")
    assert found(analysis, occupancy=none) == ["does not fit an SM: shared memory"]
