"""Every configuration of the attention's kernels that a user's call can come to, and those that compete with them.

For tools that compile kernels without launching them: `shipped_attention` is what the table of tiles chooses,
`candidates` are the tiles that were weighed against it (the space that tuning searches). Nothing here imports Triton.
`bsa_kernels.configurations` adds the kernels that select.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch

from bsa_kernels.block_sparse.constants import (
    Constants,
    block_constants,
    grad_kv_constants,
    padded_block,
    precision_of,
    specialized_constants,
    walk_constants,
)
from bsa_kernels.block_sparse.groups import group_count
from bsa_kernels.block_sparse.specialized import specialized_tiles
from bsa_kernels.block_sparse.tables import Layout
from bsa_kernels.block_sparse.tile_table import Arch, Kernel, Tile, Tiles, tiles_for
from bsa_kernels.grid import BlockGrid

Format = Literal["fp16", "bf16", "fp32"]
DTYPES: dict[str, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}

_PACKAGE = Path(__file__).parents[1]
#: Module and function of each kernel, below `bsa_kernels`.
_FUNCTIONS: dict[str, tuple[str, str]] = {
    "attend": ("block_sparse.triton_attend", "attend_kernel"),
    "attend_gluon": ("block_sparse.gluon_attend", "attend_kernel"),
    "grad_q": ("block_sparse.triton_gradients", "grad_q_kernel"),
    "grad_kv": ("block_sparse.triton_gradients", "grad_kv_kernel"),
    "grad_fused": ("block_sparse.triton_gradients", "grad_kv_kernel"),
    "pack_rows": ("block_sparse.triton_gradients", "pack_rows_kernel"),
    "spread_grad_q": ("block_sparse.triton_gradients", "spread_grad_q_kernel"),
}
HEAD_DIMS = (64, 128, 256)
# All rows of a block of (4, 4, 4), and the half that pruning keeps.
KEPT_ROWS = (64, 32)
SIDES = (4, 4, 4)
_BLOCK = 64

_TOKENS = ("q_ptr", "k_ptr", "v_ptr", "o_ptr", "do_ptr", "q_kept_ptr", "do_kept_ptr", "dq_ptr", "dk_ptr", "dv_ptr")
_SINGLES = ("lse_ptr", "delta_ptr", "dq_kept_ptr")


@dataclass(frozen=True)
class Shape:
    """What a launch works on, for predictions.

    `kv_density` is the share of KV blocks in an average list of a query block; `union_efficiency` the share of a union
    that an average member asked for (measured on two clips: 0.80 to 0.87 for pairs, 0.59 to 0.67 for fours).
    """

    tokens: int = 153_600
    heads: int = 12
    batch: int = 1
    kv_density: float = 0.1
    union_efficiency: float = 0.75


@dataclass(frozen=True)
class Work:
    """A launch: its programs, the trips that each makes through its main loop, and the bytes that it must move.

    `hbm_bytes` counts each tensor once: the best case, where L2 serves every second read.
    """

    programs: int
    trips: float
    hbm_bytes: int


@dataclass(frozen=True)
class Configuration:
    """One compilation of a kernel.

    `signature` gives the type of each argument that is no constant, as Triton writes it (`*bf16`, `i32`);
    `divisible_by_16` names those that are multiples of 16: pointers, and strides of tensors whose head size is one.
    `maxnreg` caps registers a thread.
    """

    name: str
    kernel: str
    signature: dict[str, str]
    constexprs: dict[str, Any]
    num_warps: int
    num_stages: int
    maxnreg: int | None
    divisible_by_16: tuple[str, ...]
    work: Work | None


def shipped_attention(
    shape: Shape, head_dim: int, *, dtype: Format = "bf16", arch: Arch = "sm_90"
) -> list[Configuration]:
    """The configurations that calls come to with blocks of 64 tokens, on grids without and (`-padded`) with padding.

    At head size 256 those without. The kernels beside the attention are listed once for each form that differs.
    """
    case = _Case(shape, dtype)
    found: list[Configuration] = []
    for kept in KEPT_ROWS:
        tiles = tiles_for(arch=arch, head_dim=head_dim, kept_rows=kept, block_keys=_BLOCK, dtype=DTYPES[dtype])
        for pads in (False, True) if head_dim < max(HEAD_DIMS) else (False,):
            layout = case.layout(tiles, kept, pads=pads)
            suffix = f"{dtype}-d{head_dim}-k{kept}{'-padded' if pads else ''}"
            found += [
                case.walking(f"{kernel}-{suffix}", kernel, layout, tile, kept, head_dim)
                for kernel, tile in _by_kernel(tiles).items()
                # Padding changes nothing in the one; the other is not offered for such heads, it would spill.
                if not (kernel == "grad_kv" and pads) and not (kernel == "grad_fused" and head_dim == max(HEAD_DIMS))
            ]
            if arch == "sm_90" and dtype != "fp32" and head_dim < max(HEAD_DIMS):
                found.append(case.specialized(f"attend_gluon-{suffix}", kept, head_dim, pads=pads))
            if not pads or kept == _BLOCK:
                found += [
                    case.beside(f"{kernel}-{suffix}", kernel, layout, kept, head_dim)
                    for kernel in ("pack_rows", "spread_grad_q")
                ]
    return found


# (kernel, head size, kept rows) -> (group or pack, rows, keys, warps, stages, register cap, transposed).
_Sides = tuple[int, int, int, int, int, int | None, bool]
_CANDIDATES: dict[tuple[Kernel, int, int], Iterable[_Sides]] = {
    ("attend", 64, 64): (
        *((1, 64, 64, 4, stages, None, False) for stages in (1, 2, 3)),
        *((2, 128, 64, 8, 2, None, False), (2, 128, 64, 8, 2, 128, False)),
        *((1, 64, 128, 4, 2, None, False), (2, 128, 128, 8, 2, None, False), (2, 128, 128, 8, 2, 128, False)),
    ),
    ("attend", 64, 32): (
        *((2, 64, 64, 4, stages, None, False) for stages in (1, 2, 3)),
        *((4, 128, 64, 8, 2, None, False), (1, 32, 64, 4, 2, None, True), (1, 32, 64, 4, 2, None, False)),
    ),
    ("attend", 128, 64): (
        *((1, 64, 64, 4, stages, None, False) for stages in (1, 2, 3, 4)),
        *((1, 64, 32, 4, 2, None, False), (2, 128, 64, 4, 2, None, False), (2, 128, 64, 8, 2, None, False)),
        *((2, 128, 64, 8, 2, 128, False), (2, 128, 64, 8, 3, None, False)),
        *((1, 64, 128, 4, stages, None, False) for stages in (1, 2)),
        *((2, 128, 128, 8, 2, None, False), (2, 128, 128, 8, 3, None, False), (2, 128, 128, 8, 2, 128, False)),
    ),
    ("attend", 128, 32): (
        *((2, 64, 64, 4, stages, None, False) for stages in (1, 2, 3)),
        *((2, 64, 32, 4, 2, None, False), (4, 128, 64, 8, 1, None, False), (4, 128, 64, 8, 2, None, False)),
        *((1, 32, 64, 4, stages, None, transposed) for transposed in (False, True) for stages in (1, 2)),
    ),
    ("grad_q", 64, 32): (
        (2, 64, 64, 4, 2, None, False),
        (2, 64, 32, 4, 2, None, False),
        (4, 128, 64, 8, 2, None, False),
    ),
    ("grad_q", 128, 64): (
        *((1, 64, 64, 4, stages, None, False) for stages in (1, 2, 3)),
        *((1, 64, 32, 4, 2, None, False), (2, 128, 64, 4, 2, None, False), (2, 128, 64, 8, 2, None, False)),
        (2, 128, 128, 8, 2, None, False),
    ),
    ("grad_q", 128, 32): (
        *((2, 64, 64, 4, 2, None, False), (2, 64, 32, 4, 2, None, False), (4, 128, 64, 8, 2, None, False)),
        *((1, 32, 64, 4, 1, None, False), (1, 32, 64, 4, 2, None, False)),
    ),
    ("grad_kv", 64, 32): ((1, 32, 64, 4, 2, None, False), (2, 64, 64, 4, 2, None, False)),
    ("grad_q", 64, 64): ((1, 64, 64, 4, 2, None, False), (2, 128, 64, 8, 2, None, False)),
    ("grad_kv", 64, 64): (
        *((1, 64, 128, 8, 2, None, False), (2, 128, 128, 8, 2, None, False)),
        (1, 64, 64, 4, 2, None, False),
        (1, 32, 64, 4, 2, None, False),
    ),
    ("grad_kv", 128, 64): (
        *((1, 64, 64, 4, stages, None, False) for stages in (1, 2, 3)),
        *((1, 64, 64, 8, 2, None, False), (1, 32, 64, 4, 2, None, False), (1, 64, 128, 4, 2, None, False)),
        *((1, 64, 128, 8, 2, None, False), (1, 64, 128, 8, 3, None, False), (2, 128, 64, 8, 2, None, False)),
        (2, 128, 128, 8, 2, None, False),
    ),
    ("grad_kv", 128, 32): (
        *((1, 32, 64, 4, stages, None, False) for stages in (1, 2, 3)),
        *((2, 64, 64, 4, 2, None, False), (2, 64, 64, 8, 2, None, False)),
    ),
    ("grad_fused", 64, 32): ((1, 32, 64, 4, 2, None, False), (2, 64, 64, 4, 2, None, False)),
    ("grad_fused", 128, 64): (
        (1, 64, 64, 4, 2, None, False),
        (1, 64, 64, 8, 2, None, False),
        (1, 32, 64, 4, 2, None, False),
    ),
    ("grad_fused", 128, 32): (
        *((1, 32, 64, 4, stages, None, False) for stages in (1, 2)),
        *((2, 64, 64, 4, 2, None, False), (2, 64, 64, 8, 2, None, False)),
    ),
}


def candidates(shape: Shape | None = None, *, dtype: Format = "bf16", arch: Arch = "sm_90") -> list[Configuration]:
    """The tiles that were weighed for each kernel at head sizes 64 and 128, on grids without padding.

    Their names: kernel, head size, kept rows of a block, blocks of a group (g) or a step (p), ROWSxKEYS, warps, stages,
    register cap (r), `t` for transposed. More than 64 keys mean KV blocks of so many.
    """
    case = _Case(shape or Shape(), dtype)
    found = []
    for (kernel, head_dim, kept), tiles in _CANDIDATES.items():
        base = tiles_for(arch=arch, head_dim=head_dim, kept_rows=kept, block_keys=_BLOCK, dtype=DTYPES[dtype])
        for many, rows, keys, warps, stages, maxnreg, transposed in tiles:
            is_walk = kernel in {"attend", "grad_q"}
            tile = Tile(rows, keys, warps, stages, transposed=transposed, maxnreg=maxnreg)
            tile = replace(tile, group=many) if is_walk else replace(tile, pack=many)
            every = replace(base, attend=tile, grad_q=tile) if is_walk else base
            name = (
                f"{kernel}-{dtype}-d{head_dim}-k{kept}-{'g' if is_walk else 'p'}{many}-{rows}x{keys}-w{warps}-s{stages}"
                f"{f'-r{maxnreg}' if maxnreg else ''}{'-t' if transposed else ''}"
            )
            found.append(
                case.walking(name, kernel, case.layout(every, kept, pads=False, keys=keys), tile, kept, head_dim)
            )
    return found


def _by_kernel(tiles: Tiles) -> dict[Kernel, Tile]:
    return {"attend": tiles.attend, "grad_q": tiles.grad_q, "grad_kv": tiles.grad_kv, "grad_fused": tiles.grad_fused}


@dataclass(frozen=True)
class _Case:
    """A shape and a number format."""

    shape: Shape
    dtype: Format

    def layout(self, tiles: Tiles, kept: int, *, pads: bool, keys: int = _BLOCK) -> Layout:
        blocks = 2 * -(-self.shape.tokens // (2 * _BLOCK))
        grid = BlockGrid((4, 4, 4 * blocks - int(pads)), SIDES)
        kv_grid = BlockGrid(grid.grid, (4, 4, 4 * max(keys // _BLOCK, 1)))
        return Layout(grid, kv_grid, is_tiled=False, fills=pads or kept < _BLOCK, tiles=tiles)

    def walking(self, name: str, kernel: Kernel, layout: Layout, tile: Tile, kept: int, head_dim: int) -> Configuration:
        """A kernel that walks lists."""
        sizes: dict[str, Any] = {"kept_rows": kept, "head_dim": head_dim, "dtype": DTYPES[self.dtype]}
        constants: Constants
        if kernel in {"attend", "grad_q"}:
            constants = walk_constants(layout, tile, **sizes)
            if kernel == "attend":
                constants["TRANSPOSED"] = tile.transposed
        else:
            constants = grad_kv_constants(layout, tile, **sizes, is_fused=kernel == "grad_fused")
        work = self._work(kernel, layout, tile, kept, head_dim)
        return self._configuration(name, kernel, constants, tile.options, work)

    def specialized(self, name: str, kept: int, head_dim: int, *, pads: bool) -> Configuration:
        """The forward whose warps load or multiply, on the engine gluon's tiles."""
        grid = BlockGrid((4, 4, 4), SIDES)
        tiles = specialized_tiles(grid, kept_rows=kept, head_dim=head_dim, dtype=DTYPES[self.dtype])
        layout = self.layout(tiles, kept, pads=pads)
        constants = specialized_constants(layout, tiles.attend, kept_rows=kept, head_dim=head_dim)
        options = {"num_warps": tiles.attend.num_warps, "num_stages": tiles.attend.num_stages}
        work = self._work("attend", layout, tiles.attend, kept, head_dim)
        return self._configuration(name, "attend_gluon", constants, options, work)

    def beside(self, name: str, kernel: str, layout: Layout, kept: int, head_dim: int) -> Configuration:
        """A kernel with a program for each query block; they have no loop, so no prediction."""
        constants = block_constants(layout, kept_rows=kept, head_dim=head_dim)
        if kernel == "pack_rows":
            constants["PRECISION"] = precision_of(DTYPES[self.dtype])
        return self._configuration(name, kernel, constants, {"num_warps": 4, "num_stages": 3}, None)

    def _work(self, kernel: Kernel, layout: Layout, tile: Tile, kept: int, head_dim: int) -> Work:
        shape = self.shape
        heads, blocks, num_q = shape.batch * shape.heads, layout.kv_grid.num_blocks, layout.q_grid.num_blocks
        key_tiles = padded_block(layout) // tile.keys
        row_bytes = head_dim * (4 if self.dtype == "fp32" else 2)
        kept_bytes, all_bytes = heads * num_q * kept * row_bytes, heads * shape.tokens * row_bytes
        listed = shape.kv_density * blocks
        if kernel in {"attend", "grad_q"}:
            row_tiles = -(-kept // tile.rows) if tile.group == 1 else 1
            groups = group_count(layout.q_grid, tile.group)
            union = listed / shape.union_efficiency if tile.group > 1 else listed
            # k and v in; q in and o out, or q and do in and dq out.
            moved = 2 * all_bytes + (kept_bytes + all_bytes if kernel == "attend" else 2 * kept_bytes + all_bytes)
            return Work(heads * groups * row_tiles, union * key_tiles, moved)
        choosing = shape.kv_density * num_q
        steps = choosing * -(-kept // tile.rows) if tile.pack == 1 else choosing / tile.pack
        # q and do of kept rows in; k, v in and dk, dv out; fused, dq in fp32 written and read.
        sums = 2 * kept_bytes * 4 // (4 if self.dtype == "fp32" else 2) if kernel == "grad_fused" else 0
        return Work(heads * blocks * key_tiles, steps, 2 * kept_bytes + 4 * all_bytes + sums)

    def _configuration(
        self, name: str, kernel: str, constants: dict[str, Any], options: dict[str, Any], work: Work | None
    ) -> Configuration:
        types = dict.fromkeys(_TOKENS, f"*{self.dtype}") | dict.fromkeys(_SINGLES, "*fp32") | {"starts_ptr": "*i64"}
        if kernel == "attend_gluon":
            types |= dict.fromkeys(("k_desc", "v_desc"), _descriptor(self.dtype, constants["D"]))
        module, function = _FUNCTIONS[kernel]
        return configuration(name, (module, function), constants, options, types=types, work=work)


def configuration(
    name: str,
    kernel: tuple[str, str],
    constants: dict[str, Any],
    options: dict[str, Any],
    *,
    types: Mapping[str, str],
    work: Work | None = None,
) -> Configuration:
    """Describe one compilation.

    Args:
        name: what it is called.
        kernel: its module below `bsa_kernels`, and its function.
        constants: its constexprs.
        options: `num_warps`, `num_stages`, and `maxnreg` where there is one.
        types: of its arguments, as Triton writes them; others ending in `_ptr` are `*i32`, in `scale` `fp32`, the rest
            `i32`.
        work: of a launch, where it is predicted.
    """
    module, function = kernel
    signature = {
        argument: types.get(argument, _default_type(argument))
        for argument in _arguments(module, function)
        if argument not in constants
    }
    return Configuration(
        name=name,
        kernel=f"bsa_kernels.{module}:{function}",
        signature=signature,
        constexprs=constants,
        num_warps=options["num_warps"],
        num_stages=options["num_stages"],
        maxnreg=options.get("maxnreg"),
        divisible_by_16=tuple(each for each in signature if each.endswith(("_ptr", "_b", "_h", "_l"))),
        work=work,
    )


@lru_cache(maxsize=32)
def _arguments(module: str, function: str) -> tuple[str, ...]:
    """The arguments of a kernel that have no default, from its source: importing it would import Triton."""
    source = (_PACKAGE / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
    (found,) = (node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == function)
    arguments = found.args.args
    return tuple(argument.arg for argument in arguments[: len(arguments) - len(found.args.defaults)])


def _default_type(argument: str) -> str:
    return "*i32" if argument.endswith("_ptr") else "fp32" if argument.endswith("scale") else "i32"


def _descriptor(tokens: Format, head_dim: int) -> str:
    layout = (
        "NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=5, transposed=False, fp4_padded=False)"
    )
    return f"tensordesc<{tokens}{[1, *SIDES, head_dim]},{layout}>"
