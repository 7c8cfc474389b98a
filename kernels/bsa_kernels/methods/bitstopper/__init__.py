"""BitStopper: an accelerator that reads keys one bit plane at a time and stops a key once it cannot matter. Simulated.

The simulation computes the output and counts what the hardware would fetch. Counts are no times: they belong in no
column of latencies. Inference only. Source: arXiv 2512.06457, by secondary notes; docs/methods/bitstopper.md says which
steps are ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bsa_kernels.lazy import lazy_names

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

__getattr__ = lazy_names(
    __name__,
    {
        "counters": ("Counters",),
        "options": ("Mode", "quantisation_step"),
        "oracle": ("reference",),
        "simulation": ("simulate",),
    },
)
