"""Timers of the host and by CUDA events, on a GPU that is a script."""

import pytest
import torch
from gpu_factory import L2_BYTES, FakeGpu

from bsa_bench.errors import BenchError, UsageError
from bsa_bench.measure import queue_hold
from bsa_bench.measure.device_span import DeviceSpanTimer
from bsa_bench.measure.graph_replay import GraphTimer
from bsa_bench.measure.queue_hold import FIRST_HOLD_S, LONGEST_HOLD_S
from bsa_bench.measure.timer import EventTimer, HostTimer, make_timer

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def gpu(monkeypatch):
    return FakeGpu(monkeypatch)


def test_the_host_timer_gives_the_spans_between_marks_and_they_add_up(monkeypatch):
    ticks = iter([0, 10, 10_000, 10_500, 11_500])
    monkeypatch.setattr("bsa_bench.measure.timer.clock.perf_counter_ns", lambda: next(ticks))
    timer = HostTimer()
    assert timer.sample(lambda: None) == pytest.approx(10e-9)
    spans = timer.sample_phases(lambda mark: [mark("select"), mark("attend")])
    assert spans == pytest.approx({"select": 500e-9, "attend": 1000e-9})
    assert timer.dispatch_s is None


def test_on_a_gpu_the_host_timer_waits_for_the_work_and_tells_dispatch_apart(gpu):
    timer = HostTimer(CUDA, "cold")
    assert timer.sample(lambda: gpu.call(dispatch_s=0.25, work_s=2.0)) == pytest.approx(2.25, abs=1e-4)
    assert timer.dispatch_s == pytest.approx(0.25, abs=1e-4)
    assert gpu.flushes == [0.0]
    assert gpu.synchronised == 2


def test_on_a_gpu_the_host_timer_waits_at_each_mark(gpu):
    def call(mark):
        gpu.work(3.0)
        mark("select")
        gpu.work(4.0)
        mark("attend")

    spans = HostTimer(CUDA).sample_phases(call)
    assert spans == pytest.approx({"select": 3.0, "attend": 4.0}, abs=1e-4)
    assert gpu.flushes == []


def test_the_buffer_that_evicts_has_twice_the_bytes_of_the_l2(gpu):
    assert queue_hold.flush_buffer(CPU).numel() == 2 * L2_BYTES


def test_a_driver_that_reports_no_l2_has_no_cold_caches(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: type("P", (), {"L2_cache_size": 0}))
    with pytest.raises(BenchError, match="reports an L2 of 0 bytes, so cold caches cannot be made"):
        queue_hold.flush_buffer(CPU)


def test_events_leave_eviction_and_the_hold_out(gpu):
    timer = EventTimer(CUDA)
    samples = [timer.sample(lambda: gpu.call(dispatch_s=10e-6, work_s=5e-3)) for _ in range(2)]
    assert samples == pytest.approx([5e-3, 5e-3])
    assert len(gpu.flushes) == 2
    assert gpu.holds[-2:] == pytest.approx([FIRST_HOLD_S] * 2, rel=1e-2)
    assert timer.dispatch_s == pytest.approx(10e-6, abs=2e-6)
    assert timer.ran_dry is False
    assert (timer.name, timer.cache) == ("event", "cold")


def test_warm_caches_are_not_evicted(gpu):
    timer = EventTimer(CUDA, "warm")
    timer.sample(lambda: gpu.work(5.0))
    assert gpu.flushes == []
    assert timer.cache == "warm"


def test_a_call_shorter_than_its_dispatch_is_timed_without_it_once_the_hold_is_long_enough(gpu):
    timer = EventTimer(CUDA, "warm")

    def many_small_kernels():
        for _ in range(10):
            gpu.call(dispatch_s=100e-6, work_s=2e-6)

    first = timer.sample(many_small_kernels)
    assert timer.ran_dry
    assert first > 500e-6
    second = timer.sample(many_small_kernels)
    assert timer.ran_dry is False
    assert second == pytest.approx(20e-6)
    assert gpu.holds[-1] == pytest.approx(1.5e-3, rel=0.01)


def test_a_call_that_waits_for_the_device_does_not_make_the_hold_longer_than_its_cap(gpu):
    timer = EventTimer(CUDA, "warm")

    def waits():
        gpu.work(1.0)
        torch.cuda.synchronize()
        gpu.work(1.0)

    samples = [timer.sample(waits) for _ in range(3)]
    assert samples == pytest.approx([2.0] * 3, rel=1e-3)
    assert timer.ran_dry
    assert gpu.holds[-1] == pytest.approx(LONGEST_HOLD_S)


def test_marks_on_a_gpu_do_not_synchronise_and_give_the_spans_between_them(gpu):
    timer = EventTimer(CUDA)
    timer.sample(lambda: None)  # the rate of the clock is measured once, with a wait
    before = gpu.synchronised

    def call(mark):
        gpu.work(3.0)
        mark("select")
        assert gpu.synchronised == before
        gpu.work(4.0)
        mark("attend")

    assert timer.sample_phases(call) == pytest.approx({"select": 3.0, "attend": 4.0})
    assert gpu.synchronised == before + 1


def test_a_spinning_kernel_that_takes_no_time_is_no_hold(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "_sleep", lambda _: None)
    with pytest.raises(BenchError, match=r"a kernel of 2,000,000 cycles took 0.0 s by CUDA events"):
        EventTimer(CUDA, "warm").sample(lambda: None)


def test_a_cpu_is_timed_by_the_host_with_warm_caches():
    timer = make_timer(CPU)
    assert (timer.name, timer.cache) == ("host", "warm")
    assert (make_timer(CPU, "host", "warm").name, timer.ran_dry) == ("host", None)


@pytest.mark.parametrize(("name", "cache"), [("event", None), ("host", "cold"), ("graph", "warm")])
def test_a_cpu_has_no_other_timer_or_cache_state(name, cache):
    with pytest.raises(UsageError, match=f"timer {name}, cache {cache}: expected host and warm on cpu"):
        make_timer(CPU, name, cache)
    with pytest.raises(UsageError, match="got cache cold on a CPU, expected warm"):
        HostTimer(CPU, "cold")


@pytest.mark.parametrize(
    ("name", "kind"),
    [(None, EventTimer), ("event", EventTimer), ("host", HostTimer), ("device-span", DeviceSpanTimer),
     ("graph", GraphTimer)],
)  # fmt: skip
@pytest.mark.parametrize("cache", [None, "cold", "warm"])
def test_a_gpu_has_every_timer_in_both_states_and_is_cold_by_itself(gpu, name, kind, cache):
    timer = make_timer(CUDA, name, cache)
    assert type(timer) is kind
    assert (timer.name, timer.cache) == (name or "event", cache or "cold")
    assert timer.times_phases is (kind is not GraphTimer)
