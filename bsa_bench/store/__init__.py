"""Results on disk: append-only JSON lines, their reader, what follows from them, and flat tables of them.

The names below load on first use, so that importing this package loads neither pydantic models nor pandas.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bsa_bench.store.frame import export, load_frame
    from bsa_bench.store.reader import Run, read_run

__all__ = ["Run", "export", "load_frame", "read_run"]

_HOMES = {"Run": "reader", "read_run": "reader", "load_frame": "frame", "export": "frame"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
