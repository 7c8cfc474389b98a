"""Whether a time can be true: what the definition multiplies, against the rate that the device showed in this run."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from bsa_bench.result import Ceiling, Result, Status
from bsa_bench.units import format_seconds

#: A ceiling may have been measured while others used the machine, or at a lower clock: so many times more is believed.
BELIEVED = 3.0
#: Nominal FLOP of a backward count recomputed scores; an engine that keeps them does without: 4 products of 5.
_LEAST_SHARE = 0.8


def judged_time(result: Result, ceilings: Sequence[Ceiling]) -> Result:
    """The result, or without its time as IMPLAUSIBLE where no device of these ceilings can have computed it so fast."""
    rate = _rate(result, ceilings)
    if result.status is not Status.OK or result.timing is None or result.work is None or rate is None:
        return result
    flop = result.work.flops_nominal * (1.0 if result.case.passes == "forward" else _LEAST_SHARE)
    least_s, found_s = flop / (BELIEVED * rate), median(result.timing.samples)
    if found_s >= least_s:
        return result
    reason = (
        f"a median of {format_seconds(found_s)}, where {flop:.3g} FLOP at {BELIEVED:g} times the rate that the device "
        f"showed in this run, {rate:.3g} FLOP/s, take {format_seconds(least_s)}"
    )
    fields = {"status": Status.IMPLAUSIBLE, "reason": reason, "timing": None, "energy": None}
    return result.model_copy(update=fields)


def _rate(result: Result, ceilings: Sequence[Ceiling]) -> float | None:
    """The highest measured rate of matrix products; on a CPU only where one in fp32 bounds the format."""
    on_cpu = result.timing is not None and result.timing.timer == "host"
    if on_cpu and result.case.workload.dtype not in {"float32", "float64"}:
        return None
    return max((ceiling.value for ceiling in ceilings if ceiling.unit == "FLOP/s"), default=None)
