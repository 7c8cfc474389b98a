"""An attention operator as a row of named stages: a model runs them in a row, a benchmark times them one by one.

One description for both, so that what is timed, what is verified and what `bsa_attention` runs is the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

State = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """One phase: reads `inputs` and `constants` of the state, in this order, and writes `outputs`.

    `inputs` are tensors that gradients flow to. `constants` are read and never differentiated, whatever their type:
    plans, masks, tensors of indices. A stage that is not `differentiable` runs without gradients.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    run: Callable[..., tuple[Any, ...]]
    constants: tuple[str, ...] = ()
    differentiable: bool = True

    def __call__(self, state: State) -> None:
        """Run on the state, in place. An error bears a note that names the stage."""
        values = [state[name] for name in (*self.inputs, *self.constants)]
        with _named(self.name):
            if self.differentiable:
                out = self.run(*values)
            else:
                with torch.no_grad():
                    out = self.run(*values)
            state.update(zip(self.outputs, out, strict=True))


@dataclass(frozen=True)
class Operator:
    """Named tensors in (`q`, `k`, `v` [B, H, L, D] in natural order, and what the method adds), `o` out."""

    stages: tuple[Stage, ...]

    def forward(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The whole operator: `o`."""
        out: Tensor = self.run(tensors)["o"]
        return out

    def run(self, tensors: Mapping[str, Tensor]) -> State:
        """The whole operator, with everything that it made on the way (`plan` for block methods)."""
        state: State = dict(tensors)
        for stage in self.stages:
            stage(state)
        return state

    def run_staged(
        self, tensors: Mapping[str, Tensor], mark: Callable[[str], None], grad: Tensor | None = None
    ) -> tuple[State, dict[str, Tensor]]:
        """Run stage by stage, calling `mark(name)` after each; with `grad`, dO, backward stage by stage as well.

        Each differentiable stage is cut from the graph of the one before, so that its backward stands alone; marks of
        the backward are `<stage>_backward`. Gradients of a tensor that several stages read are summed.

        Returns:
            The state, and the gradients of the operator's tensors, by name; none without `grad`.
        """
        state: State = dict(tensors)
        tape: list[tuple[Stage, dict[str, Tensor], list[tuple[str, Tensor]]]] = []
        for stage in self.stages:
            if grad is None or not stage.differentiable:
                stage(state)
            else:
                leaves = {name: state[name].detach().requires_grad_() for name in stage.inputs}
                scope: State = {**leaves, **{name: state[name] for name in stage.constants}}
                stage(scope)
                made = [(name, scope[name]) for name in stage.outputs]
                tape.append((stage, leaves, made))
                # Cut from the graph; what is no tensor, or needs no gradient, passes as it is.
                state.update((name, x.detach() if isinstance(x, Tensor) else x) for name, x in made)
            mark(stage.name)
        if grad is None:
            return state, {}
        grads: dict[str, Tensor] = {"o": grad}
        for stage, leaves, made in reversed(tape):
            with _named(f"{stage.name}_backward"):
                _add_gradients(grads, leaves, made)
            mark(f"{stage.name}_backward")
        return state, {name: grads[name] for name in tensors if name in grads}


def _add_gradients(grads: dict[str, Tensor], leaves: dict[str, Tensor], made: list[tuple[str, Tensor]]) -> None:
    """Backward of one stage: from the gradients of what it made to those of what it read, added to those there are."""
    reached = [(out, grads[name]) for name, out in made if name in grads and out.requires_grad]
    if not reached or not leaves:
        return
    found = torch.autograd.grad(
        [out for out, _ in reached], list(leaves.values()), [g for _, g in reached], allow_unused=True
    )
    for name, gradient in zip(leaves, found, strict=True):
        if gradient is not None:
            grads[name] = grads[name] + gradient if name in grads else gradient


@contextmanager
def _named(stage: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        error.add_note(f"in stage {stage}")
        raise
