"""The calls that are compared: those that are timed, without gradients and with them, and what may be said of each
without an oracle.

Of every output and gradient: its type, shape, dtype and device, whether it has memory of its own, and whether all of it
is finite. Outputs are copied the moment that a call returns, for a thread may fill them in later, and then overwritten
with NaN, for the next call may return them again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bsa_kernels.operator import Operator


@dataclass
class Calls:
    """What the calls gave.

    Attributes:
        state: what the operator left behind: of the call with gradients, where there is one.
        outputs: copies of `o` [B, H, L, D], by the call: `without gradients`, `with gradients`.
        gradients: of the whole dO, by the tensor's name.
        faults: what needs no oracle to be wrong, by what is checked: `output`, `grad_q`.
        repeat_identical: whether a second call without gradients gave the same bits; none without an output.
        repeat_error: the largest difference between the two.
    """

    state: dict[str, Any]
    outputs: dict[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    repeat_identical: bool | None = None
    repeat_error: float = 0.0
    leaves: dict[str, Tensor] = field(default_factory=dict)
    grad: Tensor | None = None
    out: Tensor | None = None

    @property
    def is_comparable(self) -> bool:
        """Whether there is what an oracle can be compared with."""
        return len(self.outputs) == (1 if self.grad is None else 2)

    def masked_gradients(self, masked_grad: Tensor) -> dict[str, Tensor]:
        """Gradients of another dO, written into the memory of the first; of the same graph, as a timer calls it."""
        assert self.grad is not None
        assert self.out is not None
        self.grad.copy_(masked_grad)
        found = torch.autograd.grad(self.out, list(self.leaves.values()), self.grad)
        return dict(zip(self.leaves, found, strict=True))


def run_calls(
    operator: Operator, tensors: Mapping[str, Tensor], grad: Tensor | None, trained: Collection[str]
) -> Calls:
    """Call the operator as it is timed: twice without gradients, and once with them where `grad`, dO, is given."""
    q = tensors["q"]
    _poison(q)
    with torch.no_grad():
        calls = Calls(operator.run(dict(tensors)))
        first = calls.state["o"]
        if fault := fault_of(first, q, tensors.values()):
            calls.faults["output"] = fault
            return calls
        copy = first.clone()
        calls.outputs["without gradients"] = copy
        first.fill_(torch.nan)
        again = operator.forward(tensors)
        if fault := fault_of(again, q, tensors.values()):
            calls.faults["output"] = f"on a second call {fault}"
            return calls
        calls.repeat_identical = torch.equal(again, copy)
        if not calls.repeat_identical:
            difference = (again.double() - copy.double()).abs().max()
            calls.repeat_error = float(difference.nan_to_num(nan=torch.inf))
        again.fill_(torch.nan)
    calls.state = {name: x.detach() if isinstance(x, Tensor) else x for name, x in calls.state.items()}
    if grad is not None:
        _run_backward(calls, operator, tensors, grad, trained)
    for output in calls.outputs.values():
        if num := num_not_finite(output):
            calls.faults["output"] = f"not finite in {num:,} rows of heads"
    return calls


def _run_backward(
    calls: Calls, operator: Operator, tensors: Mapping[str, Tensor], grad: Tensor, trained: Collection[str]
) -> None:
    leaves = {name: x.detach().requires_grad_(name in trained) for name, x in tensors.items()}
    calls.leaves = {name: leaves[name] for name in trained}
    calls.grad = grad.clone()
    with torch.enable_grad():
        state = operator.run(leaves)
    calls.out = state["o"]
    if fault := fault_of(state["o"], tensors["q"], tensors.values()):
        calls.faults["output"] = f"with gradients {fault}"
        return
    calls.outputs["with gradients"] = state["o"].detach().clone()
    found = torch.autograd.grad(state["o"], list(calls.leaves.values()), calls.grad, retain_graph=True)
    for name, gradient in zip(calls.leaves, found, strict=True):
        if fault := fault_of(gradient, tensors[name], ()):
            calls.faults[f"grad_{name}"] = fault
        elif num := num_not_finite(gradient):
            calls.faults[f"grad_{name}"] = f"not finite in {num:,} rows of heads"
        calls.gradients[name] = gradient.clone()
        gradient.fill_(torch.nan)
    calls.state = {name: x.detach() if isinstance(x, Tensor) else x for name, x in state.items()}


def fault_of(x: object, like: Tensor, inputs: Collection[Tensor]) -> str | None:
    """Why `x` is no plain tensor of the shape, dtype and device of `like` with memory of its own, or None."""
    if type(x) is not Tensor:
        return f"is a {type(x).__name__}, expected a plain torch.Tensor"
    for name in ("shape", "dtype", "device", "layout"):
        found, expected = getattr(x, name), getattr(like, name)
        if found != expected:
            found, expected = (list(each) if name == "shape" else each for each in (found, expected))
            return f"has the {name} {found}, expected {expected}"
    if any(x.untyped_storage().data_ptr() == each.untyped_storage().data_ptr() for each in inputs):
        return "shares its memory with an input"
    return None


def num_not_finite(x: Tensor) -> int:
    """How many rows (of a head) hold a NaN or an infinity."""
    return int((~x.isfinite()).any(-1).sum())


def _poison(like: Tensor) -> None:
    """Fill memory of the output's size with NaN and free it, so that an element never written is likely NaN."""
    for buffer in [torch.empty_like(like) for _ in range(8)]:
        buffer.fill_(float("nan"))
