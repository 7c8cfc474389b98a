"""BitStopper: an accelerator that reads keys one bit plane at a time and stops a key once it cannot matter. Simulated.

The simulation computes the output and counts what the hardware would fetch. Counts are no times: they belong in no
column of latencies. Inference only. Source: arXiv 2512.06457, by secondary notes; docs/methods/bitstopper.md says which
steps are ours.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bsa_kernels.methods.bitstopper.counters import Counters
    from bsa_kernels.methods.bitstopper.options import Mode, quantisation_step
    from bsa_kernels.methods.bitstopper.oracle import reference
    from bsa_kernels.methods.bitstopper.simulation import simulate

__all__ = [
    "Counters",
    "Mode",
    "quantisation_step",
    "reference",
    "simulate",
]

# Where each name is; loaded on first use, so that the arithmetic of a method needs no torch.
_HOMES = {
    "Counters": "bsa_kernels.methods.bitstopper.counters",
    "Mode": "bsa_kernels.methods.bitstopper.options",
    "quantisation_step": "bsa_kernels.methods.bitstopper.options",
    "reference": "bsa_kernels.methods.bitstopper.oracle",
    "simulate": "bsa_kernels.methods.bitstopper.simulation",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
