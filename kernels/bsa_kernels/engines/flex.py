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

    from torch.nn.attention.flex_attention import BlockMask

_DENSE_BLOCK = 128


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


@lru_cache(maxsize=8)
def everything_mask(length: int, device: torch.device) -> BlockMask:
    """A `BlockMask` of all pairs in FlexAttention's default blocks of 128.

    Without any block mask torch's CPU kernel takes the whole length as one block and holds all its scores: 0.56 s
    against 0.22 s, and quadratic memory (8,192 tokens, 2 heads x 64, fp32, AMD EPYC, torch 2.13, 2026-11-21).
    """
    from torch.nn.attention.flex_attention import BlockMask

    num_blocks = -(-length // _DENSE_BLOCK)
    num_full = length // _DENSE_BLOCK
    column = torch.arange(num_blocks, dtype=torch.int32, device=device)
    indices = column.expand(1, 1, num_blocks, num_blocks)

    def counts(value: int) -> Tensor:
        return torch.full((1, 1, num_blocks), value, dtype=torch.int32, device=device)

    def inside(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:  # noqa: ARG001
        return kv < length

    return BlockMask.from_kv_blocks(
        counts(num_blocks - num_full),
        indices.flip(-1).contiguous(),  # the ragged last block, if there is one
        counts(num_full),
        indices.contiguous(),
        BLOCK_SIZE=_DENSE_BLOCK,
        mask_mod=inside,
        seq_lengths=(length, length),
    )


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
