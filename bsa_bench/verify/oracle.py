"""Oracles of attention by a mask, for the methods whose definition that is: dense, causal, and block plans."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bsa_bench.contract import Reference
from bsa_bench.verify.sample import HeadRows, RowSample, head_rows
from bsa_kernels import BlockPlan
from bsa_kernels.engines.reference import masked_attention


def causal_mask(tokens: Tensor, num_keys: int) -> Tensor:
    """[R, L] bool: the keys that causal attention lets each of `tokens` [R] see."""
    return torch.arange(num_keys, device=tokens.device) <= tokens.unsqueeze(-1)


def dense_reference(tensors: Mapping[str, Tensor], rows: RowSample, *, scale: float, causal: bool) -> Reference:
    """Dense attention of one head at the sampled tokens; q, k and v are [L, D]."""
    mask = causal_mask(rows.tokens, len(tensors["k"])) if causal else None
    every = torch.arange(len(rows.tokens), device=rows.tokens.device)
    return _reference(tensors, HeadRows(rows.tokens, mask, every), scale=scale)


def plan_reference(
    tensors: Mapping[str, Tensor],
    plan: BlockPlan,
    rows: RowSample,
    head: tuple[int, int],
    *,
    scale: float,
    causal: bool = False,
) -> Reference:
    """Attention of one head by its plan, read by its token-level tables and never by its lists of indices.

    Where `causal`, the mass that the plan keeps is a share of causal dense attention's.
    """
    view = head_rows(plan, rows, *head)
    reachable = causal_mask(view.rows, len(tensors["k"])) if causal else None
    return _reference(tensors, view, scale=scale, mass_of=(reachable,))


def _reference(
    tensors: Mapping[str, Tensor], head: HeadRows, *, scale: float, mass_of: tuple[Tensor | None] | None = None
) -> Reference:
    """`mass_of`: the keys [R', L] whose mass is the whole, None for all; without it no mass is counted."""
    q, k, v = (tensors[name] for name in "qkv")
    out = masked_attention(q[head.rows], k, v, head.mask, scale=scale)
    out = out[head.source.clamp(min=0)].masked_fill((head.source < 0).unsqueeze(-1), 0)
    num_keys = len(k) if head.mask is None else int(head.mask.sum(-1).max())
    if q.dtype != torch.float64:  # the rest is asked of the truth alone
        return Reference(out, num_keys)
    with torch.no_grad():
        scores = (q[head.rows] @ k.T) * scale
        seen = scores if head.mask is None else scores.masked_fill(~head.mask, -torch.inf)
        lse = seen.logsumexp(-1)
        finite = lse[lse.isfinite()].abs()
        mass = None
        if mass_of and head.mask is not None:
            whole = scores if mass_of[0] is None else scores.masked_fill(~mass_of[0], -torch.inf)
            mass = (whole.softmax(-1) * head.mask).sum(-1)
    return Reference(out, num_keys, float(finite.max()) if len(finite) else 0.0, mass)
