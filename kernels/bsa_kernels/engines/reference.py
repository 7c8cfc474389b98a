"""The oracle: masked attention written straight from the definition, with every score in memory.

It reads the plan only as a dense token mask and a source map, never its lists, so that an engine which walks the lists
wrongly disagrees with it. Differentiable by autograd; fp32, or fp64 for fp64 inputs, whatever the inputs' format.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bsa_kernels.plan import BlockPlan


def unsupported(device: torch.device, dtype: torch.dtype, head_dim: int, *, backward: bool) -> str | None:  # noqa: ARG001
    """Return None: the reference runs everywhere, in memory of B*H*L*L scores."""
    return None


def prepare(plan: BlockPlan) -> Tensor:
    """[B, H, Nq*K, Nk*Mk] bool: which slots each kept row attends to."""
    k = plan.shape[3]
    mk = plan.kv_grid.block_size
    real = torch.arange(mk, device=plan.device) < plan.kv_grid.real_counts(plan.device).unsqueeze(-1)
    slots = plan.block_mask.unsqueeze(-1) & real  # [B, H, Nq, Nk, Mk]
    return slots.flatten(3).unsqueeze(3).expand(-1, -1, -1, k, -1).flatten(2, 3)


def attend(
    q_tiles: Tensor, k_tiles: Tensor, v_tiles: Tensor, plan: BlockPlan, prepared: object, *, scale: float
) -> Tensor:
    """Compute the kept rows [B, H, Nq, K, D] in the inputs' format, in fp32 or fp64 inside."""
    assert isinstance(prepared, Tensor)
    q, k, v = (x if x.dtype == torch.float64 else x.float() for x in (plan.gather_kept(q_tiles), k_tiles, v_tiles))
    out = masked_attention(q.flatten(2, 3), k, v, prepared, scale=scale)
    return out.unflatten(2, plan.shape[2:]).to(q_tiles.dtype)


def executed_flop(plan: BlockPlan, head_dim: int) -> int:
    """FLOP of the forward's matrix products: all K rows of each block by all KV slots, dense."""
    b, h, nq, k = plan.shape
    return 4 * head_dim * b * h * nq * k * plan.kv_grid.num_slots


def masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, scale: float) -> Tensor:
    """Softmax attention of q [.., R, D] over k, v [.., S, D] under a bool mask [.., R, S]; all in the format of q.

    A row that sees nothing gives zero, and zero gradients.
    """
    scores = (q @ k.transpose(-1, -2)) * scale
    if mask is not None:
        # A finite floor and a second mask: -inf minus -inf would be NaN in an empty row.
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min / 2)
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    if mask is not None:
        weights = weights.masked_fill(~mask, 0)
    total = weights.sum(-1, keepdim=True)
    return (weights @ v) / total.masked_fill(total == 0, 1)
