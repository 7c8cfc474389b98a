"""What the verbs of comparison share: where their text goes, and how it is said what is being done."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

_WIDTH = 160
"""Columns of a table that goes to a file or a pipe."""


def command_line() -> list[str]:
    """The command as the user typed it, with the program's own name."""
    return ["bsa-bench", *sys.argv[1:]]


def console() -> Console:
    """For results: as wide as the terminal, or wide enough for a table in a file."""
    is_terminal = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console() if is_terminal else Console(width=_WIDTH)


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """A line on stderr that says what is being done; plain lines, the important ones, where that is no terminal."""
    errors = Console(stderr=True)
    if not errors.is_terminal:
        yield (
            lambda text: (
                errors.print(text, markup=False, highlight=False, soft_wrap=True) if _is_milestone(text) else None
            )
        )
        return
    with errors.status("starting") as status:
        yield lambda text: status.update(text.replace("[", r"\["))


def _is_milestone(text: str) -> bool:
    return text.startswith(("tier", "screen", "confirm", "pair", "verifying", "environment", "profile"))
