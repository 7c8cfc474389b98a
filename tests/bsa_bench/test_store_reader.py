"""Reading stored runs, what follows from them, and their flat tables."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import report_factory as made
from hypothesis import given
from hypothesis import strategies as st

from bsa_bench import load
from bsa_bench.errors import StoreError, UsageError
from bsa_bench.methods.bsa import BsaOptions
from bsa_bench.result import Status
from bsa_bench.store import export, read_run
from bsa_bench.store.break_even import break_even_densities, break_even_lengths
from bsa_bench.store.derive import derive
from bsa_bench.store.frame import COLUMNS


@pytest.fixture
def quick(tmp_path):
    return made.write_run(tmp_path / "run", made.quick_results())


def append(folder, text):
    with (folder / "results.jsonl").open("a") as file:
        file.write(text)


def test_a_run_reads_back_as_it_was_written(quick):
    run = read_run(quick)
    assert run.results == made.quick_results()
    assert run.run_id == "made-up-run"
    assert run.torn_line is None
    assert read_run(quick / "results.jsonl") == run


@pytest.mark.parametrize("torn", ['{"kind": "res', '{"kind": "res\n', "\0\0\0\n"])
def test_a_torn_last_line_is_left_out(quick, torn):
    append(quick, torn)
    run = read_run(quick)
    assert run.results == made.quick_results()
    assert run.torn_line == len(run.results) + 2


def test_an_unfinished_line_counts_as_torn_even_when_it_is_whole_json(quick):
    append(quick, made.measured().model_dump_json())
    assert len(read_run(quick).results) == len(made.quick_results())


def test_an_invalid_line_in_the_middle_is_an_error_that_names_the_line(quick):
    number = len(made.quick_results()) + 2
    append(quick, "{broken\n" + made.measured().model_dump_json() + "\n")
    with pytest.raises(StoreError, match=rf"results\.jsonl, line {number}: expected a JSON object"):
        read_run(quick)


def test_a_line_of_another_shape_is_an_error_that_names_the_key(quick):
    line = json.loads(made.measured().model_dump_json())
    line["timing"]["timer"] = "sundial"
    append(quick, json.dumps(line) + "\n")
    with pytest.raises(StoreError, match=r"timing\.timer: .*'host', 'event'.*'sundial'"):
        read_run(quick)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"schema_version": 99, "kind": "result"}', "schema_version 99, this bsa-bench reads up to 2"),
        ('{"schema_version": 1, "kind": "verse"}', "kind 'verse', expected 'run' or 'result'"),
        ("[1]", "expected a JSON object, got list"),
    ],
)
def test_lines_that_are_no_results_are_errors(quick, line, message):
    append(quick, line + "\n")
    with pytest.raises(StoreError, match=message):
        read_run(quick)


def test_where_there_is_no_run_the_error_says_what_was_expected(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(StoreError, match="no run there, expected a run's folder"):
            read_run(path)
    (tmp_path / "results.jsonl").write_text("")
    with pytest.raises(StoreError, match="holds no run line"):
        read_run(tmp_path)


def test_the_last_final_result_of_a_case_wins_over_later_unfinished_ones(tmp_path):
    one, two = made.case("bsa@gather"), made.case("bsa@flex")
    lines = [
        made.result(one, Status.NOT_MEASURED),
        made.result(two, Status.NOT_MEASURED),
        made.measured(one, median=1.0),
        made.measured(one, median=2.0),
        made.result(one, Status.NOT_MEASURED),
        made.result(two, Status.NOT_MEASURED, reason="out of budget"),
    ]
    run = read_run(made.write_run(tmp_path, made.renumber(lines), num_cases=3))
    assert [r.seq for r in run.latest()] == [3, 5]
    assert run.num_remaining == 2


def test_the_baseline_is_the_fastest_correct_dense_row_of_the_same_workload_and_pass():
    unproved = made.measured(made.case("full@sdpa-cudnn"), median=0.1, correctness=None)
    other_timer = made.measured(
        made.case("full@sdpa-math"), median=0.1, timing=made.timing(0.1, timer="event", cache="cold")
    )
    results = [
        made.measured(made.case("full@flex"), median=3.0),
        made.measured(made.case("full@sdpa-flash"), median=2.0),
        made.measured(made.case("full@sdpa-flash", 2048), median=0.5),
        made.measured(made.case("full@sdpa-flash", passes="backward"), median=0.5),
        unproved,
        other_timer,
        made.measured(made.case("bsa@gather"), median=0.25),
    ]
    rows = derive(results)
    assert rows[-1].dense.result is results[1]
    assert rows[-1].speedup.value == pytest.approx(8)
    assert rows[-1].speedup.low < 8 < rows[-1].speedup.high
    assert rows[1].is_baseline
    assert not rows[0].is_baseline
    assert rows[4].speedup is None
    assert rows[4].status_word == "unverified"
    assert rows[-1].achieved_share == pytest.approx(8 * 0.051)


def length_family(speedups: dict[int, float]):
    results = []
    for tokens, speedup in speedups.items():
        results.append(made.measured(made.case("full@sdpa-flash", tokens), median=1.0))
        results.append(made.measured(made.case("bsa@gather", tokens), median=1 / speedup))
    return derive(results)


def test_the_break_even_length_is_interpolated_between_its_neighbours_on_log_axes():
    (found,) = break_even_lengths(length_family({4096: 2.0, 1024: 0.5, 8192: 4.0}))
    assert found.is_interpolated
    assert (found.below, found.above) == (1024, 4096)
    assert found.at == pytest.approx(2048)


def test_a_dip_below_dense_moves_the_break_even_length_past_it():
    (found,) = break_even_lengths(length_family({1024: 2.0, 2048: 0.5, 4096: 2.0}))
    assert (found.below, found.above) == (2048, 4096)


def test_break_even_says_when_it_is_below_or_beyond_the_measured_range():
    (always,) = break_even_lengths(length_family({1024: 2.0, 2048: 3.0}))
    assert (always.at, always.is_interpolated) == (1024, False)
    (never,) = break_even_lengths(length_family({1024: 0.2, 2048: 0.9}))
    assert never.at is None


def test_families_differ_by_options_and_pass_but_not_by_length():
    options = BsaOptions(kv_density=0.3)
    results = [made.measured(made.case("full@flex", n)) for n in (1024, 2048)]
    results += [made.measured(made.case("bsa@flex", n)) for n in (1024, 2048)]
    results += [made.measured(made.case("bsa@flex", n, options=options)) for n in (1024, 2048)]
    assert [len(f.rows) for f in break_even_lengths(derive(results))] == [2, 2]


def test_the_break_even_density_runs_along_one_over_density():
    dense = made.measured(made.case("full@sdpa-flash"), median=1.0)
    rows = [
        made.measured(made.case("bsa@gather", options=BsaOptions(kv_density=d, query_keep=1)), median=2 * d)
        for d in (0.1, 0.8)
    ]
    (found,) = break_even_densities(derive([dense, *rows]))
    assert 1 / found.at == pytest.approx(0.5 * 1.02)


@pytest.mark.slow
@given(st.dictionaries(st.integers(1, 64).map(lambda n: n * 64), st.floats(0.05, 50), min_size=1, max_size=6))
def test_break_even_lies_between_a_length_that_loses_and_one_from_which_all_win(speedups):
    (found,) = break_even_lengths(length_family(speedups))
    measured = {row.num_tokens: row.speedup.value for row in found.rows}
    if found.at is None:
        assert measured[max(measured)] <= 1
    else:
        assert all(s > 1 for n, s in measured.items() if n >= found.above)
        assert found.above >= found.at
        assert found.below is None or (measured[found.below] <= 1 and found.below <= found.at * (1 + 1e-12))


def test_the_frame_has_a_documented_column_for_everything_and_a_row_for_each_case(quick):
    frame = load(quick)
    assert list(frame.columns) == list(COLUMNS)
    assert len(frame) == len(made.quick_results())
    row = frame[(frame.implementation == "bsa@gather") & (frame.tokens == 16384) & (frame["pass"] == "forward")].iloc[0]
    assert row.grid == "16x32x32"
    assert row.dense_baseline == "full@sdpa-flash"
    assert row.num_samples == len(row.samples) == 21
    assert row.achieved_share == pytest.approx(row.speedup_over_dense / row.ideal_speedup)
    assert row.phase_select_s > 0
    assert math.isnan(row.phase_fill_backward_s)
    failed = frame[frame.status == "SKIPPED_OOM"].iloc[0]
    assert math.isnan(failed.median_s)
    assert failed.is_correct is not pd.NA
    assert not failed.is_correct


def test_a_phase_that_nobody_announced_becomes_a_column(tmp_path):
    timing = made.timing(1.0, phases={"unpack": [0.5]})
    frame = load(made.write_run(tmp_path, [made.measured(timing=timing)]))
    assert frame.phase_unpack_s.tolist() == [0.5]


@pytest.mark.slow
def test_export_writes_what_the_frame_holds(quick, tmp_path):
    frame = load(quick)
    parquet = pd.read_parquet(export(quick, to="parquet", out=tmp_path / "a" / "run.parquet"))
    assert list(parquet.samples[0]) == frame.samples[0]
    csv = pd.read_csv(export(quick, to="csv", out=tmp_path / "run.csv"))
    assert json.loads(csv.samples[0]) == frame.samples[0]
    for table in (parquet, csv):
        assert list(table.columns) == list(frame.columns)
        assert table.median_s.tolist() == pytest.approx(frame.median_s.tolist(), nan_ok=True)


def test_export_refuses_other_formats_and_unwritable_targets(quick, tmp_path):
    with pytest.raises(UsageError, match="got 'xlsx', expected csv or parquet"):
        export(quick, to="xlsx", out=tmp_path / "x")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        export(quick, to="csv", out=tmp_path / "file" / "run.csv")


@pytest.mark.slow
def test_importing_the_readers_loads_neither_torch_nor_pandas_nor_matplotlib():
    code = (
        "import sys, bsa_bench.store.reader, bsa_bench.store.frame, bsa_bench.report, bsa_bench.report.build, "
        "bsa_bench.report.terminal; print([m for m in ('torch', 'triton', 'pandas', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_list_statistics_are_columns_and_missing_in_results_from_before_they_were(quick, tmp_path):
    frame = load(quick).set_index("case_id")
    row = frame[frame.implementation == "bsa@gather"].iloc[0]
    assert (row.union_efficiency, row.list_mean, row.list_max) == (1.0, 45.25, 1234)
    older = tmp_path / "older"
    older.mkdir()
    lines = [json.loads(line) for line in (quick / "results.jsonl").read_text().splitlines()]
    for line in lines:
        for name in ("union_efficiency", "list_mean", "list_max"):
            (line.get("work") or {}).pop(name, None)
    (older / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    missing = load(older)[["union_efficiency", "list_mean", "list_max"]]
    assert missing.isna().all().all()


def test_the_reference_run_of_an_older_version_still_loads():
    frame = load(Path(__file__).parents[2] / "results" / "reference" / "quick-amd-epyc-2-cores")
    assert len(frame) > 20
    assert frame.union_efficiency.isna().all()
