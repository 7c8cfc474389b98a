"""Exports: which rows, what is said of the others, and the facts that every format shares."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest
import report_factory as made

from bsa_bench import load
from bsa_bench.errors import EXIT_NOTHING_MEASURED, StoreError, UsageError
from bsa_bench.exports import FORMATS, FormatName, NothingMeasuredError, export_run
from bsa_bench.exports.rows import measured_rows
from bsa_bench.result import Correctness, DeviceState, ErrorFigures, Status
from bsa_bench.store import read_run
from bsa_bench.store.derive import derive

TOOLS = [name for name, each in FORMATS.items() if not each.holds_all]
TABLES = [name for name, each in FORMATS.items() if each.holds_all]
FILES = [name for name in TOOLS if name != "asv"]


@pytest.fixture
def quick(tmp_path):
    return made.write_run(tmp_path / "run", made.quick_results())


def everything(target):
    """All files of an export, as one text."""
    files = sorted(target.rglob("*.json")) if target.is_dir() else [target]
    assert files
    return "\n".join(file.read_text() for file in files)


def test_the_command_offers_what_the_registry_holds(bench, folder):
    assert list(FORMATS) == list(get_args(FormatName))
    _, out, _ = bench("export", "--help")
    for name, each in FORMATS.items():
        assert name in "".join(out.split())
        assert "".join(each.about.split()) in "".join(out.split())


def test_the_guide_has_a_section_for_every_format_and_a_command_that_makes_it():
    guide = (Path(__file__).parents[2] / "docs/exports.md").read_text()
    assert set(re.findall(r"--to ([a-z-]+)", guide)) == set(FORMATS)


def test_exactly_the_rows_with_a_verified_latency_are_exported(quick):
    run = read_run(quick)
    names = {row.name for row in measured_rows(run)}
    expected = {r.case_id for r in run.latest() if r.status is Status.OK and r.correctness and r.correctness.passed}
    assert names == expected
    derived = derive(run.latest())
    words = [row.status_word for row in derived]
    assert len(words) == len(run.latest())
    assert words.count("OK") == len(names)
    assert words.count("unverified") == 1
    assert [row.row for row in measured_rows(run, derived[:3])] == [row for row in derived[:3] if row.is_correct]


@pytest.mark.slow
@pytest.mark.parametrize("name", TOOLS)
def test_what_was_not_measured_is_in_no_tool_format_and_is_counted(name, quick, tmp_path):
    exported = export_run(quick, to=name, out=tmp_path / "out")
    run = read_run(quick)
    text = everything(exported.target)
    assert exported.num_rows == len(measured_rows(run))
    assert exported.num_rows + sum(exported.left_out.values()) == len(run.latest())
    assert exported.left_out == {
        "SKIPPED_OOM": 1, "TIMEOUT": 1, "unverified": 1, "VERIFIED_ONLY": 1, "WRONG": 1, "CRASHED": 1, "FELL_BACK": 1,
        "COUNTED": 1, "UNSUPPORTED": 1, "OOM": 1, "NOT_MEASURED": 1,
    }  # fmt: skip
    for engine in ("triton", "xformers", "reference", "flash-attn"):
        assert f"@{engine}" not in text
    for value in ("Infinity", "NaN"):
        assert value not in text


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLES)
def test_the_tables_hold_every_row_and_leave_nothing_out(name, quick, tmp_path):
    exported = export_run(quick, to=name, out=tmp_path / "out")
    table = pd.read_csv(exported.target) if name == "csv" else pd.read_parquet(exported.target)
    assert len(table) == len(made.quick_results()) == exported.num_rows
    assert exported.note is None
    assert set(table.status) == {str(r.status) for r in made.quick_results()}


@pytest.mark.parametrize("name", TOOLS)
def test_a_run_in_which_nothing_was_measured_is_refused_with_what_it_holds(name, tmp_path):
    case = made.case()
    run = made.write_run(tmp_path / "run", [made.result(case, Status.OOM, reason="out of memory")])
    with pytest.raises(NothingMeasuredError, match=rf"nothing to export to {name}, .* \(1 OOM\); csv and parquet") as e:
        export_run(run, to=name, out=tmp_path / "out")
    assert e.value.exit_code == EXIT_NOTHING_MEASURED
    assert not (tmp_path / "out").exists()


def test_a_run_without_any_case_is_refused_too(tmp_path):
    run = made.write_run(tmp_path / "run", [])
    with pytest.raises(NothingMeasuredError, match="it has no rows"):
        export_run(run, to="bencher", out=tmp_path / "out")


def test_an_unknown_format_is_refused_with_those_that_there_are(quick, tmp_path):
    with pytest.raises(UsageError, match="got 'xlsx', expected one of csv, parquet, pytest-benchmark, "):
        export_run(quick, to="xlsx", out=tmp_path / "x")


@pytest.mark.parametrize("name", FORMATS)
def test_a_target_that_cannot_be_written_is_a_store_error(name, quick, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        export_run(quick, to=name, out=tmp_path / "file" / "out")


def test_two_cases_of_one_name_are_refused_for_one_would_replace_the_other(tmp_path):
    fast, slow = made.case(), made.case()
    slow = slow.model_copy(update={"options": {**slow.options, "kv_density": 0.4}})
    assert fast.case_id == slow.case_id
    run = made.write_run(tmp_path / "run", [made.measured(fast), made.measured(slow)])
    with pytest.raises(StoreError, match=f"{fast.case_hash} and {slow.case_hash} are both named {fast.case_id}"):
        measured_rows(read_run(run))


def test_a_row_of_an_environment_that_the_run_does_not_describe_is_refused(tmp_path):
    run = made.write_run(tmp_path / "run", [made.measured(env_hash="f" * 12)])
    with pytest.raises(StoreError, match="ffffffffffff, which no run line describes"):
        measured_rows(read_run(run))


def test_the_interval_of_a_row_is_that_of_the_report(quick):
    for row in measured_rows(read_run(quick)):
        assert row.latency is row.row.whole
        assert row.processes == [row.row.result.timing.samples]


def processes_of(*processes, **fields):
    """A result of each process of one case, dense, so that it is its own baseline."""
    case = made.case("full@sdpa-flash")
    return made.renumber(
        [
            made.measured(case, process_index=i, timing=made.timing(1.0, samples=own), **fields)
            for i, own in enumerate(processes)
        ]
    )


def test_the_processes_of_a_case_are_one_row_with_the_samples_of_each(tmp_path):
    own = [[1.0, 1.2, 1.1], [2.0, 2.2, 2.1], [1.6, 1.5, 1.7]]
    folder = made.write_run(tmp_path / "run", processes_of(*own), num_cases=1)
    (row,) = measured_rows(read_run(folder))
    assert row.processes == own
    assert row.samples == [1.0, 1.2, 1.1, 2.0, 2.2, 2.1, 1.6, 1.5, 1.7]
    assert row.latency.median == 1.6
    frame = load(folder)
    assert len(frame) == 1
    cells = frame.iloc[0]
    assert (cells.num_processes, cells.num_samples) == (3, 9)
    assert cells.samples == row.samples
    assert cells.samples_per_process == [3, 3, 3]
    assert cells.process_medians_s == [1.1, 2.1, 1.6]
    assert cells.variation_between == pytest.approx(0.5 / 1.6)
    assert not cells.is_bimodal
    csv = pd.read_csv(export_run(folder, to="csv", out=tmp_path / "run.csv").target)
    assert json.loads(csv.process_medians_s[0]) == [1.1, 2.1, 1.6]


def test_what_is_wrong_with_one_process_is_wrong_with_the_row(tmp_path):
    results = processes_of([1.0], [1.0], [1.0])
    bad = results[1].model_copy(
        update={
            "state": DeviceState(other_cpu_share=0.3, throttle_ns={"power": 1}),
            "timing": results[1].timing.model_copy(update={"settled": False}),
            "correctness": results[1].correctness.model_copy(update={"repeat_identical": False}),
        }
    )
    row = load(made.write_run(tmp_path / "run", [results[0], bad, results[2]], num_cases=1)).iloc[0]
    assert row.is_disturbed
    assert row.is_throttled
    assert not row.settled
    assert not row.repeat_identical
    assert row.other_cpu_share == 0.3


def test_a_case_with_a_process_that_was_not_ok_has_no_mark_of_those_that_were(tmp_path):
    state = DeviceState(other_cpu_share=0.3, throttle_ns={"power": 1})
    fine = made.measured(state=state, timing=made.timing(1.0, settled=False))
    bad = made.wrong(made.case()).model_copy(update={"process_index": 1})
    row = load(made.write_run(tmp_path / "run", [fine, bad], num_cases=1)).iloc[0]
    assert row.status == "WRONG"
    for name in ("is_disturbed", "is_throttled", "is_interval_short", "is_bimodal", "settled", "other_cpu_share"):
        assert pd.isna(row[name]), name


def test_two_groups_of_processes_are_a_mark(tmp_path):
    row = load(made.write_run(tmp_path / "run", processes_of([1.0], [1.0], [1.0], [2.0], [2.0], [2.0]))).iloc[0]
    assert row.is_bimodal


@pytest.mark.slow
def test_the_command_prints_the_target_and_on_stderr_what_it_left_out(bench, folder):
    made.write_run(folder / "results" / "r", made.quick_results())
    code, out, err = bench("export", "r", "--to", "bencher")
    assert (code, out) == (0, "r.bencher.json\n")
    rows = len(json.loads((folder / "r.bencher.json").read_text()))
    assert err.startswith(f"{rows} rows exported, left out: ")
    assert "1 FELL_BACK" in err
    assert bench("export", "r", "--to", "asv")[1] == "r.asv\n"
    assert bench("export", "r") == (0, "r.csv\n", "")


def test_the_command_ends_with_4_where_nothing_was_measured(bench, folder):
    made.write_run(folder / "results" / "r", [made.result(made.case(), Status.TIMEOUT)])
    code, out, err = bench("export", "r", "--to", "hyperfine")
    assert (code, out) == (EXIT_NOTHING_MEASURED, "")
    assert "no row has a verified latency (1 TIMEOUT)" in err


# What a report marks rows with, as columns.


def flag_columns(tmp_path, **fields):
    frame = load(made.write_run(tmp_path / "run", [made.measured(made.case("full@sdpa-flash"), **fields)]))
    return frame.iloc[0]


def test_every_mark_of_a_report_is_a_column(tmp_path):
    state = DeviceState(other_cpu_share=0.2, throttle_ns={"power": 3, "thermal": 0})
    timing = made.timing(1.0, samples=[1.0, 1.1, 1.2], settled=False)
    row = flag_columns(tmp_path, state=state, timing=timing)
    marks = ("is_baseline", "is_disturbed", "is_throttled", "is_interval_short", "approximates_dense")
    assert [name for name in marks if not row[name]] == []
    assert not row.settled
    assert not row.is_unverified
    assert row.other_cpu_share == 0.2


def test_a_row_without_blemish_has_no_mark(tmp_path):
    row = flag_columns(tmp_path, state=DeviceState(other_cpu_share=0.01, throttle_ns={"power": 0}))
    assert not any(row[n] for n in ("is_disturbed", "is_throttled", "is_interval_short", "is_unverified"))
    assert row.settled


def test_a_mark_that_nobody_looked_for_is_missing_and_not_false(tmp_path):
    row = flag_columns(tmp_path)
    assert row.is_disturbed is pd.NA
    assert row.is_throttled is pd.NA
    gone = load(made.write_run(tmp_path / "gone", [made.result(made.case(), Status.OOM)])).iloc[0]
    for name in ("is_disturbed", "is_throttled", "is_interval_short", "settled", "repeat_identical"):
        assert gone[name] is pd.NA, name
    assert not gone.is_baseline


def test_an_event_timer_is_disturbed_by_no_one(tmp_path):
    row = flag_columns(tmp_path, timing=made.timing(1.0, timer="event"))
    assert row.is_disturbed is not pd.NA
    assert not row.is_disturbed


def test_an_unverified_row_and_what_its_checks_say_are_columns(tmp_path):
    figures = ErrorFigures(max_abs=0, relative_l2=0, cosine=1)
    checks = Correctness(
        oracle="o", checked={"output": figures}, budget={"output": 1.0}, rows=1, passed=True,
        repeat_identical=False,
    )  # fmt: skip
    row = flag_columns(tmp_path, correctness=checks)
    assert (row.inputs_unchanged, row.repeat_identical) == (True, False)
    changed = checks.model_copy(update={"inputs_unchanged": False, "passed": False})
    wrong = made.result(status=Status.WRONG, correctness=changed)
    assert not load(made.write_run(tmp_path / "w", [wrong])).iloc[0].inputs_unchanged
    unverified = load(made.write_run(tmp_path / "u", [made.measured(correctness=None)])).iloc[0]
    assert unverified.is_unverified
    assert unverified.inputs_unchanged is pd.NA


def test_the_commit_of_a_row_is_that_of_the_start_it_was_measured_after(tmp_path):
    first = made.run_line(2)
    later = first.environment.model_copy(update={"git_commit": "f" * 40, "git_dirty": True})
    second = made.run_line(2, utc="2025-01-02T05:00:00+00:00", environment=later)
    results = made.renumber([made.measured(), made.measured(made.case("full@flex"), utc="2025-01-02T06:00:00+00:00")])
    lines = [first, results[0], second, results[1]]
    (tmp_path / "results.jsonl").write_text("".join(line.model_dump_json() + "\n" for line in lines))
    frame = load(tmp_path)
    assert frame.git_commit.tolist() == [first.environment.git_commit, "f" * 40]
    assert frame.git_dirty.tolist() == [False, True]
    assert [row.environment.git_commit for row in measured_rows(read_run(tmp_path))] == frame.git_commit.tolist()
