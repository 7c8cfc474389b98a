"""What the formats share: the file as text, and the figures that one finds in it, each checked."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from bsa_bench.errors import UsageError
from bsa_bench.files import read_regular
from bsa_bench.imports.record import Metric, PublishedAxes, Statistic

#: A figure in SI units is the number in the file, times the first, over the second.
UNITS: dict[str, tuple[float, float]] = {
    "s": (1, 1),
    "ms": (1, 1e3),
    "TFLOP/s": (1e12, 1),
    "B": (1, 1),
    "GB": (1e9, 1),
}


@dataclass(frozen=True)
class Source:
    """A file as read: its name without the folder, the digest of its bytes, its text."""

    path: Path
    sha256: str
    text: str

    @cached_property
    def document(self) -> Any:
        """The file as one JSON document; None of any other."""
        try:
            return json.loads(self.text)
        except (ValueError, RecursionError):
            return None

    @property
    def name(self) -> str:
        """Of the file, without its folder."""
        return clean(self.path.name) or "unnamed"

    @property
    def first_line(self) -> str:
        """The first line that is not blank."""
        return self.text.lstrip().partition("\n")[0].strip()


@dataclass(frozen=True)
class Reading:
    """A figure that a format found: `value` in SI units, `device` null where the file does not name one."""

    implementation: str
    axes: PublishedAxes
    metric: Metric
    statistic: Statistic | None
    value: float
    unit: str
    device: str | None


@dataclass
class Readings:
    """The figures of a file, and how many cells were left out by reason."""

    found: list[Reading] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def add(
        self,
        cell: object,
        unit: str,
        *,
        implementation: str,
        axes: PublishedAxes,
        metric: Metric,
        statistic: Statistic | None,
        device: str | None = None,
    ) -> None:
        """Add a cell, a number or its text; one that holds no number above zero is left out and counted."""
        number = _number(cell)
        if isinstance(number, str):
            self.left_out[number] += 1
            return
        factor, divisor = UNITS[unit]
        value = number * factor / divisor
        named, where = clean(implementation) or "unnamed", clean(device or "") or None
        self.found.append(Reading(named, axes, metric, statistic, value, unit, where))


class Lenient(BaseModel):
    """Base of what is read from another tool's JSON: keys that are not needed are passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True)


Model = TypeVar("Model", bound=Lenient)


def read_source(path: Path) -> Source:
    """Read a file.

    Raises:
        UsageError: there is none, it is empty, or it is not text.
    """
    try:
        content = read_regular(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise UsageError(f"{path}: a binary file, expected text in UTF-8")
    if not text.strip():
        raise UsageError(f"{path}: the file is empty")
    return Source(path, hashlib.sha256(content).hexdigest(), text)


def read_json(source: Source) -> Any:
    """Parse the file as one JSON document.

    Raises:
        UsageError: it is none, or was cut off.
    """
    try:
        return json.loads(source.text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{source.path}: not a JSON document, or a truncated one: {error}") from error


def read_model(model: type[Model], document: Any, where: str) -> Model:
    """Read a part of a document.

    Raises:
        UsageError: it is laid out otherwise; the message names the first place.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UsageError(f"{where}: {place}: {first['msg']}") from error


def read_csv(source: Source, delimiter: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Split a table into its header and its rows, each with the number of its last line.

    Raises:
        UsageError: the last line does not end, so that its last figure may be cut off.
    """
    if not source.text.endswith("\n"):
        raise UsageError(
            f"{source.path}: truncated: the last line has no end, so its last figure may lack digits; "
            "if the file is whole, end it with a newline"
        )
    reader = csv.reader(io.StringIO(source.text, newline=""), delimiter=delimiter, strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise UsageError(f"{source.path}: truncated or no CSV: {error}") from error
    return [name.strip() for name in rows[0][1]], rows[1:]


def whole_number(text: str, where: str) -> int:
    """`4096` or `4096.000` as an integer above zero.

    Raises:
        UsageError: anything else.
    """
    number = _number(text)
    if isinstance(number, str) or not number.is_integer():
        raise UsageError(f"{where}: got {text!r}, expected a whole number above zero")
    return int(number)


def clean(text: str) -> str:
    """The text on one line, without what does not print."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def _number(cell: object) -> float | str:
    """The number in a cell, or in a few words why there is none."""
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return "missing"
    if isinstance(cell, bool) or not isinstance(cell, str | int | float):
        return "not a number"
    try:
        number = float(cell)
    except (ValueError, OverflowError):
        return "not a number"
    if not math.isfinite(number):
        return "not finite"
    return number if number > 0 else "zero or below"
