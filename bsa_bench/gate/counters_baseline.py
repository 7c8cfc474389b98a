"""The reviewed file of counters: one case on a line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator

from bsa_bench.errors import UsageError
from bsa_bench.gate.baseline_file import Origin, read_items, write_items
from bsa_bench.gate.counters_record import CaseCounters, Versions
from bsa_bench.result import Line


class CountersProvenance(Origin):
    """Where a baseline comes from.

    Args:
        versions: of what host costs depend on.
    """

    versions: Versions

    @classmethod
    def now(cls, commit: str | None, *, utc: str, reason: str) -> CountersProvenance:
        """Of what is counted of a commit as it is, with the installed versions."""
        return cls(commit=commit, dirty=False, utc=utc, versions=Versions.installed(), reason=reason)


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
    whole = tuple(cases)
    write_items(
        path, lambda: CountersBaseline(provenance=provenance, cases=whole), items="cases", exclude_defaults=True
    )


def read_counters(path: Path) -> CountersBaseline:
    """Read such a file.

    Raises:
        UsageError: it is not there or is none; names what was expected.
    """
    return read_items(path, CountersBaseline, what="counters")
