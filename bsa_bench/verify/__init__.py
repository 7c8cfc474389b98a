"""Check an operator's output and gradients against an independent fp64 oracle, before (and after) it is timed."""

from bsa_bench.verify.check import judged, verify, verify_case
from bsa_bench.verify.whole import Witness

__all__ = ["Witness", "judged", "verify", "verify_case"]
