"""Forms of our kernels: what `bsa@triton:quad` changes in each call, so that one form is measured against another.

A form changes one aspect of a call. Forms of different aspects are joined by `+`: `triton:fused+pack`. Without one a
call is as the table of tiles has it. Importing this loads no torch, so that names can be checked and listed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from bsa_bench.errors import UnsupportedError, UsageError
from bsa_bench.suite.suggest import did_you_mean

if TYPE_CHECKING:
    from bsa_kernels.block_sparse.tables import KernelTables
    from bsa_kernels.block_sparse.tile_table import Tile, Tiles

Aspect = Literal["tile", "step", "stages", "backward", "launch order", "list order"]


@dataclass(frozen=True)
class Extent:
    """What a form may depend on: kept rows of a query block, rounded up to a tile's side, and the head size."""

    rows: int
    head_dim: int


@dataclass(frozen=True)
class Form:
    """A named change to the tiles of a call, or to the tables that its kernels read."""

    aspect: Aspect
    meaning: str
    change_tiles: Callable[[Tiles, Extent], Tiles] | None = None
    change_tables: Callable[[KernelTables], KernelTables] | None = None


def parse_forms(text: str, *, engine: str) -> tuple[Form, ...]:
    """Read what stands behind the colon of an engine's name.

    Raises:
        UsageError: an unknown form, or two of one aspect.
    """
    found: dict[Aspect, str] = {}
    for name in text.split("+"):
        if name not in FORMS:
            raise UsageError(
                f"engine {engine!r}: there is no form {name!r}, expected some of {', '.join(FORMS)}"
                f"{did_you_mean(name, FORMS)}"
            )
        aspect = FORMS[name].aspect
        if aspect in found:
            raise UsageError(
                f"engine {engine!r}: {found[aspect]} and {name} both say the {aspect}, expected one of them"
            )
        found[aspect] = name
    return tuple(FORMS[name] for name in found.values())


def _walk(tiles: Tiles, extent: Extent, *, rows: int, group: int, transposed: bool = False) -> Tiles:
    """`rows` rows a tile of the kernels that walk the lists of groups."""
    warps = 8 if rows > 64 or extent.head_dim > 128 else 4

    def shaped(tile: Tile) -> Tile:
        return replace(tile, rows=rows, group=group, num_warps=warps, transposed=False, maxnreg=None)

    return replace(tiles, attend=replace(shaped(tiles.attend), transposed=transposed), grad_q=shaped(tiles.grad_q))


def _grouped(size: int) -> Callable[[Tiles, Extent], Tiles]:
    def change(tiles: Tiles, extent: Extent) -> Tiles:
        return _walk(tiles, extent, rows=_at_most(128, size, extent, "groups"), group=size)

    return change


def _alone(*, transposed: bool) -> Callable[[Tiles, Extent], Tiles]:
    def change(tiles: Tiles, extent: Extent) -> Tiles:
        return _walk(tiles, extent, rows=min(32, extent.rows), group=1, transposed=transposed)

    return change


def _packed(tiles: Tiles, extent: Extent) -> Tiles:
    rows = _at_most(64, 2, extent, "steps")
    return replace(
        tiles,
        grad_kv=replace(tiles.grad_kv, rows=rows, pack=2),
        grad_fused=replace(tiles.grad_fused, rows=rows, pack=2),
    )


def _at_most(limit: int, blocks: int, extent: Extent, what: str) -> int:
    rows = blocks * extent.rows
    if rows > limit:
        raise UnsupportedError(
            f"{what} of {blocks} blocks with {extent.rows} kept rows have {rows} rows, expected at most {limit}; "
            "keep fewer queries, or take another form"
        )
    return rows


def _staged(stages: int) -> Callable[[Tiles, Extent], Tiles]:
    def change(tiles: Tiles, _: Extent) -> Tiles:
        return replace(
            tiles,
            attend=replace(tiles.attend, num_stages=stages),
            grad_q=replace(tiles.grad_q, num_stages=stages),
            grad_kv=replace(tiles.grad_kv, num_stages=stages),
            grad_fused=replace(tiles.grad_fused, num_stages=stages),
        )

    return change


def _by_number(tables: KernelTables) -> KernelTables:
    import torch

    groups = torch.arange(tables.order.shape[-1], dtype=torch.int32, device=tables.order.device)
    return replace(tables, order=groups.expand(tables.order.shape).contiguous())


def _at_random(tables: KernelTables) -> KernelTables:
    import torch

    make = torch.Generator(tables.order.device).manual_seed(0)
    draw = torch.rand(tables.order.shape, generator=make, device=tables.order.device)
    return replace(tables, order=draw.argsort(-1).to(torch.int32))


def _shuffled_lists(tables: KernelTables) -> KernelTables:
    """Each list in random order; blocks with padding stay behind those without."""
    import torch

    device, starts = tables.items.device, tables.starts.flatten()
    place = torch.arange(tables.items.numel(), device=device)
    row = torch.searchsorted(starts, place, right=True) - 1
    place -= starts[row]
    part = (place >= tables.num_full.flatten()[row]).long() + (place >= tables.counts.flatten()[row])
    make = torch.Generator(device).manual_seed(0)
    draw = torch.rand(len(row), generator=make, device=device, dtype=torch.float64)
    return replace(tables, items=tables.items[(3 * row + part + draw).argsort()])


FORMS: dict[str, Form] = {
    "pair": Form("tile", "two neighbouring query blocks share a list and a tile", _grouped(2)),
    "quad": Form("tile", "four of them", _grouped(4)),
    "m32": Form("tile", "tiles of 32 rows, each query block by itself", _alone(transposed=False)),
    "t32": Form("tile", "the same with transposed scores in the forward, which fill a wgmma", _alone(transposed=True)),
    "pack": Form("step", "dk and dv take two listed query blocks a step", _packed),
    **{f"s{n}": Form("stages", f"{n} stage{'s' * (n > 1)} in every kernel", _staged(n)) for n in (1, 2, 3, 4)},
    "split": Form("backward", "dq by a kernel of its own", lambda tiles, _: replace(tiles, backward="split")),
    "fused": Form("backward", "dq added up beside dk and dv", lambda tiles, _: replace(tiles, backward="fused")),
    "unordered": Form("launch order", "groups by number, not the longest list first", change_tables=_by_number),
    "random-order": Form("launch order", "groups at random", change_tables=_at_random),
    "random-lists": Form("list order", "each list at random, not ascending", change_tables=_shuffled_lists),
}
