"""The gated delta rule of one head in two small operations per token, to verify other forms with.

The recurrence of `naive.recurrence`, with the decay a = exp(g) moved into the two products that read the last state:

    u_t = beta_t v_t - S_{t-1}^T (a_t beta_t k_t);    S_t = a_t S_{t-1} + k_t u_t^T;    o_t = S_t^T q_t

and its adjoint, from the last token to the first. With M the gradient of S_t, its own output's included, and
w = beta M^T k:

    S_{t-1} receives a (M - k w^T)

All that does not pass from token to token is computed for a segment at once. Chosen for verification at 4,096 to 16,384
tokens on a CPU: autograd over the loop is several times slower, and a quadratic form grows with L^2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bsa_kernels.methods.gated_delta_rule.inputs import check_inputs, l2_normalise
from bsa_kernels.methods.gated_delta_rule.naive import first_state

#: Tokens between two kept states; the backward replays a segment and holds its states.
SEGMENT = 128


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    scale: float,
    tokens: Tensor | None = None,
    initial_state: Tensor | None = None,
    normalise: bool = True,
) -> Tensor:
    """Compute the outputs of one head at some tokens.

    Args:
        q, k: [L, K], in the dtype to compute in (fp64 to verify).
        v: [L, V].
        g, beta: [L].
        scale: of q.
        tokens: indices [T] of the rows to return; all if not given. Nothing after the last of them is computed.
        initial_state: [K, V]; zero if not given.
        normalise: scale the rows of q and k to length one first.

    Returns:
        o [T, V], once differentiable in every tensor.

    Raises:
        ValueError: shapes that do not fit, or more axes than one head has.
    """
    if q.ndim != 2:
        raise ValueError(f"q: expected one head, [L, D], got {list(q.shape)}")
    check_inputs(q, k, v, g, beta, initial_state)
    end = q.shape[0] if tokens is None else int(tokens.max()) + 1
    q, k, v, g, beta = (x[:end] for x in (q, k, v, g, beta))
    if normalise:
        q, k = l2_normalise(q), l2_normalise(k)
    state = first_state(q, v, initial_state)
    parts = []
    for segment in zip(*(x.split(SEGMENT) for x in (q * scale, k, v, g.exp(), beta)), strict=True):
        out, state = _Segment.apply(state, *segment)
        parts.append(out)
    o = torch.cat(parts)
    return o if tokens is None else o[tokens]


class _Segment(torch.autograd.Function):
    """The outputs of a segment and the state after it; saves the state before it."""

    @staticmethod
    def forward(ctx: Any, state: Tensor, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor) -> Any:
        ctx.save_for_backward(state, q, k, v, decay, beta)
        states = _replay(state, k, v, decay, beta)
        return _read(states[1:], q), states[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor, d_state: Tensor) -> Any:
        state, q, k, v, decay, beta = ctx.saved_tensors
        return _adjoint(state, q, k, v, decay, beta, d_out, d_state)


def _replay(state: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor) -> Tensor:
    """Compute the states [L + 1, K, V] before, between and after the tokens."""
    states = state.new_empty(len(k) + 1, *state.shape)
    states[0] = state
    weighted_v, weighted_k = beta.unsqueeze(-1) * v, (decay * beta).unsqueeze(-1) * k
    per_token = (states[:-1], states[1:], k, weighted_k, weighted_v)
    for a, (before, after, key, wk, wv) in zip(
        decay.tolist(), zip(*(x.unbind() for x in per_token), strict=True), strict=True
    ):
        torch.addr(before, key, torch.addmv(wv, before.mT, wk, alpha=-1), beta=a, out=after)
    return states


def _adjoint(
    state: Tensor, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, d_out: Tensor, d_state: Tensor
) -> tuple[Tensor, ...]:
    """Compute the gradients of the state before a segment and of its q, k, v, decay and beta."""
    states = _replay(state, k, v, decay, beta)
    before, after = states[:-1], states[1:]
    grads = torch.empty_like(after)
    weighted_k = beta.unsqueeze(-1) * k
    per_token = (grads, q, k, weighted_k, d_out)
    for a, (grad, query, key, wk, d_row) in zip(
        reversed(decay.tolist()), zip(*(reversed(x.unbind()) for x in per_token), strict=True), strict=True
    ):
        torch.addr(d_state, query, d_row, out=grad)
        d_state = torch.addr(grad, key, grad.mT @ wk, beta=a, alpha=-a)
    d_v = _read(grads, weighted_k)
    unseen = v - decay.unsqueeze(-1) * _read(before, k)
    recalled_grad = (before @ d_v.unsqueeze(-1)).squeeze(-1)
    d_q = (after @ d_out.unsqueeze(-1)).squeeze(-1)
    d_k = (grads @ (beta.unsqueeze(-1) * unseen).unsqueeze(-1)).squeeze(-1) - decay.unsqueeze(-1) * recalled_grad
    d_decay = (grads * before).sum((-1, -2)) - (k * recalled_grad).sum(-1)
    d_beta = (_read(grads, k) * unseen).sum(-1)
    return d_state, d_q, d_k, d_v, d_decay, d_beta


def _read(states: Tensor, rows: Tensor) -> Tensor:
    """S^T x of each token: states [L, K, V] and rows [L, K] to [L, V]."""
    return (rows.unsqueeze(-2) @ states).squeeze(-2)
