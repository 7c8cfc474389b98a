"""Time one pass of an operator: forward, backward, or both."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import count
from statistics import median

import torch
from torch import Tensor

from bsa_bench.errors import BenchError
from bsa_bench.measure.clock import perf_counter
from bsa_bench.measure.sampling import Protocol, Warmup, collect, warm_up
from bsa_bench.measure.timer import Timer
from bsa_bench.result import CrossCheck, PassName, Timing
from bsa_kernels.operator import Operator

#: Which phases make up each partial total; those a pass does not have count nothing.
ATTEND_ONLY = ("attend", "attend_backward")
ATTEND_SELECT = (*ATTEND_ONLY, "select", "plan")
#: Told what a timed call returned, and tensors that are like it.
TakeResult = Callable[[object, list[Tensor]], None]
#: How many samples another timer takes at most, to compare with.
CHECK_SAMPLES = 20


@dataclass(frozen=True)
class Subject:
    """What is timed: an operator and its inputs.

    Args:
        operator: the whole of it.
        tensors: q, k and v [B, H, L, D], and what the method reads besides.
        trained: the tensors that a backward owes gradients of.
        grad: dO [B, H, L, D] for passes with a backward, else None.
    """

    operator: Operator
    tensors: Mapping[str, Tensor]
    trained: tuple[str, ...]
    grad: Tensor | None

    @property
    def inputs_bytes(self) -> int:
        """Bytes of the tensors, and of dO where there is one."""
        every = [*self.tensors.values(), *([] if self.grad is None else [self.grad])]
        return sum(x.numel() * x.element_size() for x in every)

    def copy(self) -> Subject:
        """The same on tensors of its own."""
        grad = None if self.grad is None else self.grad.clone()
        return replace(self, tensors={name: x.clone() for name, x in self.tensors.items()}, grad=grad)

    def leaves(self) -> tuple[dict[str, Tensor], list[Tensor]]:
        """The tensors, those trained as leaves of a graph; and these by themselves."""
        found = {name: x.detach().requires_grad_(name in self.trained) for name, x in self.tensors.items()}
        return found, [found[name] for name in self.trained]


@dataclass(frozen=True)
class Timers:
    """What a pass is timed with.

    Args:
        main: gives the samples and the phases.
        warm: gives samples in the warm state too, where `main` is cold and both were asked for.
        check: gives a median to compare `main` with.
    """

    main: Timer
    warm: Timer | None = None
    check: Timer | None = None


def time_pass(
    subject: Subject,
    *,
    which: PassName,
    timers: Timers,
    protocol: Protocol,
    first_call_s: float,
    midway: TakeResult | None = None,
) -> Timing:
    """Time the whole operator, then its phases in a round of their own, then what else `timers` asks for.

    Args:
        subject: with its `grad` where the pass has a backward.
        which: `backward` runs on one retained graph; its forward is not in the time.
        timers, protocol: how.
        first_call_s: from `time_first_call`, which has to be the process's first use of the pass.
        midway: given the result of one of the timed calls, drawn, after its sample, and tensors that are like it.

    Raises:
        UnsupportedError: the main timer, or the warm one, cannot time this operator.
    """
    timer = timers.main
    whole = _sample_whole(subject, which, timer, protocol, midway)
    phases = _phase_samples(subject, which, timer, protocol, whole.samples)
    return Timing(
        timer=timer.name,
        cache=timer.cache,
        first_call_s=first_call_s,
        warmup_s=whole.warmup.seconds,
        settled=whole.warmup.settled,
        samples=whole.samples,
        phases=phases,
        attend_only=_total(phases, ATTEND_ONLY),
        attend_select=_total(phases, ATTEND_SELECT),
        warm=_more_samples(subject, which, timers.warm, protocol) if timers.warm else None,
        host_s=median(whole.dispatch_s) if whole.dispatch_s else None,
        host_gaps=2 * sum(whole.ran_dry) > len(whole.ran_dry) if whole.ran_dry else None,
        cross_check=_cross_check(subject, which, timers.check, protocol) if timers.check else None,
    )


@dataclass(frozen=True)
class _Whole:
    """Samples of the whole operator, and what the timer says of each besides."""

    warmup: Warmup
    samples: list[float]
    dispatch_s: list[float]
    ran_dry: list[bool]


class _Watched:
    """A call that keeps its result where it is told to; it keeps none otherwise, which would hold memory."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self.keeps = False
        self.result: object = None

    def __call__(self) -> object:
        if not self.keeps:
            return self._call()
        self.result = self._call()
        return self.result


def _sample_whole(
    subject: Subject, which: PassName, timer: Timer, protocol: Protocol, midway: TakeResult | None
) -> _Whole:
    call = _Watched(_bound(subject, which, timer))
    chosen = secrets.randbelow(protocol.min_samples) if midway else None
    num_calls = count()
    warmup = warm_up(lambda: timer.sample(call), protocol)
    dispatch_s: list[float] = []
    ran_dry: list[bool] = []

    def sample() -> float:
        call.keeps = next(num_calls) == chosen
        seconds = timer.sample(call)
        if midway and call.keeps:
            midway(call.result, results_like(subject, which))
            call.keeps, call.result = False, None
        dispatch_s.extend([] if timer.dispatch_s is None else [timer.dispatch_s])
        ran_dry.extend([] if timer.ran_dry is None else [timer.ran_dry])
        return seconds

    return _Whole(warmup, collect(sample, protocol), dispatch_s, ran_dry)


def _bound(subject: Subject, which: PassName, timer: Timer) -> Callable[[], object]:
    def make(index: int) -> Callable[[], object]:
        return pass_call(subject.copy() if index else subject, which)

    return timer.bind(make, inputs_bytes=subject.inputs_bytes)


def _more_samples(subject: Subject, which: PassName, timer: Timer, protocol: Protocol) -> list[float]:
    """Samples in half of the time, after a call that brings clocks and caches to where the timer has them."""
    call = _bound(subject, which, timer)
    timer.sample(call)
    return collect(lambda: timer.sample(call), replace(protocol, seconds=protocol.seconds / 2))


def _cross_check(subject: Subject, which: PassName, timer: Timer, protocol: Protocol) -> CrossCheck:
    """The median by another timer; one that cannot time here leaves its reason, as the samples stand without it."""
    brief = replace(protocol, seconds=protocol.seconds / 4, max_samples=min(protocol.max_samples, CHECK_SAMPLES))
    try:
        samples = _more_samples(subject, which, timer, brief)
    except BenchError as error:
        return CrossCheck(timer=timer.name, reason=str(error))
    return CrossCheck(timer=timer.name, median_s=median(samples), num_samples=len(samples))


def results_like(subject: Subject, which: PassName) -> list[Tensor]:
    """Tensors that are like what a call of the pass returns."""
    return [subject.tensors["q"]] if which == "forward" else [subject.tensors[name] for name in subject.trained]


def time_first_call(subject: Subject, which: PassName) -> float:
    """Seconds of the first call of a pass: what compiles or is set up on first use is in it."""
    call = pass_call(subject, which)
    start = perf_counter()
    call()
    if subject.tensors["q"].is_cuda:
        torch.cuda.synchronize()
    return perf_counter() - start


def pass_call(subject: Subject, which: PassName) -> Callable[[], object]:
    """The call that one sample of a pass repeats."""
    operator, tensors, grad = subject.operator, subject.tensors, subject.grad
    if which == "forward":

        def forward() -> object:
            with torch.no_grad():
                return operator.forward(tensors)

        return forward
    assert grad is not None
    leaves, trained = subject.leaves()
    if which == "forward+backward":
        return lambda: torch.autograd.grad(operator.forward(leaves), trained, grad)
    out = operator.forward(leaves)
    return lambda: torch.autograd.grad(out, trained, grad, retain_graph=True)


def _phase_samples(
    subject: Subject, which: PassName, timer: Timer, protocol: Protocol, whole: list[float]
) -> dict[str, list[float]]:
    """Samples of each phase; those of an operator with one phase in the pass are the whole's own."""
    stages = subject.operator.stages
    only = stages[0].name if len(stages) == 1 else None
    if only and which != "forward+backward":
        return {only if which == "forward" else f"{only}_backward": whole}
    if not timer.times_phases:
        return {}
    rounds = collect(
        lambda: _phases(subject, which, timer),
        replace(protocol, seconds=protocol.seconds / 2, min_samples=min(protocol.min_samples, 3)),
    )
    return {name: [r[name] for r in rounds] for name in rounds[0]}


def _phases(subject: Subject, which: PassName, timer: Timer) -> dict[str, float]:
    def call(mark: Callable[[str], None]) -> None:
        if which == "forward":
            with torch.no_grad():
                subject.operator.run_staged(subject.tensors, mark)
        else:
            subject.operator.run_staged(subject.tensors, mark, subject.grad)

    spans = timer.sample_phases(call)
    if which == "backward":
        return {name: s for name, s in spans.items() if name.endswith("_backward")}
    return spans


def _total(phases: dict[str, list[float]], names: tuple[str, ...]) -> list[float] | None:
    """Sums of the phases that the names say, of those that there are; none where there is none."""
    parts = [samples for name, samples in phases.items() if name.partition("[")[0] in names]
    return [sum(row) for row in zip(*parts, strict=True)] or None
