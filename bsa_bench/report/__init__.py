"""Reports of stored runs: Markdown, plots and the terminal's table. Reads results only; needs no torch."""

from __future__ import annotations

from bsa_bench.report.build import ReportFiles, write_report
from bsa_bench.report.terminal import print_table

__all__ = ["ReportFiles", "print_table", "write_report"]
