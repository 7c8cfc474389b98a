"""Write a table of tiles in the form that `bsa_kernels` reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields

from bsa_kernels.block_sparse.tile_table import Entry, Tile

#: Of what has a default only what differs is written.
_OPTIONAL = {
    **{
        name: Tile.__dataclass_fields__[name].default
        for name in ("group", "pack", "transposed", "maxnreg", "specialized")
    },
    "is_default_backward": Entry.__dataclass_fields__["is_default_backward"].default,
}
_FIRST = ("kernel", "arch", "head_dim", "kept_rows")
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
