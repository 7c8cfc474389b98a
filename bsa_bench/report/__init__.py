"""Reports of stored runs: Markdown, plots, the terminal's table, tables by name. Reads results only; needs no torch.

The names below load on first use, so that `--help` may name the tables without loading pydantic models.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bsa_bench.report.build import ReportFiles, write_report
    from bsa_bench.report.terminal import print_table

__all__ = ["ReportFiles", "print_table", "write_report"]

_HOMES = {"ReportFiles": "build", "write_report": "build", "print_table": "terminal"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
