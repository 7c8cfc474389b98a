"""The gated delta rule of flash-linear-attention, where that package and a CUDA GPU are present."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from bsa_kernels.methods.gated_delta_rule.inputs import check_inputs

# Signature, layouts, limits and the epsilon of its normalisation were read in release 0.6.0 (packages
# flash-linear-attention and fla-core).
MAX_HEAD_DIM = 256


def fla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    scale: float,
    initial_state: Tensor | None = None,
    normalise: bool = True,
    output_final_state: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Call `chunk_gated_delta_rule` of flash-linear-attention with the arguments of `recurrence`.

    The package reads [B, L, H, D] and copies what does not lie so in memory: q, k, v that are views of such tensors
    cost no copy, contiguous [B, H, L, D] ones do. Without `output_final_state` the second result is None.

    Raises:
        ValueError: shapes that do not fit.
        ModuleNotFoundError: the package is not installed.
    """
    check_inputs(q, k, v, g, beta, initial_state)
    ops = import_module("fla.ops.gated_delta_rule")
    q_BLHD, k_BLHD, v_BLHD, g_BLH, beta_BLH = (x.transpose(1, 2) for x in (q, k, v, g, beta))
    o_BLHD, state = ops.chunk_gated_delta_rule(
        q_BLHD,
        k_BLHD,
        v_BLHD,
        g_BLH,
        beta_BLH,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        use_qk_l2norm_in_kernel=normalise,
    )
    return o_BLHD.transpose(1, 2), state


def fla_unsupported(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Say why `fla` cannot run here, with the remedy, or None. `head_dim` is that of q and k."""
    if device.type != "cuda":
        return f"flash-linear-attention needs a CUDA GPU, the device is {device.type}: use the chunked form."
    if find_spec("fla") is None:
        return "flash-linear-attention is not installed: pip install flash-linear-attention."
    if dtype not in {torch.float16, torch.bfloat16}:
        return f"flash-linear-attention's gated delta rule is for fp16 and bf16, not {dtype}: choose one of these."
    if head_dim > MAX_HEAD_DIM:
        return f"flash-linear-attention's gated delta rule takes a head dim of at most {MAX_HEAD_DIM}, not {head_dim}."
    return None
