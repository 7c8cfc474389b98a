"""Consoles that print text as it is: a bracket is no markup, `:smile:` no picture, a number has no colour."""

from __future__ import annotations

import os
import sys
from typing import IO

from rich.console import Console

WIDTH = 160
"""Columns of a table that goes to a file or a pipe."""
_LEAST_WIDTH = 20


def plain_console(*, file: IO[str] | None = None, elsewhere: int = WIDTH) -> Console:
    """A console on a file, or on stdout.

    It is as wide as COLUMNS says or the terminal is, and `elsewhere` in a file or a pipe, forced colours or not.
    """
    width = _asked_width() or (None if (file or sys.stdout).isatty() else elsewhere)
    return Console(file=file, width=width, markup=False, emoji=False, highlight=False)


def _asked_width() -> int | None:
    asked = os.environ.get("COLUMNS", "")
    return max(int(asked), _LEAST_WIDTH) if asked.isascii() and asked.isdigit() and int(asked) else None
