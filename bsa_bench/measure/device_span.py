"""The timer `device-span`: from the first kernel start of an operator to its last kernel end, by torch's profiler.

The profiler (CUPTI underneath) gives host events, among them the launches, and device events. A kernel goes by the
host time of its launch, which has the same id: what was launched before the mark at the start is not the operator's.
Threads do not matter, so that autograd's are in.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bsa_bench.errors import BenchError
from bsa_bench.measure.queue_hold import QueueHold, flush_buffer
from bsa_bench.measure.timer import Mark, as_one_phase
from bsa_bench.result import CacheName, TimerName

_START, _END = "bsa-bench: start", "bsa-bench: end of "
_LAUNCH = re.compile(r"cu(da)?[A-Z]")
"""Calls of the CUDA runtime or driver: `cudaLaunchKernel`, `cuLaunchKernelEx`, `cudaMemsetAsync`, `cudaGraphLaunch`."""
_APART_S = 50e-6
"""Between the launch of the hold and the mark at the start: more than the host's and CUPTI's time stamps differ by."""


class DeviceSpanTimer:
    """First kernel start to last kernel end; gaps between the operator's own kernels count, launches before do not.

    One profiled call a sample, behind the same hold of the stream as `EventTimer`. Copies and fills on the device count
    as kernels. Host times under a profiler mean nothing, so there are none.
    """

    name: TimerName = "device-span"
    times_phases = True
    dispatch_s: float | None = None

    def __init__(
        self,
        device: torch.device,
        cache: CacheName = "cold",
        record: Callable[[Callable[[], None]], Sequence[Any]] | None = None,
    ) -> None:
        """`record` runs some work and returns the profiler's events; tests script it."""
        self.cache = cache
        self.ran_dry: bool | None = None
        self._flush = flush_buffer(device) if cache == "cold" else None
        self._hold = QueueHold()
        self._record = record or profiled_events

    def bind(self, make: Callable[[int], Callable[[], object]], *, inputs_bytes: int) -> Callable[[], object]:
        """The plain call."""
        del inputs_bytes
        return make(0)

    def sample(self, call: Callable[[], object]) -> float:
        """Seconds of one call."""
        return sum(self.sample_phases(as_one_phase(call)).values())

    def sample_phases(self, call: Callable[[Mark], object]) -> dict[str, float]:
        """Seconds from the end of the last kernel of the phase before to that of the phase; 0 for one without any.

        Raises:
            BenchError: the profiler saw no kernel of the call, or one without its launch.
        """

        def work() -> None:
            if self._flush is not None:
                self._flush.zero_()
            self._hold.start()
            held = torch.cuda.Event()
            held.record()
            _wait(_APART_S)
            _note(_START)
            began = time.perf_counter()
            call(lambda name: _note(_END + name))
            dispatch_s = time.perf_counter() - began
            self.ran_dry = held.query()
            torch.cuda.synchronize()
            self._hold.learn(dispatch_s + 2 * _APART_S, ran_dry=self.ran_dry)

        return phase_spans(self._record(work))


@dataclass(frozen=True)
class _Kernel:
    """Microseconds since the profile began: of the launch on the host, of start and end on the device."""

    launched: float
    start: float
    end: float


def phase_spans(events: Iterable[Any]) -> dict[str, float]:
    """Seconds of each phase from the profiler's events (`FunctionEvent`) of one call with marks.

    Raises:
        BenchError: a mark is missing, a kernel has no launch, or the call had no kernel.
    """
    from torch.autograd import DeviceType  # type: ignore[attr-defined]  # public, but missing from __all__

    host, device = list[Any](), list[Any]()
    for event in events:
        if event.device_type == DeviceType.CPU:
            host.append(event)
        elif not event.is_user_annotation:  # the shadow that a mark or a range of the operator casts on the device
            device.append(event)
    begun = [event.time_range.end for event in host if event.name == _START]
    ends = [(e.time_range.start, e.name.removeprefix(_END)) for e in host if e.name.startswith(_END)]
    if len(begun) != 1 or not ends:
        raise BenchError(f"device-span: the profile has {len(begun)} marks of a start and {len(ends)} of an end")
    launches = {event.id: event.time_range.start for event in host if _LAUNCH.match(event.name)}
    kernels = []
    for event in device:
        if event.id not in launches:
            raise BenchError(f"device-span: the profile has no launch of {event.name}; use --timer event")
        kernels.append(_Kernel(launches[event.id], event.time_range.start, event.time_range.end))
    own = [kernel for kernel in kernels if kernel.launched >= begun[0]]
    if not own:
        raise BenchError(
            "device-span: the profiler saw no kernel of the call; CUPTI may be in use by another profiler or not "
            "allowed here; use --timer event"
        )
    reached = min(kernel.start for kernel in own)
    spans: dict[str, float] = {}
    ends.sort()
    previous = begun[0]
    for index, (until, name) in enumerate(ends):
        limit = until if index < len(ends) - 1 else float("inf")
        last = max((k.end for k in own if previous <= k.launched < limit), default=reached)
        spans[name] = max(last - reached, 0.0) * 1e-6
        reached, previous = max(last, reached), until
    return spans


def profiled_events(work: Callable[[], object]) -> Sequence[Any]:
    """Run some work under the profiler and return its events of host and device."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        work()
    return list(profiler.events() or [])


def _wait(seconds: float) -> None:
    """Busily, as a sleep this short takes several times as long."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def _note(name: str) -> None:
    """A mark among the host's events."""
    from torch.profiler import record_function

    with record_function(name):
        pass
