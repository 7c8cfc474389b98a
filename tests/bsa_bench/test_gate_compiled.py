"""The rules of compiled code, on figures made for them; test_gate_compiled_toys.py has real code."""

import json

import pytest

from bsa_bench.cli.static_app import Request
from bsa_bench.errors import StoreError, UsageError
from bsa_bench.gate import compiled
from bsa_bench.gate.compiled import run_compiled_tier
from bsa_bench.gate.compiled_baseline import Provenance, read_baseline, write_baseline
from bsa_bench.gate.compiled_compare import compare_compiled
from bsa_bench.gate.compiled_figures import CodeFigures, CompiledFigures, CompileFailure, MainLoop
from bsa_bench.gate.verdict import Verdict
from bsa_bench.static.architectures import ARCHITECTURES
from bsa_bench.static.sides import Choice

MAIN = MainLoop(
    digest="m",
    num_instructions=400,
    num_tensor=100,
    num_exp2=34,
    num_spills=4,
    flop=2_000_000,
    tensor_classes=("wgmma",),
    dot_flop={"wgmma": 2_000_000},
    tile_bytes={"cp.async": 32_768},
    depth=2,
    wanted_depth=2,
)
CODE = CodeFigures(
    triton="3.9.0",
    digest="a",
    registers=200,
    stack_bytes=100,
    spill_loads=10,
    spill_stores=10,
    spill_bytes=200,
    shared_bytes=80_000,
    num_warps=4,
    ctas=2,
    dot_kinds=("wgmma",),
    cubin_bytes=100_000,
    compile_s=3.0,
    main=MAIN,
)
PROVENANCE = Provenance(
    commit="0123456789abcdef", dirty=False, utc="2026-11-26T10:00:00+00:00", triton="3.9.0", reason="first baseline"
)


def figures(name="attend", arch="sm_90", **code):
    """Figures of a configuration; those that are of the main loop go there."""
    of_main = {key: value for key, value in code.items() if key in MainLoop.model_fields and key != "digest"}
    main = code.pop("main", MAIN)
    main = main and main.model_copy(update=of_main)
    rest = {key: value for key, value in code.items() if key not in of_main}
    return CompiledFigures(name=name, arch=arch, code=CODE.model_copy(update={**rest, "main": main}))


def failed(name="attend", arch="sm_90", kind="compiler", message="CompilationError: no y"):
    return CompiledFigures(name=name, arch=arch, failure=CompileFailure(kind=kind, message=message))


def check(base, head):
    (found,) = compare_compiled([base] if base else [], [head] if head else [])
    return found


def broken(base, head):
    """The verdict, and which figures broke a rule, of the same figures but for some."""
    found = check(figures(**base), figures(digest="b", **head))
    return found.verdict, [change.metric for change in found.changes if change.severity != "info"]


SAME = (Verdict.SAME, [])


def fails(*metrics):
    return (Verdict.FAILED, list(metrics))


def warns(*metrics):
    return (Verdict.WARNING, list(metrics))


# Each rule: just inside, and just outside


@pytest.mark.parametrize(
    ("base", "head", "expected"),
    [
        # Ten percent and sixteen bytes, whichever is more.
        ({"stack_bytes": 100}, {"stack_bytes": 115}, SAME),
        ({"stack_bytes": 100}, {"stack_bytes": 116}, fails("stack, bytes")),
        ({"stack_bytes": 1000}, {"stack_bytes": 1099}, SAME),
        ({"stack_bytes": 1000}, {"stack_bytes": 1100}, fails("stack, bytes")),
        ({"stack_bytes": 0}, {"stack_bytes": 4}, fails("stack, bytes")),
        ({"stack_bytes": 100}, {"stack_bytes": 0}, SAME),
        ({"spill_bytes": 1000}, {"spill_bytes": 1099}, SAME),
        ({"spill_bytes": 1000}, {"spill_bytes": 1100}, fails("spilled, bytes")),
        ({"spill_bytes": 0}, {"spill_bytes": 4}, fails("spilled, bytes")),
        ({"num_spills": 4}, {"num_spills": 4, "num_exp2": 1}, SAME),
        ({"num_spills": 4}, {"num_spills": 5}, fails("spills in the main loop")),
        ({"num_spills": 4}, {"num_spills": 3}, SAME),
        ({"ctas": 2}, {"ctas": 3}, SAME),
        ({"ctas": 2}, {"ctas": 1}, fails("CTAs per SM")),
        ({"depth": 2}, {"depth": 3}, SAME),
        ({"depth": 2}, {"depth": 1}, fails("pipeline depth")),
        ({"num_tensor": 100}, {"num_tensor": 102}, SAME),
        ({"num_tensor": 100}, {"num_tensor": 103}, fails("tensor instructions per MFLOP")),
        ({"num_tensor": 100}, {"num_tensor": 200, "flop": 4_000_000}, SAME),
        ({"num_instructions": 400}, {"num_instructions": 419}, SAME),
        ({"num_instructions": 400}, {"num_instructions": 420}, warns("instructions per iteration")),
        ({"num_instructions": 400}, {"num_instructions": 479}, warns("instructions per iteration")),
        ({"num_instructions": 400}, {"num_instructions": 480}, fails("instructions per iteration")),
        ({"compile_s": 3.0}, {"compile_s": 5.9}, SAME),
        ({"compile_s": 3.0}, {"compile_s": 6.0}, warns("compile time, s")),
        ({"compile_s": 0.5}, {"compile_s": 2.4}, SAME),
        ({"compile_s": 0.5}, {"compile_s": 2.5}, warns("compile time, s")),
        ({"cubin_bytes": 100_000}, {"cubin_bytes": 119_999}, SAME),
        ({"cubin_bytes": 100_000}, {"cubin_bytes": 120_000}, warns("cubin, bytes")),
    ],
)
def test_a_figure_may_rise_to_its_limit_and_no_further(base, head, expected):
    assert broken(base, head) == expected


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
def test_shared_memory_above_what_a_cta_gets_fails_also_where_it_is_new(arch):
    limit = ARCHITECTURES[arch].shared_bytes_per_cta
    fits = check(figures(arch=arch), figures(arch=arch, shared_bytes=limit))
    assert fits.verdict is Verdict.SAME
    above = figures(arch=arch, shared_bytes=limit + 1)
    for base in (figures(arch=arch), None):
        found = check(base, above)
        assert found.verdict is Verdict.FAILED
        assert f"at most {limit} bytes" in found.changes[0].rule


@pytest.mark.parametrize(
    ("base", "head", "verdict"),
    [
        (("wgmma",), ("mma.sync",), Verdict.FAILED),
        (("tcgen05",), ("wgmma",), Verdict.FAILED),
        (("mma.sync",), ("fma",), Verdict.FAILED),
        (("wgmma",), ("mma.sync", "wgmma"), Verdict.FAILED),  # one of two dots
        (("mma.sync", "wgmma"), ("mma.sync",), Verdict.FAILED),
        (("wgmma",), (), Verdict.FAILED),
        (("mma.sync",), ("wgmma",), Verdict.SAME),
        (("mma.sync", "wgmma"), ("wgmma",), Verdict.SAME),
        ((), ("fma",), Verdict.SAME),
    ],
)
def test_a_dot_that_falls_to_a_slower_class_fails_also_outside_loops(base, head, verdict):
    found = check(figures(main=None, dot_kinds=base), figures(main=None, dot_kinds=head, digest="b"))
    assert found.verdict is verdict
    assert [change.metric for change in found.changes] == ["matmuls"]


def test_of_several_dots_in_the_main_loop_each_counts():
    both = {"dot_kinds": ("mma.sync", "wgmma"), "tensor_classes": ("mma.sync", "wgmma")}
    base = both | {"dot_flop": {"mma.sync": 1_000_000, "wgmma": 3_000_000}}
    assert broken(base, both | {"dot_flop": {"mma.sync": 2_000_000, "wgmma": 6_000_000}}) == SAME
    assert broken(base, both | {"dot_flop": {"mma.sync": 2_000_000, "wgmma": 2_000_000}}) == fails("matmuls")
    (change, *_) = check(
        figures(**base), figures(digest="b", **both, dot_flop={"mma.sync": 2_000_000, "wgmma": 2_000_000})
    ).changes
    assert (change.base, change.head) == (
        "mma.sync 25%, wgmma 75% in the main loop",
        "mma.sync 50%, wgmma 50% in the main loop",
    )


def test_a_main_loop_that_is_lost_fails_and_one_that_is_gained_does_not():
    with_loop, without = figures(), figures(digest="b", main=None)
    lost = check(with_loop, without)
    assert lost.verdict is Verdict.FAILED
    assert (lost.changes[0].metric, lost.changes[0].head) == ("matmuls", "wgmma, in no loop")
    assert {change.severity for change in lost.changes[1:]} == {"info"}
    assert {change.head for change in lost.changes[1:]} == {None}
    assert check(without, with_loop).verdict is Verdict.SAME


@pytest.mark.parametrize(
    ("base", "head", "verdict"),
    [
        ({"tma": 32_768}, {"plain": 32_768}, Verdict.FAILED),
        ({"cp.async": 32_768}, {"cp.async": 16_384, "plain": 16_384}, Verdict.FAILED),  # one of two tiles
        ({"cp.async": 32_768}, {"tma": 32_768}, Verdict.SAME),
        ({"cp.async": 32_768}, {"cp.async": 16_384}, Verdict.SAME),  # smaller tiles
        ({"cp.async": 32_768}, {"cp.async": 32_768, "plain": 4_096}, Verdict.SAME),  # another tile
        ({"plain": 16_384}, {"plain": 32_768}, Verdict.SAME),
    ],
)
def test_tiles_that_no_longer_come_asynchronously_fail(base, head, verdict):
    found = check(figures(tile_bytes=base), figures(digest="b", tile_bytes=head))
    assert found.verdict is verdict
    assert [change.metric for change in found.changes] == ["tile loads of the main loop"]


# What a check says


def test_the_same_code_is_unchanged_whatever_its_compilation_took():
    found = check(figures(), figures(compile_s=60.0, cubin_bytes=900_000))
    assert (found.verdict, found.changes, found.reason) == (Verdict.UNCHANGED, (), None)
    assert (found.tier, found.name, found.where) == (0, "attend", "sm_90")


def test_the_same_instructions_in_more_registers_are_not_unchanged():
    found = check(figures(), figures(registers=255, ctas=1))
    assert found.verdict is Verdict.FAILED
    assert [(c.metric, c.severity) for c in found.changes] == [("CTAs per SM", "fail"), ("registers", "info")]
    assert check(figures(), figures(registers=201)).reason == "the same instructions; other resources"


def test_changes_carry_both_values_and_the_rule_and_broken_rules_come_first():
    found = check(figures(), figures(digest="b", registers=210, num_instructions=500, num_exp2=40, cubin_bytes=200_000))
    assert found.verdict is Verdict.FAILED
    first, second, *others = found.changes
    assert (first.metric, first.base, first.head, first.severity) == ("instructions per iteration", 400, 500, "fail")
    assert first.rule == "5 % more is worth a look, 20 % more is too much"
    assert (second.metric, second.severity) == ("cubin, bytes", "warn")
    told = [(c.metric, c.base, c.head, c.severity, c.rule) for c in others]
    assert told == [("registers", 200, 210, "info", ""), ("exp2 per iteration", 34, 40, "info", "")]


def test_where_the_code_changed_is_said():
    assert check(figures(), figures(digest="b", registers=201)).reason == "the same main loop; other code outside it"
    other = figures(digest="b", main=MAIN.model_copy(update={"digest": "n"}))
    assert (check(figures(), other).verdict, check(figures(), other).reason) == (Verdict.SAME, "other instructions")


@pytest.mark.parametrize(
    ("base", "head", "verdict", "reason"),
    [
        (None, figures(), Verdict.SAME, "new: the base has no such configuration"),
        (figures(), None, Verdict.WARNING, "removed: the head has no such configuration"),
        (figures(), failed(), Verdict.FAILED, "does not compile any more (compiler): CompilationError: no y"),
        (failed(), figures(), Verdict.SAME, "compiles, which the base does not: CompilationError: no y"),
        (failed(), failed(), Verdict.NOT_MEASURED, "compiles on neither side: CompilationError: no y"),
        (None, failed(), Verdict.FAILED, "new, and does not compile (compiler): CompilationError: no y"),
        (
            figures(),
            failed(kind="unread"),
            Verdict.NOT_MEASURED,
            "compiles to what cannot be read: CompilationError: no y",
        ),
        (failed(), None, Verdict.WARNING, "removed: the head has no such configuration"),
    ],
)
def test_a_side_without_code_is_said_in_words(base, head, verdict, reason):
    found = check(base, head)
    assert (found.verdict, found.reason) == (verdict, reason)


def test_configurations_are_told_apart_by_architecture_and_those_removed_come_last():
    base = [figures("gone"), figures(arch="sm_80", digest="b"), figures()]
    head = [figures(), figures(arch="sm_80"), figures("new")]
    checks = compare_compiled(base, head)
    assert [(c.name, c.where, c.verdict) for c in checks] == [
        ("attend", "sm_90", Verdict.UNCHANGED),
        ("attend", "sm_80", Verdict.SAME),
        ("new", "sm_90", Verdict.SAME),
        ("gone", "sm_90", Verdict.WARNING),
    ]


# The baseline


def test_a_baseline_is_read_as_it_was_written_in_an_order_of_its_own(tmp_path):
    path = tmp_path / "baselines" / "compiled.json"
    rows = [figures("b"), figures("a", arch="sm_100"), figures("a", arch="sm_80", main=None), failed("c")]
    write_baseline(path, rows, PROVENANCE)
    first = path.read_text()
    write_baseline(path, rows[::-1], PROVENANCE)
    assert path.read_text() == first
    read = read_baseline(path)
    assert read.provenance == PROVENANCE
    assert read.configurations == (rows[2], rows[1], rows[0], rows[3])
    # A line for each configuration, so that a review sees which changed.
    assert [json.loads(line.rstrip(","))["name"] for line in first.splitlines() if '"arch"' in line] == [*"aabc"]
    assert list(path.parent.iterdir()) == [path]


def test_a_baseline_holds_compiled_code_of_one_triton_each_once(tmp_path):
    path = tmp_path / "compiled.json"
    wrong = {
        "expected compiled configurations, got none": [failed()],
        "attend, sm_90: compiled by Triton 3.6.0, expected 3.9.0": [figures(triton="3.6.0")],
        "attend, sm_90: expected each configuration once, got it 2 times": [figures(), figures()],
    }
    for message, rows in wrong.items():
        with pytest.raises(UsageError, match=message):
            write_baseline(path, rows, PROVENANCE)
    assert not path.exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"baseline: .*file.*: Not a directory"):
        write_baseline(tmp_path / "file" / "sub" / "compiled.json", [figures()], PROVENANCE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file or directory"),
        (b"\xff", "expected JSON in UTF-8"),
        (b"{", "expected a baseline of compiled code, got: Invalid JSON"),
        (
            b'{"schema_version": 1, "provenance": {}}',
            "expected a baseline of compiled code, got: provenance.commit: Field",
        ),
        (b'{"schema_version": 2}', "got: schema_version: Input should be 1"),
    ],
)
def test_a_file_that_is_no_baseline_is_named_with_what_is_wrong(tmp_path, content, message):
    path = tmp_path / "compiled.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=message) as raised:
        read_baseline(path)
    assert str(path) in str(raised.value)


def test_figures_are_of_code_or_of_a_failure():
    for fields in ({}, {"code": CODE, "failure": failed().failure}):
        with pytest.raises(ValueError, match="attend, sm_90: expected either code or a failure"):
            CompiledFigures(name="attend", arch="sm_90", **fields)


def test_without_triton_the_tier_is_not_measured_and_says_so(monkeypatch):
    monkeypatch.setattr(compiled.importlib.util, "find_spec", lambda _: None)
    tier, found = run_compiled_tier("HEAD")
    assert (tier.is_measured, tier.checks, found) == (False, (), [])
    assert tier.reason == "Triton is not installed, and nothing compiles without it"


def test_a_side_chooses_what_the_command_line_does_by_default():
    flags = Request()
    choice = Choice()
    assert [getattr(choice, name) for name in ("tokens", "heads", "kv_density", "dtype", "kernel_set")] == [
        getattr(flags, name) for name in ("tokens", "heads", "kv_density", "dtype", "kernel_set")
    ]
