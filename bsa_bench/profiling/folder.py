"""The folder of a profile: there with all of its files, or not at all."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from bsa_bench.errors import StoreError, UsageError
from bsa_bench.result import Case
from bsa_bench.store.writer import check_writable

_MOST_LETTERS = 120


def default_folder(results: Path, case: Case, now: datetime | None = None) -> Path:
    """`RESULTS/profiles/<case>-<UTC yyyymmdd-hhmmss>`."""
    name = re.sub(r"[^A-Za-z0-9._+-]+", "-", case.case_id)
    if len(name) > _MOST_LETTERS:
        name = f"{name[:_MOST_LETTERS]}-{case.case_hash}"
    return results / "profiles" / f"{name}-{(now or datetime.now(UTC)).astimezone(UTC):%Y%m%d-%H%M%S}"


def check_folder(folder: Path) -> None:
    """See that the folder can be made, before anything is profiled.

    Raises:
        UsageError: it is there already.
        StoreError: it cannot be made there.
    """
    if folder.exists() or folder.is_symlink():
        raise UsageError(f"--out: {folder} exists, expected a folder that is yet to be made")
    check_writable(folder.parent)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into; it gets its name at the end of the block, and is removed where that raises.

    Raises:
        StoreError: it cannot be made or named.
    """
    part = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise StoreError(f"{part}: cannot make the profile's folder: {error.strerror or error}") from error
    try:
        yield part
        try:
            part.rename(folder)
        except OSError as error:
            raise StoreError(f"{folder}: cannot name the profile's folder: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
