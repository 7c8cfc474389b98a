"""One call of an operator with a range around each phase: the same ranges for every profiler."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Self

import torch

from bsa_bench.measure.passes import Subject
from bsa_bench.profiling.trace import CALL, PREFIX
from bsa_bench.result import PassName
from bsa_kernels.operator import Operator

OpenRange = Callable[[str], AbstractContextManager[object]]
"""Opens a profiler's range of this name on entry, and closes it on exit."""


def phases_run(operator: Operator, which: PassName) -> list[str]:
    """The phases that run for a pass, in order; for `backward` its forward too, without which it cannot run."""
    forward = [stage.name for stage in operator.stages]
    if which == "forward":
        return forward
    return forward + [f"{stage.name}_backward" for stage in reversed(operator.stages) if stage.differentiable]


def phases_of(operator: Operator, which: PassName) -> list[str]:
    """The phases that belong to a pass."""
    names = phases_run(operator, which)
    return [name for name in names if name.endswith("_backward")] if which == "backward" else names


def annotated_call(subject: Subject, which: PassName, open_range: OpenRange) -> Callable[[], None]:
    """A call, stage by stage, in the range `CALL`, each phase in the range `PREFIX` + its name.

    The ranges of the phases follow each other without a gap, so that they add up to the call.
    """
    names = phases_run(subject.operator, which)
    grad = None if which == "forward" else subject.grad

    def call() -> None:
        with torch.set_grad_enabled(grad is not None), open_range(CALL), _PhaseRanges(names, open_range) as ranges:
            subject.operator.run_staged(subject.tensors, ranges.mark, grad)

    return call


class _PhaseRanges:
    """One range after the other; `mark(name)` ends that of `name` and begins the next."""

    def __init__(self, names: list[str], open_range: OpenRange) -> None:
        self._names, self._open_range = names, open_range
        self._num_ended = 0
        self._current = ExitStack()

    def __enter__(self) -> Self:
        self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._current.close()
        assert kind is not None or self._num_ended == len(self._names), self._names[self._num_ended :]

    def mark(self, name: str) -> None:
        """End a phase."""
        assert name == self._names[self._num_ended], (name, self._names)
        self._current.close()
        self._num_ended += 1
        self._begin()

    def _begin(self) -> None:
        if self._num_ended < len(self._names):
            self._current.enter_context(self._open_range(PREFIX + self._names[self._num_ended]))
