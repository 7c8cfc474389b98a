"""The engine of the warp-specialised forward for Hopper, `bsa_kernels.block_sparse.gluon_attend`; backward as `triton`.

A second implementation of the same attention over the same lists, to be measured against the first. **No GPU has run it
yet.** For compute capability 9.0, fp16 and bf16, head sizes 64 and 128, and KV blocks of 64 tokens whose sides are
powers of two.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bsa_kernels.block_sparse.specialized import STAGES
from bsa_kernels.engines import triton
from bsa_kernels.engines.triton import TritonEngine


@dataclass(frozen=True)
class GluonEngine(TritonEngine):
    """The engine `triton` with the specialised forward, over lists of 128 rows."""

    name: str = "gluon"
    is_specialized: bool = True

    def unsupported(self, device: torch.device, dtype: torch.dtype, head_dim: int, *, backward: bool) -> str | None:
        """See `BlockEngine`."""
        return unsupported(device, dtype, head_dim, backward=backward)


GLUON = GluonEngine()
GLUON_TILED = GluonEngine(layout="tiled")


def unsupported(device: torch.device, dtype: torch.dtype, head_dim: int, *, backward: bool) -> str | None:
    """Why this kernel cannot run here, or None."""
    if dtype not in {torch.float16, torch.bfloat16}:
        name = str(dtype).removeprefix("torch.")
        return f"the kernel takes float16 and bfloat16, not {name}; convert, or use the engine triton."
    if head_dim not in STAGES:
        return f"the kernel takes head sizes {' and '.join(map(str, STAGES))}, got {head_dim}; use the engine triton."
    if device.type != "cuda":
        return f"the kernel runs on NVIDIA GPUs of compute capability 9.0, not on {device.type}; use the engine triton."
    capability = torch.cuda.get_device_capability(device)
    if capability[0] != 9:
        return "the kernel needs compute capability 9.0, this GPU has {}.{}; use the engine triton.".format(*capability)
    return triton.unsupported(device, dtype, head_dim, backward=backward)
