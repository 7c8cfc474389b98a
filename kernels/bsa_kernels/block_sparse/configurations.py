"""Every configuration of the block-sparse kernels that a user's call can come to, and those that compete with them.

One place for tools that compile kernels without launching them: `shipped` is what `tiles` chooses, `candidates` are the
tiles that were weighed against it (the space that tuning searches). Nothing here imports Triton.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from bsa_kernels.block_sparse.tiles import Kernel, Tile, constants_of, tile_for

Format = Literal["fp16", "bf16", "fp32"]

FUNCTIONS: dict[str, str] = {
    "forward": "bsa_kernels.block_sparse.triton_forward:forward_kernel",
    "grad_q": "bsa_kernels.block_sparse.triton_backward:grad_q_kernel",
    "grad_kv": "bsa_kernels.block_sparse.triton_backward:grad_kv_kernel",
    "delta": "bsa_kernels.block_sparse.triton_backward:delta_kernel",
}
HEAD_DIMS = (64, 128, 256)
# All rows of a block of (4, 4, 4), and the half that pruning keeps.
KEPT_ROWS = (64, 32)
BLOCK = 64

_TABLES = ("slots_ptr", "counts_ptr", "lists_ptr", "real_ptr")
_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "forward": ("q_ptr", "k_ptr", "v_ptr", "o_ptr", "lse_ptr", *_TABLES, "num_q", "num_kv", "score_scale"),
    "grad_q": (
        *("q_ptr", "k_ptr", "v_ptr", "do_ptr", "lse_ptr", "delta_ptr", "dq_ptr", *_TABLES),
        *("num_q", "num_kv", "scale", "score_scale"),
    ),
    "grad_kv": (
        *("q_ptr", "k_ptr", "v_ptr", "do_ptr", "lse_ptr", "delta_ptr", "dk_ptr", "dv_ptr", *_TABLES),
        *("num_q", "num_kv", "scale", "score_scale"),
    ),
    "delta": ("o_ptr", "do_ptr", "delta_ptr", "slots_ptr", "num_rows"),
}
_SINGLES = {"lse_ptr", "delta_ptr"}


@dataclass(frozen=True)
class Shape:
    """What a launch works on, for predictions: `kv_density` is the share of KV blocks in an average list."""

    tokens: int = 153_600
    heads: int = 12
    batch: int = 1
    kv_density: float = 0.1


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

    `signature` gives the type of each argument that is no constant, as Triton writes it (`*bf16`, `i32`); pointers are
    divisible by 16. `maxnreg` caps registers a thread.
    """

    name: str
    kernel: str
    signature: dict[str, str]
    constexprs: dict[str, int | bool | str]
    num_warps: int
    num_stages: int
    maxnreg: int | None
    work: Work


def shipped(shape: Shape | None = None, *, dtype: Format = "bf16") -> list[Configuration]:
    """The configurations that calls come to with blocks of 64 tokens, whole ones and (`-masked`) padded ones."""
    shape = shape or Shape()
    found = []
    for kernel in ("forward", "grad_q", "grad_kv"):
        for head_dim in HEAD_DIMS:
            for kept in KEPT_ROWS:
                tile = tile_for(kernel, kept_rows=kept, block_keys=BLOCK, head_dim=head_dim, is_fp32=dtype == "fp32")
                for masked in (False, True):
                    name = f"{kernel}-{dtype}-d{head_dim}-k{kept}{'-masked' if masked else ''}"
                    found.append(_walking(name, kernel, tile, shape, kept, BLOCK, dtype, masked=masked))
    found += [_delta(head_dim, shape, dtype) for head_dim in HEAD_DIMS]
    return found


# kernel -> head size -> (rows, keys, warps, stages, register cap); more than 64 rows or keys mean a block of so many.
_CANDIDATES: dict[tuple[Kernel, int], Iterable[tuple[int, int, int, int, int | None]]] = {
    ("forward", 64): (
        *((64, 64, 4, stages, None) for stages in (1, 2, 3, 4)),
        *((64, 128, 4, 2, None), (128, 64, 8, 2, None), (128, 128, 8, 2, None), (128, 128, 8, 2, 128)),
        *((32, 64, 4, 1, None), (32, 64, 4, 2, None)),
    ),
    ("forward", 128): (
        *((64, 64, 4, stages, None) for stages in (1, 2, 3, 4)),
        *((64, 32, 4, 2, None), (64, 32, 4, 3, None), (64, 128, 4, 1, None), (64, 128, 4, 2, None)),
        *((128, 64, 4, 2, None), (128, 64, 8, 2, None), (128, 64, 8, 2, 128), (128, 64, 8, 3, None)),
        *((128, 128, 8, 2, None), (128, 128, 8, 3, None), (128, 128, 8, 2, 128)),
        *((32, 64, 4, 1, None), (32, 64, 4, 2, None)),
    ),
    ("grad_q", 64): ((64, 64, 4, 2, None), (128, 64, 8, 2, None), (32, 64, 4, 2, None)),
    ("grad_q", 128): (
        *((64, 64, 4, 1, None), (64, 64, 4, 2, None), (64, 64, 4, 3, None), (64, 32, 4, 2, None)),
        *((128, 64, 4, 2, None), (128, 64, 8, 2, None), (128, 128, 8, 2, None)),
        *((32, 64, 4, 1, None), (32, 64, 4, 2, None), (32, 32, 4, 2, None)),
    ),
    ("grad_kv", 64): (*((64, 64, 4, 2, None), (64, 128, 8, 2, None), (128, 128, 8, 2, None), (32, 64, 4, 2, None)),),
    ("grad_kv", 128): (
        *((64, 64, 4, 1, None), (64, 64, 4, 2, None), (64, 64, 8, 2, None)),
        *((32, 64, 4, 1, None), (32, 64, 4, 2, None), (32, 64, 4, 3, None)),
        *((64, 128, 4, 2, None), (64, 128, 8, 2, None), (64, 128, 8, 3, None)),
        *((128, 64, 8, 2, None), (128, 128, 8, 2, None)),
    ),
}


def candidates(shape: Shape | None = None, *, dtype: Format = "bf16") -> list[Configuration]:
    """The tiles that were weighed for each kernel at head sizes 64 and 128, unmasked, ROWSxKEYS in their names."""
    shape = shape or Shape()
    found = []
    for (kernel, head_dim), tiles in _CANDIDATES.items():
        for rows, keys, warps, stages, maxnreg in tiles:
            cap = f"-r{maxnreg}" if maxnreg else ""
            name = f"{kernel}-{dtype}-d{head_dim}-{rows}x{keys}-w{warps}-s{stages}{cap}"
            tile = Tile(rows, keys, head_dim, warps, stages)
            found.append(_walking(name, kernel, tile, shape, rows, max(BLOCK, keys), dtype, maxnreg=maxnreg))
    return found


def _walking(
    name: str,
    kernel: Kernel,
    tile: Tile,
    shape: Shape,
    kept: int,
    block_keys: int,
    dtype: Format,
    *,
    masked: bool = False,
    maxnreg: int | None = None,
) -> Configuration:
    """A kernel that walks lists, at `kept` rows of query blocks of at least 64 tokens."""
    block_rows = max(BLOCK, kept)
    # The head size is the tile's: 64, 128 and 256 need no padding.
    constants = constants_of(
        tile,
        block_rows=block_rows,
        block_keys=block_keys,
        kept_rows=kept,
        head_dim=tile.head_dim,
        has_partial_blocks=masked,
        is_fp32=dtype == "fp32",
    )
    heads = shape.batch * shape.heads
    num_q, num_kv = -(-shape.tokens // block_rows), -(-shape.tokens // block_keys)
    row_tiles, key_tiles = -(-kept // tile.rows), -(-block_keys // tile.keys)
    row_bytes = tile.head_dim * (4 if dtype == "fp32" else 2)
    kept_bytes, all_bytes = heads * num_q * kept * row_bytes, heads * shape.tokens * row_bytes
    if kernel == "grad_kv":
        # q and do of kept rows in; k, v in and dk, dv out.
        programs, trips = heads * num_kv * key_tiles, shape.kv_density * num_q * row_tiles
        moved = 2 * kept_bytes + 4 * all_bytes
    else:
        # k and v in; q in and o out, or q and do in and dq out.
        programs, trips = heads * num_q * row_tiles, shape.kv_density * num_kv * key_tiles
        moved = 2 * all_bytes + (2 if kernel == "forward" else 3) * kept_bytes
    return Configuration(
        name=name,
        kernel=FUNCTIONS[kernel],
        signature=_signature(kernel, dtype),
        constexprs=constants,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        maxnreg=maxnreg,
        work=Work(programs, trips, moved),
    )


def _delta(head_dim: int, shape: Shape, dtype: Format) -> Configuration:
    rows = shape.batch * shape.heads * shape.tokens
    return Configuration(
        name=f"delta-{dtype}-d{head_dim}",
        kernel=FUNCTIONS["delta"],
        signature=_signature("delta", dtype),
        constexprs={"D": head_dim, "ROWS": BLOCK, "BLOCK_D": head_dim},
        num_warps=4,
        num_stages=3,
        maxnreg=None,
        work=Work(-(-rows // BLOCK), 1, 2 * rows * head_dim * (4 if dtype == "fp32" else 2)),
    )


def _signature(kernel: str, dtype: Format) -> dict[str, str]:
    return {name: _type_of(name, dtype) for name in _ARGUMENTS[kernel]}


def _type_of(name: str, dtype: Format) -> str:
    if name.endswith("_ptr"):
        return "*i32" if name in _TABLES else "*fp32" if name in _SINGLES else f"*{dtype}"
    return "fp32" if name.endswith("scale") else "i32"
