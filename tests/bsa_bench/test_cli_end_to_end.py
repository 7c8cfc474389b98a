import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import third_party
import torch
from cli_factory import TINY, command

import bsa_bench
from bsa_bench.result import Status
from bsa_bench.store import read_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A real run from start to end, once; tests only read it."""
    where = tmp_path_factory.mktemp("finished")
    (where / "tiny.toml").write_text(TINY)
    done = command("run", "--suite", "./tiny.toml", "--threads", "1", "--json", cwd=where)
    assert done.returncode == 0, done.stderr
    return where, json.loads(done.stdout), done.stderr


def test_a_real_run_measures_what_can_run_and_says_why_the_rest_cannot(finished):
    where, document, progress = finished
    assert document["counts"] == {"OK": 2, "UNSUPPORTED": 1} or torch.cuda.is_available()
    assert document["messages"] == document["remaining"] == []
    assert "full@sdpa-cudnn: cannot run here" in progress or torch.cuda.is_available()
    run = read_run(where / document["results"])
    assert run.run_lines[0].command[:4] == ["bsa-bench", "run", "--suite", "./tiny.toml"]
    assert run.run_lines[0].suite_title == "Tiny"
    report = (where / document["report"]).read_text()
    assert "bsa@gather" in report
    assert str(where) not in report
    for plot in ("latency-forward.png", "latency-forward.svg"):
        assert (where / document["report"]).with_name(plot).stat().st_size > 1000


def test_a_real_run_loads_and_exports_as_one_table(finished, bench, folder):
    where, document, _ = finished
    frame = bsa_bench.load(where / document["results"])
    assert len(frame) == 3
    assert set(frame.implementation) == {"full@sdpa-flash", "bsa@gather", "full@sdpa-cudnn"}
    import pandas as pd

    for to, read in (("csv", pd.read_csv), ("parquet", pd.read_parquet)):
        code, out, _ = bench("export", where / document["results"], "--to", to, "--out", f"out.{to}")
        assert (code, out) == (0, f"out.{to}\n")
        table = read(f"out.{to}")
        assert list(table.columns) == list(frame.columns)
        assert table["tokens"].tolist() == frame["tokens"].tolist()


def test_a_real_run_is_resumed_without_repeating_anything(finished):
    where, document, _ = finished
    before = read_run(where / document["results"])
    done = command("run", "--suite", "./tiny.toml", "--threads", "1", "--resume", "--no-report", cwd=where)
    assert done.returncode == 0, done.stderr
    assert "3 of 3 cases are already done" in done.stderr
    after = read_run(where / document["results"])
    assert after.results == before.results
    assert len(after.run_lines) == len(before.run_lines) + 1


def test_a_killed_run_is_completed_by_resume_without_repeating_what_was_measured(folder):
    arguments = ["run", "--suite", "./tiny.toml", "--threads", "1", "--run-id", "r", "--no-report"]
    lines = Path("results/r/results.jsonl")
    process = subprocess.Popen([sys.executable, "-m", "bsa_bench", *arguments], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (lines.is_file() and '"status":"OK"' in lines.read_text()):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = read_run("results/r").results
    done = command(*arguments, "--resume", cwd=folder)
    assert done.returncode == 0, done.stderr
    after = read_run("results/r")
    assert after.results[: len(before)] == before
    assert after.num_remaining == 0
    hashes = [r.case_hash for r in after.results]
    assert len(set(hashes)) == len(hashes) == 3


def test_faulty_engines_of_a_third_party_are_recorded_and_the_sweep_goes_on(folder):
    names = ["wrong", "crash", "hungry", "fallback", "exact"]
    implementations = ",".join(f"full@{name}" for name in names)
    done = command(
        "run", "--suite", "tiny.toml", f"implementation={implementations}", "--run-id", "r", "--threads", "1",
        cwd=folder, path=third_party.install(folder / "site"),
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    found = {r.case.engine: r.status.value for r in read_run("results/r").results}
    assert found == {"wrong": "WRONG", "crash": "CRASHED", "hungry": "OOM", "fallback": "FELL_BACK", "exact": "OK"}
    report = Path("reports/r/report.md").read_text()
    assert "an illegal memory access was encountered" in report
    assert "full@wrong" in done.stdout


def test_a_case_that_no_machine_can_hold_is_predicted_and_skipped(folder):
    done = command(
        "run", "--suite", "tiny.toml", "implementation=full@sdpa-math", "tokens=256,4000000", "--run-id", "r",
        "--threads", "1", "--device", "cpu", "--no-report", cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    small, big = sorted(read_run("results/r").results, key=lambda r: r.case.workload.num_tokens)
    assert small.status is Status.OK
    assert big.status is Status.SKIPPED_OOM
    assert big.memory.predicted_bytes > 1e14
    assert "predicted to need" in done.stdout
