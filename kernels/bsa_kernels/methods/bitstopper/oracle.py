"""BitStopper's output from its definition, without bit planes, to verify the simulation with."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bsa_kernels.methods.bitstopper.options import Mode, Options, check_shapes, quantisation_step, quantise


@torch.no_grad()
def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    tokens: Tensor | None = None,
    bits: int = 12,
    alpha: float = 0.6,
    radius: float = 5.0,
    causal: bool = False,
    mode: Mode = "adaptive",
    q_step: float | None = None,
    k_step: float | None = None,
) -> Tensor:
    """Compute one head's output at some tokens in fp64: softmax over keys within alpha * radius of the best score.

    Args:
        q: [Lq, D].
        k: [Lk, D].
        v: [Lk, Dv].
        scale: of the logits.
        tokens: indices [T] of the rows to return; all if not given.
        bits, alpha, radius, causal: as in `simulate`.
        mode: `exact` keeps every key; `adaptive` and `fixed` have the same survivors.
        q_step, k_step: the `quantisation_step` of the whole tensors that this head was cut from, which share one among
            heads; this head's own if not given.

    Returns:
        o [T, Dv] in fp64.

    Raises:
        ValueError: shapes that do not fit, options out of range, values that are not finite.
    """
    options = Options(scale=scale, bits=bits, alpha=alpha, radius=radius, mode=mode, fixed_planes=1)
    if q.ndim != 2:
        raise ValueError(f"q: expected one head, [Lq, D], got {list(q.shape)}")
    check_shapes(q, k, v, causal=causal)
    q_step = quantisation_step(q, bits) if q_step is None else q_step
    k_step = quantisation_step(k, bits) if k_step is None else k_step
    tokens = torch.arange(len(q), device=q.device) if tokens is None else tokens
    score = quantise(q[tokens], q_step) @ quantise(k, k_step).mT
    if causal:
        score = score.masked_fill(torch.arange(len(k), device=k.device) > tokens.unsqueeze(-1), -math.inf)
    unit = q_step * k_step * options.scale
    if mode != "exact":
        lowest = score.amax(-1, keepdim=True) - options.alpha * options.radius / unit
        score = score.masked_fill(score < lowest, -math.inf)
    return (score * unit).softmax(-1) @ v.double()
