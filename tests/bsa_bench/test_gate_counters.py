"""Tier 1 of the gate: what is counted, the rules, the baseline file, and that planted changes are found and named."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bsa_kernels
from bsa_bench.catalog import METHODS
from bsa_bench.engines.forms import FORMS
from bsa_bench.errors import UsageError
from bsa_bench.gate import counters
from bsa_bench.gate.counters import (
    CaseCounters,
    CountersProvenance,
    CountingError,
    count,
    counter_cases,
    read_counters,
    run_counters_tier,
    write_counters,
)
from bsa_bench.gate.counters_record import HostCost, Launch, Traffic, Versions
from bsa_bench.gate.counters_rules import compare_case, compare_counters
from bsa_bench.gate.verdict import Verdict
from bsa_bench.result import Work

VERSIONS = Versions(python="3.11.7", torch="2.13.0", triton="3.9.0")
PAIR = ["bsa@triton/8x12x16/*k0.5/*"]


def launch(kernel="a:a_kernel", grid=(4,), arguments="0123", **options):
    return Launch(kernel=kernel, grid=grid, options={"D": 64, **options}, arguments=arguments)


def host(calls=100, ops=None, peak=1024):
    return HostCost(
        python_calls=calls,
        calls_by_module={"bsa_kernels.a": calls},
        torch_ops=ops or {"aten::sort": 1},
        peak_bytes=peak,
    )


def counted(name="m@e/x", *, flop=8.0, tiles=100, launches=None, cost=None, **work):
    return CaseCounters(
        name=name,
        work=Work(flops_executed=flop, flops_nominal=4, flops_dense_equiv=16, flops_selection=0, **work),
        traffic=Traffic(compulsory_bytes=64, list_bytes=8, tile_bytes=tiles),
        launches=launches or (launch(),),
        host=cost or host(),
    )


def uncounted(reason, name="m@e/x"):
    return CaseCounters(name=name, reason=reason)


def changes(base, head, *, with_host=True):
    check = compare_case(base, head, with_host=with_host)
    return check, {change.metric: (change.base, change.head, change.severity) for change in check.changes}


# The rules.


def test_equal_counters_are_unchanged():
    check, found = changes(counted(), counted())
    assert (check.tier, check.verdict, found, check.detail) == (1, Verdict.UNCHANGED, {}, ())


@pytest.mark.parametrize(
    ("head", "metric", "values"),
    [
        (counted(flop=9.0), "flops_executed", (8.0, 9.0)),
        (counted(flop=7.0), "flops_executed", (8.0, 7.0)),
        (counted(plan_digest="abc"), "plan_digest", (None, "abc")),
        (counted(counters={"planes": 3.0}), "counters.planes", (None, 3.0)),
        (counted(tiles=101), "tile_bytes", (100, 101)),
        (counted(launches=(launch(grid=(5,)),)), "launch 1 a:a_kernel grid", ([4], [5])),
        (counted(launches=(launch(D=128),)), "launch 1 a:a_kernel D", (64, 128)),
        (counted(launches=(launch(num_warps=8),)), "launch 1 a:a_kernel num_warps", (None, 8)),
        (counted(launches=(launch(arguments="4567"),)), "launch 1 a:a_kernel arguments", ("0123", "4567")),
        (counted(cost=host(ops={"aten::sort": 1, "aten::clone": 1})), "aten::clone", (None, 1)),
        (counted(cost=host(peak=1023)), "peak_bytes", (1024, 1023)),
    ],
)
def test_a_counter_that_differs_fails_by_name_in_either_direction(head, metric, values):
    check, found = changes(counted(), head)
    assert (check.verdict, found) == (Verdict.FAILED, {metric: (*values, "fail")})
    assert check.changes[0].rule == "must equal the baseline"


def test_an_extra_launch_is_told_with_its_place_and_grid():
    base = counted(launches=(launch("a:first"), launch("a:last")))
    head = counted(launches=(launch("a:first"), launch("b:new", (2, 3)), launch("a:last")))
    check, found = changes(base, head)
    assert found == {"launches": (2, 3, "fail")}
    assert check.detail == (" a:first [4]", "+b:new [2, 3]", " a:last [4]")


@pytest.mark.parametrize(
    ("calls", "verdict", "severity"),
    [(105, Verdict.SAME, "info"), (106, Verdict.FAILED, "fail"), (20, Verdict.SAME, "info")],
)
def test_python_calls_may_grow_by_5_percent_and_fall(calls, verdict, severity):
    check, found = changes(counted(), counted(cost=host(calls)))
    assert (check.verdict, found) == (verdict, {"python_calls": (100, calls, severity)})
    assert check.changes[0].rule == "may grow by 5%"
    assert check.detail == ((f"bsa_kernels.a: 100 -> {calls} calls",) if severity == "fail" else ())


def test_host_costs_of_other_versions_do_not_compare_and_the_rest_does():
    worse = counted(flop=9.0, cost=host(500, {"aten::cat": 9}, 9))
    assert changes(counted(), worse, with_host=False)[1] == {"flops_executed": (8.0, 9.0, "fail")}
    assert changes(counted(), counted(cost=host(500)), with_host=False)[0].verdict is Verdict.UNCHANGED


def test_new_and_removed_cases_warn_and_failures_are_never_called_the_same():
    checks = compare_counters([counted("old"), counted("both")], [counted("both"), counted("new")], with_host=True)
    assert [(c.name, c.verdict) for c in checks] == [
        ("both", Verdict.UNCHANGED),
        ("new", Verdict.WARNING),
        ("old", Verdict.WARNING),
    ]
    broken = compare_case(counted(), uncounted("ValueError: no"), with_host=True)
    assert (broken.verdict, broken.reason) == (Verdict.FAILED, "ValueError: no")
    for base in (None, uncounted("b")):
        check = compare_case(base, uncounted("h"), with_host=True)
        assert (check.verdict, check.reason) == (Verdict.NOT_MEASURED, "h")
    check = compare_case(uncounted("no such module"), counted(), with_host=True)
    assert (check.verdict, check.reason) == (Verdict.NOT_MEASURED, "base: no such module")


def test_a_case_has_counters_or_a_reason_and_not_both():
    with pytest.raises(ValueError, match="expected work and traffic, or a reason"):
        CaseCounters(name="x")
    with pytest.raises(ValueError, match="expected no counters beside the reason 'no'"):
        CaseCounters(name="x", reason="no", launches=(launch(),))


@pytest.mark.parametrize(
    ("other", "differing"),
    [
        ({"torch": "2.13.1"}, []),
        ({"torch": "2.12.0"}, ["torch 2.13.0, 2.12.0"]),
        ({"torch": "2.13.0+cpu"}, ["torch 2.13.0, 2.13.0+cpu"]),
        ({"python": "3.12.1", "triton": "3.6.0"}, ["python 3.11.7, 3.12.1", "triton 3.9.0, 3.6.0"]),
    ],
)
def test_versions_differ_by_minor_version_and_by_build(other, differing):
    assert VERSIONS.differing(VERSIONS.model_copy(update=other)) == differing


# The baseline file.


def provenance(**other):
    values = {"commit": "c" * 40, "dirty": False, "utc": "2026-11-26T00:00:00Z", "versions": VERSIONS}
    return CountersProvenance(**{**values, "reason": "first", **other})


def test_a_baseline_comes_back_as_written_with_a_case_on_a_line(tmp_path):
    path, cases = tmp_path / "baselines" / "counters.json", [counted("one"), counted("two", flop=None)]
    write_counters(path, cases, provenance())
    text = path.read_text()
    assert [json.loads(line.rstrip(","))["name"] for line in text.splitlines() if '"name"' in line] == ["one", "two"]
    found = read_counters(path)
    assert (list(found.cases), found.provenance) == (cases, provenance())
    write_counters(path, found.cases, found.provenance)
    assert path.read_text() == text


@pytest.mark.parametrize(
    ("cases", "message"),
    [
        ([], "expected counted cases, got none"),
        ([counted("a"), counted("a")], "a: expected each case once, got it twice"),
        ([counted("a"), uncounted("ValueError: no", "b")], "b: expected counters, got none: ValueError: no"),
    ],
)
def test_what_is_no_whole_count_is_no_baseline(cases, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        write_counters(tmp_path / "counters.json", cases, provenance())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [None, "{}", "no json", b"\xff"])
def test_what_is_no_baseline_is_refused_by_name(content, tmp_path):
    path = tmp_path / "counters.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError, match=r"baseline: .*counters\.json: "):
        read_counters(path)


def test_the_provenance_of_now_names_the_installed_versions():
    made = CountersProvenance.now("c", utc="u", reason="r")
    assert (made.commit, made.dirty, made.versions) == ("c", False, Versions.installed())
    assert made.versions.torch.startswith(torch.__version__)


# The cases.


def test_the_suite_has_every_method_and_every_form_each_once():
    cases = counter_cases()
    names = {case.implementation for case in cases}
    assert {name.partition("@")[0] for name in names} == set(METHODS)
    forms = {form for name in names for form in name.partition(":")[2].split("+")}
    assert forms - {""} == set(FORMS)
    found = [counters.name_of(case) for case in cases]
    assert len(set(found)) == len(found)


def test_patterns_choose_cases_and_one_that_fits_none_is_refused():
    assert {case.passes for case in counter_cases(PAIR)} == {"forward", "backward"}
    with pytest.raises(UsageError, match=r"'bsa@triton:octet/\*' fits no case"):
        counter_cases(["bsa@triton:octet/*"])


# The counting process.


def copied_kernels(folder):
    shutil.copytree(Path(bsa_kernels.__file__).parent, folder / "bsa_kernels", ignore=shutil.ignore_patterns("*.pyc"))
    return folder


def append(folder, module, text):
    path = folder / "bsa_kernels" / module
    path.write_text(path.read_text() + text)


MORE_BLOCKS = """
_select_blocks = select_blocks


def select_blocks(*args, **kwargs):
    mask = _select_blocks(*args, **kwargs).clone()
    mask[..., -1] = True
    return mask
"""
MORE_CALLS = """
_attend_plainly = attend


def _nested(depth):
    return depth and _nested(depth - 1)


def attend(*args, **kwargs):
    _nested(60)
    return _attend_plainly(*args, **kwargs)
"""
MORE_LAUNCHES = """
_launch_backward = launch_backward


def launch_backward(do, q, k, v, o, lse, tables, **kwargs):
    launch_pack_rows(q, o, do, tables)
    return _launch_backward(do, q, k, v, o, lse, tables, **kwargs)
"""


@pytest.mark.slow
def test_planted_changes_are_found_and_named_and_the_same_sources_are_unchanged(tmp_path):
    pytest.importorskip("triton")
    forward, backward = count(cases=counter_cases(PAIR))
    assert (forward.reason, backward.reason) == (None, None)
    assert len(forward.launches) >= 2
    assert any(each.kernel == "block_sparse.triton_attend:attend_kernel" for each in forward.launches)
    assert all(each.options["num_warps"] for each in forward.launches if "attend" in each.kernel)
    assert {"bsa_kernels.operator", "torch"} <= forward.host.calls_by_module.keys()
    assert forward.host.torch_ops["bsa_kernels::attend"] == 1
    assert forward.work.plan_digest == backward.work.plan_digest
    path = tmp_path / "counters.json"
    write_counters(path, [forward, backward], CountersProvenance.now("c", utc="u", reason="r"))

    planted = copied_kernels(tmp_path / "planted")
    append(planted, "methods/bsa/blocks.py", MORE_BLOCKS)
    append(planted, "block_sparse/ops.py", MORE_CALLS)
    append(planted, "block_sparse/triton_gradients.py", MORE_LAUNCHES)
    tier, head = run_counters_tier(path, sources=[planted], only=PAIR)
    assert (tier.reason, tier.notes, len(head)) == (None, (), 2)
    one, two = tier.checks
    assert (one.verdict, two.verdict) == (Verdict.FAILED, Verdict.FAILED)
    named = {change.metric for change in one.changes if change.severity == "fail"}
    assert {"flops_executed", "flops_nominal", "plan_digest", "list_length_mean", "tile_bytes", "python_calls"} <= named
    assert not any("launch" in name for name in named)
    assert "bsa_kernels.block_sparse.ops: " in one.detail[0]
    by_metric = {change.metric: (change.base, change.head) for change in two.changes}
    assert by_metric["launches"] == (len(backward.launches), len(backward.launches) + 1)
    assert [line for line in two.detail if line.startswith("+")] == [
        f"+block_sparse.triton_gradients:pack_rows_kernel {list(backward.launches[0].grid)}"
    ]

    same = compare_counters(read_counters(path).cases, [forward, backward], with_host=True)
    assert [check.verdict for check in same] == [Verdict.UNCHANGED] * 2


@pytest.mark.slow
def test_a_counting_process_that_fails_is_a_reason_and_not_a_verdict(tmp_path):
    pytest.importorskip("triton")
    broken = tmp_path / "bsa_kernels"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise RuntimeError('half a checkout')\n")
    path = tmp_path / "counters.json"
    write_counters(path, [counted()], provenance())
    tier, head = run_counters_tier(path, sources=[tmp_path], only=PAIR)
    assert (tier.checks, head, tier.is_measured) == ((), [], False)
    assert tier.reason.startswith("the counting process ended with exit code 1: ")
    assert "RuntimeError: half a checkout" in tier.reason
    with pytest.raises(CountingError, match=r"was not done within 0 s"):
        count([tmp_path], cases=[], limit_s=0.01)


def test_a_folder_without_kernels_or_with_another_bench_is_refused(tmp_path):
    with pytest.raises(UsageError, match="expected a folder with the package bsa_kernels, got"):
        count([tmp_path], cases=[])
    copy = tmp_path / "bsa_bench"
    copy.mkdir()
    with pytest.raises(UsageError, match="expected another revision's kernels alone, got its bsa_bench too"):
        count([tmp_path], cases=[])


def test_host_costs_of_another_torch_are_left_out_with_a_note(tmp_path, monkeypatch):
    case = counter_cases(PAIR)[0]
    name = counters.name_of(case)
    path = tmp_path / "counters.json"
    other = Versions.installed().model_copy(update={"torch": "2.9.0"})
    write_counters(path, [counted(name), counted("another")], provenance(versions=other))
    monkeypatch.setattr(counters, "count", lambda *_, **__: [counted(name, cost=host(900))])
    tier, _ = run_counters_tier(path, only=[name])
    assert [(check.name, check.verdict) for check in tier.checks] == [(name, Verdict.UNCHANGED)]
    (note,) = tier.notes
    assert note.startswith("host costs are not compared: base and head have torch 2.9.0, ")


@pytest.mark.slow
def test_the_command_line_s_side_loads_no_torch():
    code = (
        "import sys; from bsa_bench.gate.counters import counter_cases; counter_cases(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
