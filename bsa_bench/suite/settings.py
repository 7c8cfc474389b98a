"""From a case back to the settings that ask for it alone, the inverse of `bsa_bench.suite.override`."""

from __future__ import annotations

import json
import re

from pydantic import JsonValue

from bsa_bench.result import Case
from bsa_bench.suite.schema import MODEL_KEYS, vocabulary
from bsa_bench.workload import PRESETS, Workload


def settings_of(case: Case) -> list[str]:
    """Write the settings that turn the suite of a case into one with this case alone.

    They pin every key of the workload, the input and the options, so that no axis of the suite is left; a model stands
    for the shape that its preset gives. A suite's `limit` is not lifted.
    """
    workload = case.workload
    pairs: dict[str, JsonValue] = {"implementation": case.implementation, "pass": case.passes, **_length(workload)}
    values = workload.model_dump(mode="json")
    preset = PRESETS.get(workload.model or "")
    if preset:
        pairs["model"] = workload.model
    pairs |= {
        key: values[key]
        for key in sorted(MODEL_KEYS)
        if preset is None or getattr(workload, key) != getattr(preset, key)
    }
    pairs |= {"batch": workload.batch, "dtype": workload.dtype}
    spec = workload.input
    pairs |= {"kind": spec.kind, "seed": spec.seed}
    pairs |= {key: value for key, value in (("clip", spec.clip), ("path", spec.path)) if value is not None}
    # Without its method a key takes out that of a suite's variants too, however these name it.
    shared = vocabulary().options
    pairs |= {key if key in shared else f"{case.method}.{key}": value for key, value in case.options.items()}
    return [f"{key}={_text(value)}" for key, value in pairs.items()]


def _length(workload: Workload) -> dict[str, JsonValue]:
    if workload.grid is not None:
        return {"grid": list(workload.grid)}
    if workload.tokens is not None:
        return {"tokens": workload.tokens}
    return {"frames": workload.frames, "height": workload.height, "width": workload.width}


def _text(value: JsonValue) -> str:
    """A value as `override` reads it back: plain where that is not mistaken for another, else a TOML list of it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, list) and len(value) > 1 and all(type(item) is int for item in value):
        return "x".join(map(str, value))
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z_][\w.@:+-]*", value) and value != "none":
        return value
    return f"[{json.dumps(value, ensure_ascii=False)}]"
