"""Functions as operators that torch knows: `torch.compile` and `torch.export` trace them, and autograd differentiates.

`torch.library.custom_op` says the same, but wraps each kernel in `torch.compiler.disable`, whose first call imports the
compiler: 1.4 to 2.6 s of every process that never compiles (torch 2.13).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeAlias

import torch
from torch import Tensor

from bsa_kernels.tracing import untraced

#: What an operator is to its callers: an `OpOverload` of torch.
Operator: TypeAlias = Any

_NAMESPACE = "bsa_kernels"
_LIBRARY = torch.library.Library(_NAMESPACE, "FRAGMENT")


@dataclass
class _Gradient:
    """How an operator is differentiated; without a backward, it is not, and says so."""

    backward: Callable[..., Any] | None = None
    save: Callable[..., None] | None = None


_gradients: dict[Operator, _Gradient] = {}


def torch_operator(name: str, device: str | None = None) -> Callable[[Callable[..., Any]], Operator]:
    """Decorate a function as the operator `bsa_kernels::name`.

    It changes nothing that it is given. A compiler may write to what an operator returns: a result that shares memory
    with an argument or with another result is an error when the operator is called.

    Args:
        name: of the operator.
        device: `cpu` or `cuda` if the function is for one of them alone.

    Returns:
        The operator in place of the function, whose annotations are its schema.
    """
    key = "CompositeExplicitAutograd" if device is None else device.upper()

    def register(function: Callable[..., Any]) -> Operator:
        schema = torch.library.infer_schema(function, mutates_args=())
        _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        _LIBRARY.impl(name, untraced(_unaliasing(function, name)), key)
        operator = getattr(getattr(torch.ops, _NAMESPACE), name).default
        gradient = _gradients[operator] = _Gradient()

        def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            if gradient.save is not None:
                gradient.save(ctx, inputs, output)

        def backward(ctx: Any, *grads: Any) -> Any:
            if gradient.backward is None:
                raise RuntimeError(f"{operator} was differentiated, and has no autograd formula")
            return gradient.backward(ctx, *grads)

        torch.library.register_autograd(f"{_NAMESPACE}::{name}", backward, setup_context=save, lib=_LIBRARY)
        return operator

    return register


def _unaliasing(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The function, whose results are checked."""

    @wraps(function)
    def call(*arguments: Any) -> Any:
        results = function(*arguments)
        seen = set(_storages(arguments))
        for place in _storages(results if isinstance(results, (tuple, list)) else (results,)):
            if place in seen:
                raise RuntimeError(
                    f"{_NAMESPACE}::{name} returns a tensor that shares memory with one of its arguments or with "
                    "another result; return a clone"
                )
            seen.add(place)
        return results

    return call


def _storages(values: Iterable[Any]) -> list[int]:
    """Where the memory of the tensors among values and their lists begins; those without memory are left out."""
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found += [place] if (place := value.untyped_storage().data_ptr()) else []
        elif isinstance(value, (tuple, list)):
            found += _storages(value)
    return found


def fake_of(operator: Operator) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a function with the operator's arguments that returns tensors like its results, contents left open."""

    def register(fake: Callable[..., Any]) -> Callable[..., Any]:
        torch.library.register_fake(f"{_NAMESPACE}::{operator._opname}", fake, lib=_LIBRARY)  # noqa: SLF001
        return fake

    return register


def gradient_of(operator: Operator, backward: Callable[..., Any], save: Callable[..., None]) -> None:
    """Say how an operator is differentiated.

    Args:
        operator: of `torch_operator`.
        backward: `backward(ctx, *grads)` returns a gradient or None for each argument.
        save: `save(ctx, inputs, output)` keeps what that needs.
    """
    gradient = _gradients[operator]
    gradient.backward, gradient.save = backward, save
