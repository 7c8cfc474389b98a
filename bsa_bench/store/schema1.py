"""Lines of schema 1, in which every method's options were those of BSA, brought into today's schema.

Its options and their defaults are written down here as they were, and never change.
"""

from __future__ import annotations

from typing import Any

from bsa_bench.result import SCHEMA_VERSION, Case

_DEFAULTS: dict[str, Any] = {
    "block": [4, 4, 4],
    "query_block": None,
    "query_keep": 0.5,
    "kv_density": 0.1,
    "query_rule": "window",
    "kv_rule": "statistical",
    "fill": "nearest",
}
_ALWAYS = {"kv_density": "d", "query_keep": "k"}


def upgrade(line: dict[str, Any]) -> dict[str, Any]:
    """Today's fields of a line of schema 1; what it measured, and its hash, stay."""
    line = {**line, "schema_version": SCHEMA_VERSION}
    case = line.get("case")
    if not isinstance(case, dict):
        return line
    options = case.get("options") or {}
    is_dense = str(case.get("implementation", "")).startswith("full@")
    case = {**case, "options": options, "claims": {"is_dense": is_dense}}
    if isinstance(options, dict) and options:
        case["label"] = _label(options)
    # Its ids left out some of what sets cases apart.
    return {**line, "case": case, "case_id": Case.model_validate(case).case_id}


def _label(options: dict[str, Any]) -> str:
    parts = [f"{short}{options.get(name)}" for name, short in _ALWAYS.items()]
    for name, default in _DEFAULTS.items():
        value = options.get(name, default)
        if name not in _ALWAYS and value != default:
            parts.append(f"{name}={'x'.join(map(str, value)) if isinstance(value, list) else value}")
    return "-".join(parts)
