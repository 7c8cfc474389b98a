"""Reports of stored runs: Markdown, plots, a page and the terminal's table. Reads results only; needs no torch."""

from __future__ import annotations

from bsa_bench.report.build import ReportFiles, ReportFormat, WrittenReports, write_report, write_reports
from bsa_bench.report.terminal import print_table

__all__ = ["ReportFiles", "ReportFormat", "WrittenReports", "print_table", "write_report", "write_reports"]
