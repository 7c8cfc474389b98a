"""Several processes a case: rounds, their order, what is not repeated, and what a resumed run still has to do."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter

import pytest
from run_factory import DEVICE, Bench, case, three_passes

from bsa_bench.errors import EXIT_NOTHING_MEASURED, EXIT_OK, EXIT_SOME_FAILED, EXIT_WRONG
from bsa_bench.result import Status
from bsa_bench.run import plan_run
from bsa_bench.run.order import group_cases
from bsa_bench.run.rounds import Ledger, plan_visits
from bsa_bench.store.reader import read_run

LENGTHS = [case(tokens=n) for n in (256, 512, 1024, 2048)]
#: Cases whose second process hangs, for a run that is stopped in its second round.
HANGING = LENGTHS[:3]


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def results_of(bench):
    return read_run(bench.results / "r").results


def measured(bench):
    """How often each process of each case has a final result."""
    return Counter((r.case_id, r.process_index) for r in results_of(bench) if r.status.is_final)


def once_each(cases, num_processes):
    return {(one.case_id, index): 1 for one in cases for index in range(num_processes)}


def order(groups, num_processes, **fields):
    """The lengths of each round."""
    rounds = {}
    for visit in plan_visits(groups, num_processes, **fields):
        (one,) = visit.cases.values()
        rounds.setdefault(visit.process_index, []).append(one.workload.num_tokens)
    return list(rounds.values())


@pytest.mark.slow
def test_each_round_runs_every_group_once_in_a_fresh_worker(bench):
    cases = [*three_passes(), *three_passes("bsa@gather")]
    outcome = bench.run(cases, num_processes=3)
    assert outcome.exit_code == EXIT_OK
    assert outcome.counts == {Status.OK: 6}
    assert outcome.remaining == []
    results = results_of(bench)
    assert [r.process_index for r in results] == [0] * 6 + [1] * 6 + [2] * 6
    assert [r.seq for r in results] == list(range(18))
    assert measured(bench) == once_each(cases, 3)
    assert len(set(bench.pids)) == 6
    line = read_run(bench.results / "r").run_lines[0]
    assert (line.num_cases, line.num_processes, line.seed) == (6, 3, 0)
    lines = bench.output.read_text().splitlines()
    assert lines[0].startswith("18 measurements, 3 processes a case, about ")
    assert lines[-1].startswith("[18/18] ")
    assert " forward+backward, 256 tokens, process 3 of 3: OK 52.0 ms" in lines[-1]


@pytest.mark.slow
def test_the_order_of_a_round_is_drawn_by_the_seed_and_of_one_process_as_given(bench):
    groups = group_cases([case(tokens=128 * n) for n in range(1, 9)])
    given = [128 * n for n in range(1, 9)]
    first = order(groups, 3, seed=7)
    assert first == order(groups, 3, seed=7)
    assert first != order(groups, 3, seed=8)
    assert given not in first
    assert first[0] != first[1] != first[2]
    assert all(sorted(lengths) == given for lengths in first)
    assert order(groups, 1, seed=7) == [given]
    bench.run(LENGTHS, num_processes=2, seed=7)
    ran = [r.case.workload.num_tokens for r in results_of(bench)]
    assert [ran[:4], ran[4:]] == order(group_cases(LENGTHS), 2, seed=7)


def test_leaving_groups_out_does_not_change_the_order_of_the_others():
    groups = group_cases(LENGTHS)
    whole = order(groups, 3, seed=3)
    assert order(groups[1:], 3, seed=3) == [[n for n in each if n != 256] for each in whole]


@pytest.mark.slow
def test_under_a_budget_the_pair_comes_first_whatever_the_seed(bench):
    cases = [case("full@flex", 2048), case("bsa@gather", 256), case("full@sdpa-flash", 256)]
    bench.run(cases, budget_s=60.0, num_processes=2)
    assert bench.begun[:3] == [cases[i].case_id for i in (2, 1, 0)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "status",
    [Status.WRONG, Status.FELL_BACK, Status.OOM, Status.UNSUPPORTED, Status.VERIFIED_ONLY, Status.COUNTED],
)
def test_a_case_that_is_not_ok_is_not_repeated_and_the_count_says_so(bench, status):
    bench.run(LENGTHS[:2], {LENGTHS[0]: status}, num_processes=3)
    assert measured(bench) == {(LENGTHS[0].case_id, 0): 1} | once_each(LENGTHS[1:2], 3)
    lines = bench.output.read_text().splitlines()
    assert lines[0].startswith("6 measurements, ")
    assert lines[-1].startswith("[4/4] ")


@pytest.mark.slow
def test_a_crash_and_what_cannot_run_are_not_repeated(bench):
    cases = three_passes()
    big, rare = case("full@sdpa-math", tokens=200_000), case("full@xformers")
    outcome = bench.run(
        [*cases, big, rare],
        {cases[1]: "signal:SIGSEGV"},
        unavailable=lambda c: "install it" if c == rare else None,
        num_processes=3,
    )
    assert outcome.exit_code == EXIT_SOME_FAILED
    expected = {Status.OK: 2, Status.CRASHED: 1, Status.SKIPPED_OOM: 1, Status.UNSUPPORTED: 1}
    assert outcome.counts == expected
    assert outcome.remaining == []
    once = {(one.case_id, 0): 1 for one in (cases[1], big, rare)}
    assert measured(bench) == once_each([cases[0], cases[2]], 3) | once
    assert bench.output.read_text().splitlines()[-1].startswith("[8/8] ")


@pytest.mark.slow
def test_the_worst_of_the_processes_is_what_the_case_came_to(bench):
    outcome = bench.run(LENGTHS[:2], {LENGTHS[0]: ["ok", Status.WRONG, "ok"]}, num_processes=3)
    assert outcome.exit_code == EXIT_WRONG
    assert outcome.counts == {Status.WRONG: 1, Status.OK: 1}
    assert (LENGTHS[0].case_id, 2) not in measured(bench)
    assert read_run(bench.results / "r").num_remaining == 0


def test_a_worker_that_never_speaks_ends_the_run_of_its_group_in_the_first_round(bench):
    cases = three_passes()
    assert bench.run(cases, dict.fromkeys(cases, "mute"), num_processes=5).exit_code == EXIT_NOTHING_MEASURED
    assert len(bench.begun) == 1


@pytest.mark.slow
def test_resume_with_more_processes_adds_what_is_missing_and_repeats_nothing(bench):
    bench.run(LENGTHS, {LENGTHS[3]: Status.WRONG})
    outcome = bench.run(LENGTHS, resume=True, num_processes=3)
    assert outcome.counts == {Status.OK: 3, Status.WRONG: 1}
    assert measured(bench) == once_each(LENGTHS[:3], 3) | {(LENGTHS[3].case_id, 0): 1}
    assert "4 of 10 measurements are already done" in bench.output.read_text()
    assert [r.process_index for r in results_of(bench)] == [0] * 4 + [1] * 3 + [2] * 3
    before = len(bench.begun)
    bench.run(LENGTHS, resume=True, num_processes=3)
    assert len(bench.begun) == before
    assert "10 of 10 measurements are already done" in bench.output.read_text()


@pytest.mark.slow
def test_resume_goes_on_with_the_seed_of_the_run_unless_another_is_given(bench):
    bench.run(LENGTHS[:1], num_processes=2, seed=11)
    bench.run(LENGTHS[:1], num_processes=2, resume=True)
    bench.run(LENGTHS[:1], num_processes=2, resume=True, seed=12)
    assert [line.seed for line in read_run(bench.results / "r").run_lines] == [11, 11, 12]


@pytest.mark.slow
def test_a_budget_that_ends_in_the_second_round_leaves_a_complete_first_one_and_says_what_is_left(bench):
    outcome = bench.run(HANGING, {one: ["ok", "hang"] for one in HANGING}, budget_s=3.0, num_processes=2)
    assert outcome.exit_code == EXIT_OK
    assert outcome.counts == {Status.OK: 3}
    assert outcome.remaining == HANGING
    assert "3 cases are left:\n" in outcome.messages[0]
    assert outcome.messages[0].count(", 1 of 2 processes measured") == 3
    left = [r for r in results_of(bench) if r.status is Status.NOT_MEASURED]
    assert [r.process_index for r in left] == [1, 1, 1]
    assert sum(r.reason == "the end of the budget stopped it" for r in left) == 1
    run = read_run(bench.results / "r")
    assert run.num_remaining == 3
    assert [r.status for r in run.latest()] == [Status.OK] * 3 + [Status.NOT_MEASURED] * 3
    assert bench.run(HANGING, resume=True, num_processes=2).remaining == []
    assert measured(bench) == once_each(HANGING, 2)
    assert read_run(bench.results / "r").num_remaining == 0


@pytest.mark.slow
def test_a_run_killed_in_its_second_round_loses_nothing_and_goes_on_in_the_same_order(bench, tmp_path):
    second = order(group_cases(HANGING), 3, seed=5)[1]
    victim = next(i for i, one in enumerate(HANGING) if one.workload.num_tokens == second[1])
    program = textwrap.dedent(f"""
        from run_factory import Bench
        from test_run_processes import HANGING
        hangs = {{HANGING[{victim}]: ["ok", "hang"]}}
        Bench({str(bench.folder)!r}).run(HANGING, hangs, num_processes=3, seed=5, case_limit_s=60.0)
    """)
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", program], env=env)
    deadline = time.monotonic() + 30
    while len(bench.begun) < 5:  # three of the first round, one of the second, and the one that hangs
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.1)
    process.kill()
    process.wait()
    os.killpg(bench.pids[-1], signal.SIGKILL)  # the fake worker does not watch its parent
    assert len(results_of(bench)) == 4
    assert bench.run(HANGING, resume=True, num_processes=3).exit_code == EXIT_OK
    assert measured(bench) == once_each(HANGING, 3)
    ran = [r.case.workload.num_tokens for r in results_of(bench)]
    whole = Bench(tmp_path / "whole")
    whole.folder.mkdir()
    whole.run(HANGING, num_processes=3, seed=5)
    assert ran == [r.case.workload.num_tokens for r in results_of(whole)]


def test_a_dry_run_predicts_as_many_times_the_seconds_as_there_are_processes():
    once = plan_run(LENGTHS, device=DEVICE)
    five = plan_run(LENGTHS, device=DEVICE, num_processes=5)
    assert [row.seconds for row in five] == pytest.approx([5 * row.seconds for row in once])
    assert [row.case for row in five] == [row.case for row in once]


def test_a_ledger_ignores_what_is_not_asked_for():
    done = {(LENGTHS[0].case_hash, 0): Status.OK, (LENGTHS[0].case_hash, 4): Status.WRONG, ("other", 0): Status.OK}
    ledger = Ledger(LENGTHS[:2], 2, done)
    assert ledger.missing(LENGTHS[0].case_hash) == [1]
    assert (ledger.num_known, ledger.num_missing) == (1, 3)
    assert ledger.counts() == {Status.OK: 1}
