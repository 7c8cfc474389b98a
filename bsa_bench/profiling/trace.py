"""Read a Chrome trace of annotated calls: time by phase, operators and kernels, allocations. Loads no torch.

On a CPU a phase's time is that of its range. On a GPU the host runs ahead, so a kernel belongs to the phase whose range
launched it, and a phase's time runs from the end of the last kernel before it to the end of its own last kernel.
"""

from __future__ import annotations

import bisect
import gzip
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bsa_bench.errors import BenchError

PREFIX = "bsa-bench: "
CALL = f"{PREFIX}call"
_DEVICE_CATEGORIES = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})
_LAUNCH_CATEGORIES = frozenset({"cuda_runtime", "cuda_driver"})
_CUDA_DEVICE_TYPE = 1
_US = 1e-6
_ROUNDING_US = 0.01
"""Of the times of events, where one ends as another begins."""


@dataclass(frozen=True)
class Span:
    """A stretch of time in microseconds of the trace's clock."""

    name: str
    start: float
    end: float


@dataclass(frozen=True)
class PhaseTime:
    """A phase, per call.

    Args:
        seconds: as the module says.
        host_s: of it, outside of torch's operators on a CPU; on a GPU without any kernel running.
    """

    name: str
    seconds: float
    host_s: float


@dataclass(frozen=True)
class OperatorTime:
    """An operator or a kernel in a phase, per call.

    Args:
        kind: `kernel` runs on the device, copies and fills included; `operator` on the host.
        num_calls: how often.
        self_s: its time without the operators that it calls.
    """

    phase: str
    kind: Literal["operator", "kernel"]
    name: str
    num_calls: float
    self_s: float


@dataclass(frozen=True)
class TraceTimes:
    """All of a trace, per call.

    Args:
        num_calls: how many calls the figures are the mean of.
        whole_s: of the call; of the pass `backward` without its forward. On a CPU of the range around the phases; on a
            GPU from the first kernel's start to the last one's end.
        phases: those of the pass, in order.
        operators: of these phases, the longest first.
    """

    num_calls: int
    whole_s: float
    phases: list[PhaseTime]
    operators: list[OperatorTime]
    is_device: bool

    @property
    def host_share(self) -> float:
        """The share of the whole in which no operator, or on a GPU no kernel, was running."""
        return sum(phase.host_s for phase in self.phases) / self.whole_s if self.whole_s else 0.0

    @property
    def phases_s(self) -> float:
        """The sum of the phases."""
        return sum(phase.seconds for phase in self.phases)


@dataclass(frozen=True)
class Allocation:
    """A change of allocated memory: when since the call began, in which phase, by how much and to how much."""

    seconds: float
    phase: str
    change_bytes: int
    allocated_bytes: int


def read_events(path: Path) -> list[dict[str, Any]]:
    """The events of a trace.

    Raises:
        BenchError: there is no trace, or it does not parse.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            events: list[dict[str, Any]] = json.load(file)["traceEvents"]
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise BenchError(f"{path.name}: expected a gzipped Chrome trace with traceEvents, got: {error}") from error
    return events


def times_of(events: Sequence[dict[str, Any]], names: Sequence[str]) -> TraceTimes:
    """Times of the phases with these names, per call.

    Args:
        events: of a trace of one call or more.
        names: the phases of the pass; others that ran, those of the forward of a `backward`, are left out.

    Raises:
        BenchError: the trace has no call, or a call lacks a phase.
    """
    calls = _calls(events)
    ranges = [_phases(events, call, names) for call in calls]
    kernels = _kernels(events)
    spans = [span for each in ranges for span in each]
    operators = _operator_times(events, kernels, spans, num_calls=len(calls))
    measured = [_device_phases(each, kernels) if kernels else _host_phases(each, events) for each in ranges]
    phases = [
        PhaseTime(
            name,
            sum(each[name].seconds for each in measured) / len(calls),
            sum(each[name].host_s for each in measured) / len(calls),
        )
        for name in names
    ]
    if kernels:
        whole_s = sum(phase.seconds for phase in phases)
    elif len(names) == len(_all_phases(events, calls[0])):
        whole_s = sum(call.end - call.start for call in calls) * _US / len(calls)
    else:
        whole_s = sum(each[-1].end - each[0].start for each in ranges) * _US / len(calls)
    return TraceTimes(len(calls), whole_s, phases, operators, is_device=bool(kernels))


def allocations_of(events: Sequence[dict[str, Any]], *, is_cuda: bool) -> tuple[list[Allocation], list[Span]]:
    """How allocated memory changed in the last call, and its phases, both in seconds since it began."""
    call = _calls(events)[-1]
    phases = _all_phases(events, call)
    device_type = _CUDA_DEVICE_TYPE if is_cuda else 0
    found: list[Allocation] = []
    allocated = 0
    for event in sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: float(e["ts"])):
        if event["args"].get("Device Type") != device_type or not call.start <= event["ts"] <= call.end:
            continue
        change = int(event["args"]["Bytes"])
        allocated += change
        phase = next((p.name for p in phases if p.start <= event["ts"] <= p.end), "")
        found.append(Allocation((event["ts"] - call.start) * _US, phase, change, allocated))
    shifted = [Span(p.name, (p.start - call.start) * _US, (p.end - call.start) * _US) for p in phases]
    return found, shifted


def _calls(events: Iterable[dict[str, Any]]) -> list[Span]:
    found = [_span(event) for event in events if _is_annotation(event) and event["name"] == CALL]
    if not found:
        raise BenchError(f"the trace has no range {CALL!r}; the profiler recorded nothing")
    return sorted(found, key=lambda span: span.start)


def _all_phases(events: Iterable[dict[str, Any]], call: Span) -> list[Span]:
    """The phases of a call in order, by their names without the prefix."""
    inside = [
        Span(span.name.removeprefix(PREFIX), span.start, span.end)
        for span in map(_span, filter(_is_annotation, events))
        if span.name.startswith(PREFIX)
        and span.name != CALL
        and call.start - _ROUNDING_US <= span.start
        and span.end <= call.end + _ROUNDING_US
    ]
    return sorted(inside, key=lambda span: span.start)


def _phases(events: Iterable[dict[str, Any]], call: Span, names: Sequence[str]) -> list[Span]:
    found = {span.name: span for span in _all_phases(events, call)}
    missing = [name for name in names if name not in found]
    if missing:
        raise BenchError(f"the trace has no range of {', '.join(missing)} in a call")
    return [found[name] for name in names]


@dataclass(frozen=True)
class _Kernel:
    name: str
    start: float
    end: float
    launched: float


def _kernels(events: Sequence[dict[str, Any]]) -> list[_Kernel]:
    """What ran on the device, by when it was launched; without a launch in the trace, by when it ran."""
    launches = {
        event["args"]["correlation"]: float(event["ts"])
        for event in events
        if event.get("cat") in _LAUNCH_CATEGORIES and "correlation" in event.get("args", {})
    }
    found = []
    for event in events:
        if event.get("cat") in _DEVICE_CATEGORIES and event.get("ph") == "X":
            span = _span(event)
            launched = launches.get(event.get("args", {}).get("correlation"), span.start)
            found.append(_Kernel(span.name, span.start, span.end, launched))
    return sorted(found, key=lambda kernel: kernel.start)


def _host_phases(spans: Sequence[Span], events: Sequence[dict[str, Any]]) -> dict[str, PhaseTime]:
    inside = [(s.start, s.end) for s in map(_span, filter(_is_operator, events))]
    return {
        span.name: PhaseTime(
            span.name, (span.end - span.start) * _US, (span.end - span.start - _covered(inside, span)) * _US
        )
        for span in spans
    }


def _device_phases(spans: Sequence[Span], kernels: Sequence[_Kernel]) -> dict[str, PhaseTime]:
    own = {span.name: [k for k in kernels if span.start <= k.launched < span.end] for span in spans}
    busy = [(kernel.start, kernel.end) for each in own.values() for kernel in each]
    reached = min((start for start, _ in busy), default=0.0)
    found: dict[str, PhaseTime] = {}
    for name, each in own.items():
        last = max((kernel.end for kernel in each), default=reached)
        span = Span(name, reached, max(last, reached))
        idle = span.end - span.start - _covered(busy, span)
        found[name] = PhaseTime(name, (span.end - span.start) * _US, idle * _US)
        reached = span.end
    return found


def _operator_times(
    events: Sequence[dict[str, Any]], kernels: Sequence[_Kernel], spans: Sequence[Span], *, num_calls: int
) -> list[OperatorTime]:
    ordered = sorted(spans, key=lambda span: span.start)
    starts = [span.start for span in ordered]

    def phase_at(time: float) -> str | None:
        index = bisect.bisect_right(starts, time) - 1
        return ordered[index].name if index >= 0 and time < ordered[index].end else None

    total: dict[tuple[str, Literal["operator", "kernel"], str], list[float]] = defaultdict(list)
    for kernel in kernels:
        if (phase := phase_at(kernel.launched)) is not None:
            total[phase, "kernel", kernel.name].append(kernel.end - kernel.start)
    for span, self_us in _self_times(events):
        if (phase := phase_at(span.start)) is not None:
            total[phase, "operator", span.name].append(self_us)
    found = [
        OperatorTime(phase, kind, name, len(times) / num_calls, sum(times) * _US / num_calls)
        for (phase, kind, name), times in total.items()
    ]
    return sorted(found, key=lambda each: (each.kind != "kernel", -each.self_s))


def _self_times(events: Iterable[dict[str, Any]]) -> list[tuple[Span, float]]:
    """Each operator with its time, in microseconds, without that of those that it calls on its thread."""
    threads: dict[tuple[Any, Any], list[Span]] = defaultdict(list)
    for event in filter(_is_operator, events):
        threads[event["pid"], event["tid"]].append(_span(event))
    found: list[tuple[Span, list[float]]] = []
    for spans in threads.values():
        callers: list[tuple[Span, list[float]]] = []
        for span in sorted(spans, key=lambda s: (s.start, -s.end)):
            while callers and callers[-1][0].end <= span.start + _ROUNDING_US:
                callers.pop()
            length = span.end - span.start
            if callers:
                callers[-1][1].append(-length)
            callers.append((span, [length]))
            found.append(callers[-1])
    return [(span, max(sum(parts), 0.0)) for span, parts in found]


def _covered(intervals: Iterable[tuple[float, float]], span: Span) -> float:
    """How much of a span the union of the intervals covers."""
    clipped = sorted(
        (max(start, span.start), min(end, span.end))
        for start, end in intervals
        if start < span.end and end > span.start
    )
    total, reached = 0.0, span.start
    for start, end in clipped:
        total += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return total


def _is_annotation(event: dict[str, Any]) -> bool:
    """A range of the host; `gpu_user_annotation` is its shadow on the device."""
    return event.get("cat") == "user_annotation" and event.get("ph") == "X"


def _is_operator(event: dict[str, Any]) -> bool:
    return event.get("cat") == "cpu_op" and event.get("ph") == "X"


def _span(event: dict[str, Any]) -> Span:
    start = float(event["ts"])
    return Span(str(event["name"]), start, start + float(event.get("dur", 0.0)))
