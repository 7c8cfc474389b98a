"""CUDA graphs: what is captured, replayed and refused, on a GPU that is a script."""

from contextlib import contextmanager
from itertools import count

import pytest
import torch
from gpu_factory import L2_BYTES, FakeGpu

from bsa_bench.errors import UnsupportedError
from bsa_bench.measure import graph_replay
from bsa_bench.measure.graph_replay import MOST_SETS, GraphTimer, num_sets
from bsa_bench.prepare import failure
from bsa_bench.result import Status

CUDA = torch.device("cuda")


class Graphs:
    """Takes the place of torch's graphs and streams; a capture records what is called, `replay` tells of it."""

    def __init__(self, monkeypatch, gpu):
        self.gpu = gpu
        self.stream = "main"
        self.capturing = None
        self.sync_mode, self.modes = 0, []
        self.replayed, self.pools = [], []
        numbers = count()
        graphs = self

        class Graph:
            def __init__(self):
                self.number = next(numbers)

            def pool(self):
                return f"pool of {self.number}"

            def replay(self):
                graphs.replayed.append((self.number, graphs.stream))
                gpu.work(5e-3)

        class Stream:
            def wait_stream(self, other):
                pass

        @contextmanager
        def stream(to):
            before, graphs.stream = graphs.stream, "side" if isinstance(to, Stream) else to
            try:
                yield
            finally:
                graphs.stream = before

        class Capture:
            """As torch's: it ends with an error of its own, and gives no stream back, where the capture failed."""

            def __init__(self, graph, *, pool, stream):
                assert isinstance(stream, Stream)
                graphs.pools.append(pool)
                self.graph = graph

            def __enter__(self):
                graphs.capturing = self.graph

            def __exit__(self, kind, error, trace):
                graphs.capturing = None
                if error is not None:
                    graphs.stream = "lost"
                    raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "stream", stream)
        monkeypatch.setattr(torch.cuda, "graph", Capture)
        monkeypatch.setattr(torch.cuda, "current_stream", Stream)
        monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: self.sync_mode)
        monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", self._set_mode)
        monkeypatch.setattr(graph_replay, "_failure", None)

    def _set_mode(self, mode):
        self.sync_mode = mode
        self.modes.append(mode)


@pytest.fixture
def gpu(monkeypatch):
    return FakeGpu(monkeypatch)


@pytest.fixture
def graphs(monkeypatch, gpu):
    return Graphs(monkeypatch, gpu)


def test_input_sets_pass_twice_the_l2_and_are_at_least_two_and_never_many():
    assert num_sets(10 * L2_BYTES, L2_BYTES) == 2
    assert num_sets(L2_BYTES, L2_BYTES) == 2
    assert num_sets(600, L2_BYTES) == 4
    assert num_sets(1, L2_BYTES) == num_sets(0, L2_BYTES) == MOST_SETS


def test_cold_replays_rotate_over_sets_of_inputs_and_evict_before_each(gpu, graphs):
    made, called = [], []

    def make(index):
        made.append((index, graphs.stream))
        return lambda: called.append((index, graphs.stream, graphs.capturing is not None, graphs.sync_mode))

    timer = GraphTimer(CUDA)
    call = timer.bind(make, inputs_bytes=600)
    assert made == [(index, "side") for index in range(4)]
    # Each is called once to set it up, one more where waiting is an error, and captured; always on the same stream.
    assert called == [
        *((index, "side", False, 0) for index in range(4)),
        (0, "side", False, "error"),
        *((index, "side", True, 0) for index in range(4)),
    ]
    assert graphs.pools == [None, *["pool of 0"] * 3]
    assert [timer.sample(call) for _ in range(6)] == pytest.approx([5e-3] * 6)
    assert graphs.replayed == [(number, "main") for number in (0, 1, 2, 3, 0, 1)]
    assert len(gpu.flushes) == 6
    assert (timer.name, timer.cache) == ("graph", "cold")
    assert timer.dispatch_s < 1e-4
    assert timer.ran_dry is False


def test_warm_replays_have_one_set_and_evict_nothing(gpu, graphs):
    made = []
    timer = GraphTimer(CUDA, "warm")
    call = timer.bind(lambda index: made.append(index) or (lambda: None), inputs_bytes=1)
    for _ in range(3):
        timer.sample(call)
    assert made == [0]
    assert graphs.replayed == [(0, "main")] * 3
    assert gpu.flushes == []


def waiting(graphs):
    """A call as torch makes it fail in the mode that calls waiting an error."""

    def call():
        if graphs.sync_mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation")

    return call


def test_an_operator_that_waits_for_the_device_is_unsupported_and_no_capture_is_tried(graphs):
    with pytest.raises(UnsupportedError) as caught:
        GraphTimer(CUDA).bind(lambda _: waiting(graphs), inputs_bytes=1)
    assert str(caught.value) == (
        "cannot be captured into a CUDA graph: it synchronises with the host (called a synchronizing CUDA operation); "
        "use --timer event"
    )
    assert graphs.pools == []
    assert graphs.modes == ["error", 0]
    assert graphs.stream == "main"
    assert failure(caught.value)["status"] is Status.UNSUPPORTED
    GraphTimer(CUDA).bind(lambda _: lambda: None, inputs_bytes=1)  # the process is as good as before


def capture_fails_with(graphs, error):
    def call():
        if graphs.capturing:
            raise error

    return call


def test_a_capture_that_fails_is_unsupported_for_its_first_cause_and_no_other_is_tried_in_the_process(graphs):
    error = RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")
    with pytest.raises(UnsupportedError) as caught:
        GraphTimer(CUDA).bind(lambda _: capture_fails_with(graphs, error), inputs_bytes=1)
    why = "RuntimeError: CUDA error: operation not permitted when stream is capturing"
    assert str(caught.value) == f"cannot be captured into a CUDA graph ({why}); use --timer event"
    assert graphs.stream == "main"
    with pytest.raises(UnsupportedError, match="not captured, as another capture failed in this process: RuntimeError"):
        GraphTimer(CUDA).bind(lambda _: lambda: None, inputs_bytes=1)


def test_a_capture_without_memory_is_out_of_memory(graphs):
    error = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(torch.OutOfMemoryError):
        GraphTimer(CUDA).bind(lambda _: capture_fails_with(graphs, error), inputs_bytes=1)


def test_an_error_of_the_operator_is_its_own(graphs):
    def call():
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        GraphTimer(CUDA).bind(lambda _: call, inputs_bytes=1)

    def only_checked():
        if graphs.sync_mode == "error":
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        GraphTimer(CUDA).bind(lambda _: only_checked, inputs_bytes=1)
    assert graphs.sync_mode == 0


def test_a_graph_has_no_phases(graphs):
    timer = GraphTimer(CUDA)
    assert not timer.times_phases
    with pytest.raises(UnsupportedError, match="replayed whole and has no phases"):
        timer.sample_phases(lambda mark: None)


@pytest.mark.gpu
@pytest.mark.smoke
@pytest.mark.parametrize("which", ["forward", "backward", "forward+backward"])
def test_all_passes_of_dense_attention_are_captured(which):
    from run_factory import case

    from bsa_bench.catalog import build_operator
    from bsa_bench.measure.passes import Subject, Timers, time_pass
    from bsa_bench.measure.sampling import Protocol

    one = case("full@sdpa-flash", tokens=512, passes=which)
    q, k, v, grad = (torch.randn(1, 1, 512, 32, device="cuda", dtype=torch.bfloat16) for _ in range(4))
    subject = Subject(build_operator(one, scale=0.2), {"q": q, "k": k, "v": v}, ("q", "k", "v"), grad)
    protocol = Protocol(warmup_cap_s=0.1, min_samples=5, max_samples=5, seconds=0.0, verify_after=False)
    timing = time_pass(subject, which=which, timers=Timers(GraphTimer(CUDA)), protocol=protocol, first_call_s=0.0)
    assert all(0 < seconds < 0.1 for seconds in timing.samples)
