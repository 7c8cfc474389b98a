"""The profiler's events become spans of phases; what is not the operator's is left out, what is odd is an error."""

from types import SimpleNamespace

import pytest
import torch
from gpu_factory import FakeGpu
from torch.autograd import DeviceType

from bsa_bench.errors import BenchError
from bsa_bench.measure.device_span import DeviceSpanTimer, phase_spans, profiled_events

CUDA = torch.device("cuda")
START, END = "bsa-bench: start", "bsa-bench: end of "


@pytest.fixture
def gpu(monkeypatch):
    return FakeGpu(monkeypatch)


def event(name, start, end, *, number=0, device=DeviceType.CPU, annotation=False):
    time_range = SimpleNamespace(start=start, end=end)
    return SimpleNamespace(
        name=name, id=number, device_type=device, is_user_annotation=annotation, time_range=time_range
    )


def launch(number, at, name="cudaLaunchKernel"):
    return event(name, at, at + 2, number=number)


def kernel(number, start, end, name="attend_kernel"):
    return event(name, start, end, number=number, device=DeviceType.CUDA)


def marks(start, **ends):
    found = [event(START, start - 1, start, number=1)]
    return found + [event(END + name, at, at + 1, number=2) for name, at in ends.items()]


FLUSH = [launch(1, 10), kernel(1, 15, 40, "fill"), launch(2, 20), kernel(2, 40, 300, "spin_kernel")]


def test_a_span_goes_from_the_first_kernel_start_to_the_last_end_with_the_gaps_between():
    events = [
        *FLUSH,
        *marks(100, call=140),
        launch(3, 110, "cuLaunchKernelEx"),
        launch(4, 120, "cudaMemsetAsync"),
        launch(5, 130),
        kernel(3, 300, 320),
        kernel(4, 330, 335, "Memset (Device)"),
        kernel(5, 340, 390),
    ]
    assert phase_spans(events) == pytest.approx({"call": 90e-6})


def test_a_launch_by_another_thread_or_stream_counts_by_its_time_whatever_the_order_of_events():
    events = [kernel(4, 310, 405), kernel(3, 300, 320), launch(4, 105), launch(3, 102), *marks(100, call=140), *FLUSH]
    assert phase_spans(events) == pytest.approx({"call": 105e-6})


def test_phases_end_with_their_last_kernel_and_add_up_to_the_whole():
    events = [
        *FLUSH,
        *marks(100, select=120, plan=130, attend=150),
        launch(3, 110),
        launch(4, 140),
        launch(5, 155),  # the clocks of host and device may differ a little at the end
        kernel(3, 300, 320),
        kernel(4, 325, 400),
        kernel(5, 400, 410),
    ]
    spans = phase_spans(events)
    assert spans == pytest.approx({"select": 20e-6, "plan": 0, "attend": 90e-6})
    assert sum(spans.values()) == pytest.approx(110e-6)


def test_a_graph_of_many_kernels_has_one_launch():
    events = [*marks(100, call=140), launch(3, 110, "cudaGraphLaunch"), kernel(3, 300, 320), kernel(3, 320, 350)]
    assert phase_spans(events) == pytest.approx({"call": 50e-6})


def test_the_shadows_of_ranges_on_the_device_are_no_kernels():
    shadow = event("my range", 200, 900, number=9, device=DeviceType.CUDA, annotation=True)
    assert phase_spans([*marks(100, call=140), launch(3, 110), kernel(3, 300, 320), shadow]) == {
        "call": pytest.approx(20e-6)
    }


def test_an_operator_of_torch_with_the_id_of_a_kernel_is_not_its_launch():
    events = [*marks(100, call=140), event("aten::copy_", 110, 120, number=3), kernel(3, 300, 320)]
    with pytest.raises(BenchError, match="has no launch of attend_kernel; use --timer event"):
        phase_spans(events)


def test_a_profile_without_kernels_is_an_error_and_no_zero():
    with pytest.raises(BenchError, match="saw no kernel of the call; CUPTI may be in use"):
        phase_spans([*FLUSH, *marks(100, call=140)])


@pytest.mark.parametrize("events", [[], marks(100), [*marks(100, call=140), *marks(200, call=240)][:3]])
def test_a_profile_without_its_marks_is_an_error(events):
    with pytest.raises(BenchError, match=r"the profile has \d marks of a start and \d of an end"):
        phase_spans(events)


def test_a_sample_is_one_profile_with_eviction_and_hold_before_the_mark(gpu, monkeypatch):
    told = []
    monkeypatch.setattr("bsa_bench.measure.device_span._note", lambda name: told.append((name, gpu.host_s)))

    def record(work):
        work()
        assert gpu.synchronised
        assert [name for name, _ in told] == [START, END + "call"]
        return [*FLUSH, *marks(100, call=140), launch(3, 110), kernel(3, 300, 350)]

    timer = DeviceSpanTimer(CUDA, record=record)
    gpu.device_s = 0.0
    assert timer.sample(lambda: gpu.call(dispatch_s=10e-6, work_s=50e-6)) == pytest.approx(50e-6)
    assert len(gpu.flushes) == 1
    assert told[0][1] >= 50e-6  # apart from the launch of the hold
    assert timer.ran_dry is False
    assert timer.dispatch_s is None


def test_warm_caches_are_left_alone(gpu, monkeypatch):
    monkeypatch.setattr("bsa_bench.measure.device_span._note", lambda _: None)

    def record(work):
        work()
        return [*marks(100, a=120, b=140), launch(3, 110), kernel(3, 300, 350)]

    timer = DeviceSpanTimer(CUDA, "warm", record=record)
    assert timer.sample_phases(lambda mark: [mark("a"), mark("b")]) == pytest.approx({"a": 50e-6, "b": 0})
    assert gpu.flushes == []


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there are kernels where there is a GPU")
@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_the_events_of_the_real_profiler_have_what_is_read_of_them():
    from bsa_bench.measure.device_span import _note

    def work():
        _note(START)
        torch.ones(10).sum()
        _note(END + "call")

    events = profiled_events(work)
    assert [e.name for e in events if e.name.startswith("bsa-bench")] == [START, END + "call"]
    with pytest.raises(BenchError, match="saw no kernel of the call"):
        phase_spans(events)


@pytest.mark.gpu
@pytest.mark.smoke
def test_a_real_span_is_near_that_of_events():
    from bsa_bench.measure.timer import EventTimer

    x = torch.randn(4096, 4096, device="cuda")
    span, pair = DeviceSpanTimer(CUDA), EventTimer(CUDA)
    for timer in (span, pair):
        timer.sample(lambda: x @ x)
    medians = [sorted(timer.sample(lambda: x @ x) for _ in range(9))[4] for timer in (span, pair)]
    assert medians[0] == pytest.approx(medians[1], rel=0.03)
