"""The timer `graph`: an operator captured into CUDA graphs and replayed, without launch latencies of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle

import torch

from bsa_bench.errors import UnsupportedError
from bsa_bench.measure.timer import EventTimer, Mark
from bsa_bench.result import CacheName, TimerName

MOST_SETS = 8
_REMEDY = "use --timer event"
_failure: str | None = None
"""Why a capture failed in this process; torch's allocator cannot be relied on for another one after that."""


class GraphTimer:
    """CUDA events around the replay of a graph, which has no host work between its kernels.

    Cold: replays rotate over sets of inputs whose total passes twice the L2, and the L2 is evicted before each of them.
    Warm: one set, and nothing is evicted. A graph is replayed whole, so there are no phases.
    """

    name: TimerName = "graph"
    times_phases = False

    def __init__(self, device: torch.device, cache: CacheName = "cold") -> None:
        self.cache = cache
        self._l2_bytes = int(torch.cuda.get_device_properties(device).L2_cache_size)
        self._events = EventTimer(device, cache)

    @property
    def dispatch_s(self) -> float | None:
        """Of a replay."""
        return self._events.dispatch_s

    @property
    def ran_dry(self) -> bool | None:
        """As of `EventTimer`."""
        return self._events.ran_dry

    def bind(self, make: Callable[[int], Callable[[], object]], *, inputs_bytes: int) -> Callable[[], object]:
        """Capture the call on each set of inputs; the returned call replays one graph after another.

        Args:
            make: `make(i)` makes the call on the i-th set. It runs on the stream of the capture, because autograd runs
                a backward on the stream of its forward.
            inputs_bytes: of one set.

        Raises:
            UnsupportedError: the call synchronises with the host, or cannot be captured for another reason.
        """
        if _failure is not None:
            raise UnsupportedError(f"not captured, as another capture failed in this process: {_failure}")
        count = num_sets(inputs_bytes, self._l2_bytes) if self.cache == "cold" else 1
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            calls = [make(index) for index in range(count)]
            for call in calls:
                call()  # compiles, and makes handles and workspaces, which a capture may not
            with _synchronising_is_an_error():
                calls[0]()
        torch.cuda.synchronize()
        graphs: list[torch.cuda.CUDAGraph] = []
        for call in calls:
            graphs.append(_capture(call, stream, graphs[0] if graphs else None))
        torch.cuda.current_stream().wait_stream(stream)
        return _Replay(calls, graphs)

    def sample(self, call: Callable[[], object]) -> float:
        """Seconds of one replay."""
        return self._events.sample(call)

    def sample_phases(self, call: Callable[[Mark], object]) -> dict[str, float]:
        """Refuse: nothing can be marked inside a replay."""
        del call
        raise UnsupportedError(f"a CUDA graph is replayed whole and has no phases; {_REMEDY}")


def num_sets(inputs_bytes: int, l2_bytes: int) -> int:
    """How many sets of inputs pass twice the L2; at least 2, at most `MOST_SETS`, as eviction does the rest."""
    return min(max(math.ceil(2 * l2_bytes / max(inputs_bytes, 1)), 2), MOST_SETS)


class _Replay:
    """Replays graph after graph; keeps the calls, whose tensors the graphs read, alive."""

    def __init__(self, calls: list[Callable[[], object]], graphs: list[torch.cuda.CUDAGraph]) -> None:
        self._calls = calls
        self._graphs = cycle(graphs)

    def __call__(self) -> None:
        next(self._graphs).replay()


def _capture(
    call: Callable[[], object], stream: torch.cuda.Stream, before: torch.cuda.CUDAGraph | None
) -> torch.cuda.CUDAGraph:
    """Capture one call; graphs that are replayed in their order may share memory with the first."""
    global _failure  # noqa: PLW0603  # a state of this process's allocator
    graph = torch.cuda.CUDAGraph()
    pool = before.pool() if before else None
    cause: Exception | None = None
    try:
        # The outer context gives the stream back where torch's own does not: after a capture that failed.
        with torch.cuda.stream(stream), torch.cuda.graph(graph, pool=pool, stream=stream):
            try:
                call()
            except Exception as error:
                cause = error  # the end of the capture will raise too, in its place
                raise
    except RuntimeError as error:
        first = cause or error
        if isinstance(first, torch.OutOfMemoryError):
            raise first from None
        _failure = f"{type(first).__name__}: {first}".splitlines()[0]
        raise UnsupportedError(f"cannot be captured into a CUDA graph ({_failure}); {_REMEDY}") from first
    return graph


@contextmanager
def _synchronising_is_an_error() -> Iterator[None]:
    """Find out that a call waits for the device before a capture would fail by it.

    Raises:
        UnsupportedError: it does.
    """
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    except RuntimeError as error:
        if "synchronizing" not in str(error):
            raise
        raise UnsupportedError(
            f"cannot be captured into a CUDA graph: it synchronises with the host ({error}); {_REMEDY}"
        ) from error
    finally:
        torch.cuda.set_sync_debug_mode(before)
