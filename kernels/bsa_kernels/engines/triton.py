"""The engine of this project's own kernels: `bsa_kernels.block_sparse`, forward and backward in Triton.

It is *fused*: it reads q, k and v where they are, in natural or tile-major order, and writes the filled output; nothing
is permuted, gathered or filled by a pass of its own. For NVIDIA GPUs from compute capability 8.0. On a CPU the kernels
run in Triton's interpreter, which verifies them and says nothing about their speed. Triton is imported on first use.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

from bsa_kernels.block_sparse.groups import choose_groups_reference, union_counts
from bsa_kernels.block_sparse.tables import KernelTables, tables_of
from bsa_kernels.block_sparse.tile_table import MAX_HEAD_DIM, Tiles, arch_of, tiles_for
from bsa_kernels.plan import BlockPlan

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


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


def choose_tiles(plan: BlockPlan, *, head_dim: int, dtype: torch.dtype) -> Tiles:
    """The tiles that the table in force has for a plan."""
    return tiles_for(
        arch=arch_of(plan.device),
        head_dim=head_dim,
        kept_rows=plan.shape[3],
        block_keys=plan.kv_grid.block_size,
        dtype=dtype,
    )


def prepare(
    plan: BlockPlan, *, head_dim: int, dtype: torch.dtype, is_tiled: bool = False, tiles: Tiles | None = None
) -> KernelTables:
    """Bring the plan into the kernels' form; the inverse lists follow in the backward.

    Args:
        plan: what is attended.
        head_dim, dtype: of q, k and v.
        is_tiled: q, k and v are tile-major, as `BlockGrid.permute` leaves them.
        tiles: in place of the table's, for tuning and tests.
    """
    return tables_of(plan, tiles or choose_tiles(plan, head_dim=head_dim, dtype=dtype), is_tiled=is_tiled)


def attend_tokens(q: Tensor, k: Tensor, v: Tensor, tables: KernelTables, *, scale: float) -> Tensor:
    """Attend and fill: o like q. Differentiable in q, k and v.

    Args:
        q, k, v: [B, H, L, D] in the layout of the tables, any strides; a last dimension with gaps is copied.
        tables: from `prepare`.
        scale: of the logits.
    """
    from bsa_kernels.block_sparse.ops import attend

    return attend(q, k, v, tables.tensors, tables.layout.encode(), scale=scale)


def executed_flop(plan: BlockPlan, head_dim: int, tiles: Tiles | None = None) -> int:
    """FLOP of the forward's matrix products in 16-bit formats: whole tiles, unions and padding included.

    Synchronises.

    Args:
        plan: what is attended.
        head_dim: of q, k and v.
        tiles: in place of the table's.
    """
    tiles = tiles or choose_tiles(plan, head_dim=head_dim, dtype=torch.bfloat16)
    tile, kept, keys = tiles.attend, plan.shape[3], plan.kv_grid.block_size
    members = choose_groups_reference(plan.block_bits, plan.q_grid, tile.group)
    rows = tile.rows if tile.group > 1 else -(-kept // tile.rows) * tile.rows
    width = max(16, 1 << (head_dim - 1).bit_length())
    listed = int(union_counts(plan.block_bits, members).sum())
    return 4 * width * rows * (-(-keys // tiles.max_keys) * tiles.max_keys) * listed


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
