"""Time one pass of an operator: forward, backward, or both."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bsa_bench.measure.sampling import Protocol, collect, warm_up
from bsa_bench.measure.timer import Timer
from bsa_bench.result import PassName, Timing
from bsa_kernels.operator import Operator

#: Which phases make up each partial total; those a pass does not have count nothing.
ATTEND_ONLY = ("attend", "attend_backward")
ATTEND_SELECT = (*ATTEND_ONLY, "select", "plan")


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

    def leaves(self) -> tuple[dict[str, Tensor], list[Tensor]]:
        """The tensors, those trained as leaves of a graph; and these by themselves."""
        found = {name: x.detach().requires_grad_(name in self.trained) for name, x in self.tensors.items()}
        return found, [found[name] for name in self.trained]


def time_pass(subject: Subject, *, which: PassName, timer: Timer, protocol: Protocol, first_call_s: float) -> Timing:
    """Time the whole operator, then its phases in a round of their own.

    Args:
        subject: with its `grad` where the pass has a backward.
        which: `backward` runs on one retained graph; its forward is not in the time.
        timer, protocol: how.
        first_call_s: from `time_first_call`, which has to be the process's first use of the pass.
    """
    call = pass_call(subject, which)
    warmup = warm_up(lambda: timer.sample(call), protocol)
    samples = collect(lambda: timer.sample(call), protocol)
    phases = _phase_samples(subject, which, timer, protocol, samples)
    return Timing(
        timer=timer.name,
        cache=timer.cache,
        first_call_s=first_call_s,
        warmup_s=warmup.seconds,
        settled=warmup.settled,
        samples=samples,
        phases=phases,
        attend_only=_total(phases, ATTEND_ONLY),
        attend_select=_total(phases, ATTEND_SELECT),
    )


def time_first_call(subject: Subject, which: PassName) -> float:
    """Seconds of the first call of a pass: what compiles or is set up on first use is in it."""
    call = pass_call(subject, which)
    start = time.perf_counter()
    call()
    if subject.tensors["q"].is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


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
