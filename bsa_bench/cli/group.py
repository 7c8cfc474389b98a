"""The command line's parser: what it refuses is shown as one can read it."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

from bsa_bench.text import shortened, visible

_MOST_LETTERS = 500
"""Of what is wrong with the arguments, which repeats one of them."""


class BoundedGroup(TyperGroup):
    """Commands whose usage errors are of a length that can be read, with nothing in them that acts on a terminal."""

    def make_context(self, *arguments: Any, **more: Any) -> Any:
        """Parse the arguments before the verb."""
        try:
            return super().make_context(*arguments, **more)
        except Exception as error:
            _bound(error)
            raise

    def invoke(self, ctx: Any) -> Any:
        """Parse the verb's arguments and run it."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            _bound(error)
            raise


def _bound(error: Exception) -> None:
    """Shorten the message of an error of the parser's, whichever package it comes from; others have no `show`."""
    if hasattr(error, "show") and isinstance(message := getattr(error, "message", None), str):
        setattr(error, "message", shortened(visible(message), _MOST_LETTERS))  # noqa: B010  # no attribute of all
