"""The gated delta rule (Gated DeltaNet): a causal, linear-time memory in place of softmax attention.

A head carries a state S [K, V]. A token decays it, replaces what its key recalls by its value, and reads it:

    S <- exp(g) S;   u = beta (v - S^T k);   S <- S + k u^T;   o = scale S^T q

It approximates no softmax attention: compare speed and memory, never the output. Source: arXiv 2412.06464; the order
of decay and correction is that of flash-linear-attention's reference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bsa_kernels.lazy import lazy_names

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

__getattr__ = lazy_names(
    __name__,
    {
        "chunks": ("chunked",),
        "fla_adaptor": ("fla", "fla_unsupported"),
        "flop": (
            "Flop",
            "chunked_backward_flop",
            "chunked_forward_flop",
            "nominal_backward_flop",
            "nominal_forward_flop",
        ),
        "naive": ("recurrence",),
        "oracle": ("reference",),
    },
)
