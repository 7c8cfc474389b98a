"""A scripted machine for tests of the pytest plugin, and pytest inside of pytest that runs on it."""

import json
import sys
from functools import partial
from pathlib import Path

# What pytest in this process loads first is unloaded again at its end, which these do not survive.
import numpy  # noqa: F401, ICN001
import scipy.special
import scipy.stats  # noqa: F401
from run_factory import FAKE_WORKER, environment, worker_result

from bsa_bench.pytest_support import not_slower, session, timed_case  # noqa: F401
from bsa_bench.pytest_support.declare import declare
from bsa_bench.result import Correctness, DeviceState, ErrorFigures, Status
from bsa_bench.run import RunSettings
from bsa_bench.run.probe import Probe, question_of

KEYS = {"grid": (4, 8, 8), "heads": 1, "head_dim": 32, "kind": "gaussian"}
SHAPE = 'grid=(4, 8, 8), heads=1, head_dim=32, kind="gaussian"'
"""A small workload, as a value and as a test would write it."""


class Machine:
    """Says what cases come to here, and runs tests of `bsa_case`.

    Args:
        pytester: pytest's fixture.
        monkeypatch: pytest's fixture.
    """

    def __init__(self, pytester, monkeypatch):
        self.pytester = pytester
        self.folder = Path(pytester.path)
        self.log = self.folder / "begun.log"
        self.script = self.folder / "script.json"
        self.steps, self.reasons, self.questions = [], {}, []
        command = (sys.executable, "-S", str(FAKE_WORKER), str(self.script))
        monkeypatch.setattr(session, "RunSettings", partial(RunSettings, worker_command=command))
        monkeypatch.setattr(session, "probe", self.probe)
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)

    def probe(self, questions, *, device, threads):
        asked = set(questions["cpu"])
        self.questions.append(asked)
        here = environment().model_copy(update={"cpu": {"threads": 1}})
        return Probe(here, {question: self.reasons.get(question[0]) for question in asked})

    def lacks(self, implementation, reason):
        """An implementation cannot run here."""
        self.reasons[implementation] = reason

    def has(
        self, implementation, *, call_s=(0.05,), status=Status.OK, action=None, other_cpu_share=0.0, keys=KEYS, **more
    ):
        """A case that comes to this: its samples are around `call_s` of each process; returns the case."""
        one = declare(implementation, keys | more, device_kind="cpu").case
        assert question_of(one)[0] == implementation
        is_wrong = status is Status.WRONG
        figures = ErrorFigures(max_abs=0.1, relative_l2=0.1 if is_wrong else 1e-9, cosine=1.0)
        checks = Correctness(
            oracle="scripted", checked={"output": figures}, budget={"output": 1e-6}, rows=1, passed=not is_wrong
        )
        results = []
        for median_s in call_s:
            result = worker_result(one, status=status)
            update = {"correctness": checks, "state": DeviceState(other_cpu_share=other_cpu_share)}
            if result.timing:
                samples = [median_s * factor for factor in (0.99, 1.0, 1.01)]
                update["timing"] = result.timing.model_copy(update={"samples": samples})
            results.append(result.model_copy(update=update).model_dump(mode="json"))
        actions = [action or str(status)] * len(results)
        self.steps.append({"case": one.model_dump(mode="json"), "actions": actions, "results": results})
        return one

    def run(self, *tests, options=("--bsa-processes", "3")):
        """Run test functions, as text, by pytest in this process."""
        self.script.write_text(json.dumps({"log": str(self.log), "cases": self.steps}))
        self.pytester.makepyfile("\n\n".join(tests))
        return self.pytester.runpytest_inprocess(
            "-p", "bsa_bench.pytest_plugin", "-p", "no:cacheprovider", "-rs", *options
        )

    @property
    def begun(self):
        """The implementations that a worker began, in order, with repetitions."""
        if not self.log.exists():
            return []
        return [line.split()[1].partition("/")[0] for line in self.log.read_text().splitlines()]
