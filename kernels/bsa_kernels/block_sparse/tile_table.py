"""Which tile each kernel runs: a table of defaults, `tiles.toml`, and how it is read.

The table is data, so that tuning can write another one: `load_tiles` reads it from a file, and the environment variable
`BSA_KERNELS_TILES` names one for a whole process. Nothing is ever tuned while a kernel is called.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import torch

Kernel = Literal["attend", "grad_q", "grad_kv", "grad_fused"]
Arch = Literal["sm_80", "sm_90", "sm_100"]
Backward = Literal["split", "fused"]

#: The smallest side of a tile that `tl.dot` takes.
MIN_SIDE = 16
#: The largest head size that the table has tiles for.
MAX_HEAD_DIM = 256
MAX_KEYS = 64
ENVIRONMENT = "BSA_KERNELS_TILES"
DEFAULT_TABLE = Path(__file__).with_name("tiles.toml")


@dataclass(frozen=True)
class Tile:
    """How one kernel is launched.

    Attributes:
        rows, keys: sides of a tile, powers of two of at least 16.
        group: query blocks that share a list and a tile (`attend`, `grad_q`); 1, 2 or 4.
        pack: listed query blocks that a step takes (`grad_kv`, `grad_fused`); 1 or 2.
        transposed: scores as [keys, rows], so that 32 rows fill a wgmma (`attend`).
        num_warps, num_stages, maxnreg: the compiler's options.
        specialized: warps that load and warps that multiply, `gluon_attend` (`attend`); no table has it, the engine
            gluon asks for it. `num_warps` are those of the first of two halves, `num_stages` the places for KV blocks.
    """

    rows: int
    keys: int
    num_warps: int
    num_stages: int
    group: int = 1
    pack: int = 1
    transposed: bool = False
    maxnreg: int | None = None
    specialized: bool = False

    @property
    def options(self) -> dict[str, int]:
        """The compiler's options of a launch."""
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        return options if self.maxnreg is None else options | {"maxnreg": self.maxnreg}


@dataclass(frozen=True)
class Entry:
    """A line of the table: a tile, for what it is the default, and why.

    `kept_rows` is a query block's number of kept rows, rounded up to a power of two; `is_default_backward` of
    `grad_fused` says that the fused form is the default.
    """

    kernel: Kernel
    arch: Arch
    head_dim: int
    kept_rows: int
    tile: Tile
    reason: str
    is_default_backward: bool = False


@dataclass(frozen=True)
class Tiles:
    """The tiles of one call: `attend` and `grad_q` share their group; `backward` says which form runs."""

    attend: Tile
    grad_q: Tile
    grad_kv: Tile
    grad_fused: Tile
    backward: Backward

    def __post_init__(self) -> None:
        if self.attend.group != self.grad_q.group:
            raise ValueError(f"tiles: attend has groups of {self.attend.group}, grad_q of {self.grad_q.group}")

    @property
    def max_keys(self) -> int:
        """The longest key tile; blocks are padded to a multiple of it."""
        return max(self.attend.keys, self.grad_q.keys, self.grad_kv.keys, self.grad_fused.keys)


def arch_of(device: torch.device) -> Arch:
    """The architecture whose entries serve a device: its generation's; for the interpreter, sm_90's."""
    if device.type != "cuda":
        return "sm_90"
    major, _ = torch.cuda.get_device_capability(device)
    return "sm_90" if major == 9 else "sm_100" if major == 10 else "sm_80"


def tiles_for(
    *,
    arch: Arch,
    head_dim: int,
    kept_rows: int,
    block_keys: int,
    dtype: torch.dtype,
    table: Sequence[Entry] | None = None,
) -> Tiles:
    """Choose the tiles of a call.

    Args:
        arch: see `arch_of`.
        head_dim: at most `MAX_HEAD_DIM`.
        kept_rows: K, kept rows of a query block.
        block_keys: slots of a KV block.
        dtype: fp32 is multiplied exactly, without tensor cores, in small tiles: for checks, not for speed.
        table: default the one in force, see `load_tiles`.

    Raises:
        ValueError: no entry serves this.
    """
    rows, keys = padded(kept_rows), min(MAX_KEYS, padded(block_keys))
    width = max(64, padded(head_dim))
    if dtype == torch.float32:
        side = 32 if width == 64 else 16
        tile = Tile(
            min(32, rows) if width < 256 else 16, min(side, keys), num_warps=8 if width > 128 else 4, num_stages=1
        )
        return Tiles(tile, tile, tile, tile, "split")
    entries = table_in_force() if table is None else table
    found: dict[str, Entry] = {}
    for kernel in get_args(Kernel):
        group = found["attend"].tile.group if kernel == "grad_q" else None
        found[kernel] = _choose(entries, kernel, arch, width, rows, group)
    tiles = {kernel: _fitted(entry, rows, keys) for kernel, entry in found.items()}
    backward: Backward = "fused" if found["grad_fused"].is_default_backward else "split"
    return Tiles(**tiles, backward=backward)


def _choose(entries: Sequence[Entry], kernel: Kernel, arch: Arch, width: int, rows: int, group: int | None) -> Entry:
    fitting = [
        each
        for each in entries
        if (each.kernel, each.arch, each.head_dim) == (kernel, arch, width)
        and (group is None or each.tile.group == group)
    ]
    # The class of these rows, else the next larger one (its tile shrinks), else the largest (several tiles a block).
    larger = [each for each in fitting if each.kept_rows >= rows and (each.kept_rows == rows or each.tile.group == 1)]
    whole = [each for each in fitting if each.tile.group == each.tile.pack == 1]
    choice = min(larger, key=lambda each: each.kept_rows, default=None) or max(
        whole, key=lambda each: each.kept_rows, default=None
    )
    if choice is None:
        of_group = "" if group is None else f" in groups of {group}"
        raise ValueError(f"tiles: the table has none for {kernel} on {arch}, head size {width}, {rows} rows{of_group}")
    return choice


def _fitted(entry: Entry, rows: int, keys: int) -> Tile:
    """Shrink a tile of a larger class to blocks of fewer rows or keys."""
    tile = entry.tile
    values = {field.name: getattr(tile, field.name) for field in fields(tile)}
    values["keys"] = min(tile.keys, keys)
    if tile.group == 1 and tile.pack == 1:
        values["rows"] = min(tile.rows, rows)
    return Tile(**values)


def padded(side: int) -> int:
    """The next power of two, at least `MIN_SIDE`."""
    return max(MIN_SIDE, 1 << (side - 1).bit_length())


@lru_cache(maxsize=8)
def load_tiles(path: Path) -> tuple[Entry, ...]:
    """Read a table.

    Raises:
        ValueError: it cannot be read, or an entry is wrong; names the file, the entry and what was expected.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"tiles: {path}: {error}") from error
    found = []
    for number, item in enumerate(content.get("tile", []), start=1):
        try:
            found.append(_entry(dict(item)))
        except (TypeError, ValueError, KeyError) as error:
            raise ValueError(f"tiles: {path}: entry {number}: {error}") from error
    if not found:
        raise ValueError(f"tiles: {path}: expected at least one [[tile]]")
    return tuple(found)


def _entry(item: dict[str, Any]) -> Entry:
    own = {name: item.pop(name) for name in [f.name for f in fields(Tile)] if name in item}
    if item.get("kernel") not in get_args(Kernel) or item.get("arch") not in get_args(Arch):
        raise ValueError(f"expected a kernel of {get_args(Kernel)} and an arch of {get_args(Arch)}, got {item}")
    tile = Tile(**own)
    if tile.specialized:
        raise ValueError("specialized: expected no such key, the engine gluon asks for it by itself")
    for name in ("rows", "keys"):
        side = getattr(tile, name)
        if side < MIN_SIDE or side & (side - 1):
            raise ValueError(f"{name}: expected a power of two of at least {MIN_SIDE}, got {side}")
    if tile.group not in {1, 2, 4} or tile.pack not in {1, 2}:
        raise ValueError(f"expected group 1, 2 or 4 and pack 1 or 2, got {tile.group} and {tile.pack}")
    if (tile.group > 1 and tile.rows != tile.group * item["kept_rows"]) or (
        tile.pack > 1 and tile.rows != tile.pack * item["kept_rows"]
    ):
        raise ValueError(f"rows: expected {max(tile.group, tile.pack)} blocks of {item['kept_rows']}, got {tile.rows}")
    return Entry(tile=tile, **item)


def table_in_force() -> tuple[Entry, ...]:
    """The table that calls use: the file that `BSA_KERNELS_TILES` names, else the default."""
    return load_tiles(Path(os.environ.get(ENVIRONMENT) or DEFAULT_TABLE))
