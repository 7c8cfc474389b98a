"""The operator under test as a row of named stages, so that the whole and each phase are timed from one description."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

State = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """One phase: reads the values `inputs` of the state and writes `outputs`.

    A differentiable stage gets and gives tensors; a value that is no tensor (a plan) passes through it as a constant.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    run: Callable[..., tuple[Any, ...]]
    differentiable: bool = True

    def __call__(self, state: State) -> None:
        """Run on the state, in place."""
        values = [state[name] for name in self.inputs]
        if self.differentiable:
            out = self.run(*values)
        else:
            with torch.no_grad():
                out = self.run(*values)
        state.update(zip(self.outputs, out, strict=True))


@dataclass(frozen=True)
class Operator:
    """From `q`, `k`, `v` [B, H, L, D] in natural token order to `o` of the same shape."""

    stages: tuple[Stage, ...]

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The whole operator."""
        return self.run(q, k, v)["o"]

    def run(self, q: Tensor, k: Tensor, v: Tensor) -> State:
        """The whole operator, with everything it made on the way (`plan` for sparse methods)."""
        state: State = {"q": q, "k": k, "v": v}
        for stage in self.stages:
            stage(state)
        return state

    def run_staged(self, state: State, mark: Callable[[str], None], grad: Tensor | None = None) -> dict[str, Tensor]:
        """Run stage by stage, calling `mark(name)` after each; with `grad`, dO, backward stage by stage as well.

        Each differentiable stage is cut from the graph of the one before, so that its backward stands alone; marks of
        the backward are `<stage>_backward`.

        Returns:
            The gradients of q, k and v, or nothing without `grad`.
        """
        tape: list[tuple[Stage, list[tuple[str, Tensor]], list[tuple[str, Tensor]]]] = []
        for stage in self.stages:
            if grad is not None and stage.differentiable:
                leaves = []
                for name in stage.inputs:
                    if isinstance(state[name], Tensor):
                        state[name] = state[name].detach().requires_grad_()
                        leaves.append((name, state[name]))
                stage(state)
                tape.append((stage, leaves, [(name, state[name]) for name in stage.outputs]))
            else:
                stage(state)
            mark(stage.name)
        if grad is None:
            return {}
        grads: dict[str, Tensor] = {"o": grad}
        for stage, leaves, outputs in reversed(tape):
            found = torch.autograd.grad(
                [tensor for _, tensor in outputs], [leaf for _, leaf in leaves], [grads[name] for name, _ in outputs]
            )
            grads.update(zip((name for name, _ in leaves), found, strict=True))
            mark(f"{stage.name}_backward")
        return {name: grads[name] for name in ("q", "k", "v")}
