"""The oracle: masked attention written straight from the definition, with every score in memory.

It reads the plan only as a dense token mask and a source map, never its lists, so that an engine which walks the lists
wrongly disagrees with it. Differentiable by autograd; fp32, or fp64 for fp64 inputs, whatever the inputs' format.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bsa_kernels.block_engine import Passes
from bsa_kernels.plan import BlockPlan


def unsupported(device: torch.device, dtype: torch.dtype, head_dim: int, *, backward: bool) -> str | None:  # noqa: ARG001
    """Return None: the reference runs everywhere, in memory of B*H*L*L scores."""
    return None


def unsupported_plan(plan: BlockPlan) -> str | None:  # noqa: ARG001
    """Return None: every plan runs."""
    return None


def prepare(plan: BlockPlan) -> Tensor:
    """[B, H, Nq*K, Nk*Mk] bool: which slots each kept row attends to."""
    k = plan.shape[3]
    mk = plan.kv_grid.block_size
    real = torch.arange(mk, device=plan.device) < plan.kv_real_counts(plan.device).unsqueeze(-1)
    slots = plan.block_mask.unsqueeze(-1) & real  # [B, H, Nq, Nk, Mk]
    sees = slots.flatten(3).unsqueeze(3).expand(-1, -1, -1, k, -1)
    if not plan.rule.is_full:
        allowed = plan.rule.sees(plan.kept_positions.unsqueeze(-1), plan.keys.positions(plan.device).flatten())
        allowed[..., plan.kv_grid.num_slots :] = True
        sees = sees & allowed
    return sees.flatten(2, 3)


def attend(
    q_tiles: Tensor, k_tiles: Tensor, v_tiles: Tensor, plan: BlockPlan, prepared: object, *, scale: float
) -> Tensor:
    """Compute the kept rows [B, H, Nq, K, D] in the inputs' format, in fp32 or fp64 inside."""
    return attend_lse(q_tiles, k_tiles, v_tiles, plan, prepared, scale=scale)[0]


def attend_lse(
    q_tiles: Tensor, k_tiles: Tensor, v_tiles: Tensor, plan: BlockPlan, prepared: object, *, scale: float
) -> tuple[Tensor, Tensor]:
    """Compute the kept rows and their log-sum-exp [B, H, Nq, K] in fp32 or fp64, -inf for a row that sees nothing."""
    assert isinstance(prepared, Tensor)
    q, k, v = (x if x.dtype == torch.float64 else x.float() for x in (plan.gather_kept(q_tiles), k_tiles, v_tiles))
    out, lse = masked_attention_lse(q.flatten(2, 3), k, v, prepared, scale=scale)
    return out.unflatten(2, plan.shape[2:]).to(q_tiles.dtype), lse.unflatten(2, plan.shape[2:])


def executed_flop(plan: BlockPlan, head_dim: int, which: Passes) -> int:
    """FLOP of the matrix products over pairs: all K rows of each block by all KV slots, dense.

    Two products forward; autograd has two for each of them.
    """
    b, h, nq, k = plan.shape
    pairs = b * h * nq * k * plan.keys.num_slots
    return 2 * head_dim * pairs * {"forward": 2, "backward": 4, "forward+backward": 6}[which]


def masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, scale: float) -> Tensor:
    """Softmax attention of q [.., R, D] over k, v [.., S, D] under a bool mask [.., R, S]; all in the format of q.

    A row that sees nothing gives zero, and zero gradients.
    """
    return masked_attention_lse(q, k, v, mask, scale=scale)[0]


def masked_attention_lse(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, scale: float
) -> tuple[Tensor, Tensor]:
    """`masked_attention`, and the log-sum-exp of its logits [.., R], natural, -inf for a row that sees nothing."""
    scores = (q @ k.transpose(-1, -2)) * scale
    if mask is not None:
        # A finite floor and a second mask: -inf minus -inf would be NaN in an empty row.
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min / 2)
    top = scores.amax(-1, keepdim=True)
    weights = (scores - top).exp()
    if mask is not None:
        weights = weights.masked_fill(~mask, 0)
    total = weights.sum(-1, keepdim=True)
    empty = total == 0
    total = total.masked_fill(empty, 1)
    return (weights @ v) / total, (top + total.log()).masked_fill(empty, -torch.inf).squeeze(-1)
