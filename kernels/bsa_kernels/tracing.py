"""What compilers that trace (`torch.compile`, `torch.export`) are told, without loading one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])


def ask_once(function: _Function) -> _Function:
    """Have a compiler that traces call the function once, with constants, and keep the answer.

    What `torch.compiler.assume_constant_result` does; that loads the compiler (2 s of each process, torch 2.13).
    """
    vars(function)["_dynamo_marked_constant"] = True
    return function
