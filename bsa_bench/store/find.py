"""Find runs in a results folder, whatever else lies there: pipes, devices, loops of links, files of anybody's."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bsa_bench.errors import StoreError
from bsa_bench.files import is_regular
from bsa_bench.store.reader import RESULTS_FILE

_MOST_BYTES = 8 << 20
"""Of a first line: far more than an environment takes."""


def latest_run(results_root: str | Path, suite: str | None = None) -> Path | None:
    """Find the folder of the run that was written last, of one suite if `suite` is given; None if there is none.

    What does not begin as a run is none: one that was killed before its first line, or a file of another kind.
    """
    found = [(begun, file.parent) for file in results_files(results_root) if (begun := _look(file))]
    written = {begun.written_ns: folder for begun, folder in found if suite in {None, begun.suite}}
    return written[max(written)] if written else None


def results_files(results_root: str | Path) -> Iterator[Path]:
    """The results files of the runs in a folder, by name; never what is no regular file.

    Raises:
        StoreError: the folder cannot be read.
    """
    try:
        folders = sorted(Path(results_root).iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreError(f"{results_root}: cannot look for runs: {error.strerror or error}") from error
    yield from (file for folder in folders if is_regular(file := folder / RESULTS_FILE))


class _Begun(NamedTuple):
    suite: str
    written_ns: int


def _look(path: Path) -> _Begun | None:
    """The suite that the first line names, and when the last was written; null where it is no run's."""
    try:
        with path.open("rb") as file:
            line = json.loads(file.readline(_MOST_BYTES))
            written_ns = os.fstat(file.fileno()).st_mtime_ns
    except (OSError, ValueError, RecursionError):
        return None
    suite = line.get("suite") if isinstance(line, dict) and line.get("kind") == "run" else None
    return _Begun(suite, written_ns) if isinstance(suite, str) else None
