import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import third_party
from cli_factory import TINY, command

import bsa_bench
from bsa_bench.result import Status
from bsa_bench.store import read_run

pytestmark = pytest.mark.slow


SUITE = f"""
{TINY.replace("full@sdpa-flash", "full@sdpa-math").replace("grid = [4, 8, 8]", "")}
[axes]
tokens = [256, 4_000_000]

[limit."bsa@gather"]
max_tokens = 256

[limit."full@sdpa-cudnn"]
max_tokens = 256
"""
RUN = ["run", "--suite", "./tiny.toml", "--threads", "1", "--device", "cpu", "--run-id", "r"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A real run, killed when it has its first measurement, and then resumed to its end; tests only read it.

    The folder, the results at its death, the document of what resumed it, and the progress until its death.
    """
    where = tmp_path_factory.mktemp("finished")
    (where / "tiny.toml").write_text(SUITE)
    lines = where / "results/r/results.jsonl"
    with (where / "progress").open("w") as progress:
        process = subprocess.Popen(
            [sys.executable, "-m", "bsa_bench", *RUN],
            cwd=where,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.DEVNULL,
            stderr=progress,
        )
    deadline = time.monotonic() + 120
    while not (lines.is_file() and '"status":"OK"' in lines.read_text()):
        assert time.monotonic() < deadline
        assert process.poll() is None, (where / "progress").read_text()
        time.sleep(0.05)
    process.kill()
    process.wait()
    before = read_run(where / "results/r").results
    done = command(*RUN, "--resume", "--json", cwd=where)
    assert done.returncode == 0, done.stderr
    return where, before, json.loads(done.stdout), (where / "progress").read_text()


def test_a_killed_run_is_completed_by_resume_without_repeating_what_was_measured(finished):
    where, before, document, _ = finished
    assert 0 < len(before) < 4
    after = read_run(where / document["results"])
    assert after.results[: len(before)] == before
    assert after.num_remaining == 0
    assert len({r.case_hash for r in after.results}) == len(after.results) == 4


def test_a_real_run_measures_what_can_run_and_says_why_the_rest_cannot(finished):
    where, _, document, progress = finished
    assert document["counts"] == {"OK": 2, "UNSUPPORTED": 1, "SKIPPED_OOM": 1}
    assert document["messages"] == document["remaining"] == []
    assert "full@sdpa-cudnn: cannot run here" in progress
    run = read_run(where / document["results"])
    assert run.run_lines[0].command[:4] == ["bsa-bench", "run", "--suite", "./tiny.toml"]
    assert run.run_lines[0].suite_title == "Tiny"
    report = (where / document["report"]).read_text()
    assert "bsa@gather" in report
    assert str(where) not in report
    for plot in ("latency-forward.png", "latency-forward.svg"):
        assert (where / document["report"]).with_name(plot).stat().st_size > 1000


def test_a_case_that_no_machine_can_hold_is_predicted_and_skipped(finished):
    where, _, document, _ = finished
    found = [r for r in read_run(where / document["results"]).results if r.case.engine == "sdpa-math"]
    small, big = sorted(found, key=lambda r: r.case.workload.num_tokens)
    assert small.status is Status.OK
    assert big.status is Status.SKIPPED_OOM
    assert big.memory.predicted_bytes > 1e14
    assert "predicted to need" in (where / document["report"]).read_text()


def test_a_real_run_loads_and_exports_as_one_table(finished, bench, folder):
    where, _, document, _ = finished
    frame = bsa_bench.load(where / document["results"])
    assert len(frame) == 4
    assert set(frame.implementation) == {"full@sdpa-math", "bsa@gather", "full@sdpa-cudnn"}
    import pandas as pd

    for to, read in (("csv", pd.read_csv), ("parquet", pd.read_parquet)):
        code, out, _ = bench("export", where / document["results"], "--to", to, "--out", f"out.{to}")
        assert (code, out) == (0, f"out.{to}\n")
        table = read(f"out.{to}")
        assert list(table.columns) == list(frame.columns)
        assert table["tokens"].tolist() == frame["tokens"].tolist()


def test_a_real_run_is_resumed_without_repeating_anything(finished):
    where, _, document, _ = finished
    before = read_run(where / document["results"])
    done = command(*RUN, "--resume", "--no-report", cwd=where)
    assert done.returncode == 0, done.stderr
    assert "4 of 4 cases are already done" in done.stderr
    assert "predicted to need" in done.stdout
    after = read_run(where / document["results"])
    assert after.results == before.results
    assert len(after.run_lines) == len(before.run_lines) + 1


def test_faulty_engines_of_a_third_party_are_recorded_and_the_sweep_goes_on(folder):
    # What a worker records of the other faults is `test_worker`'s; here it is that the next case has a worker again.
    names = ["wrong", "crash", "exact"]
    implementations = ",".join(f"full@{name}" for name in names)
    done = command(
        "run", "--suite", "tiny.toml", f"implementation={implementations}", "--run-id", "r", "--threads", "1",
        cwd=folder, path=third_party.install(folder / "site"),
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    found = {r.case.engine: r.status.value for r in read_run("results/r").results}
    assert found == {"wrong": "WRONG", "crash": "CRASHED", "exact": "OK"}
    report = Path("reports/r/report.md").read_text()
    assert "an illegal memory access was encountered" in report
    assert "full@wrong" in done.stdout
