"""Gradients that have no gradients of their own, and say so: a double backward raises instead of losing a term."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor


def first_order(backward: Callable[..., tuple[Tensor | None, ...]]) -> Callable[..., tuple[Tensor | None, ...]]:
    """Decorate the `backward` of an `autograd.Function` that is not differentiable itself.

    It runs without gradients. Under `create_graph=True` what it returns depends on all that it read, and raises when it
    is differentiated. `torch.autograd.function.once_differentiable` cuts these edges: `torch.autograd.grad` with
    `allow_unused=True` returns None, or zero through another path, where a term is missing.
    """

    @wraps(backward)
    def call(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            made = backward(ctx, *grads)
        if not torch.is_grad_enabled():
            return made
        read = [x for x in (*ctx.saved_tensors, *grads) if isinstance(x, Tensor) and x.requires_grad]
        kept = iter(_Undifferentiable.apply(len(read), *read, *(x for x in made if x is not None)))
        return tuple(None if x is None else next(kept) for x in made)

    return call


class _Undifferentiable(torch.autograd.Function):
    """The last tensors as they are; they depend on the first `num_read`, in a way that is not known."""

    @staticmethod
    def forward(ctx, num_read: int, *tensors: Tensor) -> tuple[Tensor, ...]:  # type: ignore[no-untyped-def]  # noqa: ANN001, ARG004
        return tuple(x.view_as(x) for x in tensors[num_read:])

    @staticmethod
    def backward(ctx, *grads: Tensor) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001, ARG004
        raise RuntimeError(
            "expected a first derivative, got a second one: the gradients of this engine have none of their own; the "
            "engine 'reference' has"
        )
