"""Kernels that really compile to worse code, and those that do not: each is seen, with its source line."""

import subprocess

import pytest
from compile_cache import cache_folder, compile_once
from static_examples import NO_LOOP
from static_factory import TILE, TOYS, attend, clipped

from bsa_bench.errors import UsageError
from bsa_bench.gate import compiled
from bsa_bench.gate.compiled import run_compiled_tier
from bsa_bench.gate.compiled_baseline import Provenance, read_baseline, write_baseline
from bsa_bench.gate.compiled_compare import compare_compiled
from bsa_bench.gate.compiled_figures import figures_of, places_of
from bsa_bench.gate.verdict import Verdict
from bsa_bench.static.analyse import Analysis, analyse
from bsa_bench.static.diff import code_diff, compare

pytest.importorskip("triton")
pytestmark = pytest.mark.slow

LOOP = "    for step in range(num_steps):\n        a = tl.load(a_ptr + step * TILE * TILE + offs)"


@pytest.fixture(scope="module")
def variants(tmp_path_factory):
    """The toys' file with something replaced, in folders of their own."""

    def make(name, *replacements):
        path = tmp_path_factory.mktemp(name) / TOYS.name
        text = TOYS.read_text()
        for old, new in replacements:
            assert text.count(old) == 1
            text = text.replace(old, new)
        path.write_text(text)
        return path

    return make


@pytest.fixture(scope="module")
def codes(variants):
    """Toys as they are and made worse, compiled for sm_90 and read."""
    commented = variants("commented", ("import triton\nimport", "# How kernels are written.\nimport triton\nimport"))
    unrolled = variants("unrolled", (LOOP, LOOP.replace("range(num_steps)", "tl.static_range(2)")))
    exp2 = variants("exp2", ("tl.minimum(tl.dot(a, b), LIMIT)", "tl.minimum(tl.exp2(tl.dot(a, b)), LIMIT)"))
    configs = {
        "plain": attend("toy"),
        "fewer registers": attend("toy", maxnreg=64),
        "fewer rows": attend("toy", rows=32),
        "two stages": attend("toy").model_copy(update={"num_stages": 2}),
        "one stage": attend("toy").model_copy(update={"num_stages": 1}),
        "clipped": clipped(TOYS),
        "commented": clipped(commented),
        "unrolled": clipped(unrolled),
        "with exp2": clipped(exp2),
    }
    done = analyse(compile_once([(config, "sm_90") for config in configs.values()]), devices=[])
    assert all(isinstance(each, Analysis) for each in done)
    return dict(zip(configs, done, strict=True))


@pytest.fixture
def check(codes):
    """Compare two toys, as if one were the other's base."""

    def run(base, head):
        before, after = codes[base], codes[head]
        figures = [[figures_of(each)] for each in (before, after)]
        (found,) = compare_compiled(*figures, base_code=lambda _: before, head_code=lambda _: after)
        return found

    return run


def lines_of(*texts):
    """`toys.py:9` for each line of the toys that has one of the texts."""
    lines = enumerate(TOYS.read_text().splitlines(), 1)
    return {f"{TOYS.name}:{number}" for number, line in lines if any(text in line for text in texts)}


def failed(found):
    assert found.verdict is Verdict.FAILED
    return {change.metric: change for change in found.changes if change.severity == "fail"}


def test_a_limit_of_registers_that_makes_them_spill_is_told_with_the_line_that_spills(codes, check):
    changes = failed(check("plain", "fewer registers"))
    main = codes["fewer registers"].reading.main
    spills = changes["spills in the main loop"]
    assert (spills.base, spills.head) == (0, main.count("spill load") + main.count("spill store"))
    assert spills.head > 0
    spilling = {str(line) for each in main.accesses if each.kind.startswith("spill") for line in each.lines}
    assert spills.line in spilling
    assert changes["stack, bytes"].base == 0 < changes["stack, bytes"].head
    # A register is four bytes.
    moved = figures_of(codes["fewer registers"]).code
    assert changes["spilled, bytes"].head == moved.spill_bytes >= 4 * (moved.spill_loads + moved.spill_stores)


def test_a_dot_that_loses_wgmma_is_told_with_its_line(check):
    changes = failed(check("plain", "fewer rows"))
    matmuls = changes["matmuls"]
    assert (matmuls.base, matmuls.head) == ("wgmma in the main loop", "mma.sync in the main loop")
    assert {matmuls.line} == lines_of("scores = tl.dot(q, tl.trans(k))")
    assert changes["tensor instructions per MFLOP"].line in lines_of("tl.dot(q, ", "acc = tl.dot(weights")


def test_a_pipeline_that_loses_its_lead_is_told_with_the_load(check):
    changes = failed(check("plain", "two stages"))
    depth = changes["pipeline depth"]
    assert (depth.base, depth.head) == (3, 2)
    assert {depth.line} == lines_of("return tl.load(x_ptr + offs)")
    assert "tile loads of the main loop" not in changes


def test_without_a_pipeline_tiles_come_by_plain_loads(check):
    changes = failed(check("plain", "one stage"))
    loads = changes["tile loads of the main loop"]
    assert (loads.base, loads.head) == ("cp.async 16.0 KiB", "plain 16.0 KiB")
    assert {loads.line} == lines_of("return tl.load(x_ptr + offs)") == {changes["pipeline depth"].line}


def test_a_comment_leaves_the_code_unchanged(codes, check):
    found = check("clipped", "commented")
    assert (found.verdict, found.changes, found.detail) == (Verdict.UNCHANGED, (), ())
    sources = [codes[name].reading.compiled.record.identity["source"] for name in ("clipped", "commented")]
    assert sources[0] != sources[1]


def test_a_lost_main_loop_fails_with_the_line_of_a_dot(codes, check):
    changes = failed(check("clipped", "unrolled"))
    assert (changes["matmuls"].base, changes["matmuls"].head) == ("wgmma in the main loop", "wgmma, in no loop")
    assert {changes["matmuls"].line} == lines_of("tl.minimum(tl.dot(a, b), LIMIT)")
    assert check("unrolled", "clipped").verdict is not Verdict.FAILED


def test_a_diff_of_a_lost_main_loop_is_a_verdict_and_its_figures_are_none(codes):
    with_loop, without = codes["clipped"], codes["unrolled"]
    (lost,) = compare([with_loop], [without])
    assert (lost.verdict, lost.reason, lost.lines) == (
        "main loop lost",
        "no loop of the head has a dot any more",
        (),
    )
    main = with_loop.reading.main
    assert lost.figures["spills in the main loop"] == (0, None)
    assert lost.figures["instructions a trip"] == (main.num_instructions, None)
    (gained,) = compare([without], [with_loop])
    assert (gained.verdict, gained.figures["instructions a trip"]) == (
        "main loop gained",
        (None, main.num_instructions),
    )
    with pytest.raises(ValueError, match="clipped, sm_90: expected a main loop on both sides or on neither"):
        code_diff(with_loop, without)


def test_the_line_that_gained_instructions_is_named_and_they_stand_with_the_check(codes, check):
    found = check("clipped", "with exp2")
    changes = failed(found)
    instructions = changes["instructions per iteration"]
    where = lines_of("tl.minimum(tl.dot(a, b), LIMIT)")
    assert {instructions.line} == where
    diff = code_diff(codes["clipped"], codes["with exp2"])
    assert {str(line) for line in diff.added} >= where
    assert sum(diff.added.values()) >= instructions.head - instructions.base
    assert found.detail[:200] == diff.lines[:200]
    assert sum(line.startswith("+ ") and "MUFU.EX2" in line for line in diff.lines) == TILE * TILE // 128
    # What only moves to another place is not gained.
    same = code_diff(codes["clipped"], codes["commented"])
    assert (same.lines, dict(same.added)) == (("only the roles of registers changed",), {})


def test_a_long_diff_is_cut_and_says_so(codes, check):
    lines = code_diff(codes["plain"], codes["one stage"]).lines
    assert len(lines) > 200
    assert check("plain", "one stage").detail == (
        *lines[:200],
        f"... and {len(lines) - 200} more lines; bsa-bench static diff shows all",
    )


def test_a_kernel_without_a_loop_has_figures_and_its_changes_are_shown():
    larger = NO_LOOP.model_copy(update={"constexprs": {"SIZE": 1024}})
    base, head = analyse(compile_once([(NO_LOOP, "sm_90"), (larger, "sm_90")]), devices=[])
    code = figures_of(base).code
    assert (code.main, code.dot_kinds, code.spill_bytes) == (None, (), 0)
    assert places_of(base).dot is None
    (change,) = compare([base], [head])
    assert change.verdict == "changed"
    (found,) = compare_compiled(
        [figures_of(base)], [figures_of(head)], base_code=lambda _: base, head_code=lambda _: head
    )
    assert (found.verdict, found.reason, found.detail) == (Verdict.SAME, "other instructions", change.lines)
    assert any(line.startswith("+ ") and "STG" in line for line in found.detail)


# The whole tier


CONFIG = """
kernel = "toys.py:clipped"
constexprs = { TILE = 64 }
signature = { a_ptr = "*bf16", b_ptr = "*bf16", c_ptr = "*fp32", num_steps = "i32" }
axes = { LIMIT = [0.3] }
"""
NAME = "clipped-limit0.3"


@pytest.fixture
def tier(tmp_path, monkeypatch):
    """A git repository with the toys, in which the tier is run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toys.py").write_text(TOYS.read_text())
    (tmp_path / "toys.toml").write_text(CONFIG)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *arguments], check=True)

    def figures_at_leisure(each):
        """Without the time that compiling took, which a busy machine changes; its rule is `test_gate_compiled`'s."""
        found = figures_of(each)
        code = found.code and found.code.model_copy(update={"compile_s": 1.0})
        return found.model_copy(update={"code": code})

    monkeypatch.setattr(compiled, "figures_of", figures_at_leisure)

    def run(base, **options):
        options = {"archs": ["sm_90"], "jobs": 1} | options
        return run_compiled_tier(base, config=tmp_path / "toys.toml", cache=cache_folder(), **options)

    return run


def test_a_revision_is_compiled_now_and_its_changed_constant_shows(tier, tmp_path):
    toys = tmp_path / "toys.py"
    toys.write_text(toys.read_text().replace("tl.dot(a, b), LIMIT)", "tl.dot(a, b), 2 * LIMIT)"))
    told = []
    result, figures = tier("HEAD", progress=lambda done, total: told.append((done, total)))
    (found,) = result.checks
    assert (found.name, found.where, found.verdict, found.changes) == (NAME, "sm_90", Verdict.SAME, ())
    assert any("0.6000000" in line and line.startswith("+ ") for line in found.detail)
    assert {line.split()[-1] for line in found.detail if line[0] in "+-"} == lines_of("tl.minimum(tl.dot(a, b)")
    assert told == [(1, 2), (2, 2)]
    assert result.is_measured
    assert result.wall_s > 0
    assert [note.partition(",")[0] for note in result.notes] == ["base: HEAD", "head: ."]
    assert [each.key for each in figures] == [(NAME, "sm_90")]


def test_a_baseline_compares_what_is_asked_for_and_only_with_its_own_triton(tier, tmp_path):
    path = tmp_path / "compiled.json"
    _, (mine,) = tier("HEAD")
    gone, elsewhere = mine.model_copy(update={"name": "clipped-gone"}), mine.model_copy(update={"arch": "sm_80"})
    unasked = mine.model_copy(update={"name": "other"})
    made = Provenance(commit="0123456789abcdef", dirty=True, utc="now", triton=mine.code.triton, reason="the first")
    write_baseline(path, [mine, gone, elsewhere, unasked], made)
    result, figures = tier(path, only=["clipped-*", "clipped-gone"])
    assert [(c.name, c.verdict) for c in result.checks] == [
        (NAME, Verdict.UNCHANGED),
        ("clipped-gone", Verdict.WARNING),
    ]
    assert figures == [mine]
    assert "of commit 0123456789ab with changes" in result.notes[0]
    assert read_baseline(path).provenance == made
    path.write_text(path.read_text().replace(f'"triton": "{mine.code.triton}"', '"triton": "3.5.0"'))
    result, figures = tier(path)
    assert (result.checks, result.is_measured, figures) == ((), False, [mine])
    assert result.reason == (
        f"baseline is of triton 3.5.0, this is {mine.code.triton}; compare with a base revision, or accept a new one"
    )
    with pytest.raises(UsageError, match=f"configuration 'clip': not known; .*there are: {NAME}"):
        tier(path, only=["clip"])
