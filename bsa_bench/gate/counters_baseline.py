"""The reviewed file of counters: one case on a line, so that a diff of it reads well."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from bsa_bench.errors import StoreError, UsageError
from bsa_bench.gate.counters_record import CaseCounters, Versions
from bsa_bench.result import Line
from bsa_bench.store.whole_file import write_whole


class CountersProvenance(Line):
    """Where a baseline comes from.

    Args:
        commit, dirty: of the sources, and whether they differed from it; null outside a checkout.
        utc: when it was accepted.
        versions: of what host costs depend on.
        reason: why it was accepted, for who reads the file later.
    """

    commit: str | None
    dirty: bool | None
    utc: str
    versions: Versions
    reason: str = Field(min_length=1)

    @classmethod
    def now(cls, commit: str | None, *, utc: str, reason: str, dirty: bool | None = False) -> CountersProvenance:
        """Of what is counted with the installed versions."""
        return cls(commit=commit, dirty=dirty, utc=utc, versions=Versions.installed(), reason=reason)


class CountersBaseline(Line):
    """What the file holds; cases are in the order of the suite."""

    schema_version: Literal[1] = 1
    kind: Literal["counters-baseline"] = "counters-baseline"
    provenance: CountersProvenance
    cases: tuple[CaseCounters, ...]

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        names = [case.name for case in self.cases]
        if doubled := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"{doubled}: expected each case once, got it twice")
        if failed := next((case for case in self.cases if case.reason), None):
            raise ValueError(f"{failed.name}: expected counters, got none: {failed.reason}")
        return self


def write_counters(path: Path, cases: Sequence[CaseCounters], provenance: CountersProvenance) -> None:
    """Write what was counted as the baseline from now on; the same counters give the same text.

    Raises:
        UsageError: nothing was counted, a case could not be counted, or comes twice.
        StoreError: the file cannot be written.
    """
    if not cases:
        raise UsageError(f"baseline: {path}: expected counted cases, got none")
    try:
        baseline = CountersBaseline(provenance=provenance, cases=tuple(cases))
    except ValidationError as error:
        raise UsageError(f"baseline: {path}: {_first(error)}") from error
    content = baseline.model_dump(mode="json", exclude={"cases"})
    head = "".join(f"{json.dumps(key)}: {_line(value)},\n" for key, value in content.items())
    body = ",\n".join(_line(case.model_dump(mode="json", exclude_defaults=True)) for case in baseline.cases)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"baseline: {path.parent}: {error.strerror}") from error
    write_whole(path, f'{{\n{head}"cases": [\n{body}\n]\n}}\n')


def read_counters(path: Path) -> CountersBaseline:
    """Read such a file.

    Raises:
        UsageError: it is not there or is none; names what was expected.
    """
    try:
        return CountersBaseline.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"baseline: {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"baseline: {path}: expected JSON in UTF-8, got: {error}") from error
    except ValidationError as error:
        raise UsageError(f"baseline: {path}: expected a baseline of counters, got: {_first(error)}") from error


def _line(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}" if place else first["msg"]
