"""Timers: how a span of work on a device becomes seconds. The timer is an argument, so that tests script it."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Literal, Protocol

import torch


class Timer(Protocol):
    """Times one call, or the spans between marks inside one call."""

    name: Literal["host", "event"]
    cache: Literal["cold", "warm"]

    def sample(self, call: Callable[[], object]) -> float:
        """Seconds of one call, caches brought to the timer's rule first."""

    def sample_phases(self, call: Callable[[Callable[[str], None]], object]) -> dict[str, float]:
        """Seconds up to each mark that `call` makes, since the mark before."""


class HostTimer:
    """`perf_counter_ns` around a call that returns when its work is done. For CPUs; caches are left as they are."""

    name: Literal["host", "event"] = "host"
    cache: Literal["cold", "warm"] = "warm"

    def sample(self, call: Callable[[], object]) -> float:
        """Seconds of one call."""
        start = time.perf_counter_ns()
        call()
        return (time.perf_counter_ns() - start) * 1e-9

    def sample_phases(self, call: Callable[[Callable[[str], None]], object]) -> dict[str, float]:
        """Seconds between marks."""
        stamps: list[tuple[str, int]] = []
        start = time.perf_counter_ns()
        call(lambda name: stamps.append((name, time.perf_counter_ns())))
        ends = [start, *(stamp for _, stamp in stamps)]
        return {name: (end - begin) * 1e-9 for (name, _), begin, end in zip(stamps, ends, ends[1:], strict=False)}


class EventTimer:
    """A pair of CUDA events around a call, the L2 evicted before it by a write of twice its queried size.

    The events bracket the stream, so the gaps between the operator's own launches count, as they do for an eager model.
    """

    name: Literal["host", "event"] = "event"
    cache: Literal["cold", "warm"] = "cold"

    def __init__(self, device: torch.device) -> None:
        l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
        self._flush = torch.empty(2 * l2_bytes, dtype=torch.int8, device=device)

    def sample(self, call: Callable[[], object]) -> float:
        """Seconds of one call."""

        def one(mark: Callable[[str], None]) -> None:
            call()
            mark("call")

        return sum(self.sample_phases(one).values())

    def sample_phases(self, call: Callable[[Callable[[str], None]], object]) -> dict[str, float]:
        """Seconds between marks; a mark is an event in the stream and does not synchronise."""
        events: list[tuple[str, torch.cuda.Event]] = []

        def mark(name: str) -> None:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            events.append((name, event))

        self._flush.zero_()
        mark("start")
        call(mark)
        torch.cuda.synchronize()
        return {name: before.elapsed_time(event) * 1e-3 for (_, before), (name, event) in pairwise(events)}


def make_timer(device: torch.device) -> Timer:
    """The timer that fits a device."""
    return EventTimer(device) if device.type == "cuda" else HostTimer()
