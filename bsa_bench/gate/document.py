"""A gate's result as the JSON document that other programs read."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from bsa_bench.errors import StoreError, UsageError
from bsa_bench.gate.verdict import GateResult


def document(result: GateResult) -> str:
    """The whole result as JSON; `read_result` reads it back equal."""
    return result.model_dump_json(indent=1) + "\n"


def read_result(path: Path) -> GateResult:
    """Read what `bsa-bench gate --json` wrote.

    Raises:
        UsageError: there is no such file.
        StoreError: it cannot be read, or holds something else than a gate's result of this version.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such file, expected the JSON document of a gate run") from None
    except UnicodeDecodeError as error:
        raise StoreError(f"{path}: expected the JSON document of a gate run, got bytes that are no UTF-8") from error
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise StoreError(f"{path}: expected the JSON document of a gate run, got {text[:60]!r}: {error}") from error
    if not isinstance(fields, dict) or fields.get("kind") != "gate":
        kind = fields.get("kind") if isinstance(fields, dict) else type(fields).__name__
        raise StoreError(f"{path}: expected the document of a gate run, of kind 'gate', got {kind!r}")
    known = GateResult.model_fields["schema_version"].default
    if fields.get("schema_version") != known:
        raise StoreError(
            f"{path}: schema_version: got {fields.get('schema_version')!r}, this version of bsa-bench reads {known}"
        )
    try:
        return GateResult.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the document"
        raise StoreError(f"{path}: {where}: {first['msg']}, got {str(first['input'])[:80]!r}") from error
