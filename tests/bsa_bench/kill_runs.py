"""Kill real runs with SIGKILL at random moments, the probe's among them, and see that nothing of them is left.

    python tests/bsa_bench/kill_runs.py 100 [SEED]

An engine of another package is installed for them that starts a process in a session of its own whenever it is asked
or computes, in the probe and in workers.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from pathlib import Path

VARIABLE = "BSA_BENCH_TEST_KILLED"
MOST_S = 5.0
SUITE = """
title = "Killed"
implementations = ["full@sdpa-math", "full@daemon"]
passes = ["forward"]
[workload]
grid = [4, 8, 8]
heads = 1
head_dim = 32
[input]
kind = "gaussian"
"""
ENGINE = """
import os, subprocess
from bsa_bench.engines.dense import SDPA_MATH

def leave():
    subprocess.run(["/bin/sh", "-c", "setsid sleep 300 >/dev/null 2>&1 </dev/null &"], start_new_session=True)

class Daemon:
    name, offers, expected_ops = "daemon", frozenset({"dense"}), ()
    def version(self): return "1"
    def unsupported(self, device, dtype, head_dim, *, backward): leave()
    def untimed(self, device): return None
    def executed_flop(self, contract, state, which): return None
    def dense(self, q, k, v, *, scale, causal=False):
        leave()
        return SDPA_MATH.dense(q, k, v, scale=scale)
ENGINE = Daemon()
"""


def install(folder):
    """The suite and the package, for processes with the path that this returns."""
    (folder / "killed.toml").write_text(SUITE)
    (folder / "daemon_engine.py").write_text(textwrap.dedent(ENGINE))
    info = folder / "daemon_engine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: daemon-engine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[bsa_bench.engines]\ndaemon = daemon_engine:ENGINE\n")
    return os.pathsep.join([str(folder), *map(os.path.abspath, filter(None, sys.path))])


def left(word, pid):
    """What is left of a command: by the variable that it was started with, or as its guard; zombies have neither."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and int(folder.name) not in {os.getpid(), pid}:
            try:
                environment, command = (folder / "environ").read_bytes(), (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if f"{VARIABLE}={word}\0".encode() in environment or f"bsa-bench-guard\0{pid}-".encode() in command:
                found[int(folder.name)] = command.replace(b"\0", b" ").decode(errors="replace")[:200]
    return found


def kill_one(folder, path, word, moment_s):
    """Start a run, kill it then; returns how many processes it had, and what was left after `MOST_S`, and when none."""
    command = [
        sys.executable,
        "-m",
        "bsa_bench",
        "run",
        "--suite",
        "killed.toml",
        "--no-report",
        "--plain",
        "--device",
        "cpu",
    ]
    process = subprocess.Popen(
        [*command, "--threads", "1", "--run-id", word],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path, VARIABLE: word},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(moment_s)
    before = left(word, process.pid)
    was_running = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed = time.monotonic()
    while (there := left(word, process.pid)) and time.monotonic() - killed < MOST_S:
        time.sleep(0.02)
    seconds = time.monotonic() - killed
    for pid in there:
        os.kill(pid, signal.SIGKILL)
    what = "probe" if any("--probe" in each for each in before.values()) else "worker" if before else "neither"
    daemons = sum(each.startswith("sleep 300") for each in before.values())
    return (what if was_running else "ended"), daemons, there, seconds


def kill_many(number, seed, folder, *, most_s):
    """Kill so many; returns the phase of each, what was left, the longest until nothing was, and how many daemons."""
    rng, path = random.Random(seed), install(Path(folder))
    phases, remaining, longest, daemons = Counter(), {}, 0.0, 0
    for index in range(number):
        what, had, there, seconds = kill_one(folder, path, f"k{seed}-{index}", rng.uniform(0.1, most_s))
        phases[what] += 1
        daemons += had
        longest = max(longest, seconds)
        if there:
            remaining[index] = there
    return phases, remaining, longest, daemons


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as where:
        result = kill_many(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0, where, most_s=7.0)
    sys.stdout.write(f"{dict(result[0])}, left: {result[1]}, none after {result[2]:.2f} s, {result[3]} daemons\n")
