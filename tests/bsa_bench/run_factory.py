"""Cases, environments and scripted workers for tests of the scheduler; nothing here computes attention."""

import json
import sys
from pathlib import Path

from bsa_bench.catalog import make_case
from bsa_bench.methods.bsa import BsaOptions
from bsa_bench.result import PASSES, Environment, Memory, Result, Status, Timing
from bsa_bench.run import DeviceModel, RunSettings, execute
from bsa_bench.run.progress import PlainProgress
from bsa_bench.store.writer import RunWriter
from bsa_bench.workload import Workload

FAKE_WORKER = Path(__file__).with_name("fake_worker.py")
# Fast and quick to start, so that predictions stay far below a test's budget.
DEVICE = DeviceModel("cpu", flop_per_s=1e12, bytes_per_s=1e11, memory_bytes=8 << 30, start_s=0.0)


def case(implementation="full@sdpa-flash", tokens=256, passes="forward", **fields):
    options = BsaOptions(**fields) if implementation.startswith("bsa") else fields
    workload = Workload(tokens=tokens, heads=1, head_dim=32)
    return make_case(suite="made-up", workload=workload, implementation=implementation, passes=passes, options=options)


def three_passes(implementation="full@sdpa-flash", tokens=256):
    return [case(implementation, tokens, passes) for passes in PASSES]


def environment(digest="env-a", **packages):
    return Environment(
        hash=digest,
        device_kind="cpu",
        device_name="a CPU",
        device_details={},
        cpu={},
        os="Linux",
        python="3.11",
        packages={"torch": "2.13", **packages},
        variables={},
        git_commit=None,
        git_dirty=None,
    )


def worker_result(one, *, status=Status.OK, env="env-a"):
    timing = Timing(
        timer="host", cache="warm", first_call_s=0.1, warmup_s=0.3, settled=True, samples=[0.05, 0.052, 0.06]
    )
    return Result(
        run_id="r",
        seq=999,
        utc="2026-01-01T00:00:00+00:00",
        case=one,
        case_id=one.case_id,
        case_hash=one.case_hash,
        env_hash=env,
        status=status,
        reason=None if status is Status.OK else "scripted",
        timing=timing if status is Status.OK else None,
        memory=Memory(inputs_bytes=1, how="scripted"),
    )


class Bench:
    """A results folder, a script for the fake worker, and what came out."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.results = self.folder / "results"
        self.log = self.folder / "begun.log"
        self.output = self.folder / "progress.txt"

    def settings(self, cases, actions, **fields):
        """`actions` maps a case to what the worker does in it; a missing one is "ok"; a Status is the result's.

        A list is of what it does the first time, the second, and so on; the last goes on.
        """
        steps = []
        for one in cases:
            turns = actions.get(one, "ok")
            turns = turns if isinstance(turns, list) else [turns]
            results = [worker_result(one, status=a if isinstance(a, Status) else Status.OK) for a in turns]
            steps.append(
                {
                    "case": one.model_dump(mode="json"),
                    "actions": list(map(str, turns)),
                    "results": [result.model_dump(mode="json") for result in results],
                }
            )
        script = self.folder / "script.json"
        script.write_text(json.dumps({"log": str(self.log), "cases": steps}))
        command = (sys.executable, "-S", str(FAKE_WORKER), str(script))
        defaults = {"suite": "made-up", "device": DEVICE, "case_limit_s": 20.0, "command": ("bsa-bench", "run")}
        return RunSettings(**(defaults | {"worker_command": command} | fields))

    def run(self, cases, actions=None, *, resume=False, unavailable=lambda _: None, env=None, **fields):
        settings = self.settings(cases, actions or {}, **fields)
        open_run = RunWriter.resume if resume else RunWriter.create
        with open_run(self.results, "r") as writer, self.output.open("w") as stream:
            return execute(
                cases,
                settings,
                env or environment(),
                unavailable=unavailable,
                writer=writer,
                progress=PlainProgress(stream),
            )

    @property
    def begun(self):
        """The case ids that a worker began, in order, with repetitions."""
        return [line.split()[1] for line in self.log.read_text().splitlines()] if self.log.exists() else []

    @property
    def pids(self):
        return [int(line.split()[0]) for line in self.log.read_text().splitlines()] if self.log.exists() else []
