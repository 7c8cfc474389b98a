"""The compiled library as functions: one C structure in, a return code out; and the structure of an attention."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bsa_kernels.block_engine import Order
from bsa_kernels.cpp.build import BuildError, build
from bsa_kernels.grid import BlockGrid
from bsa_kernels.keys import KeySlots

#: Formats that the kernels read and write, and their numbers in C.
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
#: In place of a bound of the element rule that there is not: more than any position.
UNBOUNDED = 1 << 40
#: Multiplications for which a thread is started: that takes 20 us, and one core some 50 us for so many.
PRODUCTS_A_THREAD = 1 << 21

_TENSORS = ("q", "k", "v", "o", "grad_o", "grad_q", "grad_k", "grad_v")
_SIZES = (
    "dtype",
    "threads",
    "products_a_thread",
    "batch",
    "heads",
    "head_dim",
    "num_q_blocks",
    "q_block_size",
    "kept_rows",
    "num_kv_blocks",
    "kv_block_size",
    "num_grid_blocks",
    "before",
    "after",
)
_TABLES = (
    "lse",
    "grad_lse",
    "kept_slots",
    "num_kept",
    "fill",
    "block_bits",
    "q_rows",
    "q_positions",
    "kv_rows",
    "kv_positions",
    "kv_counts",
)


class Tokens(ctypes.Structure):
    """`Tokens` of tokens.h: a tensor [B, H, L, D], the last dimension without gaps."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("batch_stride", ctypes.c_int64),
        ("head_stride", ctypes.c_int64),
        ("token_stride", ctypes.c_int64),
    )

    @classmethod
    def of(cls, x: Tensor) -> Tokens:
        """Of a tensor, which must outlive it."""
        assert x.shape[3] == 1 or x.stride(3) == 1
        return cls(x.data_ptr(), *x.stride()[:3])


class Problem(ctypes.Structure):
    """`Problem` of tiles.h, field by field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _SIZES),
        ("scale", ctypes.c_double),
        *((name, Tokens) for name in _TENSORS),
        *((name, ctypes.c_void_p) for name in _TABLES),
    )


@dataclass(frozen=True)
class Geometry:
    """Grids, prefix, rule and order of tokens, all that a call needs of a plan besides its tensors."""

    q_grid: BlockGrid
    kv_grid: BlockGrid
    prefix: int
    before: int | None
    after: int | None
    layout: Order

    def encode(self) -> list[int]:
        """As integers, which operators of torch take."""
        bounds = [UNBOUNDED if bound is None else bound for bound in (self.before, self.after)]
        grids = (self.q_grid.grid, self.q_grid.block, self.kv_grid.grid, self.kv_grid.block)
        return [*(side for triple in grids for side in triple), self.prefix, *bounds, int(self.layout == "tiled")]

    @staticmethod
    def decode(code: Sequence[int]) -> Geometry:
        """The inverse of `encode`."""
        a, b, c, d, e, f, g, h, i, j, k, m, prefix, before, after, is_tiled = code
        first, last = (None if bound == UNBOUNDED else bound for bound in (before, after))
        q_grid, kv_grid = BlockGrid((a, b, c), (d, e, f)), BlockGrid((g, h, i), (j, k, m))
        return Geometry(q_grid, kv_grid, prefix, first, last, "tiled" if is_tiled else "natural")

    @property
    def keys(self) -> KeySlots:
        """Where the keys stand."""
        return KeySlots(self.kv_grid, self.prefix)

    @property
    def is_tiled(self) -> bool:
        """Whether q, k and v are tile-major."""
        return self.layout == "tiled"


class Library:
    """The functions of a compiled library; see attend.cpp, backward.cpp and select.cpp."""

    def __init__(self, path: Path) -> None:
        """Load it.

        Raises:
            BuildError: it cannot be loaded.
        """
        try:
            self.functions = ctypes.CDLL(str(path))
        except OSError as error:
            raise BuildError(f"the compiled kernels cannot be loaded: {error}; remove {path}.") from error
        self.functions.bsa_problem_bytes.restype = ctypes.c_int64
        assert self.functions.bsa_problem_bytes() == ctypes.sizeof(Problem)

    def forward(self, problem: Problem) -> None:
        """Attend; ctypes releases the interpreter's lock meanwhile.

        Raises:
            MemoryError: there is too little.
        """
        _check(self.functions.bsa_forward(ctypes.byref(problem)))

    def backward(self, problem: Problem) -> None:
        """The gradients of `forward`. Raises as that."""
        _check(self.functions.bsa_backward(ctypes.byref(problem)))

    def threads(self, problem: Problem) -> int:
        """How many threads `forward` computes on: one for each `PRODUCTS_A_THREAD` or part, at most torch's number."""
        threads = ctypes.c_int64()
        _check(self.functions.bsa_threads(ctypes.byref(problem), ctypes.byref(threads)))
        return threads.value

    def flop(self, problem: Problem, *, is_backward: bool) -> int:
        """FLOP of the products that a pass executes; reads tables only."""
        flop = ctypes.c_int64()
        _check(self.functions.bsa_flop(ctypes.byref(problem), int(is_backward), ctypes.byref(flop)))
        return flop.value

    def select(self, problem: ctypes.Structure) -> None:
        """The selection of BSA, see select.cpp and `SelectProblem`. Raises as `forward`."""
        _check(self.functions.bsa_select(ctypes.byref(problem)))


_lock = threading.Lock()
_loaded: list[Library | BuildError] = []


def load() -> Library:
    """The library, compiled if need be; once for the process, and so is a failure.

    Raises:
        BuildError: it cannot be made here.
    """
    with _lock:
        if not _loaded:
            try:
                _loaded.append(Library(build()))
            except BuildError as error:
                _loaded.append(error)
    made = _loaded[0]
    if isinstance(made, BuildError):
        raise made
    return made


def make_problem(
    tensors: Mapping[str, Tensor], tables: Mapping[str, Tensor | None], geometry: Geometry, scale: float
) -> Problem:
    """The structure of a call; what it points to must outlive it.

    Args:
        tensors: q, k, v and the like, [B, H, L, D], the last dimension without gaps; of one format.
        tables: the plan's and the log-sum-exp's, contiguous.
        geometry: of the plan.
        scale: of the logits.
    """
    q, kept_slots = tensors["q"], tables["kept_slots"]
    assert kept_slots is not None
    keys = geometry.keys
    problem = Problem(
        dtype=DTYPES[q.dtype],
        threads=torch.get_num_threads(),
        products_a_thread=PRODUCTS_A_THREAD,
        batch=kept_slots.shape[0],
        heads=kept_slots.shape[1],
        head_dim=q.shape[3],
        num_q_blocks=geometry.q_grid.num_blocks,
        q_block_size=geometry.q_grid.block_size,
        kept_rows=kept_slots.shape[3],
        num_kv_blocks=keys.num_blocks,
        kv_block_size=geometry.kv_grid.block_size,
        num_grid_blocks=geometry.kv_grid.num_blocks,
        before=UNBOUNDED if geometry.before is None else geometry.before,
        after=UNBOUNDED if geometry.after is None else geometry.after,
        scale=scale,
    )
    for name, x in tensors.items():
        assert x.dtype == q.dtype
        setattr(problem, name, Tokens.of(x))
    for name, table in {**tables, **geometry_tables(geometry)}.items():
        if table is not None:
            assert table.is_contiguous()
            setattr(problem, name, table.data_ptr())
    return problem


@lru_cache(maxsize=64)
def geometry_tables(geometry: Geometry) -> dict[str, Tensor]:
    """For `Problem`: where each slot's row is, which token it holds, and how many keys of a block are real; int32."""
    device = torch.device("cpu")
    q_tokens, keys = geometry.q_grid.token_of_slot(device), geometry.keys
    if geometry.is_tiled:
        q_rows, kv_rows = torch.arange(geometry.q_grid.num_slots), torch.arange(keys.num_slots)
    else:
        q_rows, kv_rows = q_tokens.flatten(), torch.full((keys.num_slots,), -1)
        kv_rows[keys.slot_of_key(device)] = torch.arange(keys.num_keys)
    tables: dict[str, Any] = {
        "q_rows": q_rows,
        "q_positions": q_tokens.clamp(min=0),
        "kv_rows": kv_rows,
        "kv_positions": keys.positions(device),
        "kv_counts": keys.real_counts(device),
    }
    return {name: table.int().contiguous() for name, table in tables.items()}


def _check(code: int) -> None:
    if code:
        raise MemoryError("engine 'cpu': too little memory for its copies and sums; use fewer tokens, heads or threads")
