import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from gate_result_factory import pairs
from git_factory import Repository
from pair_factory import Workers, some_cases

from bsa_bench.cli.bisect_command import run_bisect_step
from bsa_bench.errors import BenchError, UsageError
from bsa_bench.gate.bisect import ABORT, BAD, GOOD, SKIP, State, find_slower_revision, judge_here
from bsa_bench.gate.verdict import Check, Verdict

CASE = some_cases(64)["64"]
CODE = "def attend(x):\n    return x\n"


@pytest.fixture
def workers(tmp_path):
    return Workers(tmp_path, call_s=0.3, noise=0.003)  # so long a call that a pair takes five turns


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository to stand in; whatever is done, nothing is left in it, nor in the folder of temporary files."""
    made = Repository(tmp_path / "repository")
    monkeypatch.chdir(made.folder)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "tmp").mkdir()
    yield made
    assert made.leftovers == []
    assert made.git("symbolic-ref", "HEAD") == "refs/heads/main"
    assert list((tmp_path / "tmp").iterdir()) == []


def find(workers, good, bad="HEAD", **fields):
    about = {"device": "cpu", "threads": 1, "limit": 0.05, "worker_command": workers.command}
    return find_slower_revision(CASE, good=good, bad=bad, **(about | fields))


def known_to_be_slower(patch):
    """Leave out the measurement of the bad revision; those of the steps are in processes of their own."""
    check = Check(tier=2, name=CASE.case_id, verdict=Verdict.SLOWER, pairs=pairs(2.0))
    patch.setattr("bsa_bench.gate.bisect._measure", lambda *_: check)


@pytest.mark.slow
def test_the_first_slow_revision_is_found_and_no_revision_is_measured_twice(workers, repository):
    good = repository.commit("start", SPEED="1", a__py=CODE)
    repository.commit("a comment", a__py=f"# New.\n{CODE}")
    fast = repository.commit("other code", a__py=CODE.replace("x", "y"))
    slow = repository.commit("a better kernel", SPEED="1.3")
    repository.commit("a docstring", a__py=f'"""Kernels."""\n{CODE.replace("x", "y")}')
    repository.commit("read me")
    told = []
    found = find(workers, good[:9], tell=told.append)
    assert (found.commit, found.subject) == (slow, "a better kernel")
    assert found.candidates == ()
    assert found.ratio == pytest.approx(1.3, abs=0.02)
    assert told[0] == f"measuring HEAD against {good[:9]}"
    assert told[-1] == f"HEAD is 1.30x as slow as {good[:9]}; bisecting"
    steps = {step.commit: step for step in found.steps}
    assert steps[slow].judgement == "bad"
    assert (steps[slow].ratio, steps[slow].reason) == (None, "its sources are those of the bad one")
    assert steps[fast].judgement == "good"
    assert steps[fast].ratio == pytest.approx(1, abs=0.02)
    assert len(steps) == len(found.steps) <= 3


@pytest.mark.slow
def test_a_revision_without_kernels_is_skipped_and_the_candidates_are_told(workers, repository, monkeypatch):
    known_to_be_slower(monkeypatch)
    repository.commit("start", SPEED="1")
    gone = repository.commit("kernels removed", SPEED=None)
    slow = repository.commit("kernels again", SPEED="2")
    found = find(workers, "HEAD~2", "git:HEAD")
    assert found.commit is found.subject is None
    assert set(found.candidates) == {gone, slow}
    (step,) = found.steps
    assert (step.commit, step.judgement, step.sources) == (gone, "skipped", None)
    assert step.reason == "it has no kernels/bsa_kernels"


@pytest.mark.slow
def test_a_revision_that_is_not_slower_is_nothing_to_find(workers, repository):
    repository.commit("start", SPEED="1")
    repository.commit("end", SPEED="1.0")
    with pytest.raises(UsageError, match=re.escape(f"HEAD against HEAD~1: {CASE.case_id} is SAME, there is nothing")):
        find(workers, "HEAD~1")


@pytest.mark.slow
def test_a_case_that_cannot_be_measured_is_nothing_to_find_with_the_reason(workers, repository):
    repository.commit("start", SPEED="1")
    repository.commit("end", SPEED="2", ACTION="sample status=OOM")
    with pytest.raises(UsageError, match=r"is FAILED \(HEAD came to OOM, the base did not: scripted OOM\), there is"):
        find(workers, "HEAD~1")


@pytest.mark.slow
def test_revisions_that_cannot_be_compared_are_refused_before_anything_is_measured(workers, repository):
    repository.commit("empty")
    start = repository.commit("start", SPEED="1", a__py=CODE)
    repository.commit("a comment", a__py=f"# New.\n{CODE}")
    repository.git("checkout", "--quiet", "-b", "side", start)
    repository.commit("elsewhere", SPEED="2")
    broken = repository.commit("broken", a__py="def (")
    repository.git("checkout", "--quiet", "main")
    for good, bad, message in (
        ("nowhere", "HEAD", "revision 'nowhere': "),
        ("HEAD", "--help", "revision '--help': "),
        ("HEAD", "side~1", "--good HEAD: is no ancestor of side~1, expected an earlier revision of the same line"),
        ("HEAD", "HEAD~1", "--good HEAD: is no ancestor of HEAD~1"),
        ("HEAD~1", "HEAD", "HEAD against HEAD~1: have the same kernels, comments aside; there is nothing to find"),
        ("HEAD~2", "HEAD", "revision 'HEAD~2': has no kernels/bsa_kernels"),
        ("HEAD~1", broken, f"revision '{broken}': its kernels do not parse: invalid syntax (a.py, line 1)"),
    ):
        with pytest.raises(UsageError) as error:
            find(workers, good, bad)
        assert str(error.value).startswith(message)
    assert not workers.asked


def test_outside_a_repository_the_revision_is_unknown(workers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="revision 'HEAD~1': fatal: not a git repository"):
        find(workers, "HEAD~1")


@pytest.fixture
def step(workers, repository, tmp_path):
    """Judge what is checked out by a state of our own; returns the exit code and the step."""
    repository.commit("start", SPEED="1", a__py=CODE)
    place = tmp_path / "state.json"
    good = tmp_path / "good" / "kernels"
    shutil.copytree(repository.folder / "kernels", good)
    bad = tmp_path / "bad" / "kernels"
    shutil.copytree(repository.folder / "kernels", bad)
    (bad / "bsa_kernels" / "SPEED").write_text("2")
    state = State(
        case=CASE,
        good_kernels=str(good),
        bad_kernels=str(bad),
        runs_jitted=True,
        target=None,
        device="cpu",
        threads=1,
        limit=0.1,
        logs=str(tmp_path / "logs"),
        worker_command=workers.command,
    )
    place.write_text(state.model_dump_json())

    def judge():
        code = judge_here(place)
        return code, State.model_validate_json(place.read_text()).steps[-1]

    return judge


@pytest.mark.slow
def test_a_step_judges_by_the_exit_code(step, repository, workers):
    slow = repository.commit("slow", SPEED="1.5")
    code, judged = step()
    assert (code, judged.commit, judged.judgement) == (BAD, slow, "bad")
    assert judged.ratio == pytest.approx(1.5, abs=0.02)
    num_asked = len(workers.asked)
    repository.commit("a comment", a__py=f"# New.\n{CODE}")
    code, judged = step()
    assert (code, judged.reason) == (BAD, f"its sources are those of {slow[:12]}")
    repository.commit("slower", SPEED="2")
    assert step()[0] == BAD
    assert step()[1].reason == "its sources are those of the bad one"
    repository.commit("reverted", SPEED="1")
    code, judged = step()
    assert (code, judged.reason) == (GOOD, "its sources are those of the good one")
    repository.commit("broken", a__py="def (")
    code, judged = step()
    assert (code, judged.reason) == (SKIP, "its sources do not parse: invalid syntax (a.py, line 1)")
    assert len(workers.asked) == num_asked  # none of these was measured
    failing = repository.commit("fails", a__py=CODE, ACTION="sample status=CRASHED")
    code, judged = step()
    assert (code, judged.ratio) == (SKIP, None)
    assert judged.reason == f"{failing[:12]} came to CRASHED, the base did not: scripted CRASHED"


def test_a_step_that_goes_wrong_ends_the_bisection_and_is_no_slow_revision(tmp_path, step, repository, capsys):
    repository.commit("slow", SPEED="1.5")
    assert run_bisect_step(tmp_path / "nowhere.json") == ABORT
    assert "expected what `bsa-bench bisect` wrote" in capsys.readouterr().err
    place = tmp_path / "state.json"
    state = json.loads(place.read_text())
    place.write_text(json.dumps(state | {"worker_command": ["/no/such/python"]}))
    assert run_bisect_step(place) == ABORT
    assert "bsa-bench: the worker of good cannot be started: /no/such/python" in capsys.readouterr().err
    place.write_text(json.dumps(state | {"limit": -1}))
    assert run_bisect_step(place) == ABORT
    assert "limit: expected a finite number from 0, got -1" in capsys.readouterr().err


@pytest.mark.slow
def test_a_bisection_whose_steps_fail_is_no_answer(workers, repository, monkeypatch):
    known_to_be_slower(monkeypatch)
    repository.commit("start", SPEED="1")
    repository.commit("middle", SPEED="1.0")
    repository.commit("end", SPEED="2")
    real = State.model_dump_json

    def without_worker(state):
        return real(state.model_copy(update={"worker_command": ("/no/such/python",)}))

    monkeypatch.setattr(State, "model_dump_json", without_worker)
    with pytest.raises(BenchError, match=r"git bisect run ended with exit code \d+:\n(.*\n)*.*/no/such/python"):
        find(workers, "HEAD~2")


@pytest.mark.slow
def test_an_interrupt_leaves_no_process_no_work_tree_and_no_refs(workers, repository, tmp_path):
    repository.commit("start", SPEED="1")
    repository.commit("middle", SPEED="1", ACTION="sample hang")
    repository.commit("end", SPEED="2", ACTION=None)
    program = textwrap.dedent(f"""
        import sys
        sys.path[:0] = {sys.path!r}
        from pathlib import Path
        import pytest
        from test_gate_bisect import find, known_to_be_slower, Workers
        known_to_be_slower(pytest.MonkeyPatch())
        script = Workers.__new__(Workers)
        script.command = {workers.command!r}
        try:
            find(script, "HEAD~2")
        except KeyboardInterrupt:
            sys.exit(130)
    """)
    process = subprocess.Popen([sys.executable, "-c", program], env=os.environ | {"TMPDIR": str(tmp_path / "tmp")})
    try:
        deadline = time.monotonic() + 60
        while not _is_hanging(workers):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    finally:
        process.kill()
        process.wait()
    deadline = time.monotonic() + 5
    while running := _commands_about(tmp_path):
        assert time.monotonic() < deadline, running
        time.sleep(0.05)


def _is_hanging(workers):
    """Whether the last sample that was asked for was not answered for some time."""
    asked = workers.asked
    is_sample = bool(asked) and asked[-1][2] == "sample"
    return is_sample and time.time() - workers.log.stat().st_mtime > 0.7


def _commands_about(folder):
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").replace("\0", " ")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if str(folder) in words:
            found.append(words)
    return found
