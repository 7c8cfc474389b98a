"""What the verbs of comparison share: where their text goes, and how it is said what is being done."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bsa_bench.console import plain_console
from bsa_bench.text import visible

if TYPE_CHECKING:
    from rich.console import Console


def command_line() -> list[str]:
    r"""The command as the user typed it, with the program's own name; bytes that are no UTF-8 as `\xff`."""
    return ["bsa-bench", *map(visible, sys.argv[1:])]


def console() -> Console:
    """For results: as wide as the terminal, or wide enough for a table in a file."""
    return plain_console()


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """A line on stderr that says what is being done; plain lines, the important ones, where that is no terminal."""
    if not sys.stderr.isatty():
        yield lambda text: print(visible(text), file=sys.stderr, flush=True) if _is_milestone(text) else None
        return
    from rich.text import Text

    with plain_console(file=sys.stderr).status("starting") as status:
        yield lambda text: status.update(Text(visible(text)))


def _is_milestone(text: str) -> bool:
    return text.startswith(("tier", "screen", "confirm", "pair", "verifying", "environment", "profile"))
