"""Each export read back by its own tool, or where that does not install from a package index, by a model of its reader.

pytest-benchmark is the tool itself, as is asv (test_exports_asv.py). The models restate what these sources read, of
2026-11: Google Benchmark `tools/gbench/{util,report}.py` and `src/json_reporter.cc`; hyperfine
`src/benchmark/benchmark_result.rs` and `scripts/*.py`; Bencher `lib/bencher_adapter/src/adapters/json/v0.rs`;
github-action-benchmark `src/extract.ts` and `src/extractRangeInfo.ts`.
"""

from __future__ import annotations

import csv
import json
import os
import re
import statistics
import subprocess
import sys
from typing import Annotated, Literal

import pytest
import report_factory as made
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, RootModel
from pytest_benchmark.logger import Logger
from pytest_benchmark.stats import Stats
from pytest_benchmark.storage.file import FileStorage

from bsa_bench.errors import UsageError
from bsa_bench.exports import bencher, export_run, github_action, google, hyperfine, pytest_benchmark
from bsa_bench.exports.rows import measured_rows
from bsa_bench.result import DeviceState
from bsa_bench.store import read_run

PROCESSES = [[1.0, 1.2, 1.1], [2.0, 2.2, 2.1], [1.6, 1.5, 1.7]]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


@pytest.fixture
def run(tmp_path):
    return read_run(made.write_run(tmp_path / "run", made.quick_results()))


@pytest.fixture
def rows(run):
    return measured_rows(run)


@pytest.fixture
def several(tmp_path):
    """A row of three processes, whose medians are 1.1, 2.1 and 1.6 s."""
    results = [made.measured(process_index=i, timing=made.timing(1.0, samples=own)) for i, own in enumerate(PROCESSES)]
    (row,) = measured_rows(read_run(made.write_run(tmp_path / "several", made.renumber(results), num_cases=1)))
    return row


def one_row(tmp_path, **fields):
    (row,) = measured_rows(read_run(made.write_run(tmp_path / "one", [made.measured(**fields)])))
    return row


def tool(*arguments, cwd, ok=True):
    done = subprocess.run(
        [*map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False, timeout=120, env=os.environ
    )
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done.stdout + done.stderr


# pytest-benchmark


def test_the_storage_of_pytest_benchmark_loads_every_benchmark(run, rows, tmp_path):
    target = export_run(run.path, to="pytest-benchmark", out=tmp_path / "out.json").target
    loaded = list(FileStorage(tmp_path / "storage", logger=Logger(Logger.NORMAL)).load_benchmarks(str(target)))
    assert [bench["fullname"] for bench in loaded] == [row.name for row in rows]
    for bench, row in zip(loaded, rows, strict=True):
        assert bench["data"] == row.samples
        assert (bench["rounds"], bench["iterations"]) == (len(row.samples), 1)


@pytest.mark.parametrize("samples", [[0.3], [0.2, 0.1], made.jitter(1.0), [*made.jitter(1.0), 9.0, 0.001]])
def test_statistics_agree_with_those_that_pytest_benchmark_makes_of_the_samples(samples, tmp_path, run):
    row = one_row(tmp_path, timing=made.timing(1.0, samples=samples))
    (bench,) = pytest_benchmark.document([row], run)["benchmarks"]
    theirs = Stats()
    theirs.data = samples
    ours, expected = bench["stats"], theirs.as_dict()
    assert ours.keys() == {*expected, "data", "iterations"}
    # Quartiles have several definitions, so what follows from them may differ.
    for name in ("min", "max", "mean", "stddev", "rounds", "median", "stddev_outliers", "ops", "total"):
        assert ours[name] == pytest.approx(expected[name]), name
    assert ours["ld15iqr"] <= ours["q1"] <= ours["median"] <= ours["q3"] <= ours["hd15iqr"]


@pytest.mark.slow
def test_pytest_benchmark_compares_two_exports(run, rows, tmp_path):
    for name in ("a", "b"):
        export_run(run.path, to="pytest-benchmark", out=tmp_path / f"{name}.json")
    compare = [sys.executable, "-m", "pytest_benchmark", "compare", "a.json", "b.json"]
    said = tool(*compare, "--group-by=fullname", "--csv=out.csv", cwd=tmp_path)
    assert said.count("benchmark '") == len(rows)
    with (tmp_path / "out.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 2 * len(rows)
    medians = {line["name"]: float(line["median"]) for line in table}
    assert medians == {row.name: pytest.approx(row.latency.median) for row in rows}
    assert {line["param:tokens"] for line in table} == {"1024", "2048", "4096", "8192", "16384"}


def test_extra_info_says_what_the_statistics_cannot(tmp_path, run):
    state = DeviceState(sm_clock_hz=[1.7e9, 1.8e9, 1.9e9], other_cpu_share=0.5)
    (bench,) = pytest_benchmark.document([one_row(tmp_path, state=state)], run)["benchmarks"]
    extra = bench["extra_info"]
    assert extra["status"] == "OK"
    assert extra["sm_clock_hz"] == [1.7e9, 1.8e9, 1.9e9]
    assert extra["power_w"] is None
    assert extra["flops_executed"] > 0
    assert extra["is_disturbed"] is True
    assert extra["speedup_over_dense"] is None


def test_the_commit_of_a_run_outside_a_checkout_is_unversioned_as_pytest_benchmark_calls_it(rows, run, tmp_path):
    environment = made.run_line(1).environment.model_copy(update={"git_commit": None, "git_dirty": None})
    installed = read_run(made.write_run(tmp_path / "i", [made.measured()], environment=environment))
    assert pytest_benchmark.document([], installed)["commit_info"]["id"] == "unversioned"
    assert pytest_benchmark.document(rows, run)["commit_info"]["id"] == "0123456789abcdef"


# Google Benchmark


class GoogleEntry(BaseModel):
    name: str
    run_name: str
    run_type: Literal["iteration", "aggregate"]
    family_index: int
    per_family_instance_index: int
    repetitions: Annotated[int, Field(ge=1)]
    repetition_index: int | None = None
    threads: int
    aggregate_name: Literal["mean", "median", "stddev", "cv"] | None = None
    aggregate_unit: Literal["time", "percentage"] | None = None
    iterations: Annotated[int, Field(ge=1)]
    real_time: FiniteFloat
    cpu_time: FiniteFloat
    time_unit: Literal["ns"]
    model_config = ConfigDict(extra="allow")  # counters lie flat among the rest
    __pydantic_extra__: dict[str, FiniteFloat]


class GoogleDocument(Strict):
    context: dict[str, str | int | list[None]]
    benchmarks: list[GoogleEntry]


def test_google_benchmark_has_an_entry_for_each_process_and_no_aggregate_of_one(run, rows):
    document = GoogleDocument.model_validate_json(json.dumps(google.document(rows, run)))
    assert document.context["json_schema_version"] == 1
    assert document.context["caches"] == []
    assert [entry.name for entry in document.benchmarks] == [row.name for row in rows]
    for entry, row in zip(document.benchmarks, rows, strict=True):
        assert entry.real_time == pytest.approx(row.latency.median * 1e9)
        assert (entry.repetitions, entry.repetition_index) == (1, 0)
        assert entry.model_extra["flops_executed"] == row.row.result.work.flops_executed


def test_google_benchmark_aggregates_the_medians_of_processes(several, run):
    entries = GoogleDocument.model_validate(google.document([several], run)).benchmarks
    assert [e.real_time for e in entries if e.run_type == "iteration"] == pytest.approx([1.1e9, 2.1e9, 1.6e9])
    assert [e.repetition_index for e in entries[:3]] == [0, 1, 2]
    found = {e.aggregate_name: e for e in entries if e.run_type == "aggregate"}
    assert {name: e.real_time for name, e in found.items()} == pytest.approx(
        {"mean": 1.6e9, "median": 1.6e9, "stddev": 0.5e9, "cv": 0.5 / 1.6}
    )
    assert {name: e.aggregate_unit for name, e in found.items()} == {
        "mean": "time", "median": "time", "stddev": "time", "cv": "percentage",
    }  # fmt: skip
    assert all(e.name == f"{e.run_name}_{name}" for name, e in found.items())


# hyperfine


class HyperfineResult(Strict):
    command: str
    mean: FiniteFloat
    stddev: FiniteFloat | None
    median: FiniteFloat
    user: FiniteFloat | None  # null: serde_json's word for a number that is none
    system: FiniteFloat | None
    min: FiniteFloat
    max: FiniteFloat
    times: list[FiniteFloat]
    exit_codes: list[int | None]
    parameters: dict[str, str]


class HyperfineDocument(Strict):
    results: list[HyperfineResult]


def test_hyperfine_has_a_result_for_each_case_with_all_samples(rows, several):
    results = HyperfineDocument.model_validate_json(json.dumps(hyperfine.document([*rows, several]))).results
    for result, row in zip(results, [*rows, several], strict=True):
        assert result.command == row.name
        assert result.times == row.samples
        assert result.exit_codes == [0] * len(result.times)
        assert result.mean == pytest.approx(statistics.fmean(result.times))
        assert result.stddev == pytest.approx(statistics.stdev(result.times))
        assert (result.user, result.system) == (None, None)
        assert result.min == min(result.times) <= result.median <= max(result.times) == result.max
        assert float(result.parameters["tokens"]) == row.case.workload.num_tokens
    assert results[-1].times == [1.0, 1.2, 1.1, 2.0, 2.2, 2.1, 1.6, 1.5, 1.7]


def test_hyperfine_has_no_deviation_of_one_sample(tmp_path):
    row = one_row(tmp_path, timing=made.timing(1.0, samples=[0.5]))
    (result,) = HyperfineDocument.model_validate(hyperfine.document([row])).results
    assert result.stddev is None
    assert result.mean == result.median == 0.5


# Bencher


class BencherMetric(Strict):
    value: FiniteFloat
    lower_value: FiniteFloat | None = None
    upper_value: FiniteFloat | None = None


class BencherDocument(RootModel[dict[Annotated[str, Field(min_length=1, max_length=1024)], dict[str, BencherMetric]]]):
    pass


def test_bencher_has_three_measures_of_one_unit_each(rows):
    document = BencherDocument.model_validate_json(json.dumps(bencher.document(rows))).root
    assert list(document) == [row.name for row in rows]
    for row in rows:
        measures, seconds = document[row.name], row.latency
        assert measures.keys() == {"latency", "memory", "tflops_exec"}
        latency = measures["latency"]
        assert (latency.value, latency.lower_value, latency.upper_value) == pytest.approx(
            (seconds.median * 1e9, seconds.low * 1e9, seconds.high * 1e9)
        )
        assert measures["memory"].value == row.row.result.memory.peak_above_inputs_bytes
        assert measures["memory"].lower_value is None
        rate = measures["tflops_exec"]
        assert rate.value == pytest.approx(row.row.executed_flop_per_s / 1e12)
        assert rate.lower_value < rate.value < rate.upper_value


def test_bencher_has_no_measure_of_what_was_not_measured(tmp_path):
    (measures,) = bencher.document([one_row(tmp_path, memory=None, work=None)]).values()
    assert list(measures) == ["latency"]


@pytest.mark.parametrize(
    "fields",
    [
        {"state": DeviceState(other_cpu_share=0.2)},
        {"state": DeviceState(throttle_ns={"power": 5})},
        {"timing": made.timing(1.0, settled=False)},
    ],
)
def test_a_row_to_be_doubted_keeps_its_name_at_bencher_and_raises_no_alert(fields, tmp_path):
    row = one_row(tmp_path, **fields)
    (name,) = bencher.document([row])
    assert name == f"{row.name}-bencher-ignore"


def test_a_name_too_long_for_bencher_is_refused(tmp_path):
    row = one_row(tmp_path, case_id="x" * 1025)
    with pytest.raises(UsageError, match="at most 1024 characters, got 1025: xxx"):
        bencher.document([row])


# github-action-benchmark


class ActionEntry(Strict):
    name: str
    value: FiniteFloat
    unit: str
    range: str | None = None
    extra: str


ActionDocument = RootModel[list[ActionEntry]]


def action_entries(entries):
    return {entry.name: entry for entry in ActionDocument.model_validate_json(json.dumps(entries)).root}


def range_of(entry):
    """The number that the action finds in a range, to convert it along with the value."""
    return float(re.fullmatch(r"± (\d.+)", entry.range)[1])


def test_the_action_gets_latency_and_memory_with_range_device_and_density(rows):
    entries = action_entries(github_action.smaller(rows))
    assert len(entries) == 2 * len(rows)
    for row in rows:
        latency, memory = entries[f"{row.name} latency"], entries[f"{row.name} peak memory above inputs"]
        seconds = row.latency
        assert (latency.unit, memory.unit) == ("ms", "MiB")
        assert latency.value == pytest.approx(seconds.median * 1e3)
        half = max(seconds.high - seconds.median, seconds.median - seconds.low) * 1e3
        assert range_of(latency) == pytest.approx(half, rel=1e-5)
        assert memory.value == row.row.result.memory.peak_above_inputs_bytes / 2**20
        assert memory.range is None
        assert "device: Made-up CPU, 2 threads\nrealised density: " in latency.extra
        assert "samples: 21 of 1 process" in latency.extra


def test_the_action_gets_what_is_better_bigger_in_a_file_of_its_own(rows):
    entries = action_entries(github_action.bigger(rows))
    speedups = {name: e for name, e in entries.items() if e.unit == "x"}
    assert {e.unit for e in entries.values()} == {"TFLOP/s exec", "x"}
    baselines = [row for row in rows if row.row.is_baseline]
    assert len(baselines) == 10
    assert len(speedups) == len(rows) - len(baselines)
    for row in baselines:
        assert f"{row.name} speed-up over fastest dense" not in entries
    for row in rows:
        if not row.row.is_baseline:
            assert speedups[f"{row.name} speed-up over fastest dense"].value == row.row.speedup.value


@pytest.mark.slow
def test_names_for_the_action_hold_no_version_so_that_its_chart_goes_on(rows, tmp_path):
    environment = made.run_line(1).environment.model_copy(update={"packages": {"torch": "9.9"}, "device_name": "B200"})
    other = made.write_run(tmp_path / "other", made.quick_results(), environment=environment)
    for layout in (github_action.smaller, github_action.bigger):
        names = [entry["name"] for entry in layout(rows)]
        assert names == [entry["name"] for entry in layout(measured_rows(read_run(other)))]
        assert len(names) == len(set(names))


def test_the_action_shows_a_doubt_beside_the_figure(tmp_path):
    row = one_row(tmp_path, state=DeviceState(other_cpu_share=0.2))
    assert "doubt: others took the processor" in github_action.smaller([row])[0]["extra"]
