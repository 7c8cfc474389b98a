"""Write a table of tiles in the form that `bsa_kernels` reads."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from bsa_bench.errors import StoreError
from bsa_kernels.block_sparse.tile_table import Entry, Tile

#: Of what has a default only what differs is written.
_OPTIONAL = {
    **{
        name: Tile.__dataclass_fields__[name].default
        for name in ("group", "pack", "transposed", "maxnreg", "specialized")
    },
    **{name: Entry.__dataclass_fields__[name].default for name in ("min_list", "is_default_backward")},
}
_FIRST = ("kernel", "arch", "head_dim", "kept_rows", "min_list")
_LAST = ("is_default_backward", "reason")


def format_table(entries: Sequence[Entry], *, head: Sequence[str]) -> str:
    """The text of a table; `head` is a comment of several lines."""
    lines = [f"# {line}".rstrip() for line in head]
    for entry in entries:
        values = {name: getattr(entry, name) for name in (*_FIRST, *_LAST)}
        values |= {field.name: getattr(entry.tile, field.name) for field in fields(Tile)}
        names = [*_FIRST, *(field.name for field in fields(Tile)), *_LAST]
        lines += ["", "[[tile]]"]
        lines += [
            f"{name} = {json.dumps(values[name], ensure_ascii=False)}"
            for name in names
            if name not in _OPTIONAL or values[name] != _OPTIONAL[name]
        ]
    return "\n".join(lines) + "\n"


def check_place(path: Path) -> None:
    """See that a file can be written there, before anything is measured.

    Raises:
        StoreError: it cannot.
    """
    folder = path.absolute().parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise StoreError(f"--out: {path}: expected a file in a folder that can be written")


def write_table(path: Path, text: str) -> None:
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
