"""The engine of this project's own kernels: `bsa_kernels.block_sparse`, forward and backward in Triton.

For NVIDIA GPUs from compute capability 8.0. On a CPU the kernels run in Triton's interpreter, which verifies them and
says nothing about their speed. Triton is imported on first use of this engine.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bsa_kernels.block_sparse.tiles import MAX_HEAD_DIM, PlanTables, tables_of, tile_for
from bsa_kernels.plan import BlockPlan

if TYPE_CHECKING:
    from torch.autograd.function import FunctionCtx

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


def prepare(plan: BlockPlan) -> PlanTables:
    """Bring the plan's tables into the kernels' form; the inverse lists follow when a backward first asks."""
    return tables_of(plan)


def attend(
    q_tiles: Tensor, k_tiles: Tensor, v_tiles: Tensor, plan: BlockPlan, prepared: object, *, scale: float
) -> Tensor:
    """Compute the kept rows [B, H, Nq, K, D]; zeros for a row that sees nothing and for an entry without a row."""
    assert isinstance(prepared, PlanTables)
    assert prepared.plan is plan
    return _BlockSparseAttention.apply(q_tiles, k_tiles, v_tiles, prepared, float(scale))


def executed_flop(plan: BlockPlan, head_dim: int) -> int:
    """FLOP of the forward's matrix products in 16-bit formats: whole tiles, padding to powers of two included.

    Synchronises.
    """
    tile = tile_for("forward", kept_rows=plan.shape[3], block_keys=plan.kv_grid.block_size, head_dim=head_dim)
    rows = -(-plan.shape[3] // tile.rows) * tile.rows
    keys = -(-plan.kv_grid.block_size // tile.keys) * tile.keys
    return 4 * tile.head_dim * rows * keys * int(plan.kv_counts.sum())


class _BlockSparseAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, tables: PlanTables, scale: float) -> Tensor:
        from bsa_kernels.block_sparse.triton_forward import launch_forward

        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        o, lse = launch_forward(q, k, v, tables, scale=scale)
        ctx.save_for_backward(q, k, v, o, lse)
        ctx.tables, ctx.scale = tables, scale  # type: ignore[attr-defined]
        return o

    @staticmethod
    @once_differentiable
    def backward(ctx, do: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]  # noqa: ANN001
        from bsa_kernels.block_sparse.triton_backward import launch_delta, launch_grad_kv, launch_grad_q

        q, k, v, o, lse = ctx.saved_tensors
        do = do.contiguous()
        inputs = (q, k, v, do, lse, launch_delta(o, do, ctx.tables), ctx.tables)
        wants_q, *wants_kv = ctx.needs_input_grad[:3]
        dq = launch_grad_q(*inputs, scale=ctx.scale) if wants_q else None
        dk, dv = launch_grad_kv(*inputs, scale=ctx.scale) if any(wants_kv) else (None, None)
        return dq, dk, dv, None, None


def _is_interpreted() -> bool:
    """Whether the kernels were defined for Triton's interpreter; decided once, when they are first imported."""
    from triton.runtime.jit import JITFunction

    from bsa_kernels.block_sparse.triton_forward import forward_kernel

    return not isinstance(forward_kernel, JITFunction)


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
