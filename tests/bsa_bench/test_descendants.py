"""No process of ours outlives the one that started it, in whatever session it is."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import kill_runs
import pytest
from run_factory import Bench, case
from test_run_execute import is_gone

from bsa_bench import descendants
from bsa_bench.child_process import child_environment
from bsa_bench.descendants import MARK, kill_marked
from bsa_bench.result import Status

#: Forks twice, each time into a session of its own, and writes the number of the last process, which sleeps.
DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.setsid()
        open(sys.argv[1], "a").write(f"{os.getpid()}\\n")
        time.sleep(120)
    os._exit(0)
os.wait()
"""


def marked(entry):
    """Processes with this in their environment, zombies aside."""
    return [pid for pid in descendants._processes() if entry.encode() in b"\0".join(descendants._environment_of(pid))]


def wait_for(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_daemon_in_a_session_of_its_own_is_killed_by_its_mark(tmp_path):
    environment = child_environment()
    subprocess.run([sys.executable, "-c", DAEMON, str(tmp_path / "pid")], env=environment, check=True)
    wait_for((tmp_path / "pid").exists)
    entry = f"{MARK}={environment[MARK]}"
    assert len(marked(entry)) == 1
    assert kill_marked(environment) == 1
    wait_for(lambda: not marked(entry))
    assert kill_marked(environment) == 0
    assert kill_marked({}) == 0


def test_each_process_has_a_mark_of_its_own_and_a_child_hands_its_own_on(monkeypatch):
    first, second = child_environment(), child_environment()
    assert first[MARK] != second[MARK]
    assert first[MARK].partition(".")[0] == second[MARK].partition(".")[0]
    monkeypatch.setattr(descendants._State, "is_child", True)
    monkeypatch.setenv(MARK, "theirs.3")
    assert child_environment()[MARK] == "theirs.3"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "ends", "killed by SIGTERM"])
def test_nothing_is_left_of_a_process_however_it_ends(tmp_path, how):
    program = textwrap.dedent(f"""
        import subprocess, sys, time
        from bsa_bench.child_process import child_environment
        environment = child_environment()
        print(environment[{MARK!r}], flush=True)
        for _ in range(3):
            subprocess.run([sys.executable, "-S", "-c", {DAEMON!r}, {str(tmp_path / "pids")!r}], env=environment)
        subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(120)"], env=environment)
        print("ready", flush=True)
        time.sleep({0.0 if how == "ends" else 120})
    """)
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", program], env=env, stdout=subprocess.PIPE, text=True) as process:
        mark = process.stdout.readline().strip().partition(".")[0]
        assert process.stdout.readline() == "ready\n"
        if how != "ends":
            assert len(marked(f"{MARK}={mark}.")) >= 2
            process.send_signal(signal.SIGKILL if how == "killed" else signal.SIGTERM)
        process.wait()
    wait_for(lambda: not marked(f"{MARK}={mark}."), 5)
    wait_for(lambda: not guards(mark), 5)


def guards(mark):
    """The guards of a process."""
    found = []
    for pid in descendants._processes():
        try:
            found += [pid] * (mark.encode() in Path(f"/proc/{pid}/cmdline").read_bytes())
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_what_a_worker_leaves_in_another_session_is_gone_before_the_next_case(tmp_path):
    """Where it ends by itself, and where a time limit ends it."""
    bench = Bench(tmp_path)
    cases = [case(tokens=256), case(tokens=512), case(tokens=1024)]
    program = f"daemon:{tmp_path / 'pids'}"
    outcome = bench.run(cases, {cases[0]: program, cases[1]: [f"{program}:hang"]}, case_limit_s=1.5)
    assert outcome.counts == {Status.OK: 2, Status.TIMEOUT: 1}
    pids = list(map(int, (tmp_path / "pids").read_text().split()))
    assert len(pids) == 2
    assert not set(pids) & set(marked(MARK))
    assert all(map(is_gone, pids))


@pytest.mark.slow
def test_a_machine_without_a_shell_is_measured_too(tmp_path, monkeypatch):
    monkeypatch.setattr(descendants._State, "guard", None)
    real = subprocess.Popen

    def refuse(command, **more):
        if command[0] == "/bin/sh":
            raise FileNotFoundError(command[0])
        return real(command, **more)

    monkeypatch.setattr(descendants.subprocess, "Popen", refuse)
    assert Bench(tmp_path).run([case()]).counts == {Status.OK: 1}


@pytest.mark.slow
def test_a_real_run_killed_while_it_asks_the_machine_leaves_nothing(tmp_path):
    """Two of those that `kill_runs.py` kills; it says how to kill more."""
    phases, remaining, longest, _ = kill_runs.kill_many(2, 3, tmp_path, most_s=2.5)
    assert remaining == {}
    assert longest < kill_runs.MOST_S
    assert phases.total() == 2
    assert "ended" not in phases
