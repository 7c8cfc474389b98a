"""Time one pass of an operator: forward, backward, or both."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from bsa_bench.measure.sampling import Protocol, collect, warm_up
from bsa_bench.measure.timer import Timer
from bsa_bench.operator import Operator
from bsa_bench.result import PassName, Timing

#: Which phases make up each partial total; those a pass does not have count nothing.
ATTEND_ONLY = ("attend", "attend_backward")
ATTEND_SELECT = (*ATTEND_ONLY, "select", "plan")


def time_pass(
    operator: Operator,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad: Tensor | None,
    *,
    which: PassName,
    timer: Timer,
    protocol: Protocol,
    first_call_s: float,
) -> Timing:
    """Time the whole operator, then its phases in a round of their own.

    Args:
        q, k, v: [B, H, L, D].
        grad: dO [B, H, L, D] for a pass with a backward, else None.
        which: `backward` runs on one retained graph; its forward is not in the time.
        first_call_s: from `time_first_call`, which has to be the process's first use of the pass.
    """
    call = pass_call(operator, q, k, v, grad, which)
    warmup = warm_up(lambda: timer.sample(call), protocol)
    samples = collect(lambda: timer.sample(call), protocol)
    phases = _phase_samples(operator, q, k, v, grad, which, timer, protocol, samples)
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


def time_first_call(operator: Operator, q: Tensor, k: Tensor, v: Tensor, grad: Tensor | None, which: PassName) -> float:
    """Seconds of the first call of a pass: what compiles or is set up on first use is in it."""
    call = pass_call(operator, q, k, v, grad, which)
    start = time.perf_counter()
    call()
    if q.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def pass_call(
    operator: Operator, q: Tensor, k: Tensor, v: Tensor, grad: Tensor | None, which: PassName
) -> Callable[[], object]:
    """The call that one sample of a pass repeats."""
    if which == "forward":

        def forward() -> object:
            with torch.no_grad():
                return operator.forward(q, k, v)

        return forward
    assert grad is not None
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    if which == "forward+backward":
        return lambda: torch.autograd.grad(operator.forward(*leaves), leaves, grad)
    out = operator.forward(*leaves)
    return lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)


def _phase_samples(
    operator: Operator,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad: Tensor | None,
    which: PassName,
    timer: Timer,
    protocol: Protocol,
    whole: list[float],
) -> dict[str, list[float]]:
    """Samples of each phase; those of an operator with one phase in the pass are the whole's own."""
    only = operator.stages[0].name if len(operator.stages) == 1 else None
    if only and which != "forward+backward":
        return {only if which == "forward" else f"{only}_backward": whole}
    rounds = collect(
        lambda: _phases(operator, q, k, v, grad, which, timer),
        replace(protocol, seconds=protocol.seconds / 2, min_samples=min(protocol.min_samples, 3)),
    )
    return {name: [r[name] for r in rounds] for name in rounds[0]}


def _phases(
    operator: Operator, q: Tensor, k: Tensor, v: Tensor, grad: Tensor | None, which: PassName, timer: Timer
) -> dict[str, float]:
    def call(mark: Callable[[str], None]) -> None:
        state = {"q": q, "k": k, "v": v}
        if which == "forward":
            with torch.no_grad():
                operator.run_staged(state, mark)
        else:
            operator.run_staged(state, mark, grad)

    spans = timer.sample_phases(call)
    if which == "backward":
        return {name: s for name, s in spans.items() if name.endswith("_backward")}
    return spans


def _total(phases: dict[str, list[float]], names: tuple[str, ...]) -> list[float]:
    parts = [phases[name] for name in names if name in phases]
    return [sum(row) for row in zip(*parts, strict=True)]
