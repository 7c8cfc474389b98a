"""What comes next under a budget, by predictions and by what was measured; nothing runs."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_factory import case, three_passes, worker_result

from bsa_bench.result import Status
from bsa_bench.run import DeviceModel, plan_run
from bsa_bench.run.agenda import Agenda, Forecast
from bsa_bench.run.order import group_cases, smallest_budget_s
from bsa_bench.run.pace import Pace
from bsa_bench.run.rounds import Ledger

CPU = DeviceModel.cpu(threads=2, memory_bytes=8 << 30)
NAMES = ("full@sdpa-math", "full@sdpa-flash", "full@sdpa-efficient", "bsa@flex", "bsa@gather")


def timed(one, call_s):
    result = worker_result(one)
    return result.model_copy(update={"timing": result.timing.model_copy(update={"samples": [call_s]})})


class Machine:
    """Plays an agenda: `calls` and `workers` take so many seconds, by implementation; the model's by default."""

    def __init__(self, cases, *, calls=None, workers=None, status=None, num_processes=1, pace=None, **fields):
        self.calls, self.workers, self.status = calls or {}, workers or {}, status or {}
        self.ledger = Ledger(cases, num_processes, {})
        self.pace = pace or Pace()
        self.forecast = Forecast(CPU, "quick", self.pace)
        groups = group_cases(cases)
        self.agenda = Agenda(groups, self.ledger, self.forecast, num_processes=num_processes, **fields)
        self.ran = []

    def run(self, left_s):
        while visit := self.agenda.next(left_s):
            predicted_s = self.forecast.seconds(visit.cases)
            for case_hash, one in visit.cases.items():
                self.ran.append((one, visit.process_index))
                status = self.status.get(one.implementation, Status.OK)
                self.ledger.note(case_hash, visit.process_index, status)
                if status is Status.OK and (call_s := self.calls.get(one.implementation)):
                    self.pace.observe_calls([timed(one, call_s)], CPU)
            wall_s = self.workers.get(one.implementation, predicted_s)
            self.pace.observe(one.base_engine, predicted_s=predicted_s, observed_s=wall_s)
            left_s -= wall_s
        return [one for one, _ in self.ran]


def cases_of(tokens, names=NAMES):
    return [one for n in tokens for name in names for one in three_passes(name, n)]


def described(cases):
    return [(one.implementation, one.passes, one.workload.num_tokens) for one in cases]


def test_dense_and_sparse_of_one_pass_come_before_the_next_pass():
    ran = described(Machine(cases_of([4096, 1024])).run(60))
    assert ran[:6] == [
        (name, passes, 1024)
        for passes in ("forward", "backward", "forward+backward")
        for name in ("full@sdpa-flash", "bsa@gather")
    ]
    assert ran[6:8] == [(name, "forward", 4096) for name in ("full@sdpa-flash", "bsa@gather")]


def test_an_engine_with_fewer_passes_is_not_taken_for_the_fastest():
    cases = [*three_passes("full@sdpa-flash", 1024), case("full@flex", 1024), *three_passes("bsa@gather", 1024)]
    assert described(Machine(cases).run(60))[0] == ("full@sdpa-flash", "forward", 1024)


def test_where_a_dense_engine_turns_out_slow_another_one_leads_the_pairs_from_there_on():
    cases = [case(name, n) for n in (1024, 4096) for name in ("full@sdpa-flash", "full@flex", "bsa@gather")]
    known = Pace()
    calls = {"full@sdpa-flash": 5.0, "full@flex": 0.01, "bsa@gather": 0.1}
    ran = described(Machine(cases, calls=calls).run(1000))
    assert [(name, tokens) for name, _, tokens in ran] == [
        ("full@sdpa-flash", 1024),
        ("bsa@gather", 1024),
        ("full@sdpa-flash", 4096),
        ("bsa@gather", 4096),
        ("full@flex", 1024),
        ("full@flex", 4096),
    ]
    known.observe_calls([timed(case("full@flex", 1024), 0.01), timed(case("full@sdpa-flash", 1024), 5.0)], CPU)
    resumed = Machine(cases, pace=known)
    assert described(resumed.run(1000))[0] == ("full@flex", "forward", 1024)


def test_a_slow_machine_alone_does_not_make_the_other_engines_the_fastest():
    pace = Pace()
    flash, flex = case("full@sdpa-flash", 1024), case("full@flex", 1024)
    before = pace.call_s(flash, CPU), pace.call_s(flex, CPU)
    result = worker_result(flash)
    pace.observe_calls([result], CPU)
    assert pace.call_s(flash, CPU) == 0.052
    assert pace.call_s(flex, CPU) == pytest.approx(before[1] * 0.052 / before[0])
    assert pace.call_s(case("full@flex", 1024), CPU) > pace.call_s(flash, CPU)
    sparse = case("bsa@gather", 1024)
    assert pace.call_s(sparse, CPU) == Pace().call_s(sparse, CPU)


def test_a_pair_of_which_only_one_half_fits_is_not_begun_before_what_answers_more():
    cases = [case(name, n) for n in (256, 32768) for name in ("full@sdpa-flash", "full@sdpa-efficient", "bsa@gather")]
    ran = described(Machine(cases, workers=dict.fromkeys(NAMES, 5.0)).run(16.0))
    assert [tokens for *_, tokens in ran] == [256] * len(ran)
    assert len(ran) >= 2


def test_a_worker_that_takes_longer_than_predicted_makes_the_next_ones_longer_too():
    cases = [case(name, 256 * n) for n in range(1, 9) for name in ("full@sdpa-flash", "bsa@gather")]
    quick = Machine(cases).run(60)
    slow = Machine(cases, workers={"full@sdpa-flash": 14.0, "bsa@gather": 14.0}).run(60)
    assert len(slow) == 4
    assert len(quick) > 8


def test_a_dense_engine_that_fails_hands_its_place_to_the_next_fastest():
    cases = [case(name, 1024) for name in NAMES]
    ran = described(Machine(cases, status={"full@sdpa-flash": Status.CRASHED}).run(60))
    assert [name for name, *_ in ran[:3]] == ["full@sdpa-flash", "full@sdpa-efficient", "bsa@gather"]


def test_where_everything_fits_easily_a_group_stays_in_one_worker():
    machine = Machine(cases_of([1024]))
    visit = machine.agenda.next(10_000)
    assert [one.passes for one in visit.cases.values()] == ["forward", "backward", "forward+backward"]
    assert len(machine.agenda.next(25).cases) == 1


def test_what_is_only_verified_comes_after_what_is_timed():
    cases = [case(name, 256) for name in ("bsa@triton", "full@flex", "full@sdpa-flash", "bsa@gather")]
    assert described(Machine(cases).run(1000))[-1][0] == "bsa@triton"


def test_the_second_round_begins_when_the_first_is_over_and_starts_pairs_with_either_half():
    cases = [case(name, 256 * n) for n in range(1, 13) for name in ("full@sdpa-flash", "bsa@gather")]
    machine = Machine(cases, num_processes=2)
    machine.run(10_000)
    assert [index for _, index in machine.ran] == [0] * 24 + [1] * 24
    first_halves = [one.implementation for one, _ in machine.ran[::2]]
    assert first_halves[:12] == ["full@sdpa-flash"] * 12
    assert set(first_halves[12:]) == {"full@sdpa-flash", "bsa@gather"}


def test_a_priority_of_implementations_comes_before_pairs_and_what_does_not_fit_is_passed_over():
    cases = [case(name, n) for n in (1024, 65536) for name in ("full@sdpa-flash", "bsa@flex", "bsa@gather")]
    order = ("bsa@gather", "full@sdpa-flash", "bsa@flex")
    ran = described(Machine(cases, priority=order).run(10_000))
    assert [name for name, *_ in ran] == [name for name in order for _ in range(2)]
    ran = described(Machine(cases, priority=order).run(40))
    assert ("full@sdpa-flash", "forward", 65536) not in ran
    assert ran[-1][0] == "bsa@flex"


@pytest.mark.slow
@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["full@a", "full@b", "bsa@b", "vsa@c"]), st.integers(8, 99)), max_size=12),
    st.sampled_from([30.0, 100.0, 1e9]),
)
def test_an_agenda_repeats_nothing_and_with_time_enough_leaves_nothing_out(picks, left_s):
    cases = [one for group in group_cases([c for n, t in picks for c in three_passes(n, t)]) for one in group]
    machine = Machine(cases, num_processes=2)
    machine.run(left_s)
    assert len(machine.ran) == len({(one.case_hash, index) for one, index in machine.ran})
    if left_s == 1e9:
        assert len(machine.ran) == 2 * len(cases)


def smallest(cases, **fields):
    defaults = {"device": CPU, "profile": "quick", "num_processes": 1, "unavailable": lambda _: None}
    return smallest_budget_s(cases, **(defaults | {"done": {}, "known": [], "priority": ()} | fields))


def test_the_smallest_useful_budget_is_that_of_the_cheapest_pair():
    cases = cases_of([1024, 4096])
    needed_s = smallest(cases)
    assert len(Machine(cases).run(needed_s * 1.001)) == 2
    assert len(Machine(cases).run(needed_s * 0.9)) == 1


def test_without_a_pair_the_smallest_budget_is_that_of_a_case_and_of_nothing_left_it_is_none():
    dense = three_passes(tokens=1024)
    assert 0 < smallest(dense) < smallest([*dense, *three_passes("bsa@gather", 1024)])
    assert smallest(dense, done={(one.case_hash, 0): Status.OK for one in dense}) == 0


def test_a_plan_under_a_budget_leaves_out_what_is_done_and_what_does_not_fit():
    cases = cases_of([1024, 4096])
    done = {(one.case_hash, 0): Status.OK for one in cases[3:6]}
    assert described(cases[3:4]) == [("full@sdpa-flash", "forward", 1024)]
    rows = plan_run(cases, device=CPU, budget_s=60.0, left_s=30.0, done=done)
    reasons = {row.case.case_hash: row.reason for row in rows}
    assert [reasons[one.case_hash] for one in cases[3:6]] == ["it is done: OK"] * 3
    assert sum(row.seconds for row in rows) < 30
    running = [row for row in rows if row.runs]
    assert rows[: len(running)] == running
    assert described([running[0].case]) == [("bsa@gather", "forward", 1024)]
    assert "it does not fit in the budget of 60.0 s" in reasons.values()
    everything = plan_run(cases, device=CPU)
    assert sum(row.seconds for row in plan_run(cases, device=CPU, done=done)) < sum(row.seconds for row in everything)


def test_of_several_processes_a_plan_counts_those_that_are_missing():
    cases = [case("full@sdpa-flash", 1024)]
    done = {(cases[0].case_hash, index): Status.OK for index in range(3)}
    once = plan_run(cases, device=CPU)[0].seconds
    assert plan_run(cases, device=CPU, num_processes=5, done=done)[0].seconds == pytest.approx(2 * once)
