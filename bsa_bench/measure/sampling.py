"""When to start sampling and when to stop: warm-up until settled, then samples until a count or a time.

The constants are measurement.md's D.1 and D.5.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median
from typing import TypeVar

from bsa_bench.measure.clock import perf_counter

T = TypeVar("T")


@dataclass(frozen=True)
class Protocol:
    """How long one process looks at one pass.

    Sampling stops after `max_samples`, or once `seconds` have passed and at least `min_samples` are there. Warm-up
    stops when the medians of the last `settle_windows` windows of `window_s` agree within `settle_within`, or at
    `warmup_cap_s`.
    """

    warmup_cap_s: float
    min_samples: int
    max_samples: int
    seconds: float
    verify_after: bool
    settle_windows: int = 5
    window_s: float = 0.1
    settle_within: float = 0.01


_QUICK = Protocol(
    warmup_cap_s=0.3,
    min_samples=5,
    max_samples=50,
    seconds=0.5,
    verify_after=True,
    settle_windows=3,
    window_s=0.05,
    settle_within=0.05,
)
PROTOCOLS: dict[str, Protocol] = {
    "quick": _QUICK,
    # Of this the warm-up alone: how often the gate samples both sides in turn is in its `LockstepSettings`.
    "gate": replace(_QUICK, warmup_cap_s=0.2, settle_within=0.03),
    "report": Protocol(warmup_cap_s=10.0, min_samples=5, max_samples=500, seconds=2.0, verify_after=True),
}


@dataclass(frozen=True)
class Warmup:
    """How the warm-up went."""

    seconds: float
    settled: bool


def warm_up(sample: Callable[[], float], protocol: Protocol, clock: Callable[[], float] = perf_counter) -> Warmup:
    """Repeat the very call that will be sampled until its time settles or the cap is hit; at least once."""
    start = clock()
    medians: list[float] = []
    while True:
        window: list[float] = []
        window_start = clock()
        while True:
            window.append(sample())
            now = clock()
            if now - window_start >= protocol.window_s or now - start >= protocol.warmup_cap_s:
                break
        medians.append(median(window))
        last = medians[-protocol.settle_windows :]
        if len(last) == protocol.settle_windows and max(last) <= min(last) * (1 + protocol.settle_within):
            return Warmup(now - start, settled=True)
        if now - start >= protocol.warmup_cap_s:
            return Warmup(now - start, settled=False)


def collect(sample: Callable[[], T], protocol: Protocol, clock: Callable[[], float] = perf_counter) -> list[T]:
    """Draw samples in order; the garbage collector rests meanwhile."""
    samples: list[T] = []
    gc.collect()
    with collector_at_rest():
        start = clock()
        while len(samples) < protocol.max_samples:
            samples.append(sample())
            if len(samples) >= protocol.min_samples and clock() - start >= protocol.seconds:
                break
    return samples


@contextmanager
def collector_at_rest() -> Iterator[None]:
    """No garbage collection meanwhile: it takes time, and its finalisers are calls too."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
