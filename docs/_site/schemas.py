"""The references of suite files and of stored results, made from the pydantic models that check them."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from bsa_bench import result
from bsa_bench.catalog import METHODS, options_by_method
from bsa_bench.errors import EXIT_CODES
from bsa_bench.store.frame import COLUMNS
from bsa_bench.suite import schema
from bsa_bench.workload import PRESETS, InputSpec, Workload


def suite_keys() -> str:
    """The keys of a suite file, as Markdown."""
    sketch = inspect.cleandoc((schema.__doc__ or "").partition("\n\n")[2].partition("\n\nEvery key")[0])
    parts = [f"## The whole file\n\n```toml\n{sketch}\n```\n"]
    top = {
        key: field for key, field in schema.Part.model_fields.items() if key not in {"workload", "input", "axes", "zip"}
    }
    parts.append(
        "## Top level\n\nAlso the keys of `[cpu]` and `[cuda]`.\n\n" + _table(schema.Part, top, has_default=False)
    )
    parts.append(_section("[workload]", Workload, leave_out=frozenset({"input"}), defaults={"dtype": "auto"}))
    presets = [f"| `{name}` | {p.heads} | {p.head_dim} | {p.vae} | {p.patch} |" for name, p in PRESETS.items()]
    parts.append("\n".join(["| `model` | heads | head_dim | vae | patch |", "|---|---|---|---|---|", *presets, ""]))
    parts.append(_section("[input]", InputSpec, leave_out=frozenset({"sha256"})))
    for method in (method for method in METHODS if method in options_by_method()):
        options = options_by_method()[method]
        see = f"What they mean: [{method}](../methods/{method}.md#options)."
        parts.append(f"## `[{method}]`\n\n{see}\n\n" + _table(options, options.model_fields))
    parts.append(
        _section(
            "[[variant]]", schema.VariantTable, text="Besides these, options of methods: `kv_density`, `vsa.topk`."
        )
    )
    parts.append(_section('[limit."NAME"]', schema.Limit))
    parts.append(_section("[[variant]] paper", result.PaperClaim))
    return "\n".join(parts)


def results() -> str:
    """What a run's file holds, as Markdown."""
    parts = [_prose((result.__doc__ or "").partition("\n\n")[2]), "\n## Status\n"]
    parts += ["| status | meaning |", "|---|---|"]
    parts += [f"| `{status}` | {_cell(status.meaning)} |" for status in result.Status]
    for model in _stored_models():
        parts.append("\n" + _section(model.__name__, model, has_default=False))
    parts.append("\n## Flat table\n\nThe columns of `bsa_bench.load`, `export --to csv` and `export --to parquet`.\n")
    parts += ["| column | dtype | meaning |", "|---|---|---|"]
    parts += [f"| `{name}` | {dtype} | {_cell(meaning)} |" for name, (dtype, meaning) in COLUMNS.items()]
    parts.append("\n## Exit codes\n\n| code | meaning |\n|---|---|")
    parts += [f"| {code} | {_cell(meaning)} |" for code, meaning in EXIT_CODES.items()]
    return "\n".join(parts) + "\n"


def _stored_models() -> list[type[BaseModel]]:
    """The models of a line, each line's own first."""
    found = [each for each in vars(result).values() if inspect.isclass(each) and issubclass(each, result.Line)]
    first: list[type[BaseModel]] = [result.RunLine, result.Result]
    return [*first, *(each for each in found if each not in {*first, result.Line}), Workload, InputSpec]


def _section(
    title: str,
    model: type[BaseModel],
    *,
    leave_out: frozenset[str] = frozenset(),
    text: str = "",
    has_default: bool = True,
    defaults: Mapping[str, str] | None = None,
) -> str:
    fields = {key: field for key, field in model.model_fields.items() if key not in leave_out}
    about = _prose(inspect.getdoc(model) or "")
    said = "\n\n".join(part for part in (about, text) if part)
    return f"## `{title}`\n\n{said}\n\n" + _table(model, fields, has_default=has_default, defaults=defaults or {})


def _table(
    model: type[BaseModel],
    fields: Mapping[str, FieldInfo],
    *,
    has_default: bool = True,
    defaults: Mapping[str, str] | None = None,
) -> str:
    meanings = argument_meanings(inspect.getdoc(model) or "")
    columns = ["key", "type", *(["default"] if has_default else []), *(["meaning"] if meanings else [])]
    rows = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for key, field in fields.items():
        cells = [f"`{key}`", _cell(kind_of(field))]
        if has_default:
            cells.append((defaults or {}).get(key) or _default(field))
        if meanings:
            cells.append(_cell(meanings.get(key, "")))
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def argument_meanings(docstring: str) -> dict[str, str]:
    """What the `Args:` of a docstring say, by name; names that share a line share its text."""
    block = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)*)", docstring, re.MULTILINE)
    if block is None:
        return {}
    text = inspect.cleandoc(block[1])
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=\S)", text):
        names, _, meaning = entry.partition(":")
        found |= dict.fromkeys(names.split(", "), " ".join(meaning.split()))
    return found


def kind_of(field: FieldInfo) -> str:
    """The type of a field and its limits in words."""
    full = TypeAdapter(field.rebuild_annotation()).json_schema()
    return _words(full, full.get("$defs", {}))


def _words(node: Mapping[str, Any], models: Mapping[str, Any]) -> str:
    if "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        inner = models[name]
        return _words(inner, models) if "enum" in inner else f"`{name}`"
    if "anyOf" in node:
        parts = [_words(part, models) for part in node["anyOf"] if part.get("type") != "null"]
        none = ["null"] if len(parts) < len(node["anyOf"]) else []
        return " or ".join(dict.fromkeys([*parts, *none]))
    if "enum" in node:
        return ", ".join(f"`{value}`" for value in node["enum"])
    if "const" in node:
        return f"`{node['const']}`"
    if "prefixItems" in node:
        return f"{len(node['prefixItems'])} of: {_words(node['prefixItems'][0], models)}"
    kind = node.get("type")
    if kind == "array":
        inner = _words(node["items"], models) if node.get("items") else "anything"
        return f"list of {inner}"
    if kind == "object":
        values = node.get("additionalProperties")
        return f"table of {_words(values, models)}" if isinstance(values, dict) and values else "table"
    if kind is None:
        return "any value"
    return _limited(
        {"integer": "integer", "number": "number", "boolean": "true or false", "string": "text"}[kind], node
    )


def _limited(word: str, node: Mapping[str, Any]) -> str:
    if node.get("pattern") == f"^{result.IMPLEMENTATION}$":
        return "`method@engine` or `method@engine:form`"
    limits = {"exclusiveMinimum": "above", "minimum": "at least", "exclusiveMaximum": "below", "maximum": "at most"}
    said = [f"{text} {_number(node[key])}" for key, text in limits.items() if key in node]
    return f"{word}, {' and '.join(said)}" if said else word


def _number(limit: float) -> str:
    """`0.5`, `1`, `1,073,741,824`."""
    return f"{int(limit):,}" if limit == int(limit) else f"{limit:g}"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return ""
    return f"`{json.dumps(value.model_dump() if isinstance(value, BaseModel) else value)}`"


def _prose(docstring: str) -> str:
    """A docstring without its `Args:`."""
    return re.sub(r"^Args:\n((?:[ \t]+.*\n?|\n)*)", "", docstring, flags=re.MULTILINE).strip()


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
