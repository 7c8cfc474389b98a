"""No engine that has not earned its number gets one: each is planted by an entry point and run like any other."""

import os
import subprocess
import sys
import threading
from dataclasses import replace

import planted_engines
import pytest
import torch

from bsa_bench import catalog, prepare, worker
from bsa_bench.catalog import make_case
from bsa_bench.measure.sampling import PROTOCOLS
from bsa_bench.result import PASSES, Status
from bsa_bench.run.job import Job
from bsa_bench.store import read_run
from bsa_bench.workload import InputSpec, Workload

pytestmark = pytest.mark.slow

#: (4, 4, 4) divides neither; of the second, 5 of 36 query blocks fit into the oracle's scores.
LENGTHS = {"all rows": (5, 6, 7), "a sample": (9, 13, 11)}
MAX_SCORES = 5 * 64 * 9 * 13 * 11
#: What spoils only one kind of pass; the others are right, and may be timed.
FORWARD_ONLY = {
    "wrong-without-grad", "half-precision-without-grad", "previous-output", "late", "lazy", "asynchronous",
    "output-in-its-input",
}  # fmt: skip
BACKWARD_ONLY = {
    "wrong-with-grad", "gradient-of-one-input", "gradient-of-one-head", "gradient-of-a-few-rows", "memoised-backward",
    "remembered-backward",
}  # fmt: skip


class Events:
    """Takes the place of the event pipe."""

    def __init__(self):
        self.results = []

    def progress(self, text):
        pass

    def result(self, result):
        self.results.append(result)


@pytest.fixture(autouse=True)
def process_as_it_was():
    """Let threads of engines that return too early end, and give back what is torch's for the whole process.

    A thread that chooses a backend of SDPA beside this one leaves that choice behind.
    """
    backends = torch.backends.cuda
    before = backends.flash_sdp_enabled(), backends.mem_efficient_sdp_enabled(), backends.math_sdp_enabled()
    num_threads, known = torch.get_num_threads(), set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - known:
        thread.join(timeout=10)
    backends.enable_flash_sdp(before[0])
    backends.enable_mem_efficient_sdp(before[1])
    backends.enable_math_sdp(before[2])
    torch.set_num_threads(num_threads)


@pytest.fixture
def run(monkeypatch):
    """Run one engine's cases in this process, with short samples."""
    monkeypatch.setattr(
        catalog, "entry_points", lambda group: planted_engines.entry_points(group, patch=monkeypatch.setattr)
    )
    monkeypatch.setattr(worker, "set_up_cpu", lambda _: 1)
    short = {name: replace(p, warmup_cap_s=0, seconds=0, min_samples=5, max_samples=5) for name, p in PROTOCOLS.items()}
    monkeypatch.setattr("bsa_bench.measure.sampling.PROTOCOLS", short)
    monkeypatch.setitem(prepare.VERIFIED_SCORES, "cpu", MAX_SCORES)

    def run(name, *, grid, profile, passes, seed=0):
        workload = Workload(
            grid=grid, heads=3, head_dim=16, dtype="float32", input=InputSpec(kind="gaussian", seed=seed)
        )
        cases = [make_case(suite="s", workload=workload, implementation=f"full@{name}", passes=p) for p in passes]
        events = Events()
        job = Job(
            run_id="r", env_hash="e", cases=cases, first_seq=0, profile=profile, device="cpu", threads=1,
            memory_limit_bytes=1 << 40,
        )  # fmt: skip
        worker._GroupRun(job, events).run()
        return events.results

    return run


def spoiled_passes(name):
    """The passes whose time the fault would earn."""
    if name in FORWARD_ONLY:
        return ["forward"]
    if name == "when-timed":  # the timed part of the pass `backward` is torch's own, and honest
        return ["forward", "forward+backward"]
    return ["backward", "forward+backward"] if name in BACKWARD_ONLY else list(PASSES)


@pytest.mark.parametrize("profile", ["quick", "report"])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", planted_engines.FAULTS)
def test_a_planted_engine_gets_no_number(run, name, length, profile):
    for passes in spoiled_passes(name):
        (result,) = run(name, grid=LENGTHS[length], profile=profile, passes=[passes])
        assert result.status is not Status.OK, passes
        assert result.timing is None


@pytest.mark.parametrize("profile", ["quick", "report"])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", planted_engines.HONEST)
def test_an_honest_engine_gets_its_number_in_every_pass(run, name, length, profile):
    for result in run(name, grid=LENGTHS[length], profile=profile, passes=PASSES):
        assert result.status is Status.OK, result.reason


def test_installed_engines_get_no_number_from_real_workers(tmp_path):
    suite = tmp_path / "planted.toml"
    names = ["honest", "lazy", "late", "patched-clock", "nan-in-last-rows"]
    suite.write_text(f"""
title = "Planted"
implementations = {[f"full@{name}" for name in names]}
passes = ["forward"]
[workload]
grid = [9, 13, 11]
heads = 3
head_dim = 16
[input]
kind = "gaussian"
""")
    path = [*planted_engines.install(tmp_path / "site"), *sys.path]
    command = [sys.executable, "-m", "bsa_bench", "run", "--suite", str(suite), "--run-id", "r", "--no-report"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(path)), "BSA_BENCH_RESULTS": str(tmp_path)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    statuses = {result.case.engine: result.status for result in read_run(tmp_path / "r").results}
    assert statuses == {
        "honest": Status.OK,
        "lazy": Status.WRONG,
        "late": Status.WRONG,
        "patched-clock": Status.IMPLAUSIBLE,
        "nan-in-last-rows": Status.WRONG,
    }
