"""What NVML says of a GPU: settings that stay, slow-downs by hardware, who else computes on it. Loads no torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

Value = str | int | float | bool | None

#: NVML field by our name: nanoseconds that the hardware itself slowed the clocks down.
SLOWDOWN_FIELDS = {
    "hardware_thermal": "NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN",
    "hardware_power_brake": "NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN",
}
#: Bits of the reasons that are in force now.
SLOWDOWN_BITS = {
    "hardware slow-down": "nvmlClocksEventReasonHwSlowdown",
    "hardware thermal slow-down": "nvmlClocksEventReasonHwThermalSlowdown",
    "power brake": "nvmlClocksEventReasonHwPowerBrakeSlowdown",
}
_COMPUTE_MODES = {0: "default", 1: "exclusive thread", 2: "prohibited", 3: "exclusive process"}


def open_gpu(uuid: str) -> Any:
    """NVML's handle of a GPU.

    Raises:
        OSError: there is no driver, or no such GPU.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetHandleByUUID(uuid)
    except pynvml.NVMLError as error:
        raise OSError(f"NVML: {error}") from error


def ask(function: str, *arguments: Any) -> Any:
    """NVML's answer; None where this card, driver or version of its Python binding has none."""
    import pynvml

    call = getattr(pynvml, function, None)
    if call is None:
        return None
    try:
        return call(*arguments)
    except pynvml.NVMLError:
        return None


def settings(handle: Any) -> dict[str, Value]:
    """What an administrator may set and what changes timings; null where the card does not tell."""
    ecc, mig = ask("nvmlDeviceGetEccMode", handle), ask("nvmlDeviceGetMigMode", handle)
    mode = ask("nvmlDeviceGetComputeMode", handle)
    default_limit = ask("nvmlDeviceGetPowerManagementDefaultLimit", handle)
    return {
        "persistence_mode": _flag(ask("nvmlDeviceGetPersistenceMode", handle)),
        "ecc": _flag(ecc[0]) if ecc else None,
        "mig": _flag(mig[0]) if mig else None,
        "mps": _mps_control().exists(),
        "compute_mode": _COMPUTE_MODES.get(mode, str(mode)) if mode is not None else None,
        "application_sm_clock_hz": _hertz(ask("nvmlDeviceGetApplicationsClock", handle, _constant("NVML_CLOCK_SM"))),
        "application_memory_clock_hz": _hertz(
            ask("nvmlDeviceGetApplicationsClock", handle, _constant("NVML_CLOCK_MEM"))
        ),
        "default_power_limit_w": default_limit / 1000 if default_limit is not None else None,
    }


def hardware_slowdown_ns(handle: Any) -> dict[str, int]:
    """Nanoseconds so far, by cause; only the causes that the card counts."""
    found: dict[str, int] = {}
    for name, constant in SLOWDOWN_FIELDS.items():
        field = _constant(constant)
        values = ask("nvmlDeviceGetFieldValues", handle, [field]) if field is not None else None
        if values is not None and values[0].nvmlReturn == 0:
            found[name] = int(values[0].value.ullVal)
    return found


class GpuWatch:
    """Reads the clock of a GPU between calls, and how long its hardware has held it back.

    Raises:
        OSError: there is no driver, or no such GPU.
    """

    def __init__(self, uuid: str) -> None:
        self._handle = open_gpu(uuid)
        self._slowdown_ns = self._counted()

    def clock_hz(self) -> float | None:
        """The SM clock now; null where the card does not tell."""
        return _hertz(ask("nvmlDeviceGetClockInfo", self._handle, _constant("NVML_CLOCK_SM")))

    def slowdown_ns(self) -> int:
        """Nanoseconds of slow-down by the hardware since this was last asked."""
        before, self._slowdown_ns = self._slowdown_ns, self._counted()
        return max(self._slowdown_ns - before, 0)

    def _counted(self) -> int:
        return sum(hardware_slowdown_ns(self._handle).values())


def slowdowns_now(handle: Any) -> list[str] | None:
    """The slow-downs by hardware in force now; None where the card does not tell."""
    reasons = ask("nvmlDeviceGetCurrentClocksEventReasons", handle)
    if reasons is None:
        reasons = ask("nvmlDeviceGetCurrentClocksThrottleReasons", handle)
    if reasons is None:
        return None
    return [name for name, constant in SLOWDOWN_BITS.items() if reasons & (_constant(constant) or 0)]


def other_processes(handle: Any, *, own_pid: int) -> list[str] | None:
    """Compute processes on the GPU besides this one, which must have a context there; None where NVML shows none.

    In a container NVML may give process ids of the host, among which our own cannot be found: one of them is ours then.
    """
    running = ask("nvmlDeviceGetComputeRunningProcesses", handle)
    if not running:
        return None
    others = [process for process in running if process.pid != own_pid]
    if len(others) < len(running):
        return [_described(process) for process in others]
    if len(others) == 1:
        return []
    listed = ", ".join(map(_described, others))
    return [f"{len(others) - 1} of {listed} (ids of another namespace, one of them this process)"]


def _described(process: Any) -> str:
    used = process.usedGpuMemory
    return f"process {process.pid}" + (f" with {used / (1 << 20):,.0f} MiB" if used else "")


def _mps_control() -> Path:
    """The pipe by which a CUDA process finds a multi-process server."""
    return Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY") or "/tmp/nvidia-mps") / "control"  # noqa: S108  # CUDA's own


def _constant(name: str) -> Any:
    import pynvml

    return getattr(pynvml, name, None)


def _flag(value: int | None) -> bool | None:
    return None if value is None else bool(value)


def _hertz(megahertz: int | None) -> float | None:
    return None if megahertz is None else megahertz * 1e6
