"""The results folder of asv, read by asv itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import report_factory as made

from bsa_bench.errors import StoreError, UsageError
from bsa_bench.exports import asv, export_run
from bsa_bench.exports.rows import measured_rows
from bsa_bench.store import read_run

COMMITS = ("a" * 40, "b" * 40)
MACHINE = "made-up-cpu-2-threads-2-threads"


def environment(commit=COMMITS[0], **fields):
    return made.run_line(1).environment.model_copy(
        update={"git_commit": commit, "cpu": {"model": "Made-up CPU", "threads": 2, "usable_cores": 2}, **fields}
    )


def run_of(folder, results, **fields):
    return made.write_run(folder, made.renumber(results), environment=environment(**fields))


def export(tmp_path, name, results, **fields):
    return export_run(run_of(tmp_path / name, results, **fields), to="asv", out=tmp_path / "results").target


def results_of(target, commit=COMMITS[0]):
    document = json.loads((target / MACHINE / f"{commit[:8]}-bsa-bench-eeeeeeeeeeee.json").read_text())
    assert document["version"] == 2
    return {name: dict(zip(document["result_columns"], row, strict=True)) for name, row in document["results"].items()}


def measured(tokens, **fields):
    return made.measured(made.case("bsa@gather", tokens), **fields)


def name_of(*lengths):
    return [repr(made.case(tokens=tokens).workload.slugs[0]) for tokens in lengths]


def asv_says(*arguments, cwd):
    done = subprocess.run(
        [sys.executable, "-m", "asv", *arguments], cwd=cwd, capture_output=True, text=True, check=False, timeout=120,
        env=os.environ,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def project(tmp_path):
    """A repository of two commits whose asv keeps its results in `results`; and the commits."""
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run([*git, "init", "-q", "-b", "main"], cwd=tmp_path, check=True)
    for word in ("one", "two"):
        subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", word], cwd=tmp_path, check=True)
    log = subprocess.run([*git, "log", "--format=%H"], cwd=tmp_path, check=True, capture_output=True, text=True)
    config = {"version": 1, "project": "p", "repo": ".", "branches": ["main"], "results_dir": "results"}
    (tmp_path / "asv.conf.json").write_text(json.dumps({**config, "html_dir": "html"}))
    return tmp_path, log.stdout.split()[::-1]


@pytest.mark.slow
def test_asv_shows_compares_and_publishes_two_exports(project):
    folder, (before, after) = project
    export(folder, "one", [measured(1024, median=0.25), measured(2048, median=0.5)], commit=before)
    export(folder, "two", [measured(1024, median=0.125), measured(2048, median=1.0)], commit=after)
    shown = asv_says("show", before, cwd=folder)
    assert "forward.bsa@gather.2x64-float32.video:testclip.d0.1-k0.5" in shown
    assert "8x8x16" in shown
    assert "250" in shown
    lines = asv_says("compare", before, after, cwd=folder).splitlines()
    (faster,) = [line for line in lines if name_of(1024)[0] in line]
    (slower,) = [line for line in lines if name_of(2048)[0] in line]
    assert faster.split("|")[1].strip() == "-"
    assert slower.split("|")[1].strip() == "+"
    assert [line.split("|")[4].strip() for line in (faster, slower)] == ["0.5", "2"]
    asv_says("publish", cwd=folder)
    (graph,) = (folder / "html" / "graphs" / "summary").glob("forward.bsa@gather*.json")
    assert len(json.loads(graph.read_text())) == 2


def test_lengths_are_the_parameter_and_the_rest_is_the_name(tmp_path):
    lengths = (1024, 2048, 4096)
    target = export(tmp_path, "r", [measured(tokens) for tokens in lengths] + [made.measured(made.case("full@flex"))])
    benchmarks = json.loads((target / "benchmarks.json").read_text())
    assert benchmarks.pop("version") == 2
    assert set(benchmarks) == {
        "forward.bsa@gather.2x64-float32.video:testclip.d0.1-k0.5",
        "forward.full@flex.2x64-float32.video:testclip",
    }
    sparse = benchmarks["forward.bsa@gather.2x64-float32.video:testclip.d0.1-k0.5"]
    assert (sparse["params"], sparse["param_names"]) == ([name_of(*lengths)], ["length"])
    found = results_of(target)[sparse["name"]]
    assert found["params"] == sparse["params"]
    assert found["version"] == sparse["version"]
    assert [len(cell) for cell in found["samples"]] == [21, 21, 21]
    assert all(
        a < r < b for a, r, b in zip(found["stats_ci_99_a"], found["result"], found["stats_ci_99_b"], strict=True)
    )


def test_a_longer_suite_leaves_the_version_alone_and_another_setting_does_not(tmp_path):
    short, long = measured(1024), measured(2048)
    other = made.measured(made.case("bsa@gather", 1024, heads=3))
    rows = measured_rows(read_run(run_of(tmp_path / "r", [short, long, other])))
    versions = [asv._version(row) for row in rows]
    assert versions[0] == versions[1] != versions[2]


def test_a_second_run_is_added_to_the_folder_cell_by_cell(tmp_path):
    export(tmp_path, "one", [measured(1024, median=1.0), measured(2048, median=2.0)])
    target = export(tmp_path, "two", [measured(2048, median=5.0), measured(4096, median=4.0)])
    (found,) = results_of(target).values()
    assert found["params"] == [name_of(1024, 2048, 4096)]
    assert found["result"] == pytest.approx([1.0, 5.0, 4.0])
    (described,) = [b for b in json.loads((target / "benchmarks.json").read_text()).values() if isinstance(b, dict)]
    assert described["params"] == [name_of(1024, 2048, 4096)]


def test_what_another_version_measured_is_replaced_and_not_mixed_in(tmp_path, monkeypatch):
    export(tmp_path, "one", [measured(1024, median=1.0), measured(2048, median=2.0)])
    monkeypatch.setattr(asv, "IDENTITY_VERSION", 99)
    target = export(tmp_path, "two", [measured(2048, median=5.0)])
    (found,) = results_of(target).values()
    assert (found["params"], found["result"]) == ([name_of(2048)], [pytest.approx(5.0)])


def test_another_commit_is_another_file_and_other_machines_are_other_folders(tmp_path):
    export(tmp_path, "one", [measured(1024)])
    export(tmp_path, "two", [measured(1024)], commit=COMMITS[1])
    target = export(tmp_path, "gpu", [measured(1024)], device_kind="cuda", device_name="NVIDIA H200")
    files = {path.relative_to(target).as_posix() for path in target.rglob("*.json")}
    assert files == {
        "benchmarks.json",
        f"{MACHINE}/machine.json",
        f"{MACHINE}/aaaaaaaa-bsa-bench-eeeeeeeeeeee.json",
        f"{MACHINE}/bbbbbbbb-bsa-bench-eeeeeeeeeeee.json",
        "nvidia-h200/machine.json",
        "nvidia-h200/aaaaaaaa-bsa-bench-eeeeeeeeeeee.json",
    }
    assert json.loads((target / "nvidia-h200/machine.json").read_text())["machine"] == "nvidia-h200"


def test_too_few_samples_for_99_percent_have_no_statistics_rather_than_a_narrower_interval(tmp_path):
    few = made.timing(1.0, samples=[1.0, 1.1, 1.2, 1.3, 1.4])
    target = export(tmp_path, "r", [measured(1024, timing=few), measured(2048)])
    (found,) = results_of(target).values()
    assert found["samples"][0] == [1.0, 1.1, 1.2, 1.3, 1.4]
    for column in asv.COLUMNS:
        if column.startswith("stats_"):
            assert found[column][0] is None
            assert found[column][1] is not None


def test_of_several_processes_the_medians_are_the_samples(tmp_path):
    def cell(name, processes):
        results = [
            measured(1024, process_index=i, timing=made.timing(1.0, samples=own)) for i, own in enumerate(processes)
        ]
        (row,) = measured_rows(read_run(run_of(tmp_path / name, results)))
        return asv._cell(row)

    few = cell("few", [[1.0, 1.2, 1.1], [2.0, 2.2, 2.1], [1.6, 1.5, 1.7]])
    assert few == {"result": 1.6, "samples": [1.1, 2.1, 1.6]}
    many = cell("many", [[k + 0.1, k + 0.2, k + 0.3] for k in range(1, 13)])
    assert len(many["samples"]) == many["stats_repeat"] == 12
    assert many["stats_ci_99_a"] < many["result"] < many["stats_ci_99_b"]


def test_a_run_without_a_commit_cannot_be_filed(tmp_path):
    with pytest.raises(UsageError, match="asv: files results by commit, and this run was made by an installed"):
        export(tmp_path, "r", [measured(1024)], commit=None)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("benchmarks.json", "{", "is not JSON"),
        ("benchmarks.json", '{"version": 1}', "expected an asv file of version 2"),
        (f"{MACHINE}/aaaaaaaa-bsa-bench-eeeeeeeeeeee.json", '{"version": 2, "result_columns": ["result"]}', "was not"),
    ],
)
def test_a_folder_that_is_something_else_is_left_alone(file, text, message, tmp_path):
    path = tmp_path / "results" / file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(StoreError, match=message):
        export(tmp_path, "r", [measured(1024)])
    assert path.read_text() == text
    assert [p for p in (tmp_path / "results").rglob("*.json") if p != path] == []
