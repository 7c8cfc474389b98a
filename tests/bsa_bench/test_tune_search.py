"""The search: order, budget, interruption; with a scripted clock and no GPU."""

from itertools import count

import pytest
from tune_factory import candidate, ok

from bsa_bench.tune.candidates import Prospect, in_order
from bsa_bench.tune.search import LIMIT_S, Outcome, search

CANDIDATES = [candidate("attend", num_stages=n) for n in (1, 2, 3, 4)]


class Clock:
    """Advances by what each measurement takes."""

    def __init__(self, step_s=10.0):
        self.now, self.step_s, self.limits = 0.0, step_s, []

    def __call__(self):
        return self.now

    def measure(self, of, limit_s):
        self.limits.append(limit_s)
        self.now += min(self.step_s, limit_s)
        return ok(of, 1.0)


def test_all_are_measured_in_order_where_time_allows():
    clock, told = Clock(), []
    found = search(CANDIDATES, clock.measure, budget_s=1000, clock=clock, on_done=told.append)
    assert [o.candidate for o in found.outcomes] == CANDIDATES
    assert list(found.outcomes) == told
    assert (found.left, found.was_interrupted) == ((), False)
    assert clock.limits == [LIMIT_S] * 4


def test_the_budget_ends_the_search_and_is_never_passed():
    clock = Clock(step_s=40)
    found = search(CANDIDATES, clock.measure, budget_s=100, clock=clock)
    assert len(found.outcomes) == 3
    assert found.left == (CANDIDATES[3],)
    assert clock.limits == [100, 60, 20]
    assert clock.now == 100


def test_a_spent_budget_measures_nothing():
    assert search(CANDIDATES, Clock().measure, budget_s=-1, clock=Clock()).left == tuple(CANDIDATES)


def test_an_interruption_keeps_what_is_known():
    steps = count()

    def measure(of, _):
        if next(steps) == 2:
            raise KeyboardInterrupt
        return ok(of, 1.0)

    found = search(CANDIDATES, measure, budget_s=100)
    assert found.was_interrupted
    assert [o.candidate for o in found.outcomes] == CANDIDATES[:2]
    assert found.left == tuple(CANDIDATES[2:])


def test_failures_do_not_end_the_search():
    found = search(CANDIDATES, lambda of, _: Outcome(of, "FAILED", reason="no"), budget_s=100)
    assert len(found.outcomes) == 4


def test_each_questions_tile_in_force_comes_first_then_the_most_promising_of_each():
    prospects = [
        Prospect(candidate("attend", num_stages=1), 100.0),
        Prospect(candidate("attend", num_stages=3), 300.0),
        Prospect(candidate("attend", num_stages=2, is_in_force=True), 50.0),
        Prospect(candidate("grad_q", num_stages=4), None),
        Prospect(candidate("grad_q", num_stages=1, is_in_force=True), 10.0),
    ]
    order = [(p.candidate.question.kernel, p.candidate.tile.num_stages) for p in in_order(prospects)]
    assert order == [("attend", 2), ("grad_q", 1), ("attend", 3), ("grad_q", 4), ("attend", 1)]


def test_the_sum_over_the_lengths_decides():
    assert ok(CANDIDATES[0], 1.0, 2.5).total_s == pytest.approx(3.5)
