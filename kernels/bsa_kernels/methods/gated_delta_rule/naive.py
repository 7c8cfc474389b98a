"""The gated delta rule token by token, as it is defined."""

from __future__ import annotations

import torch
from torch import Tensor

from bsa_kernels.methods.gated_delta_rule.inputs import check_inputs, l2_normalise, working_dtype


def recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    scale: float,
    initial_state: Tensor | None = None,
    normalise: bool = True,
) -> tuple[Tensor, Tensor]:
    """Run the rule token by token, as it is defined; L steps of small products.

    Args:
        q, k: [B, H, L, K].
        v: [B, H, L, V].
        g: [B, H, L], the logarithm of the decay; at most 0.
        beta: [B, H, L], how much of what a key recalls is replaced; from 0 to 1.
        scale: of q; 1/sqrt(K) in Gated DeltaNet.
        initial_state: [B, H, K, V]; zero if not given.
        normalise: scale the rows of q and k to length one first.

    Returns:
        o [B, H, L, V] in v's dtype, and the final state [B, H, K, V] in the working dtype (fp32, or fp64 if an input
        is); both differentiable in every tensor.

    Raises:
        ValueError: shapes that do not fit.
    """
    check_inputs(q, k, v, g, beta, initial_state)
    dtype = working_dtype(q, k, v, g, beta)
    out_dtype = v.dtype
    q, k, v, g, beta = (x.to(dtype) for x in (q, k, v, g, beta))
    if normalise:
        q, k = l2_normalise(q), l2_normalise(k)
    state = first_state(q, v, initial_state)
    rows = []
    for token in range(q.shape[-2]):
        key = k[..., token, :]
        state = state * g[..., token, None, None].exp()
        recalled = (state * key.unsqueeze(-1)).sum(-2)
        update = beta[..., token, None] * (v[..., token, :] - recalled)
        state = state + key.unsqueeze(-1) * update.unsqueeze(-2)
        rows.append((state * q[..., token, :, None]).sum(-2) * scale)
    return torch.stack(rows, -2).to(out_dtype), state


def first_state(q: Tensor, v: Tensor, initial_state: Tensor | None) -> Tensor:
    """Make the state before the first token, in q's dtype: the one given, or zeros."""
    if initial_state is None:
        return q.new_zeros(*q.shape[:-2], q.shape[-1], v.shape[-1])
    return initial_state.to(q.dtype)
