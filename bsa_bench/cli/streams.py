"""Standard streams as they come: closed, of another encoding than UTF-8, or gone before the command ends."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO, cast

from bsa_bench.text import shortened, visible

_MOST_LINES, _MOST_LETTERS = 40, 2000
"""Of an error."""


def settle_streams() -> None:
    r"""Open streams that are closed on nothing, and write what an encoding lacks as `\xb1`; to be called first.

    A descriptor that is free would go to the next file or pipe that is opened, and get what is meant for the terminal.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which is this one
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 -- lives as long as the process
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_error(text: str) -> None:
    """`bsa-bench: TEXT` on stderr, with nothing in it that acts on a terminal, and of a length that can be read."""
    lines = [shortened(visible(line), _MOST_LETTERS) for line in text.split("\n")]
    if len(lines) > _MOST_LINES:
        lines[_MOST_LINES - 1 :] = [f"... and {len(lines) - _MOST_LINES + 1} more lines"]
    print("bsa-bench: " + "\n".join(lines), file=sys.stderr)


class LastingStream:
    """A stream whose reader may go: what is written after that goes nowhere, and no error says so.

    Attributes:
        lost: why it went, null while it is there.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost: OSError | None = None

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, if anybody reads."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._lose(error)
            return len(text)

    def flush(self) -> None:
        """Hand on what is buffered."""
        try:
            self._stream.flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        self.lost = self.lost or error
        # What is buffered still, and what is written at exit, goes there.
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, self._stream.fileno())
        os.close(nothing)


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Let what is done inside go on when a reader of stdout or stderr goes, as `head` does.

    Where it was no reader that went, but a disk that is full, stderr says at the end that output is missing.
    """
    before = sys.stdout, sys.stderr
    out, errors = LastingStream(sys.stdout), LastingStream(sys.stderr)
    sys.stdout, sys.stderr = cast("TextIO", out), cast("TextIO", errors)
    try:
        yield
    finally:
        out.flush()
        if out.lost is not None and not isinstance(out.lost, BrokenPipeError):
            print_error(f"output could not be written: {out.lost.strerror or out.lost}")
        errors.flush()
        sys.stdout, sys.stderr = before
