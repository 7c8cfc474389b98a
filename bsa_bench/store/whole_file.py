"""A file written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from bsa_bench.errors import StoreError


def check_place(path: Path, *, flag: str) -> None:
    """See that the file that a flag names can be written there, before anything is measured.

    Raises:
        StoreError: it cannot.
    """
    folder = path.absolute().parent
    is_other = path.exists() and not path.is_file()  # a folder, or a device, which a whole file would take the place of
    if is_other or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise StoreError(f"{flag}: {path}: expected a file in a folder that can be written")


def write_whole(path: Path, text: str, *, flag: str | None = None) -> None:
    """Put the text there whole or not at all.

    Args:
        path: of the file, in a folder that is there.
        text: written as UTF-8.
        flag: what named the file, for the error; None for a file that no flag names.

    Raises:
        StoreError: it cannot be written.
    """
    content = text.encode()
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        place = f"{flag}: {path}" if flag else f"{path}"
        raise StoreError(f"{place}: {error.strerror or error}") from error
