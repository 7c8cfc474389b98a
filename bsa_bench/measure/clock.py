"""The clocks of measurements, taken when this is imported: before any code of a third party is loaded.

A package that replaces the functions of `time` changes no measurement, and `replaced_clocks` names what it replaced.
"""

from __future__ import annotations

import time
from time import monotonic, perf_counter, perf_counter_ns

__all__ = ["monotonic", "perf_counter", "perf_counter_ns", "replaced_clocks"]

_OURS = {name: getattr(time, name) for name in ("monotonic", "perf_counter", "perf_counter_ns", "time")}


def replaced_clocks() -> list[str]:
    """The functions of `time` that are no longer those of when this was imported."""
    return [f"time.{name}" for name, function in _OURS.items() if getattr(time, name) is not function]
