import os
import re
import signal
import time
from pathlib import Path

import pytest
from run_factory import DEVICE, Bench, case, environment, three_passes

from bsa_bench.errors import BenchError, StoreError, UsageError
from bsa_bench.result import PASSES, Status
from bsa_bench.run import DeviceModel
from bsa_bench.run.worker_process import Ending, judge
from bsa_bench.store.reader import read_run


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def statuses(bench):
    return {r.case.passes: r.status for r in read_run(bench.results / "r").latest()}


def is_gone(pid):
    """Whether the process ends soon; a zombie that nobody has reaped yet counts as ended."""
    for _ in range(50):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.1)
    return False


def test_a_group_shares_one_worker_and_its_results_are_numbered(bench):
    cases = three_passes() + three_passes("bsa@gather")
    outcome = bench.run(cases)
    assert outcome.exit_code == 0
    assert outcome.counts == {Status.OK: 6}
    assert len(set(bench.pids)) == 2
    run = read_run(bench.results / "r")
    assert [r.seq for r in run.results] == list(range(6))
    assert run.run_lines[0].num_cases == 6
    assert all(r.memory.predicted_bytes > 0 for r in run.results)
    lines = bench.output.read_text().splitlines()
    assert lines[0].startswith("6 cases, about ")
    assert lines[1] == "[1/6] full@sdpa-flash, forward, 256 tokens: OK 52.0 ms"


def test_a_case_asked_for_twice_is_measured_once(bench):
    assert bench.run([case(), case()]).counts == {Status.OK: 1}
    assert len(bench.begun) == 1


@pytest.mark.slow
def test_a_crash_ends_one_case_and_its_group_goes_on_in_a_fresh_worker(bench):
    cases = three_passes()
    outcome = bench.run([*cases, case(tokens=512)], {cases[1]: "signal:SIGSEGV"})
    assert outcome.exit_code == 8
    assert outcome.counts == {Status.OK: 3, Status.CRASHED: 1}
    dead = next(r for r in read_run(bench.results / "r").results if r.status is Status.CRASHED)
    assert dead.case == cases[1]
    assert dead.reason == "the worker was killed by SIGSEGV"
    assert dead.traceback.endswith("about to die")
    assert dead.wall_s > 0
    assert bench.begun.count(cases[0].case_id) == 1


def test_a_group_whose_second_worker_dies_is_given_up(bench):
    cases = three_passes()
    bench.run(cases, dict.fromkeys(cases, "raise:no kernel image"))
    results = read_run(bench.results / "r").results
    assert [r.status for r in results] == [Status.CRASHED] * 3
    assert results[0].reason == "the worker ended with exit code 1 before it handed its result over"
    assert "RuntimeError: no kernel image" in results[0].traceback
    assert results[2].reason.startswith("not tried, another pass ended its second worker: ")
    assert len(bench.begun) == 2


def test_a_worker_that_dies_before_it_says_anything_is_not_started_again(bench):
    outcome = bench.run(three_passes(), dict.fromkeys(three_passes(), "mute"))
    assert outcome.exit_code == 4
    assert len(bench.begun) == 1
    results = read_run(bench.results / "r").results
    assert [r.status for r in results] == [Status.CRASHED] * 3
    assert "cannot import torch" in results[0].traceback


def test_an_exit_with_0_without_results_is_a_crash(bench):
    bench.run([case()], {case(): "leave"})
    assert statuses(bench) == {"forward": Status.CRASHED}


def test_a_kill_from_outside_is_out_of_memory_only_if_the_worker_was_large(bench):
    bench.run([case()], {case(): "signal:SIGKILL"})
    result = read_run(bench.results / "r").results[0]
    assert result.status is Status.CRASHED
    # The tests have had more memory than that worker, whose peak the system does not tell apart from theirs.
    assert re.match(r"killed by SIGKILL from outside; it had at most [\d.]+ [MG]iB of memory", result.reason)


@pytest.mark.parametrize(("is_peak_own", "words"), [(True, "it had 3.00 GiB"), (False, "it had at most 3.00 GiB")])
def test_a_peak_that_may_be_the_main_processs_is_at_most_the_workers(is_peak_own, words):
    ending = Ending("exited", -signal.SIGKILL, 3 << 30, is_peak_own, 0, spoke=True, log_tail="")
    assert words in judge(ending, limit_s=60, memory_bytes=16 << 30)[1]
    assert judge(ending, limit_s=60, memory_bytes=4 << 30)[0] is Status.OOM


def test_a_large_worker_killed_from_outside_ran_out_of_memory(bench):
    one = case(tokens=8)
    outcome = bench.run([one], {one: "signal:SIGKILL"}, device=DeviceModel("cpu", 1e12, 1e11, 2 << 20, 0.0))
    assert outcome.counts == {Status.OOM: 1}
    assert "most likely as the machine ran out of memory" in read_run(bench.results / "r").results[0].reason


@pytest.mark.slow
def test_a_hang_ends_by_the_time_limit_with_all_its_children_and_the_others_go_on(bench):
    cases = three_passes()
    outcome = bench.run(cases, {cases[1]: "hang"}, case_limit_s=1.0)
    assert outcome.exit_code == 8
    assert statuses(bench) == dict(zip(PASSES, [Status.OK, Status.TIMEOUT, Status.OK], strict=True))
    assert all(is_gone(pid) for pid in bench.pids)


@pytest.mark.slow
def test_the_time_limit_starts_anew_at_each_result(bench):
    cases = three_passes()
    assert bench.run(cases, dict.fromkeys(cases, "slow:0.7"), case_limit_s=1.5).counts == {Status.OK: 3}


@pytest.mark.slow
def test_a_worker_that_does_not_leave_after_its_last_result_is_ended_and_its_result_counts(bench):
    assert bench.run([case()], {case(): "linger"}, case_limit_s=0.7).counts == {Status.OK: 1}


@pytest.mark.parametrize(
    ("action", "reason"),
    [("garbage", "Invalid JSON"), ("twice", "not (or no longer) in the job"), ("torn", "ended with exit code 1")],
)
def test_events_that_do_not_belong_there_end_the_case_and_nothing_else(bench, action, reason):
    cases = three_passes()
    bench.run(cases, {cases[1]: action})
    run = read_run(bench.results / "r")
    assert reason in next(r.reason for r in run.results if r.status is Status.CRASHED)
    assert len(run.results) == 3


def test_a_wrong_result_is_exit_code_3_whatever_else_failed(bench):
    cases = [*three_passes(), case(tokens=512)]
    assert bench.run(cases, {cases[0]: Status.WRONG, cases[3]: "leave"}).exit_code == 3


def test_what_cannot_run_here_is_recorded_without_a_process(bench):
    cases = [*three_passes("full@xformers"), case()]
    outcome = bench.run(cases, unavailable=lambda c: "install xformers" if c.engine == "xformers" else None)
    assert outcome.exit_code == 0
    assert outcome.counts == {Status.UNSUPPORTED: 3, Status.OK: 1}
    assert bench.begun == [case().case_id]
    assert read_run(bench.results / "r").run_lines[0].unavailable == {"full@xformers": "install xformers"}
    assert "full@xformers: cannot run here, 3 cases are UNSUPPORTED: install xformers\n" in bench.output.read_text()


def test_nothing_that_can_run_is_exit_code_4(bench):
    assert bench.run([case()], unavailable=lambda _: "no").exit_code == 4


def test_a_case_that_cannot_fit_is_skipped_with_the_predicted_need(bench):
    big = case("full@sdpa-math", tokens=200_000)
    outcome = bench.run([big, case()])
    assert outcome.exit_code == 0
    skipped = next(r for r in read_run(bench.results / "r").results if r.status is Status.SKIPPED_OOM)
    assert skipped.memory.predicted_bytes > DEVICE.memory_bytes
    assert re.match(r"predicted to need \d+ GiB, 8.00 GiB can be used", skipped.reason)


@pytest.mark.slow
def test_resume_runs_only_what_has_no_final_status(bench):
    cases = [*three_passes(), case(tokens=512)]
    bench.run(cases[:3], {cases[1]: "leave"})
    outcome = bench.run(cases, resume=True)
    assert outcome.counts == {Status.OK: 3, Status.CRASHED: 1}
    assert bench.begun.count(cases[0].case_id) == 1
    assert bench.begun.count(cases[1].case_id) == 1
    assert "3 of 4 cases are already done" in bench.output.read_text()
    assert [r.seq for r in read_run(bench.results / "r").results] == [0, 1, 2, 3]


def test_resume_in_another_environment_is_refused_with_what_differs_and_writes_nothing(bench):
    bench.run([case()])
    before = (bench.results / "r" / "results.jsonl").read_bytes()
    other = environment("env-b", torch="2.14")
    with pytest.raises(UsageError, match=r"packages\.torch: 2\.13 -> 2\.14; start a new run without --resume"):
        bench.run([case()], resume=True, env=other)
    assert (bench.results / "r" / "results.jsonl").read_bytes() == before
    bench.run([case()], resume=True, env=other, allow_other_environment=True)
    assert len(bench.begun) == 2


def test_resume_with_another_profile_is_refused(bench):
    bench.run([case()])
    with pytest.raises(UsageError, match="measured with profile 'quick', asked for 'report'"):
        bench.run([case()], resume=True, profile="report")


@pytest.mark.slow
def test_the_budget_stops_a_running_worker_and_lists_what_is_left(bench):
    cases = [case(tokens=n) for n in (256, 512, 1024)]
    started = time.monotonic()
    outcome = bench.run(cases, dict.fromkeys(cases[1:], "hang"), budget_s=2.0)
    assert time.monotonic() - started < 10  # a case that hangs would take 20
    assert outcome.exit_code == 0
    assert outcome.remaining == cases[1:]
    assert "the budget is spent; what was measured is stored, 2 cases are left:\n  full@sdpa" in outcome.messages[0]
    assert outcome.messages[1] == "go on with: bsa-bench run --resume"
    left = read_run(bench.results / "r").results[1:]
    assert [r.status for r in left] == [Status.NOT_MEASURED] * 2
    assert left[0].reason == "the end of the budget stopped it"
    assert bench.run(cases, resume=True).counts == {Status.OK: 3}


def test_a_group_predicted_beyond_the_budget_is_not_started(bench):
    cases = [case("full@sdpa-flash", 100_000), case(tokens=256)]
    slow = DeviceModel("cpu", flop_per_s=1e10, bytes_per_s=1e11, memory_bytes=8 << 30, start_s=0.0)
    outcome = bench.run(cases, budget_s=10.0, device=slow)
    assert bench.begun == [cases[1].case_id]
    assert outcome.remaining == cases[:1]
    reason = next(r.reason for r in read_run(bench.results / "r").results if r.status is Status.NOT_MEASURED)
    assert reason == "left out by the budget of 10.0 s"


@pytest.mark.slow
def test_under_a_budget_a_pair_of_one_pass_comes_before_the_next_pass_each_case_in_a_worker_of_its_own(bench):
    cases = [*three_passes("full@flex"), *three_passes(), *three_passes("bsa@gather")]
    bench.run(cases, dict.fromkeys(cases, "slow:0.5"), budget_s=5.0)
    flash, gather = cases[3:6], cases[6:]
    pairs = [half.case_id for pair in zip(flash, gather, strict=True) for half in pair]
    assert bench.begun[: len(pairs)] == pairs[: len(bench.begun)]
    assert len(bench.begun) >= 4
    assert len(set(bench.pids)) == len(bench.pids)


@pytest.mark.slow
def test_a_budget_counts_from_the_start_of_the_command_and_keeps_time_for_the_report(bench):
    cases = [case(tokens=256 * n) for n in range(1, 9)]
    began = time.monotonic()
    fields = {"started": began - 6.0, "budget_s": 10.0, "reserve_s": 1.0}
    outcome = bench.run(cases, dict.fromkeys(cases, "slow:0.7"), **fields)
    assert time.monotonic() - began < 4.4 + 0.5  # what was left of the budget, 4 % and a poll
    assert 0 < len(bench.begun) < 8
    assert outcome.remaining


def test_a_spent_budget_starts_nothing(bench):
    outcome = bench.run([case()], budget_s=5.0, started=time.monotonic() - 6.0)
    assert bench.begun == []
    assert outcome.remaining == [case()]
    assert read_run(bench.results / "r").results[0].reason == "left out by the budget of 5.00 s"


def test_a_result_that_cannot_be_stored_ends_the_run_and_its_worker(bench, monkeypatch):
    cases = three_passes()
    real = os.fsync
    calls = []

    def full_at_the_third(fd):
        calls.append(fd)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        real(fd)

    monkeypatch.setattr(os, "fsync", full_at_the_third)
    with pytest.raises(StoreError, match="No space left"):
        bench.run(cases, {cases[2]: "hang"})
    monkeypatch.undo()
    assert all(is_gone(pid) for pid in bench.pids)
    assert statuses(bench) == {"forward": Status.OK}


def test_a_worker_command_that_does_not_exist_is_said(bench):
    with pytest.raises(BenchError, match="the worker cannot be started: /no/such/python"):
        bench.run([case()], worker_command=("/no/such/python",))
