"""Turn what is wrong into a sentence: file, key, value, what was expected, and the word that was probably meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from bsa_bench.result import IMPLEMENTATION

_EXPECTED = {
    "int_type": "an integer",
    "float_type": "a number",
    "string_type": "a text",
    "tuple_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "too_long": "exactly three integers",
    "bool_type": "true or false",
    "too_short": "at least one value",
}


_MOST_LETTERS = 100
"""Of a word that is compared with others: of thousands that would take minutes."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`; did you mean 'quick'?` for the nearest of `choices`, or nothing."""
    by_lower = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(word[:_MOST_LETTERS].lower(), list(by_lower), n=1, cutoff=0.6)
    return f"; did you mean {by_lower[close[0]]!r}?" if close else ""


def join_path(*parts: str | int) -> str:
    """`axes.kv_density[1]` from the steps of a key path; a step that is no bare key is quoted."""
    text = ""
    for part in parts:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part:
            bare = re.fullmatch(r"[\w.\[\]-]+", part)
            text += ("." if text else "") + (part if bare else f'"{part}"')
    return text


def explain(error: ValidationError, model: type[BaseModel], *, source: str, prefix: str) -> str:
    """One line for each mistake that pydantic found: `file: key path: got ..., expected ...`."""
    lines = [f"{source}: {text}" for text in _mistakes(error, model, prefix)]
    more = [f"... and {len(lines) - 5} more"] if len(lines) > 5 else []
    return "\n".join(lines[:5] + more)


def _mistakes(error: ValidationError, model: type[BaseModel], prefix: str) -> Iterator[str]:
    for found in error.errors(include_url=False):
        kind, loc, got = found["type"], found["loc"], found["input"]
        if kind == "missing" and loc and isinstance(loc[-1], int):  # a triple that is too short
            kind, loc = "too_long", loc[:-1]
        if kind == "too_short" and got:  # follows from the mistakes inside the list
            continue
        where = join_path(prefix, *loc)
        if kind == "extra_forbidden":
            name = str(loc[-1])
            known = _keys_at(model, loc[:-1])
            yield f"{where}: unknown key, expected one of {', '.join(known)}{did_you_mean(name, known)}"
        elif kind == "missing":
            yield f"{where}: is missing"
        elif kind == "value_error":
            yield f"{where}: {found['msg'].removeprefix('Value error, ')}" if where else found["msg"][13:]
        elif kind == "string_pattern_mismatch":
            yield f"{where}: {bad_implementation(str(got))}"
        else:
            expected = _EXPECTED.get(kind) or found["msg"].removeprefix("Input should be ")
            if kind.startswith(("greater_than", "less_than")):
                expected = f"a number {expected}"
            if kind == "literal_error":
                expected += did_you_mean(str(got), re.findall(r"'([^']*)'", expected))
            elif kind.endswith("_type") and isinstance(got, list | dict) and kind != "tuple_type":
                expected += " (a list or range of values belongs in [axes])"
            yield f"{where}: got {shorten(got)}, expected {expected}"


def bad_implementation(name: str) -> str:
    """Say what an implementation's name looks like, with the likely one where a separator went wrong."""
    guess = re.sub(r"[^a-z0-9-]+|-", "@", name.strip().lower(), count=1)
    hint = f"; did you mean {guess!r}?" if re.fullmatch(IMPLEMENTATION, guess) else ""
    return f"got {name!r}, expected method@engine such as bsa@gather{hint}"


def shorten(value: object) -> str:
    """`repr` of at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _keys_at(model: type[BaseModel], loc: Sequence[str | int]) -> list[str]:
    """The keys that the table at `loc` may have."""
    for step in loc:
        if isinstance(step, str) and step in model.model_fields:
            model = next(_models_in(model.model_fields[step].annotation), model)
    return sorted(model.model_fields)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)
