"""Imports of other tools' result files as published figures; importing this package loads no format and no pydantic."""

from __future__ import annotations

from bsa_bench.imports.registry import FORMATS, Imported, ImportFormat, ImportName, NothingPublishedError, import_file

__all__ = ["FORMATS", "ImportFormat", "ImportName", "Imported", "NothingPublishedError", "import_file"]
