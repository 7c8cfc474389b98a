"""An attention operator as a row of named stages: a model runs them in a row, a benchmark times them one by one.

One description for both, so that what is timed, what is verified and what `bsa_attention` runs is the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class HeadGroup:
    """Heads with an operator of their own: other blocks, another order of tokens, another method.

    `heads` are numbers of heads of the whole; the operator sees its heads alone, in this order.
    """

    name: str
    heads: tuple[int, ...]
    operator: Operator


def split_heads(groups: Sequence[HeadGroup], *, shared: Sequence[str] = ()) -> Operator:
    """Run each group's operator on its heads, and join the outputs in the order of heads.

    A stage `split` gives each group its heads (dim 1) of every tensor that its operator reads; the groups' stages
    follow, each with the group's name behind its own and behind all that it reads and writes (stage `attend[local]`
    leaves `plan[local]`); the last stage `join` makes `o`. Gradients flow through all of it, staged or not.

    Args:
        groups: which together have each head once.
        shared: names of what is no tensor of heads: the groups get it whole.

    Raises:
        ValueError: the groups have not every head once, two have one name, or an operator makes no `o`. On running: a
            tensor has another number of heads.
    """
    num_heads = _count_heads(groups)
    reads = {group.name: _external(group.operator, shared) for group in groups}
    split_inputs = list(dict.fromkeys(x for inputs, _ in reads.values() for x in inputs))
    split_constants = [
        x for x in dict.fromkeys(x for _, constants in reads.values() for x in constants) if x not in split_inputs
    ]
    made = [(group, name) for group in groups for kind in reads[group.name] for name in kind]

    def split(*tensors: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip((*split_inputs, *split_constants), tensors, strict=True))
        for name, x in given.items():
            if not isinstance(x, Tensor) or x.dim() < 2 or x.shape[1] != num_heads:
                got = list(x.shape) if isinstance(x, Tensor) else x
                raise ValueError(f"{name}: expected a tensor [B, {num_heads}, ...], got {got}")
        return tuple(_take_heads(given[name], group.heads) for group, name in made)

    order = [head for group in groups for head in group.heads]
    place = [order.index(head) for head in range(num_heads)]

    def join(*outs: Tensor) -> tuple[Tensor]:
        return (_take_heads(torch.cat(outs, 1), place),)

    outputs = tuple(f"{name}[{group.name}]" for group, name in made)
    return Operator(
        (
            Stage("split", tuple(split_inputs), outputs, split, constants=tuple(split_constants)),
            *(_renamed(stage, group.name, shared) for group in groups for stage in group.operator.stages),
            Stage("join", tuple(f"o[{group.name}]" for group in groups), ("o",), join),
        )
    )


def _count_heads(groups: Sequence[HeadGroup]) -> int:
    """How many heads the groups have, each once.

    Raises:
        ValueError: they have not, or cannot be told apart, or one makes no `o`.
    """
    names = [group.name for group in groups]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"groups: expected at least one, each with a name of its own, got the names {names}")
    heads = sorted(head for group in groups for head in group.heads)
    if heads != list(range(len(heads))) or not all(group.heads for group in groups):
        got = ", ".join(f"{group.name}: {tuple(group.heads)}" for group in groups)
        raise ValueError(f"groups: expected each head from 0 on once, and at least one in each group, got {got}")
    for group in groups:
        if not any("o" in stage.outputs for stage in group.operator.stages):
            raise ValueError(f"groups: expected an operator that makes 'o', got none in {group.name}")
    return len(heads)


def _external(operator: Operator, shared: Sequence[str]) -> tuple[list[str], list[str]]:
    """What an operator's stages read and none made before: as inputs, and as constants alone; `shared` left out."""
    inputs: dict[str, None] = {}
    constants: dict[str, None] = {}
    made: set[str] = set(shared)
    for stage in operator.stages:
        inputs.update((name, None) for name in stage.inputs if name not in made)
        constants.update((name, None) for name in stage.constants if name not in made)
        made.update(stage.outputs)
    return list(inputs), [name for name in constants if name not in inputs]


def _renamed(stage: Stage, group: str, shared: Sequence[str]) -> Stage:
    def rename(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name if name in shared else f"{name}[{group}]" for name in names)

    return replace(
        stage,
        name=f"{stage.name}[{group}]",
        inputs=rename(stage.inputs),
        constants=rename(stage.constants),
        outputs=rename(stage.outputs),
    )


def _take_heads(x: Tensor, heads: Sequence[int]) -> Tensor:
    """Heads (dim 1) in this order; a view where they follow each other."""
    first, count = heads[0], len(heads)
    if list(heads) == list(range(first, first + count)):
        return x.narrow(1, first, count)
    return x.index_select(1, torch.tensor(heads, device=x.device))


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
