"""A reviewed file of figures: JSON with one item on a line, so that a diff of it reads well."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import Field, ValidationError

from bsa_bench.errors import StoreError, UsageError
from bsa_bench.result import Line
from bsa_bench.store.whole_file import write_whole

_FLAG = "baseline"
LineT = TypeVar("LineT", bound=Line)


class Origin(Line):
    """Where a baseline comes from.

    Args:
        commit, dirty: of the sources, and whether they differed from it; null outside a checkout.
        utc: when it was accepted.
        reason: why it was accepted, for who reads the file later.
    """

    commit: str | None
    dirty: bool | None
    utc: str
    reason: str = Field(min_length=1)


def write_items(path: Path, make: Callable[[], Line], *, items: str, exclude_defaults: bool = False) -> None:
    """Write a baseline, its folder too where there is none; an equal one gives the same text.

    Args:
        path: of the file.
        make: makes the baseline, a model of the whole file.
        items: the field that gets a line for each of its items.
        exclude_defaults: leave out what of an item is as by default.

    Raises:
        UsageError: the model refuses what it is made of.
        StoreError: the file cannot be written.
    """
    try:
        baseline = make()
    except ValidationError as error:
        raise UsageError(f"{_FLAG}: {path}: {_first(error)}") from error
    head = baseline.model_dump(mode="json", exclude={items})
    rows = [item.model_dump(mode="json", exclude_defaults=exclude_defaults) for item in getattr(baseline, items)]
    start = "".join(f"{_line(key)}: {_line(value)},\n" for key, value in head.items())
    body = ",\n".join(map(_line, rows))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{_FLAG}: {path.parent}: {error.strerror}") from error
    write_whole(path, f"{{\n{start}{_line(items)}: [\n{body}\n]\n}}\n", flag=_FLAG)


def read_items(path: Path, model: type[LineT], *, what: str) -> LineT:
    """Read such a file.

    Raises:
        UsageError: it is not there, or is no baseline of `what`.
    """
    try:
        return model.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{_FLAG}: {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{_FLAG}: {path}: expected JSON in UTF-8, got: {error}") from error
    except ValidationError as error:
        raise UsageError(f"{_FLAG}: {path}: expected a baseline of {what}, got: {_first(error)}") from error


def _line(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}" if place else first["msg"]
