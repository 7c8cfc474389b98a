"""Exports of a run to the formats of other tools; importing this package loads neither pandas nor a format."""

from __future__ import annotations

from bsa_bench.exports.registry import FORMATS, Exported, ExportFormat, FormatName, NothingMeasuredError, export_run

__all__ = ["FORMATS", "ExportFormat", "Exported", "FormatName", "NothingMeasuredError", "export_run"]
