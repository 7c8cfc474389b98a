"""What compilers that trace (`torch.compile`, `torch.export`) are told, without loading one."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from operator import index
from types import FunctionType
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch._C._dynamo.eval_frame import (
    _FrameAction,
    _FrameExecStrategy,
    set_code_exec_strategy,
    set_eval_frame,
)

_Function = TypeVar("_Function", bound=Callable[..., Any])


def with_fixed_sizes(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors; to a compiler that traces with symbolic sizes, of sizes that are numbers.

    Grids and plans are made for numbers of tokens, so that each shape is a compilation of its own.
    """
    if not torch.compiler.is_compiling():
        return tensors
    return tuple(x.expand([index(size) for size in x.shape]) for x in tensors)


def fixed_number(number: float) -> float:
    """The number; to a compiler that traces with symbolic numbers, one that it knows and asks for again."""
    if not torch.compiler.is_compiling():
        return number
    # A key is looked up by its value, which must be known; the product is a symbol that was read, not one yet to be.
    return next(iter({number * 1: None}))


def untraced(function: _Function) -> _Function:
    """Have a compiler that traces call the function as it is, and trace nothing that it calls.

    What `torch.compiler.disable` does; that loads the compiler.
    """

    @wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        callback = set_eval_frame(None)
        try:
            return function(*arguments, **options)
        finally:
            set_eval_frame(callback)

    code = cast("FunctionType", call).__code__
    set_code_exec_strategy(code, _FrameExecStrategy(_FrameAction.SKIP, _FrameAction.DEFAULT))
    vars(call)["_torchdynamo_disable"] = True
    return call  # type: ignore[return-value]


def ask_once(function: _Function) -> _Function:
    """Have a compiler that traces call the function once, with constants, and keep the answer.

    What `torch.compiler.assume_constant_result` does; that loads the compiler (2 s of each process, torch 2.13).
    """
    vars(function)["_dynamo_marked_constant"] = True
    return function
