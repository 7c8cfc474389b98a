"""The gated delta rule (Gated DeltaNet): a causal, linear-time memory in place of softmax attention.

A head carries a state S [K, V]. A token decays it, replaces what its key recalls by its value, and reads it:

    S <- exp(g) S;   u = beta (v - S^T k);   S <- S + k u^T;   o = scale S^T q

It approximates no softmax attention: compare speed and memory, never the output. Source: arXiv 2412.06464; the order
of decay and correction is that of flash-linear-attention's reference.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bsa_kernels.methods.gated_delta_rule.chunks import chunked
    from bsa_kernels.methods.gated_delta_rule.fla_adaptor import fla, fla_unsupported
    from bsa_kernels.methods.gated_delta_rule.flop import (
        Flop,
        chunked_backward_flop,
        chunked_forward_flop,
        nominal_backward_flop,
        nominal_forward_flop,
    )
    from bsa_kernels.methods.gated_delta_rule.naive import recurrence
    from bsa_kernels.methods.gated_delta_rule.oracle import reference

__all__ = [
    "Flop",
    "chunked",
    "chunked_backward_flop",
    "chunked_forward_flop",
    "fla",
    "fla_unsupported",
    "nominal_backward_flop",
    "nominal_forward_flop",
    "recurrence",
    "reference",
]

# Where each name is; loaded on first use, so that the arithmetic of a method needs no torch.
_HOMES = {
    "chunked": "bsa_kernels.methods.gated_delta_rule.chunks",
    "fla": "bsa_kernels.methods.gated_delta_rule.fla_adaptor",
    "fla_unsupported": "bsa_kernels.methods.gated_delta_rule.fla_adaptor",
    "Flop": "bsa_kernels.methods.gated_delta_rule.flop",
    "chunked_backward_flop": "bsa_kernels.methods.gated_delta_rule.flop",
    "chunked_forward_flop": "bsa_kernels.methods.gated_delta_rule.flop",
    "nominal_backward_flop": "bsa_kernels.methods.gated_delta_rule.flop",
    "nominal_forward_flop": "bsa_kernels.methods.gated_delta_rule.flop",
    "recurrence": "bsa_kernels.methods.gated_delta_rule.naive",
    "reference": "bsa_kernels.methods.gated_delta_rule.oracle",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
