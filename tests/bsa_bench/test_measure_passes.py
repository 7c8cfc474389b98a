from types import SimpleNamespace

import pytest
import torch
from run_factory import case

from bsa_bench.catalog import build_operator
from bsa_bench.measure.passes import Subject, pass_call, time_pass
from bsa_bench.measure.sampling import Protocol
from bsa_bench.measure.timer import EventTimer, HostTimer, make_timer
from bsa_bench.result import PASSES

PROTOCOL = Protocol(warmup_cap_s=0.0, min_samples=4, max_samples=4, seconds=0.0, verify_after=False)
FORWARD = {"permute": 1.0, "select": 2.0, "plan": 4.0, "attend": 8.0, "fill": 16.0}
BACKWARD = {"fill_backward": 32.0, "attend_backward": 64.0, "permute_backward": 128.0}


class ScriptedTimer:
    """Makes the calls and returns scripted seconds."""

    name = "host"
    cache = "warm"

    def __init__(self):
        self.num_calls = 0
        self.graph = []

    def sample(self, call):
        self.num_calls += 1
        out = call()
        self.graph.append(torch.is_tensor(out) and out.requires_grad)
        return float(self.num_calls)

    def sample_phases(self, call):
        spans = {}
        call(lambda name: spans.__setitem__(name, (FORWARD | BACKWARD)[name]))
        return spans


def timed(which, implementation="bsa@gather"):
    one = case(implementation, passes=which)
    w = one.workload
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad = (torch.randn(1, w.heads, w.num_tokens, w.head_dim, generator=generator) for _ in range(4))
    timer = ScriptedTimer()
    operator = build_operator(one, scale=0.2)
    return time_pass(
        Subject(operator, {"q": q, "k": k, "v": v}, ("q", "k", "v"), None if which == "forward" else grad),
        which=which,
        timer=timer,
        protocol=PROTOCOL,
        first_call_s=0.25,
    ), timer


@pytest.mark.slow
@pytest.mark.parametrize("which", PASSES)
def test_warm_up_samples_are_not_among_the_samples_which_stay_in_order(which):
    timing, _ = timed(which)
    assert timing.samples == [2.0, 3.0, 4.0, 5.0]
    assert timing.first_call_s == 0.25
    assert not timing.settled
    assert (timing.timer, timing.cache) == ("host", "warm")


@pytest.mark.slow
def test_a_forward_has_the_phases_of_the_forward_and_their_totals():
    timing, timer = timed("forward")
    assert list(timing.phases) == list(FORWARD)
    assert set(timing.attend_only) == {8.0}
    assert set(timing.attend_select) == {8.0 + 2 + 4}
    assert not any(timer.graph)


@pytest.mark.slow
def test_a_backward_has_only_its_own_phases_and_selects_nothing():
    timing, _ = timed("backward")
    assert list(timing.phases) == list(BACKWARD)
    assert set(timing.attend_only) == set(timing.attend_select) == {64.0}


@pytest.mark.slow
def test_both_together_have_all_phases():
    timing, _ = timed("forward+backward")
    assert list(timing.phases) == [*FORWARD, *BACKWARD]
    assert set(timing.attend_only) == {72.0}
    assert set(timing.attend_select) == {78.0}


@pytest.mark.slow
@pytest.mark.parametrize("which", PASSES)
def test_each_phase_has_a_sample_for_each_sample_of_the_totals(which):
    timing, _ = timed(which)
    lengths = {len(s) for s in timing.phases.values()}
    assert lengths == {len(timing.attend_only)} == {len(timing.attend_select)}
    assert lengths.pop() >= 3


@pytest.mark.parametrize(("which", "name"), [("forward", "attend"), ("backward", "attend_backward")])
def test_the_one_phase_of_dense_attention_is_the_whole(which, name):
    timing, _ = timed(which, "full@sdpa-math")
    assert timing.phases == {name: timing.samples}
    assert timing.attend_only == timing.attend_select == timing.samples


@pytest.mark.slow
def test_dense_forward_and_backward_are_told_apart():
    timing, _ = timed("forward+backward", "full@sdpa-math")
    assert list(timing.phases) == ["attend", "attend_backward"]
    assert set(timing.attend_only) == {72.0}


def counting_operator():
    """Dense attention that counts its forwards and backwards."""
    counts = {"forward": 0, "backward": 0}

    class Attend(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q, k, v):
            counts["forward"] += 1
            ctx.save_for_backward(q, k, v)
            return q + k + v

        @staticmethod
        def backward(ctx, grad):
            counts["backward"] += 1
            return grad, grad, grad

    class Counting:
        def forward(self, tensors):
            return Attend.apply(*tensors.values())

    return Counting(), counts


@pytest.mark.parametrize(
    ("which", "forwards", "backwards"), [("forward", 3, 0), ("backward", 1, 3), ("forward+backward", 3, 3)]
)
def test_a_backward_repeats_on_one_graph_and_both_together_make_it_anew(which, forwards, backwards):
    operator, counts = counting_operator()
    q, k, v, grad = (torch.randn(1, 1, 4, 2) for _ in range(4))
    tensors = {"q": q, "k": k, "v": v}
    call = pass_call(Subject(operator, tensors, ("q", "k", "v"), None if which == "forward" else grad), which)
    for _ in range(3):
        call()
    assert counts == {"forward": forwards, "backward": backwards}


def test_the_host_timer_gives_the_spans_between_marks_and_they_add_up(monkeypatch):
    ticks = iter([0, 10, 10_000, 10_500, 11_500])
    monkeypatch.setattr("bsa_bench.measure.timer.time.perf_counter_ns", lambda: next(ticks))
    timer = HostTimer()
    assert timer.sample(lambda: None) == pytest.approx(10e-9)
    spans = timer.sample_phases(lambda mark: [mark("select"), mark("attend")])
    assert spans == pytest.approx({"select": 500e-9, "attend": 1000e-9})


def test_a_cpu_is_timed_by_the_host_with_warm_caches():
    timer = make_timer(torch.device("cpu"))
    assert (timer.name, timer.cache) == ("host", "warm")


class FakeStream:
    """A GPU whose clock moves when it works: scripted events, flushes seen."""

    def __init__(self, monkeypatch):
        self.now_ms = 0.0
        self.synchronised = 0
        stream = self

        class Event:
            def __init__(self, *, enable_timing):
                assert enable_timing

            def record(self):
                self.at_ms = stream.now_ms

            def elapsed_time(self, other):
                return other.at_ms - self.at_ms

        properties = SimpleNamespace(L2_cache_size=1000)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "synchronize", self._synchronize)
        self.timer = EventTimer(torch.device("cpu"))
        self.flush_bytes = self.timer._flush.numel()
        self.timer._flush = SimpleNamespace(zero_=lambda: self.work(1000.0))

    def _synchronize(self):
        self.synchronised += 1

    def work(self, ms):
        self.now_ms += ms


def test_the_event_timer_evicts_twice_the_l2_before_each_sample_and_outside_of_it(monkeypatch):
    stream = FakeStream(monkeypatch)
    assert stream.flush_bytes == 2000
    assert [stream.timer.sample(lambda: stream.work(5.0)) for _ in range(2)] == [5e-3, 5e-3]
    assert stream.now_ms == 2 * 1005.0
    assert stream.synchronised == 2
    assert (stream.timer.name, stream.timer.cache) == ("event", "cold")


def test_marks_on_a_gpu_do_not_synchronise_and_give_the_spans_between_them(monkeypatch):
    stream = FakeStream(monkeypatch)

    def call(mark):
        stream.work(3.0)
        mark("select")
        assert stream.synchronised == 0
        stream.work(4.0)
        mark("attend")

    assert stream.timer.sample_phases(call) == pytest.approx({"select": 3e-3, "attend": 4e-3})
