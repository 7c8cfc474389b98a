"""Reviewed changes of the baselines: who accepted which commit, when and why. The last one is the gate's base."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from bsa_bench.errors import StoreError, UsageError
from bsa_bench.result import Line
from bsa_bench.store.whole_file import write_whole

ACCEPTED = "accepted.jsonl"


class Acceptance(Line):
    """One acceptance.

    Args:
        commit: whose kernels are the base of what comes after.
        utc: when.
        reason: why, for who reads the file later.
        packages: versions of what measured.
        tiers: whose baselines were written with it.
    """

    schema_version: Literal[1] = 1
    kind: Literal["accepted"] = "accepted"
    commit: str
    utc: str
    reason: str = Field(min_length=1)
    packages: dict[str, str | None]
    tiers: tuple[int, ...]


def read_acceptances(folder: Path) -> list[Acceptance]:
    """All acceptances in the order in which they were made; none where there is no file.

    Raises:
        UsageError: a line is none.
        StoreError: the file cannot be read.
    """
    path = folder / ACCEPTED
    try:
        # Not `splitlines`: a reason may hold characters that it takes for ends of lines, and JSON leaves as they are.
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: expected lines of JSON, got bytes that are no UTF-8") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            found.append(Acceptance.model_validate_json(line))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise UsageError(f"{path}, line {number}: {place + ': ' if place else ''}{first['msg']}") from error
    return found


def append_acceptance(folder: Path, acceptance: Acceptance) -> None:
    """Add an acceptance; the file is replaced whole or not at all.

    Raises:
        UsageError: what is there is no file of acceptances.
        StoreError: it cannot be written.
    """
    lines = [each.model_dump_json() for each in (*read_acceptances(folder), acceptance)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder}: {error.strerror or error}") from error
    write_whole(folder / ACCEPTED, "\n".join(lines) + "\n")
