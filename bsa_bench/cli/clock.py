"""When the command began; in a module of its own, so that the clock starts before anything slow is imported."""

from __future__ import annotations

import time

_start: list[float] = []


def note_start() -> None:
    """Remember that the command begins now."""
    _start[:] = [time.monotonic()]


def command_started() -> float:
    """When the command began, by `time.monotonic()`; now, where nobody noted it."""
    return _start[0] if _start else time.monotonic()
