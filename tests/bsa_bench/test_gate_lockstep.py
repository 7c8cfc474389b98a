import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest
from pair_factory import Workers, all_gone, kernels, open_files, some_cases, with_kernels

import bsa_bench
from bsa_bench.descendants import new_mark
from bsa_bench.errors import BenchError, StoreError
from bsa_bench.gate.lockstep import HostOperation, PairSide
from bsa_bench.gate.two_stage import PairSample, Problem
from bsa_bench.gate.verdict import Verdict
from bsa_bench.result import Status
from bsa_bench.stats.pairs import lockstep_log_ratio

CASES = some_cases(64, 128, 192)
ROOT = Path(bsa_bench.__file__).resolve().parents[1]


@pytest.fixture
def workers(tmp_path):
    """Scripted workers; whatever a test does, no process of theirs and no descriptor is left."""
    new_mark()  # starts the guard of this process, whose pipe stays open
    made, before = [], open_files()

    def make(**script):
        made.append(Workers(tmp_path, **script))
        return made[-1]

    yield make
    assert all_gone([pid for each in made for pid in each.pids]) is True
    assert open_files() == before


def test_both_sides_are_sampled_in_turn_and_the_ratio_is_found(workers, tmp_path):
    script = workers(noise=0.01)
    slow = with_kernels(script.side("head"), kernels(tmp_path / "head", 1.25))
    told = []
    found = script.bench(CASES, head=slow, turns_s=2.0, tell=told.append).measure(["128", "64", "192"])
    assert list(found) == told == ["128", "64", "192"]
    for sample in found.values():
        assert len(sample.base) == len(sample.head) == pytest.approx(44, abs=2)  # turns of 0.045 s in 2 s
        assert lockstep_log_ratio(sample.base, sample.head) == pytest.approx(0.223, abs=0.02)
        assert sample.base_peak_bytes is None  # of a CPU's process it says nothing of one case
    turns = [(role, moment) for _, role, moment, name, _ in script.asked if name == "64" and moment == "sample"]
    assert all({turns[i][0], turns[i + 1][0]} == {"base", "head"} for i in range(0, len(turns), 2))
    firsts = {turns[i][0] for i in range(0, len(turns), 2)}
    assert firsts == {"base", "head"}
    assert len(script.pids) == 2


def test_an_operation_on_the_host_is_sampled_as_a_case_is_and_not_verified(workers):
    script = workers(head={"sample": "slow=1.5"})
    found = script.bench(CASES | {"host/x": HostOperation("x")}).measure(["host/x", "64"])
    assert lockstep_log_ratio(found["host/x"].base, found["host/x"].head) == pytest.approx(0.405, abs=0.02)
    asked = [moment for moment in script.moments("head") if moment.startswith("prepare")]
    assert sorted(asked) == ["prepare", "prepare host"]


def test_a_pair_that_the_time_is_up_for_keeps_what_it_has(workers):
    script = workers()
    is_late = iter([False, True])
    found = script.bench(CASES, out_of_time=lambda: next(is_late)).measure(["64", "128", "192"])
    assert isinstance(found["64"], PairSample)
    late = Problem(Verdict.NOT_MEASURED, "no time was left for it in this pair")
    assert found["128"] == found["192"] == late


def test_turns_end_where_more_of_them_would_tell_no_more(workers):
    for noise, least, most in ((0.01, 8, 12), (0.1, 30, 60)):
        sample = workers(noise=noise).bench(CASES, turns_s=2.0, turn_error=0.01).measure(["64"])["64"]
        assert least <= len(sample.base) == len(sample.head) <= most


def test_a_pair_costs_what_the_last_one_did(workers):
    bench = workers().bench(CASES)
    assert bench.cost_s(["64", "128"]) == 0
    started = time.monotonic()
    bench.measure(["64", "128", "192"])
    wall_s = time.monotonic() - started
    assert 0 < bench.cost_s(["64"]) < bench.cost_s(["64", "128"]) < bench.cost_s(["64", "128", "192"]) <= wall_s


@pytest.mark.slow
def test_the_number_of_turns_has_bounds(workers):
    script = workers()
    assert len(script.bench(CASES, turns_s=0.001).measure(["64"])["64"].base) == 3
    assert len(script.bench(CASES, turns_s=60.0, max_turns=7).measure(["64"])["64"].base) == 7


@pytest.mark.slow
def test_a_case_is_verified_once_and_in_each_pair_until_it_was_measured(workers):
    script = workers(head={"finish": "once:status=CRASHED"})
    bench = script.bench(CASES)
    assert bench.measure(["64"])["64"].verdict is Verdict.FAILED
    assert [isinstance(bench.measure(["64"])["64"], PairSample) for _ in range(3)] == [True] * 3
    asked = [(moment, verify) for _, role, moment, _, verify in script.asked if role == "head" and verify != "None"]
    yes, no = "True", "False"
    assert asked == [(m, v) for v in (yes, yes, no, no) for m in ("prepare", "finish")]
    assert len(script.pids) == 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "action", "reason"),
    [
        ("prepare", "signal=SIGSEGV", "its process ended with SIGSEGV: about to die"),
        ("sample", "signal=SIGSEGV", "its process ended with SIGSEGV: about to die"),
        ("finish", "raise=no such kernel", "its process ended with exit code 1: RuntimeError: no such kernel"),
        ("sample", "leave=0", "its process ended with exit code 0"),
        ("finish", "torn", "its process ended with exit code 1"),
        ("sample", "garbage={not json", "its process broke the protocol: '{not json': "),
        ("prepare", "garbage=[]", "its process broke the protocol: '[]': "),
        ("sample", 'garbage={"status": "FINE"}', "status: Input should be 'OK'"),
        ("prepare", 'garbage={"seconds": -1}', "seconds: Input should be greater than or equal to 0"),
        ("sample", "twice", "its process broke the protocol: a second answer to one request"),
        ("prepare", "status=OOM", "scripted OOM"),
        ("sample", "status=OOM", "scripted OOM"),
        ("finish", "status=OOM", "scripted OOM"),
    ],
)
def test_a_side_that_fails_ends_one_case_and_the_rest_goes_on(workers, moment, action, reason):
    script = workers(head={f"{moment} 128": action})
    found = script.bench(CASES).measure(["64", "128", "192"])
    assert isinstance(found["64"], PairSample)
    assert isinstance(found["192"], PairSample)
    problem = found["128"]
    assert problem.verdict is Verdict.FAILED
    status = "OOM" if "OOM" in action else "CRASHED"
    assert problem.reason.startswith(f"head came to {status}, the base did not: ")
    assert reason in problem.reason
    num_pairs = 1 if status == "OOM" else 2  # a reply ends no process
    assert len(script.pids) == 2 * num_pairs


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["set up", "prepare", "sample", "finish"])
def test_a_worker_that_hangs_is_killed_with_its_children(workers, moment):
    script = workers(head={f"{moment} 64" if moment != "set up" else moment: "hang"})
    started = time.monotonic()
    found = script.bench(CASES, answer_s=0.4).measure(["64"] if moment == "set up" else ["64", "192"])
    assert time.monotonic() - started < 5
    assert "no answer within 0.4 s" in found["64"].reason
    if moment == "set up":
        assert found["64"].verdict is Verdict.NOT_MEASURED
        assert found["64"].reason.startswith("head cannot be started: ")
    else:
        assert found["64"].verdict is Verdict.FAILED
        assert found["64"].reason.startswith("head came to TIMEOUT, the base did not: ")
        assert isinstance(found["192"], PairSample)


@pytest.mark.slow
def test_a_worker_that_dies_is_found_out_although_its_child_holds_the_pipe_open(workers):
    script = workers(head={"sample": "orphan"})
    started = time.monotonic()
    found = script.bench(CASES, answer_s=60.0).measure(["64"])
    assert time.monotonic() - started < 10
    assert found["64"].reason.endswith("its process ended with exit code 3")


def test_children_of_a_worker_that_ends_as_it_should_are_ended_too(workers):
    script = workers(base={"finish": "child"}, head={"finish": "child"})
    assert isinstance(script.bench(CASES).measure(["64"])["64"], PairSample)


@pytest.mark.parametrize(
    ("moment", "base", "head", "verdict", "reason"),
    [
        ("prepare", "ok", "status=WRONG", Verdict.WRONG, "head: scripted WRONG"),
        ("prepare", "status=CRASHED", "status=WRONG", Verdict.WRONG, "head: scripted WRONG"),
        ("prepare", "status=WRONG", "ok", Verdict.NOT_MEASURED, "base came to WRONG: scripted WRONG"),
        # After the timing the head alone is verified.
        ("finish", "status=WRONG", "status=WRONG", Verdict.WRONG, "head: scripted WRONG"),
        ("sample", "status=OOM", "ok", Verdict.NOT_MEASURED, "base came to OOM: scripted OOM"),
        ("prepare", "status=OOM", "status=OOM", Verdict.NOT_MEASURED, "base came to OOM, and so does head: scripted"),
        ("finish", "ok", "status=CRASHED", Verdict.FAILED, "head came to CRASHED, the base did not: scripted CRASHED"),
        ("prepare", "ok", "status=UNSUPPORTED", Verdict.FAILED, "head came to UNSUPPORTED, the base did not: scri"),
        ("sample", "signal=SIGKILL", "ok", Verdict.NOT_MEASURED, "base came to CRASHED: its process ended with SI"),
        ("sample", "ok", 'reply={"status": "OK"}', Verdict.INFRA_ERROR, "a sample without a time"),
    ],
)
def test_what_both_sides_come_to_together(workers, moment, base, head, verdict, reason):
    script = workers(base={moment: base}, head={moment: head})
    problem = script.bench(CASES).measure(["64"])["64"]
    assert (problem.verdict, problem.reason[: len(reason)]) == (verdict, reason)


def test_a_wrong_result_after_timing_is_wrong_and_not_fast(workers):
    script = workers(head={"prepare": "slow=0.1", "sample": "slow=0.1", "finish": "status=WRONG"})
    assert script.bench(CASES).measure(["64"])["64"] == Problem(Verdict.WRONG, "head: scripted WRONG")


def test_a_case_whose_call_takes_longer_than_allowed_is_left_out_and_let_go(workers):
    script = workers(base={"prepare 64": "slow=100"}, head={"prepare 64": "slow=100", "prepare 128": "slow=100"})
    found = script.bench(CASES, call_limit_s=0.5).measure(["64", "128"])
    assert found["64"].verdict is Verdict.NOT_MEASURED
    assert found["64"].reason.startswith("a call takes ")
    assert found["64"].reason.endswith("more than the limit of 0.5 s")
    assert script.moments("head", "64") == ["prepare", "finish"]
    assert isinstance(found["128"], PairSample)  # the base is below: a slow-down is not left out


@pytest.mark.slow
def test_a_pair_that_cannot_be_started_again_says_so_of_all_that_is_left(workers):
    script = workers(head={"prepare 64": "once:signal=SIGABRT"})
    bench = script.bench(CASES)
    bench.measure(["128"])
    data = json.loads(script.script.read_text())
    script.script.write_text(json.dumps(data | {"base": {"set up": "raise=the disk is gone"}}))
    found = bench.measure(["64", "192"])
    for problem in found.values():
        assert problem.verdict is Verdict.NOT_MEASURED
        assert problem.reason.startswith("base cannot be started: its process ended with exit code 1: RuntimeError: ")


@pytest.mark.slow
def test_the_log_keeps_the_words_of_all_processes_and_a_reason_has_only_those_of_its_own(workers, tmp_path):
    script = workers(head={"prepare 64": "raise=first", "prepare 128": "raise=second", "prepare 192": "leave=4"})
    found = script.bench(CASES).measure(["64", "128", "192"])
    ends = [problem.reason.rpartition("did not: ")[2] for problem in found.values()]
    assert ends == [
        "its process ended with exit code 1: RuntimeError: first",
        "its process ended with exit code 1: RuntimeError: second",
        "its process ended with exit code 4",
    ]
    log = (tmp_path / "logs" / "head.log").read_text()
    assert "RuntimeError: first" in log
    assert "RuntimeError: second" in log


def test_the_sources_of_both_sides_are_probed(workers, tmp_path):
    script = workers()
    base, head = (kernels(tmp_path / name, speed) for name, speed in (("a", 1), ("b", 2)))
    sides = {"base": with_kernels(script.side("base"), base), "head": with_kernels(script.side("head"), head)}
    replies = script.bench(CASES, **sides).probe()
    assert [reply.kernels for reply in replies] == [str(each / "bsa_kernels") for each in (base, head)]
    assert replies[0].sources != replies[1].sources


@pytest.mark.slow
def test_a_side_without_a_worker_is_named(workers):
    script = workers(base={"start": "cannot import torch"})
    with pytest.raises(BenchError, match="base cannot be started: its process ended with exit code 1: cannot import"):
        script.bench(CASES).probe()
    swapped = script.bench(CASES, base=script.side("none"), head=script.side("base"))
    assert swapped.probe()[1].reason == "its process ended with exit code 1: cannot import torch"
    gone = script.side("main~3", command=("/no/such/python",))
    with pytest.raises(BenchError, match=r"the worker of main~3 cannot be started: /no/such/python: .*No such file"):
        script.bench(CASES, head=gone).probe()


def test_a_log_that_cannot_be_written_is_no_fault_of_the_code(workers, tmp_path):
    script = workers()
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"file/base.log: cannot write the worker's log: "):
        script.bench(CASES, logs=tmp_path / "file").measure(["64"])
    assert not script.pids


@pytest.mark.slow
def test_a_full_disk_costs_the_workers_their_words_and_nothing_else(workers, tmp_path):
    script = workers(head={"prepare 64": "signal=SIGBUS", "prepare 128": "raise=unheard"})
    (tmp_path / "logs").mkdir()
    for role in ("base", "head"):
        (tmp_path / "logs" / f"{role}.log").symlink_to("/dev/full")
    found = script.bench(CASES).measure(["64", "128", "192"])
    assert isinstance(found["192"], PairSample)
    assert found["64"].verdict is found["128"].verdict is Verdict.FAILED


def test_verification_is_of_the_head_alone_and_a_death_spares_the_rest(workers):
    script = workers(
        head={"prepare 64": "status=VERIFIED_ONLY", "prepare 128": "signal=SIGSEGV", "prepare 192": "status=WRONG"}
    )
    told = []
    found = script.bench(CASES, tell=told.append).verify(["64", "128", "192"])
    assert told == ["64", "128", "192"]
    statuses = [found[name].status for name in told]
    assert statuses == [Status.VERIFIED_ONLY, Status.CRASHED, Status.WRONG]
    assert found["128"].reason == "its process ended with SIGSEGV: about to die"
    assert {role for _, role, *_ in script.asked} == {"head"}
    assert len(script.pids) == 2


def test_verification_that_cannot_start_says_so_of_each_case(workers):
    script = workers(head={"set up": "raise=no torch"})
    found = script.bench(CASES).verify(["64", "128"])
    assert {reply.reason for reply in found.values()} == {"its process ended with exit code 1: RuntimeError: no torch"}


@contextlib.contextmanager
def gate_process(script):
    """Another process that measures by a worker that hangs at its first sample."""
    program = textwrap.dedent(f"""
        import signal, sys
        sys.path[:0] = {sys.path!r}
        from pair_factory import Workers, some_cases
        script = Workers.__new__(Workers)
        from pathlib import Path
        script.folder, script.command = Path({str(script.folder)!r}), {script.command!r}
        print("ready", flush=True)
        try:
            script.bench(some_cases(64)).measure(["64"])
        except KeyboardInterrupt:
            print("interrupted", flush=True)
            sys.exit(130)
    """)
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        script.wait_until_asked("sample", process)
        time.sleep(0.1)
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_an_interrupt_leaves_no_process_of_either_side(workers):
    script = workers(head={"sample": "hang"}, base={"sample": "hang"})
    with gate_process(script) as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert all_gone(script.pids) is True


@pytest.mark.slow
def test_workers_that_wait_end_by_themselves_when_the_gate_is_killed(workers):
    script = workers(head={"sample": "hang"})
    with gate_process(script) as process:
        process.kill()
        process.wait(10)
        pids = {role: pid for pid, role, *_ in script.asked}
        assert all_gone([pids["base"]]) is True
        os.killpg(pids["head"], signal.SIGKILL)  # of a real worker, `die_with_parent` ends one that hangs too


@pytest.mark.slow
def test_a_side_imports_from_its_own_folders_first_and_never_from_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    side = PairSide(label="a", first_paths=(tmp_path / "x", tmp_path / "y"))
    paths = side.environment()["PYTHONPATH"].split(os.pathsep)
    assert paths[:2] == [str(tmp_path / "x"), str(tmp_path / "y")]
    assert paths[2:] == [str(ROOT), "/somewhere", str(ROOT / "kernels"), str(ROOT / "suites")]
    assert side.environment()["HOME"] == os.environ["HOME"]
    (tmp_path / "bsa_bench").mkdir()
    (tmp_path / "bsa_bench" / "__init__.py").write_text("raise SystemExit('from the working directory')")
    monkeypatch.chdir(tmp_path)
    command = [*side.command, "--help"]
    done = subprocess.run(command, env=side.environment(), capture_output=True, text=True, check=False)
    assert "--requests-fd" in done.stdout, done.stderr
    assert replace(side, variables={"PYTHONPATH": "z"}).environment()["PYTHONPATH"] == "z"
