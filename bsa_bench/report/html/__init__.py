"""The report as a page: one HTML file that holds its libraries and its data, and asks no network for anything."""

from __future__ import annotations

from bsa_bench.report.html.page import write_page

__all__ = ["write_page"]
