import gc
import itertools
from dataclasses import replace

import pytest

from bsa_bench.measure.sampling import PROTOCOLS, Protocol, Warmup, collect, warm_up

# Scripted times are sums of powers of two, so that the scripted clock is exact.
PROTOCOL = Protocol(
    warmup_cap_s=8.0,
    min_samples=3,
    max_samples=20,
    seconds=2.5,
    verify_after=False,
    settle_windows=3,
    window_s=0.5,
    settle_within=0.25,
)


class Script:
    """A clock that stands still but for the calls, each of which takes the next of the scripted times."""

    def __init__(self, seconds):
        self.now = 0.0
        self.calls = 0
        self._seconds = iter(seconds)

    def sample(self):
        took = next(self._seconds)
        self.now += took
        self.calls += 1
        return took

    def clock(self):
        return self.now


def test_warm_up_ends_when_enough_windows_agree():
    script = Script(itertools.repeat(0.125))
    assert warm_up(script.sample, PROTOCOL, script.clock) == Warmup(1.5, settled=True)
    assert script.calls == 12


def test_a_slow_first_call_does_not_count_against_the_rest_of_its_window():
    script = Script(itertools.chain([0.25], itertools.repeat(0.125)))
    assert warm_up(script.sample, PROTOCOL, script.clock).settled


def test_a_time_that_keeps_falling_is_watched_until_it_stays():
    script = Script(itertools.chain([0.5, 0.5, 1.0, 0.5, 0.5], itertools.repeat(0.25)))
    assert warm_up(script.sample, PROTOCOL, script.clock) == Warmup(3.0 + 1.5, settled=True)


def test_a_time_that_never_settles_ends_at_the_cap_and_says_so():
    script = Script(itertools.cycle([0.5, 1.0]))
    assert warm_up(script.sample, PROTOCOL, script.clock) == Warmup(8.0, settled=False)


def test_one_call_longer_than_the_cap_is_the_whole_warm_up():
    script = Script(itertools.repeat(60.0))
    assert warm_up(script.sample, PROTOCOL, script.clock) == Warmup(60.0, settled=False)
    assert script.calls == 1


@pytest.mark.parametrize(("slower", "settled"), [(0.625, True), (0.6875, False)])
def test_windows_agree_within_the_limit_and_not_beyond(slower, settled):
    script = Script(itertools.cycle([0.5, slower]))
    assert warm_up(script.sample, PROTOCOL, script.clock).settled is settled


def test_sampling_ends_with_the_time_once_enough_are_there():
    script = Script(itertools.repeat(0.5))
    assert collect(script.sample, PROTOCOL, script.clock) == [0.5] * 5


def test_a_slow_call_gets_the_fewest_samples():
    script = Script(itertools.repeat(10.0))
    assert len(collect(script.sample, PROTOCOL, script.clock)) == PROTOCOL.min_samples


def test_a_quick_call_gets_the_most_samples():
    script = Script(itertools.repeat(1e-6))
    assert len(collect(script.sample, PROTOCOL, script.clock)) == PROTOCOL.max_samples


def test_samples_are_kept_in_order():
    times = [0.75, 0.5, 1.0, 0.25]
    script = Script(times)
    assert collect(script.sample, PROTOCOL, script.clock) == times


def test_the_garbage_collector_rests_while_samples_are_drawn():
    seen = []
    assert gc.isenabled()
    collect(lambda: seen.append(gc.isenabled()) or 1.0, replace(PROTOCOL, max_samples=2))
    assert seen == [False, False]
    assert gc.isenabled()


def test_the_garbage_collector_is_back_after_a_call_that_raised():
    with pytest.raises(RuntimeError):
        collect(lambda: (_ for _ in ()).throw(RuntimeError("boom")), PROTOCOL)
    assert gc.isenabled()


def test_the_profiles_are_those_of_the_protocol():
    assert set(PROTOCOLS) == {"quick", "gate", "report"}
    assert PROTOCOLS["report"].verify_after
    assert PROTOCOLS["quick"].verify_after
    assert PROTOCOLS["report"].settle_windows == 5
    assert PROTOCOLS["report"].settle_within == 0.01
    for protocol in (PROTOCOLS["quick"], PROTOCOLS["report"]):
        assert 5 <= protocol.min_samples <= protocol.max_samples
