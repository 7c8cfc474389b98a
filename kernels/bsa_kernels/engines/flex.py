"""FlexAttention on the plan: the same block mask, compiled by torch.

The kept rows are packed to [B, H, Nq*K, D], so that a query block of the mask has K rows.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bsa_kernels.block_engine import Passes
from bsa_kernels.engines import gather
from bsa_kernels.engines.flex_needs import cache_fault, compiler_off, cpp_fault
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
    if off := compiler_off():
        return f"{off}, and FlexAttention uncompiled is another program; set it back, or use the engine gather."
    if dtype == torch.float64:
        return "FlexAttention does not take float64; use float32, float16 or bfloat16."
    if device.type == "cpu":
        if backward:
            return "FlexAttention has no backward on CPUs; run it on a GPU, or use the engine gather here."
        if fault := cpp_fault():
            return fault
    elif device.type != "cuda":
        return f"FlexAttention is compiled for cpu and cuda here, not for {device.type}; move the tensors."
    if device.type == "cuda" and head_dim < 16:
        return f"FlexAttention on a GPU needs a head size of at least 16, got {head_dim}; use the engine gather."
    return cache_fault()


@lru_cache(maxsize=1)
def compiled_flex_attention() -> Callable[..., Any]:
    """FlexAttention compiled once for the process, static shapes.

    It raises ValueError where torch.compile is switched off or runs the function as it is for any other reason: torch
    would compute the whole matrix of scores, and not say so.
    """
    from torch._dynamo import config
    from torch.nn.attention.flex_attention import flex_attention

    def traced(*args: Any, **kwargs: Any) -> Any:
        # True while it is traced, and no part of what is compiled: only an uncompiled call ever gets here.
        if not torch.compiler.is_compiling():
            raise ValueError("engine 'flex': torch.compile ran FlexAttention uncompiled; use the engine gather")
        return flex_attention(*args, **kwargs)

    compiled = torch.compile(traced, backend="inductor", dynamic=False, fullgraph=True)

    def call(*args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling() and (off := compiler_off()):
            raise ValueError(f"engine 'flex': {off}, and FlexAttention uncompiled is another program")
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


def unsupported_plan(plan: BlockPlan) -> str | None:  # noqa: ARG001
    """Return None: every plan has its `BlockMask`."""
    return None


def prepare(plan: BlockPlan) -> object:
    """The plan as FlexAttention's `BlockMask`."""
    return plan.to_flex()


def attend(
    q_tiles: Tensor, k_tiles: Tensor, v_tiles: Tensor, plan: BlockPlan, prepared: object, *, scale: float
) -> Tensor:
    """Compute the kept rows [B, H, Nq, K, D].

    Raises:
        ValueError: torch would compile a wrong kernel, see `_refuse_wrong_kernel`.
    """
    _refuse_wrong_kernel(q_tiles, plan)
    q, options = _call(q_tiles, plan)
    out = compiled_flex_attention()(q, k_tiles, v_tiles, block_mask=prepared, scale=scale, **options)
    return out.unflatten(2, plan.shape[2:])


def attend_lse(
    q_tiles: Tensor, k_tiles: Tensor, v_tiles: Tensor, plan: BlockPlan, prepared: object, *, scale: float
) -> tuple[Tensor, Tensor]:
    """Compute the kept rows and their log-sum-exp [B, H, Nq, K] in fp32, -inf for a row that sees nothing.

    On a CPU torch compiles FlexAttention without its log-sum-exp (2.11 to 2.13): there the engine gather computes that
    from the same lists, in a second pass over the logits.
    """
    from torch.nn.attention.flex_attention import AuxRequest

    if not q_tiles.is_cuda:
        out = attend(q_tiles, k_tiles, v_tiles, plan, prepared, scale=scale)
        return out, gather.log_sum_exp(q_tiles, k_tiles, plan, gather.prepare(plan), scale=scale)
    q, options = _call(q_tiles, plan)
    out, aux = compiled_flex_attention()(
        q, k_tiles, v_tiles, block_mask=prepared, scale=scale, return_aux=AuxRequest(lse=True), **options
    )
    return out.unflatten(2, plan.shape[2:]), aux.lse.unflatten(2, plan.shape[2:])


def _refuse_wrong_kernel(q: Tensor, plan: BlockPlan) -> None:
    """Refuse small heads with KV blocks that end in a part of a tile: torch's CPU kernel writes past its scores there.

    It multiplies 16 keys at a time; for a rest of whole vectors and a head size below 24 (both by whole vectors, of 4
    or 8 numbers) it stores all 16 columns. Seen as wrong outputs and NaN with torch 2.13 on AVX2, 2026-11-26.

    Raises:
        ValueError: this is such a case.
    """
    size, head_dim = plan.kv_grid.block_size, q.shape[-1]
    if not q.is_cuda and size % 16 in {4, 8, 12} and head_dim < 24 and head_dim % 4 == 0:
        raise ValueError(
            f"engine 'flex': torch compiles a wrong kernel on CPUs for KV blocks of {size} tokens and head size "
            f"{head_dim}; use blocks of a multiple of 16, a head size of at least 24, or the engine gather"
        )


def _call(q_tiles: Tensor, plan: BlockPlan) -> tuple[Tensor, dict[str, object]]:
    """The packed rows [B, H, Nq*K, D], and options of the kernel."""
    q = plan.gather_kept(q_tiles).flatten(2, 3)
    if not q.is_cuda:
        return q, {}
    # Flex's default tiles need not divide ours; a tile is at most a block on either side.
    rows, keys = plan.shape[3], plan.kv_grid.block_size
    options = {
        "BLOCK_M": rows,
        "BLOCK_N": keys,
        "BLOCK_M1": rows,
        "BLOCK_N1": keys,
        "BLOCK_M2": rows,
        "BLOCK_N2": keys,
    }
    return q, {"kernel_options": options}


def executed_flop(plan: BlockPlan, head_dim: int, which: Passes) -> int:
    """FLOP of the matrix products over pairs: K packed rows by all slots of the listed blocks (synchronises).

    Two products forward; the backward has a loop for dq, of three, and one for dk and dv, of four, each of which
    computes the scores again (torch's template for CUDA, which pads the head size to a power of two).
    """
    pairs = plan.shape[3] * plan.kv_grid.block_size * int(plan.kv_counts.sum())
    width = 1 << (head_dim - 1).bit_length() if plan.device.type == "cuda" else head_dim
    return 2 * width * pairs * {"forward": 2, "backward": 7, "forward+backward": 9}[which]
