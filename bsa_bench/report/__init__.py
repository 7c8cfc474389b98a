"""Reports of stored runs: Markdown, plots, a page, tables by name. Reads results only; needs no torch.

The names below load on first use, so that `--help` may name the tables without loading pydantic models.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bsa_bench.report.build import ReportFiles, ReportFormat, WrittenReports, write_report, write_reports
    from bsa_bench.report.terminal import print_table

__all__ = ["ReportFiles", "ReportFormat", "WrittenReports", "print_table", "write_report", "write_reports"]

_HOMES = {name: "terminal" if name == "print_table" else "build" for name in __all__}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
