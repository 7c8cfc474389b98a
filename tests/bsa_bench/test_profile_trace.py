import pytest
from profile_factory import event, launched, memory, ranges, write_trace

from bsa_bench.errors import BenchError
from bsa_bench.profiling.trace import Span, allocations_of, read_events, times_of


def by_name(times):
    return {phase.name: (round(phase.seconds * 1e6, 3), round(phase.host_s * 1e6, 3)) for phase in times.phases}


def operators(times):
    return {(o.phase, o.name): (o.num_calls, round(o.self_s * 1e6, 3)) for o in times.operators}


def test_an_operators_time_is_without_that_of_those_it_calls_and_the_rest_of_the_phase_is_the_hosts():
    events = [
        *ranges(("select", 0, 40), ("attend", 40, 100)),
        event("mm", 10, 30),
        event("empty", 12, 17),
        event("fill_", 17, 20),
        event("sdpa", 45, 95),
        event("copy_", 50, 60, tid=2),  # another thread's, in the time of the first
    ]
    times = times_of(events, ["select", "attend"])
    assert by_name(times) == {"select": (40, 20), "attend": (60, 10)}
    assert operators(times) == {
        ("attend", "sdpa"): (1, 50),
        ("select", "mm"): (1, 12),
        ("attend", "copy_"): (1, 10),
        ("select", "empty"): (1, 5),
        ("select", "fill_"): (1, 3),
    }
    assert [o.name for o in times.operators][:2] == ["sdpa", "mm"]
    assert times.whole_s == pytest.approx(100e-6)
    assert times.host_share == pytest.approx(0.3)
    assert not times.is_device


def test_figures_are_per_call():
    events = [*ranges(("attend", 0, 40)), *ranges(("attend", 100, 160)), event("mm", 5, 15), event("mm", 110, 130)]
    times = times_of(events, ["attend"])
    assert times.num_calls == 2
    assert by_name(times) == {"attend": (50, 35)}
    assert operators(times) == {("attend", "mm"): (1, 15)}


def test_a_backward_leaves_its_forward_out():
    events = [*ranges(("attend", 0, 40), ("attend_backward", 41, 101)), event("mm", 5, 15), event("mm", 50, 60)]
    times = times_of(events, ["attend_backward"])
    assert times.whole_s == times.phases_s == pytest.approx(60e-6)
    assert operators(times) == {("attend_backward", "mm"): (1, 10)}


def test_a_kernel_belongs_to_the_phase_that_launched_it_and_phases_end_with_their_last_kernel():
    events = [
        *ranges(("select", 0, 10), ("plan", 10, 20), ("attend", 20, 30)),
        *launched("before", -5, 0, 4, 1),
        *launched("scores", 2, 50, 80, 2),
        *launched("Memset", 4, 82, 90, 3, cat="gpu_memset"),
        *launched("attention", 25, 100, 200, 4),
        event("bsa-bench: select", 50, 90, cat="gpu_user_annotation"),
    ]
    times = times_of(events, ["select", "plan", "attend"])
    assert by_name(times) == {"select": (40, 2), "plan": (0, 0), "attend": (110, 10)}
    assert times.whole_s == times.phases_s == pytest.approx(150e-6)
    assert times.host_share == pytest.approx(12 / 150)
    assert {(o.kind, o.name) for o in times.operators} == {
        ("kernel", "scores"),
        ("kernel", "Memset"),
        ("kernel", "attention"),
    }
    assert times.is_device


def test_kernels_come_before_the_operators_that_launch_them():
    events = [*ranges(("attend", 0, 100)), event("sdpa", 1, 90), *launched("attention", 5, 110, 120, 1)]
    assert [o.kind for o in times_of(events, ["attend"]).operators] == ["kernel", "operator"]


def test_allocations_add_up_from_the_start_of_the_last_call():
    events = [
        *ranges(("attend", 0, 40)),
        memory(5, 999),
        *ranges(("attend", 100, 140), ("fill", 140, 200)),
        memory(150, -60),
        memory(110, 100),
        memory(120, 7, device_type=1),
        memory(250, -40),
    ]
    found, phases = allocations_of(events, is_cuda=False)
    assert [(a.phase, a.change_bytes, a.allocated_bytes) for a in found] == [("attend", 100, 100), ("fill", -60, 40)]
    assert [round(a.seconds * 1e6, 3) for a in found] == [10, 50]
    assert [(s.name, round(s.end * 1e6, 3)) for s in phases] == [("attend", 40), ("fill", 100)]
    on_device, _ = allocations_of(events, is_cuda=True)
    assert [a.allocated_bytes for a in on_device] == [7]


def test_a_trace_without_the_call_or_a_phase_is_refused():
    with pytest.raises(BenchError, match=r"no range 'bsa-bench: call'; the profiler recorded nothing"):
        times_of([event("mm", 1, 2)], ["attend"])
    with pytest.raises(BenchError, match=r"no range of fill in a call"):
        times_of(ranges(("attend", 0, 4)), ["attend", "fill"])


@pytest.mark.parametrize("content", [None, b"not gzip", b"\x1f\x8b\x08\x00"])
def test_what_is_no_trace_is_refused_by_its_name(content, tmp_path):
    path = tmp_path / "trace.json.gz"
    if content:
        path.write_bytes(content)
    with pytest.raises(BenchError, match=r"^trace\.json\.gz: expected a gzipped Chrome trace"):
        read_events(path)


def test_a_trace_is_read_as_it_was_written(tmp_path):
    events = ranges(("attend", 0, 4))
    write_trace(tmp_path / "t.gz", events)
    assert read_events(tmp_path / "t.gz") == events
    assert Span("attend", 0, 4).end == 4
