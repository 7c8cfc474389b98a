"""Check an operator's output and gradients against an independent fp64 oracle, before (and after) it is timed."""

from bsa_bench.verify.check import judged, verify, verify_case

__all__ = ["judged", "verify", "verify_case"]
