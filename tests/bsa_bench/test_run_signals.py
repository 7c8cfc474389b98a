import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from run_factory import Bench, case, three_passes
from test_run_execute import is_gone

from bsa_bench.cli.gate_app import end_with
from bsa_bench.result import Status
from bsa_bench.store.reader import read_run

CASES = [case(tokens=512), *three_passes()]


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def start(bench, worker="", *, on_hang_up=signal.SIG_DFL):
    """Run CASES in another process whose worker hangs in the third one, and wait until it is there."""
    program = textwrap.dedent(f"""
        import sys
        from run_factory import Bench
        from test_run_signals import CASES
        outcome = Bench({str(bench.folder)!r}).run(CASES, {{CASES[2]: "hang"}}, case_limit_s=60.0{worker})
        print("\\n".join(outcome.messages))
        sys.exit(outcome.exit_code)
    """)
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    outside = signal.signal(signal.SIGHUP, on_hang_up)  # a child inherits it; these tests may run under nohup
    try:
        process = subprocess.Popen([sys.executable, "-c", program], env=env, stdout=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGHUP, outside)
    deadline = time.monotonic() + 30
    while CASES[2].case_id not in bench.begun:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.1)
    return process


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM"), (signal.SIGHUP, "SIGHUP")]
)
def test_an_interrupt_ends_the_worker_keeps_what_is_measured_and_says_how_to_resume(bench, number, name):
    process = start(bench)
    process.send_signal(number)
    output, _ = process.communicate(timeout=10)
    assert process.returncode == 130
    assert output.startswith(f"stopped by {name}; what was measured is stored, 2 cases are left:")
    assert output.endswith("go on with: bsa-bench run --resume\n")
    assert all(is_gone(pid) for pid in bench.pids)
    results = read_run(bench.results / "r").results
    assert [r.status for r in results] == [Status.OK] * 2 + [Status.NOT_MEASURED] * 2
    assert results[2].reason == f"{name} stopped it"
    assert results[3].reason == f"stopped by {name} before its turn"


@pytest.mark.slow
def test_a_run_killed_with_sigkill_resumes_without_repeating(bench):
    process = start(bench)
    process.kill()
    process.communicate()
    os.killpg(bench.pids[-1], signal.SIGKILL)  # the fake worker does not watch its parent; the next test's does
    path = bench.results / "r" / "results.jsonl"
    with path.open("ab") as file:
        file.write(b'{"kind":"result","sch')
    outcome = bench.run(CASES, resume=True)
    assert outcome.exit_code == 0
    assert outcome.counts == {Status.OK: 4}
    assert [bench.begun.count(c.case_id) for c in CASES] == [1, 1, 2, 1]
    assert "the last line was torn" in bench.output.read_text()
    assert [r.seq for r in read_run(path).results] == [0, 1, 2, 3]


@pytest.mark.slow
def test_a_worker_dies_with_its_scheduler(bench, monkeypatch, tmp_path):
    worker = tmp_path / "worker.py"
    worker.write_text(
        textwrap.dedent(f"""
        import os, sys, time
        from bsa_bench.run.job import EventPipe, die_with_parent, read_job
        job = read_job()
        die_with_parent()
        EventPipe(int(sys.argv[-1])).progress("verifying")
        child = os.fork()
        if child:
            for pid, case in ((os.getpid(), job.cases[0]), (child, job.cases[0])):
                with open({str(bench.log)!r}, "a") as log:
                    log.write(f"{{pid}} {CASES[2].case_id}\\n")
        time.sleep(60)
    """)
    )
    process = start(bench, f", worker_command=(sys.executable, {str(worker)!r})")
    process.kill()
    process.communicate()
    assert len(bench.pids) == 2
    assert all(is_gone(pid) for pid in bench.pids)


@pytest.mark.slow
def test_a_hang_up_that_is_ignored_as_by_nohup_ends_nothing(bench):
    process = start(bench, on_hang_up=signal.SIG_IGN)
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.7)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=10)
    assert output.startswith("stopped by SIGTERM; ")


def test_a_hang_up_ends_a_command_of_comparison_as_ctrl_c_does(capsys):
    def command():
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(5)

    outside = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup
    try:
        before = signal.getsignal(signal.SIGHUP)
        with pytest.raises(KeyboardInterrupt):
            end_with(command)
        assert signal.getsignal(signal.SIGHUP) is before
    finally:
        signal.signal(signal.SIGHUP, outside)
    assert capsys.readouterr().err == "bsa-bench: interrupted\n"
