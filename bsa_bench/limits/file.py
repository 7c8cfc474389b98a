"""A file of limits, and a device whose published figures they replace."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from bsa_bench.errors import UsageError
from bsa_bench.files import read_regular
from bsa_bench.static.architectures import Figure
from bsa_bench.static.devices import Device
from bsa_bench.static.measured import device_of

_READS = "L2 reads"


class Limit(BaseModel):
    """A figure: what, how much of which unit, and how it was come by."""

    model_config = ConfigDict(extra="forbid")

    name: str
    value: float = Field(gt=0)
    unit: str
    detail: str


class Limits(BaseModel):
    """What `bsa-bench limits --out` writes."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = 1
    device_name: str
    date: str
    packages: dict[str, str | None]
    limits: list[Limit]

    def of(self, name: str) -> list[Limit]:
        """Those whose names begin so."""
        return [each for each in self.limits if each.name.startswith(name)]


def read_limits(path: Path) -> Limits:
    """Read such a file.

    Raises:
        UsageError: it is not there, or is none; names what was expected.
    """
    try:
        content: Any = json.loads(read_regular(path).decode("utf-8-sig"))
        return Limits.model_validate(content)
    except OSError as error:
        raise UsageError(f"--limits: {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--limits: {path}: expected what `bsa-bench limits --out` wrote, got: {reason}") from error


def with_limits(devices: Sequence[Device], limits: Limits) -> list[Device]:
    """The devices, that of the limits with their figures: the fastest reads, additions, copy and matrix product.

    Raises:
        UsageError: the limits are of none of these devices.
    """
    name = device_of(limits.device_name)
    if name not in {device.name for device in devices}:
        known = ", ".join(device.name for device in devices)
        raise UsageError(f"--limits: measured on {limits.device_name}, expected one of {known}; see --device")
    return [_measured(device, limits) if device.name == name else device for device in devices]


def _measured(device: Device, limits: Limits) -> Device:
    where = f"bsa-bench limits on {limits.device_name}, {limits.date}"

    def best(name: str) -> Figure | None:
        found = max(limits.of(name), key=lambda each: each.value, default=None)
        return Figure(found.value, f"{found.detail}; {where}", measured=True) if found else None

    return replace(
        device,
        l2_bytes_per_s=best(_READS) or device.l2_bytes_per_s,
        hbm_copy_bytes_per_s=best("HBM copy") or device.hbm_copy_bytes_per_s,
        matmul_flop_per_s=best("matrix product") or device.matmul_flop_per_s,
        l2_added_bytes_per_s=best("fp32 additions") or device.l2_added_bytes_per_s,
    )
