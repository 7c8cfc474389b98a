"""What every form of the gated delta rule does to its inputs first: check shapes, widen the dtype, normalise rows."""

from __future__ import annotations

import torch
from torch import Tensor

#: Added to the squared length of a row before the root. Source: flash-linear-attention's `l2norm`.
NORM_EPSILON = 1e-6


def check_inputs(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, initial_state: Tensor | None) -> None:
    """Check q, k [B, H, L, K], v [B, H, L, V], g, beta [B, H, L] and the state [B, H, K, V]; any leading axes will do.

    Raises:
        ValueError: names the argument, the expected shape and the given one.
    """
    if q.ndim < 2 or q.shape[-2] == 0:
        raise ValueError(f"q: expected [B, H, L, D] with at least one token, got {list(q.shape)}")
    rows = q.shape[:-1]
    expected = {
        "k": (k, q.shape),
        "v": (v, (*rows, v.shape[-1] if v.ndim else 0)),
        "g": (g, rows),
        "beta": (beta, rows),
    }
    if initial_state is not None:
        expected["initial_state"] = (initial_state, (*rows[:-1], q.shape[-1], v.shape[-1]))
    for name, (tensor, shape) in expected.items():
        if tensor.shape != torch.Size(shape):
            raise ValueError(f"{name}: expected shape {list(shape)}, got {list(tensor.shape)}")


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype to compute in: fp64 where an input has it, fp32 otherwise."""
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


def l2_normalise(x: Tensor) -> Tensor:
    """Scale rows to length one: x / sqrt(|x|^2 + 1e-6). A zero row stays zero and has a gradient."""
    return x * (x.square().sum(-1, keepdim=True) + NORM_EPSILON).rsqrt()
