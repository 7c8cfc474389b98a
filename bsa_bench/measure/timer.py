"""Timers: how a span of work on a device becomes seconds. The timer is an argument, so that tests script it.

`host` and `event` are here; `device-span` is in `device_span`, `graph` in `graph_replay`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Protocol

import torch

from bsa_bench.errors import UsageError
from bsa_bench.measure import clock
from bsa_bench.measure.queue_hold import QueueHold, flush_buffer
from bsa_bench.result import CacheName, TimerName

Mark = Callable[[str], None]


class Timer(Protocol):
    """Times one call, or the spans between marks inside one call; `times_phases` says whether it can do the latter."""

    name: TimerName
    cache: CacheName
    times_phases: bool

    @property
    def dispatch_s(self) -> float | None:
        """Seconds until the last sample's call had returned to the host, its work enqueued.

        Null where the timer cannot tell, or where that is the whole of it.
        """

    @property
    def ran_dry(self) -> bool | None:
        """Whether the device had begun with the last sample's call by then; null where the timer cannot tell."""

    def bind(self, make: Callable[[int], Callable[[], object]], *, inputs_bytes: int) -> Callable[[], object]:
        """The call to sample; `make(i)` makes one on inputs of its own, 0 being the original ones.

        Raises:
            UnsupportedError: the timer cannot time such a call.
        """

    def sample(self, call: Callable[[], object]) -> float:
        """Seconds of one call, caches brought to the timer's rule first."""

    def sample_phases(self, call: Callable[[Mark], object]) -> dict[str, float]:
        """Seconds up to each mark that `call` makes, since the mark before."""


class HostTimer:
    """`perf_counter_ns` around a call that returns when its work is done.

    On a GPU the call is synchronised with, so launches and Python are in the time, and with marks each phase is too.
    On a CPU caches are left as they are.
    """

    name: TimerName = "host"
    times_phases = True
    ran_dry: bool | None = None

    def __init__(self, device: torch.device | None = None, cache: CacheName = "warm") -> None:
        self._is_cuda = device is not None and device.type == "cuda"
        if cache == "cold" and not self._is_cuda:
            raise UsageError("the host timer got cache cold on a CPU, expected warm: nothing evicts its caches")
        self.cache = cache
        self.dispatch_s: float | None = None
        self._flush = flush_buffer(device) if device is not None and cache == "cold" else None

    def bind(self, make: Callable[[int], Callable[[], object]], *, inputs_bytes: int) -> Callable[[], object]:
        """The plain call."""
        del inputs_bytes
        return make(0)

    def sample(self, call: Callable[[], object]) -> float:
        """Seconds of one call."""
        self._get_ready()
        start = clock.perf_counter_ns()
        call()
        if self._is_cuda:
            self.dispatch_s = (clock.perf_counter_ns() - start) * 1e-9
            torch.cuda.synchronize()
        return (clock.perf_counter_ns() - start) * 1e-9

    def sample_phases(self, call: Callable[[Mark], object]) -> dict[str, float]:
        """Seconds between marks."""
        stamps: list[tuple[str, int]] = []

        def mark(name: str) -> None:
            if self._is_cuda:
                torch.cuda.synchronize()
            stamps.append((name, clock.perf_counter_ns()))

        self._get_ready()
        start = clock.perf_counter_ns()
        call(mark)
        ends = [start, *(stamp for _, stamp in stamps)]
        return {name: (end - begin) * 1e-9 for (name, _), begin, end in zip(stamps, ends, ends[1:], strict=False)}

    def _get_ready(self) -> None:
        if self._flush is not None:
            self._flush.zero_()
        if self._is_cuda:
            torch.cuda.synchronize()


class EventTimer:
    """A pair of CUDA events around a call, behind a kernel that holds the stream while the host enqueues the call.

    Without that hold, what takes less time than its launches would be timed at the rate of the host. The events
    bracket the stream, so gaps between the operator's own kernels count, and so does waiting where the operator
    itself synchronises with the host. Cold: the L2 is evicted before the hold by a write of twice its queried size.
    """

    name: TimerName = "event"
    times_phases = True

    def __init__(self, device: torch.device, cache: CacheName = "cold") -> None:
        self.cache = cache
        self.dispatch_s: float | None = None
        self.ran_dry: bool | None = None
        self._flush = flush_buffer(device) if cache == "cold" else None
        self._hold = QueueHold()

    def bind(self, make: Callable[[int], Callable[[], object]], *, inputs_bytes: int) -> Callable[[], object]:
        """The plain call."""
        del inputs_bytes
        return make(0)

    def sample(self, call: Callable[[], object]) -> float:
        """Seconds of one call."""
        return sum(self.sample_phases(as_one_phase(call)).values())

    def sample_phases(self, call: Callable[[Mark], object]) -> dict[str, float]:
        """Seconds between marks; a mark is an event in the stream and does not synchronise."""
        events: list[tuple[str, torch.cuda.Event]] = []

        def mark(name: str) -> None:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            events.append((name, event))

        if self._flush is not None:
            self._flush.zero_()
        self._hold.start()
        mark("start")
        began = clock.perf_counter()
        call(mark)
        self.dispatch_s = clock.perf_counter() - began
        self.ran_dry = events[0][1].query()
        torch.cuda.synchronize()
        self._hold.learn(self.dispatch_s, ran_dry=self.ran_dry)
        return {name: before.elapsed_time(event) * 1e-3 for (_, before), (name, event) in pairwise(events)}


def as_one_phase(call: Callable[[], object]) -> Callable[[Mark], None]:
    """A call with one mark, at its end."""

    def one(mark: Mark) -> None:
        call()
        mark("call")

    return one


def make_timer(device: torch.device, timer: TimerName | None = None, cache: CacheName | None = None) -> Timer:
    """A timer for a device; without names the usual one: `host` and `warm` on a CPU, `event` and `cold` on a GPU.

    Raises:
        UsageError: the device has no such timer or cache state.
    """
    if device.type != "cuda":
        if timer not in {None, "host"} or cache not in {None, "warm"}:
            raise UsageError(f"timer {timer}, cache {cache}: expected host and warm on {device.type}")
        return HostTimer(device)
    state: CacheName = cache or "cold"
    if timer == "host":
        return HostTimer(device, state)
    if timer == "device-span":
        from bsa_bench.measure.device_span import DeviceSpanTimer

        return DeviceSpanTimer(device, state)
    if timer == "graph":
        from bsa_bench.measure.graph_replay import GraphTimer

        return GraphTimer(device, state)
    return EventTimer(device, state)
