"""Flags as the fields of a dataclass: each is written once, with its help, and reaches the command as one value."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any


def with_flags(flags: type, name: str = "flags") -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the fields of a dataclass as its parameters, after its own ones.

    Args:
        flags: the dataclass; its annotations are what typer reads.
        name: the command's parameter that gets one of it.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own, shared = inspect.signature(command, eval_str=True), inspect.signature(flags, eval_str=True)

        @functools.wraps(command)
        def wrapped(**values: Any) -> None:
            given = flags(**{field: values.pop(field) for field in shared.parameters})
            command(**{name: given}, **values)

        parameters = [*(p for p in own.parameters.values() if p.name != name), *shared.parameters.values()]
        wrapped.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
        )
        wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return wrapped

    return decorate
