"""A file that a flag names, written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from bsa_bench.errors import StoreError


def check_place(path: Path) -> None:
    """See that a file can be written there, before anything is measured.

    Raises:
        StoreError: it cannot.
    """
    folder = path.absolute().parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise StoreError(f"--out: {path}: expected a file in a folder that can be written")


def write_whole(path: Path, text: str) -> None:
    """Put the text there whole or not at all.

    Raises:
        StoreError: it cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise StoreError(f"--out: {path}: {error.strerror or error}") from error
