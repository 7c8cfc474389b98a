import pytest
from report_factory import case, measured

from bsa_bench.result import Ceiling, Status
from bsa_bench.run.plausible import BELIEVED, judged_time


def ceiling(flop_per_s):
    return [
        Ceiling(name="GEMM float32", value=flop_per_s, unit="FLOP/s", detail=""),
        Ceiling(name="copy", value=1e30, unit="B/s", detail=""),
    ]


@pytest.mark.parametrize(("passes", "share"), [("forward", 1.0), ("backward", 0.8), ("forward+backward", 0.8)])
def test_a_time_that_the_device_cannot_reach_is_implausible_and_one_that_it_can_is_not(passes, share):
    result = measured(case(passes=passes, dtype="float32"), median=0.01)
    needed = share * result.work.flops_nominal / 0.01 / BELIEVED
    assert judged_time(result, ceiling(needed * 1.1)) == result
    found = judged_time(result, ceiling(needed * 0.9))
    assert found.status is Status.IMPLAUSIBLE
    assert found.timing is None
    assert "times the rate that the device showed" in found.reason


def test_without_a_ceiling_or_in_a_format_that_it_does_not_bound_nothing_is_said():
    result = measured(case(dtype="float32"), median=1e-9)
    assert judged_time(result, []) == result
    half = measured(case(dtype="bfloat16"), median=1e-9)
    assert judged_time(half, ceiling(1.0)) == half
