"""The engine of this project's own kernels: `bsa_kernels.block_sparse`, forward and backward in Triton.

It reads q, k and v where they are, in natural or tile-major order, and writes the filled output; nothing is permuted,
gathered or filled by a pass of its own. For NVIDIA GPUs from compute capability 8.0. On a CPU the kernels run in
Triton's interpreter, which verifies them and says nothing about their speed. Triton is imported on first use.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

from bsa_kernels.block_engine import Order, Passes
from bsa_kernels.block_sparse import flop
from bsa_kernels.block_sparse.groups import choose_groups_reference
from bsa_kernels.block_sparse.specialized import half_members, specialized_fault, specialized_tiles
from bsa_kernels.block_sparse.tables import KernelTables, Layout
from bsa_kernels.block_sparse.tile_table import ENVIRONMENT, MAX_HEAD_DIM, Tiles, arch_of, tiles_for
from bsa_kernels.grid import BlockGrid
from bsa_kernels.plan import BlockPlan
from bsa_kernels.rules import ElementRule
from bsa_kernels.tracing import ask_once

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)

#: From the tiles of a call, its kept rows of a query block and its head size to other tiles.
ChangeTiles = Callable[[Tiles, int, int], Tiles]


@dataclass(frozen=True)
class TritonEngine:
    """The kernels in one form.

    Attributes:
        name, layout: see `BlockEngine`.
        change_tiles: what is launched in place of the tiles that the table has, for tuning, tests and benchmarks.
        change_tables: what the kernels read in place of the tables made for a plan.
        is_specialized: the forward is the warp-specialised one.
    """

    name: str = "triton"
    layout: Order = "natural"
    change_tiles: ChangeTiles | None = None
    change_tables: Callable[[KernelTables], KernelTables] | None = None
    is_specialized: bool = False
    fills: bool = True
    runs_triton: bool = True
    gives_lse: bool = True

    def unsupported(self, device: torch.device, dtype: torch.dtype, head_dim: int, *, backward: bool) -> str | None:
        """See `BlockEngine`."""
        return unsupported(device, dtype, head_dim, backward=backward)

    def unsupported_plan(self, plan: BlockPlan) -> str | None:
        """See `BlockEngine`."""
        if not self.is_specialized:
            return None
        if not plan.is_plain:
            return (
                "the specialised kernel takes plans without an element rule or a prefix of keys, over one grid of "
                "tokens; use the engine triton."
            )
        return specialized_fault(plan.kv_grid, kept_rows=plan.shape[3])

    def layout_for(self, plan: BlockPlan, *, head_dim: int, dtype: torch.dtype) -> Layout:
        """How the kernels walk a plan, with their tiles."""
        return Layout.decode(self._code(plan, head_dim, dtype))

    def prepare(self, plan: BlockPlan, like: Tensor) -> KernelTables:
        """Bring the plan into the kernels' form; the inverse lists follow in the backward."""
        from bsa_kernels.block_sparse.ops import make_tables

        tables = make_tables(plan, self._code(plan, like.shape[-1], like.dtype))
        return tables if self.change_tables is None else self.change_tables(tables)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        plan: BlockPlan,  # noqa: ARG002
        prepared: KernelTables,
        *,
        scale: float,
    ) -> Tensor:
        """Attend and fill: o like q; any strides, a last dimension with gaps is copied."""
        from bsa_kernels.block_sparse.ops import attend

        return attend(q, k, v, prepared, scale=scale)

    def attend_lse(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        plan: BlockPlan,  # noqa: ARG002
        prepared: KernelTables,
        *,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        """See `LseRunner`."""
        from bsa_kernels.block_sparse.ops import attend_lse

        return attend_lse(q, k, v, prepared, scale=scale)

    def list_members(self, plan: BlockPlan, *, head_dim: int, dtype: torch.dtype) -> Tensor:
        """Query blocks that share a list, [B, H, R, G]."""
        group = self.layout_for(plan, head_dim=head_dim, dtype=dtype).tiles.attend.group
        return choose_groups_reference(plan.block_bits, plan.q_grid, group)

    def work_members(self, plan: BlockPlan, *, head_dim: int, dtype: torch.dtype) -> Tensor:
        """Query blocks that the forward multiplies with the union of what they listed, [B, H, R, G]."""
        members = self.list_members(plan, head_dim=head_dim, dtype=dtype)
        return half_members(members) if self.is_specialized else members

    def executed_flop(
        self, plan: BlockPlan, head_dim: int, which: Passes, *, dtype: torch.dtype = torch.bfloat16
    ) -> float:
        """See `BlockEngine`."""
        return flop.executed_flop(plan, self.layout_for(plan, head_dim=head_dim, dtype=dtype), head_dim, which)

    def _code(self, plan: BlockPlan, head_dim: int, dtype: torch.dtype) -> str:
        q_grid, kv_grid = plan.q_grid, plan.kv_grid
        sides = (q_grid.grid, q_grid.block, kv_grid.grid, kv_grid.block)
        rule, kept_rows = plan.rule, plan.kept_slots.shape[3]
        form = (self.layout == "tiled", not plan.keeps_every_row, self.is_specialized, self.change_tiles)
        what = (kept_rows, head_dim, dtype, plan.device)
        return _layout_code(*sides, rule.before, rule.after, plan.prefix, *what, *form)


TRITON = TritonEngine()
TRITON_TILED = TritonEngine(layout="tiled")

_Sides = tuple[int, int, int]


@ask_once
def _layout_code(
    q_grid: _Sides,
    q_block: _Sides,
    kv_grid: _Sides,
    kv_block: _Sides,
    before: int | None,
    after: int | None,
    prefix: int,
    kept_rows: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
    is_tiled: bool,
    fills: bool,
    is_specialized: bool,
    change_tiles: ChangeTiles | None,
) -> str:
    """The code of a `Layout`. Its arguments are constants to a compiler, so that it need not trace a table of tiles."""
    sides = (q_grid, q_block, kv_grid, kv_block)
    keys = (before, after, prefix)
    form = (is_tiled, fills, is_specialized, change_tiles)
    return _kept_layout_code(*sides, *keys, kept_rows, head_dim, dtype, device, *form, os.environ.get(ENVIRONMENT))


@lru_cache(maxsize=256)
def _kept_layout_code(
    q_grid: _Sides,
    q_block: _Sides,
    kv_grid: _Sides,
    kv_block: _Sides,
    before: int | None,
    after: int | None,
    prefix: int,
    kept_rows: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
    is_tiled: bool,
    fills: bool,
    is_specialized: bool,
    change_tiles: ChangeTiles | None,
    table: str | None,  # noqa: ARG001  # `tiles_for` reads it from the environment: another file, another answer
) -> str:
    keys = BlockGrid(kv_grid, kv_block)
    if is_specialized:
        tiles = specialized_tiles(keys, kept_rows=kept_rows, head_dim=head_dim, dtype=dtype)
    else:
        arch = arch_of(device)
        tiles = tiles_for(arch=arch, head_dim=head_dim, kept_rows=kept_rows, block_keys=keys.block_size, dtype=dtype)
    if change_tiles is not None:
        tiles = change_tiles(tiles, kept_rows, head_dim)
    rule = ElementRule(before, after)
    return Layout(BlockGrid(q_grid, q_block), keys, is_tiled, fills, tiles, rule, prefix).encode()


def unsupported(device: torch.device, dtype: torch.dtype, head_dim: int, *, backward: bool) -> str | None:  # noqa: ARG001
    """Why these kernels cannot run here, or None."""
    release = _installed("triton")
    if release is None:
        return "Triton is not installed; on Linux: pip install 'triton>=3.6,<3.10'."
    if dtype not in _DTYPES:
        return f"the kernels take float16, bfloat16 and float32, not {_name(dtype)}; convert, or use the engine gather."
    if head_dim > MAX_HEAD_DIM:
        return f"the kernels take head sizes up to {MAX_HEAD_DIM}, got {head_dim}; use the engine gather."
    if device.type not in {"cpu", "cuda"}:
        return (
            f"the kernels run on NVIDIA GPUs (cuda), not on {device.type}; move the tensors, or use the engine gather."
        )
    if _is_interpreted():
        return _interpreter_fault(release, dtype)
    if device.type == "cpu":
        return (
            "Triton runs on a CPU only in its interpreter, for verification; set TRITON_INTERPRET=1 before importing, "
            "or use the engine gather."
        )
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"the kernels need compute capability 8.0, this GPU has {major}.{minor}; use the engine gather."
    return None


def _is_interpreted() -> bool:
    """Whether the kernels were defined for Triton's interpreter; decided once, when they are first imported."""
    from triton.runtime.jit import JITFunction

    from bsa_kernels.block_sparse.triton_attend import attend_kernel

    return not isinstance(attend_kernel, JITFunction)


def _interpreter_fault(triton_release: str, dtype: torch.dtype) -> str | None:
    """Why Triton's interpreter would fail, or None."""
    if dtype == torch.bfloat16:
        return "Triton's interpreter cannot run bfloat16: its bf16 dot is wrong; use float16 or float32."
    numpy_release = _installed("numpy")
    if numpy_release is None:
        return "Triton's interpreter needs NumPy; pip install numpy."
    # It converts one-element arrays to int, which NumPy 2.4 refuses; mended in Triton 3.7.
    if _numbers(triton_release) < (3, 7) and _numbers(numpy_release) >= (2, 4):
        return (
            f"the interpreter of Triton {triton_release} fails with NumPy {numpy_release}; "
            "pip install 'numpy<2.4' or 'triton>=3.7'."
        )
    return None


@lru_cache(maxsize=8)
def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _numbers(release: str) -> tuple[int, int]:
    major, minor = release.split(".")[:2]
    return int(major), int(minor)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
