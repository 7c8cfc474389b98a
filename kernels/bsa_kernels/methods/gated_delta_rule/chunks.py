"""The gated delta rule in chunks: matmuls over all chunks at once, and one short step of the state per chunk.

Within a chunk of C tokens that starts from the state S, with G the running sum of g in the chunk, the updates u of
`naive.recurrence` satisfy a unit lower triangular system:

    (I + A) U = diag(beta) (V - diag(exp G) K S),    A_ij = beta_i exp(G_i - G_j) (k_i . k_j)  for j < i

so U = U0 - W S, where (I + A) [U0, W] = diag(beta) [V, diag(exp G) K] needs no state (the WY form). Then

    O = scale (diag(exp G) Q S + P U),               P_ij = exp(G_i - G_j) (q_i . k_j)         for j <= i
    S' = exp(G_C) S + K^T diag(exp(G_C - G)) U

Every exponent is a sum of g over tokens that lie between, never positive, so nothing overflows however strong the
decay. Source: arXiv 2412.06464 section 3.3 (the algorithm); solving for [U0, W] instead of inverting is ours.

Shape legend: `X` batch times heads, `N` chunks, `C` tokens per chunk, `K` key dim, `V` value dim.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from bsa_kernels.methods.gated_delta_rule.inputs import check_inputs, l2_normalise, working_dtype


def chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    scale: float,
    initial_state: Tensor | None = None,
    normalise: bool = True,
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    """Run the rule in chunks of `chunk` tokens; time and memory are linear in L.

    Arguments, results and dtypes are those of `recurrence`; g must be finite. Products are fp32 for half inputs (fp64
    for fp64). A ragged last chunk is padded with tokens that change nothing. Differentiable by autograd, which keeps
    a state per chunk.

    Raises:
        ValueError: shapes that do not fit, or a chunk below 1.
    """
    check_inputs(q, k, v, g, beta, initial_state)
    if chunk < 1:
        raise ValueError(f"chunk: expected at least one token, got {chunk}")
    lead, length, out_dtype = q.shape[:-2], q.shape[-2], v.dtype
    dtype = working_dtype(q, k, v, g, beta)
    q, k, v, beta = (x.to(dtype) for x in (q, k, v, beta))
    if normalise:
        q, k = l2_normalise(q), l2_normalise(k)
    q, k, v = (_split(x, chunk, length) for x in (q, k, v))
    g, beta = (_split(x.unsqueeze(-1), chunk, length).squeeze(-1) for x in (g, beta))
    if initial_state is None:
        state = q.new_zeros(q.shape[0], q.shape[-1], v.shape[-1])
    else:
        state = initial_state.to(dtype).reshape(-1, q.shape[-1], v.shape[-1])

    # fp64: after one token with a decay of exp(-1000), differences of fp32 sums would have lost four digits.
    total = g.double().cumsum(-1)
    later = torch.ones(chunk, chunk, dtype=torch.bool, device=q.device).triu(1)
    between = (total.unsqueeze(-1) - total.unsqueeze(-2)).masked_fill(later, -math.inf).to(dtype).exp()
    from_start = total.to(dtype).exp().unsqueeze(-1)
    to_end = (total[..., -1:] - total).to(dtype).exp().unsqueeze(-1)

    weighted = k * beta.unsqueeze(-1)
    system = (weighted @ k.mT) * between
    right = torch.cat([v * beta.unsqueeze(-1), weighted * from_start], -1)
    # The solver takes ones for the diagonal and reads nothing above it.
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    alone, correction = solved.split([v.shape[-1], k.shape[-1]], -1)

    states, updates = [], []
    steps = (alone.unbind(1), correction.unbind(1), (k * to_end).mT.unbind(1), from_start[:, :, -1:].unbind(1))
    for alone_c, correction_c, keys_c, decay_c in zip(*steps, strict=True):
        states.append(state)
        update = torch.baddbmm(alone_c, correction_c, state, alpha=-1)
        state = torch.baddbmm(state * decay_c, keys_c, update)
        updates.append(update)

    o = (q * from_start) @ torch.stack(states, 1) + ((q @ k.mT) * between) @ torch.stack(updates, 1)
    o = (o * scale).flatten(1, 2)[:, :length].to(out_dtype)
    return o.reshape(*lead, length, -1), state.view(*lead, *state.shape[1:])


def _split(x: Tensor, chunk: int, length: int) -> Tensor:
    """[..., L, D] to [X, N, C, D], padded with zeros: beta and k of zero write nothing, g of zero forgets nothing."""
    x = functional.pad(x.flatten(0, -3) if x.ndim > 2 else x.unsqueeze(0), (0, 0, 0, -length % chunk))
    return x.unflatten(1, (-1, chunk))
