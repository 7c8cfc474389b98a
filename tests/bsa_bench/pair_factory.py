"""Cases, sides and a bench of scripted pair workers."""

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from run_factory import case

from bsa_bench.gate.lockstep import LockstepBench, LockstepSettings, PairSide

FAKE_PAIR_WORKER = Path(__file__).with_name("fake_pair_worker.py")


def all_gone(leaders, *, limit_s=5.0):
    """Whether no process of these groups is left, their leaders' children included; else those that are."""
    deadline = time.monotonic() + limit_s
    while alive := _members(set(leaders)):
        if time.monotonic() > deadline:
            return alive
        time.sleep(0.02)
    return True


def _members(groups):
    alive = []
    for name in os.listdir("/proc") if groups else []:  # noqa: PTH208
        try:
            fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split() if name.isdigit() else []
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields and int(fields[2]) in groups and fields[0] != "Z":  # one that nobody has reaped yet has ended
            alive.append(int(name))
    return alive


class Workers:
    """A folder with a script for fake workers, and what they were asked.

    Args:
        script: as `fake_pair_worker` reads it.
    """

    def __init__(self, folder, **script):
        self.folder = Path(folder)
        self.log = self.folder / "asked.log"
        self.script = self.folder / "script.json"
        self.script.write_text(json.dumps({"log": str(self.log), **script}))
        self.command = (sys.executable, "-S", "-E", str(FAKE_PAIR_WORKER), str(self.script))

    def side(self, role, **fields):
        """A side whose workers have a role of the script."""
        defaults = {"label": role, "command": self.command, "variables": {"FAKE_ROLE": role}}
        return PairSide(**(defaults | fields))

    def bench(self, cases, *, base=None, head=None, seed=0, tell=lambda _: None, out_of_time=lambda: False, **settings):
        """A bench of this script's sides; `settings` are those of `LockstepSettings`."""
        defaults = {"device": "cpu", "threads": 1, "logs": self.folder / "logs", "turns_s": 0.2, "answer_s": 20.0}
        return LockstepBench(
            cases,
            base=base or self.side("base"),
            head=head or self.side("head"),
            settings=LockstepSettings(**(defaults | settings)),
            seed=seed,
            out_of_time=out_of_time,
            tell=tell,
        )

    @property
    def asked(self):
        """What the workers were asked, in order: (pid, role, moment, case, whether to verify)."""
        if not self.log.exists():
            return []
        lines = [line.split(" ") for line in self.log.read_text().splitlines()]
        return [(int(each[0]), each[1], " ".join(each[2:-2]), each[-2], each[-1]) for each in lines]

    def moments(self, role, name=None):
        """The moments of a role, of one case if it is named."""
        return [each[2] for each in self.asked if each[1] == role and name in {None, each[3]}]

    @property
    def pids(self):
        """All workers, in the order in which they were asked first."""
        return list(dict.fromkeys(each[0] for each in self.asked))

    def wait_until_asked(self, moment, process, *, limit_s=60.0):
        """Wait until a worker of another process was asked for something."""
        deadline = time.monotonic() + limit_s
        while moment not in [each[2] for each in self.asked]:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, self.asked
            time.sleep(0.02)


def some_cases(*tokens):
    """Cases by the names that the fake worker's script uses, their numbers of tokens."""
    return {str(number): case(tokens=number) for number in tokens}


def kernels(folder, speed, **files):
    """A folder of kernels with a factor of speed; returns what stands on the module path."""
    package = Path(folder) / "bsa_kernels"
    package.mkdir(parents=True, exist_ok=True)
    (package / "SPEED").write_text(f"{speed}\n")
    for name, text in files.items():
        (package / f"{name}.py").write_text(text)
    return Path(folder)


def with_kernels(side, folder):
    """A side whose kernels are in a folder."""
    return replace(side, first_paths=(Path(folder),))


def open_files():
    """The descriptors that this process has open."""
    return set(os.listdir("/proc/self/fd"))  # noqa: PTH208
