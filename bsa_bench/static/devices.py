"""The GPUs that ceilings are predicted for: what a whole device adds to its SMs, each figure with its source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from bsa_bench.errors import UsageError
from bsa_bench.static.architectures import Figure
from bsa_bench.static.config import ArchName
from bsa_bench.suite.suggest import did_you_mean


@dataclass(frozen=True)
class Device:
    """A GPU.

    Attributes:
        boost_clock_hz: the clock at which the vendor states the peaks.
        hbm_bytes_per_s: by the datasheet.
        l2_bytes_per_s: from L2 into the SMs, reads.
        matmul_flop_per_s: the fastest bf16 matrix product seen; None where nobody measured it for this project.
        hbm_copy_bytes_per_s: of a device copy, read and written bytes together; None as above.
        l2_added_bytes_per_s: fp32 numbers added to memory that L2 holds, by atomics without a result; None as above.
    """

    name: str
    arch: ArchName
    num_sms: Figure
    boost_clock_hz: Figure
    hbm_bytes_per_s: Figure
    l2_bytes: Figure
    l2_bytes_per_s: Figure
    matmul_flop_per_s: Figure | None = None
    hbm_copy_bytes_per_s: Figure | None = None
    l2_added_bytes_per_s: Figure | None = None


_A100 = "NVIDIA A100 whitepaper and datasheet"
_HOPPER_L2 = (
    "4,472 bytes a clock, measured on an H800 PCIe (arXiv 2501.12084, table 5), at the boost clock; "
    "XLA's cost model has 6.65e12 as measured on an H100 inside one L2 partition"
)
_HOPPER_CLOCK_HZ = Figure(1.83e9, "the clock at which 132 SMs of 4,096 FLOP a clock give the datasheet's 989 TFLOP/s")

DEVICES: Mapping[str, Device] = MappingProxyType(
    {
        device.name: device
        for device in (
            Device(
                name="A100-SXM-80GB",
                arch="sm_80",
                num_sms=Figure(108, _A100),
                boost_clock_hz=Figure(1.41e9, _A100),
                hbm_bytes_per_s=Figure(2.039e12, _A100),
                l2_bytes=Figure(40 * 2**20, _A100),
                l2_bytes_per_s=Figure(5120 * 1.41e9, f"{_A100}: 5,120 bytes a clock, at the boost clock"),
            ),
            Device(
                name="H100-SXM",
                arch="sm_90",
                num_sms=Figure(132, "NVIDIA H100 datasheet"),
                boost_clock_hz=_HOPPER_CLOCK_HZ,
                hbm_bytes_per_s=Figure(3.35e12, "NVIDIA H100 datasheet"),
                l2_bytes=Figure(50 * 2**20, "NVIDIA H100 whitepaper"),
                l2_bytes_per_s=Figure(4472 * 1.83e9, _HOPPER_L2, measured=True),
            ),
            Device(
                name="H200-SXM",
                arch="sm_90",
                num_sms=Figure(132, "device query of one H200"),
                boost_clock_hz=_HOPPER_CLOCK_HZ,
                hbm_bytes_per_s=Figure(4.8e12, "NVIDIA H200 datasheet"),
                l2_bytes=Figure(60 * 2**20, "device query of one H200"),
                l2_bytes_per_s=Figure(4472 * 1.83e9, _HOPPER_L2, measured=True),
                matmul_flop_per_s=Figure(788e12, "8192 x 8192 x 8192 in bf16 on one H200: 769 to 798", measured=True),
                hbm_copy_bytes_per_s=Figure(4.3e12, "device copy of torch on one H200", measured=True),
            ),
            Device(
                name="B200",
                arch="sm_100",
                num_sms=Figure(148, "NVIDIA Blackwell architecture brief"),
                boost_clock_hz=Figure(
                    1.856e9, "the clock at which 148 SMs of 8,192 FLOP a clock give the datasheet's 2,250 TFLOP/s"
                ),
                hbm_bytes_per_s=Figure(8e12, "NVIDIA HGX B200 datasheet"),
                l2_bytes=Figure(126 * 2**20, "device query, as published"),
                l2_bytes_per_s=Figure(
                    21.2e12,
                    "a public microbenchmark of one B200 at 1.59 GHz; no vendor figure; not scaled to the boost clock",
                    measured=True,
                ),
            ),
        )
    }
)


def device_for(name: str) -> Device:
    """The device of a name.

    Raises:
        UsageError: there is none; lists those that are.
    """
    if name not in DEVICES:
        raise UsageError(f"--device: got {name!r}, expected one of {', '.join(DEVICES)}{did_you_mean(name, DEVICES)}")
    return DEVICES[name]
