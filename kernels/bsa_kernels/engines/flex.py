"""FlexAttention on the plan: the same block mask, compiled by torch.

The kept rows are packed to [B, H, Nq*K, D], so that a query block of the mask has K rows.
"""

from __future__ import annotations

import shutil
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bsa_kernels.plan import BlockPlan

# Past its limit of shapes, by default eight, torch.compile runs a function uncompiled with no more than a log line.
# `fullgraph` makes that an error, and this limit puts it out of reach.
_MAX_SHAPES = 4096

if TYPE_CHECKING:
    from collections.abc import Callable


def unsupported(device: torch.device, dtype: torch.dtype, head_dim: int, *, backward: bool) -> str | None:
    """Why FlexAttention cannot run this here, or None."""
    if dtype == torch.float64:
        return "FlexAttention does not take float64; use float32, float16 or bfloat16."
    if device.type == "cpu":
        if backward:
            return "FlexAttention has no backward on CPUs; run it on a GPU, or use the engine gather here."
        if not (shutil.which("g++") or shutil.which("clang++")):
            return "compiling FlexAttention for a CPU needs a C++ compiler; install g++."
    elif device.type != "cuda":
        return f"FlexAttention is compiled for cpu and cuda here, not for {device.type}; move the tensors."
    if device.type == "cuda" and head_dim < 16:
        return f"FlexAttention on a GPU needs a head size of at least 16, got {head_dim}; use the engine gather."
    return None


@lru_cache(maxsize=1)
def compiled_flex_attention() -> Callable[..., Any]:
    """FlexAttention compiled once for the process, static shapes. It raises where torch could not compile it."""
    from torch._dynamo import config
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention, dynamic=False, fullgraph=True)

    def call(*args: Any, **kwargs: Any) -> Any:
        with config.patch(recompile_limit=_MAX_SHAPES, accumulated_recompile_limit=_MAX_SHAPES):
            return compiled(*args, **kwargs)

    return call


def prepare(plan: BlockPlan) -> object:
    """The plan as FlexAttention's `BlockMask`."""
    return plan.to_flex()


def attend(
    q_tiles: Tensor, k_tiles: Tensor, v_tiles: Tensor, plan: BlockPlan, prepared: object, *, scale: float
) -> Tensor:
    """Compute the kept rows [B, H, Nq, K, D]."""
    q = plan.gather_kept(q_tiles).flatten(2, 3)
    options: dict[str, object] = {}
    if q.is_cuda:
        # Flex's default tiles need not divide ours; a tile is at most a block on either side.
        rows, keys = plan.shape[3], plan.kv_grid.block_size
        options["kernel_options"] = {
            "BLOCK_M": rows,
            "BLOCK_N": keys,
            "BLOCK_M1": rows,
            "BLOCK_N1": keys,
            "BLOCK_M2": rows,
            "BLOCK_N2": keys,
        }
    out = compiled_flex_attention()(q, k_tiles, v_tiles, block_mask=prepared, scale=scale, **options)
    return out.unflatten(2, plan.shape[2:])


def executed_flop(plan: BlockPlan, head_dim: int) -> int:
    """FLOP of the forward's matrix products: K packed rows by all slots of the listed blocks (synchronises)."""
    pairs = plan.shape[3] * plan.kv_grid.block_size * int(plan.kv_counts.sum())
    return 4 * head_dim * pairs
