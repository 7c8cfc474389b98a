"""Energy of a call: a counter of the device before and after a loop of calls, and what the device takes at rest."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch

from bsa_bench.measure import nvml
from bsa_bench.result import Energy

LOOP_S = 2.0
"""Counters are updated some ten times a second, so that a shorter loop would be read wrong by percents."""
REST_S, IDLE_S = 0.5, 1.0
BATCH_S = 0.1
RAPL = Path("/sys/class/powercap")


class Meter(Protocol):
    """A counter of joules."""

    how: str

    def joules(self) -> float:
        """Joules since some moment, never falling; an OSError if it cannot be read."""


class GpuMeter:
    """NVML's counter of a GPU: the whole board."""

    how = "NVML's total energy counter of the GPU, memory and other users of it included"

    def __init__(self, uuid: str) -> None:
        """Raise an OSError with the reason if this GPU has no such counter."""
        self._handle = nvml.open_gpu(uuid)
        self.joules()

    def joules(self) -> float:
        """Since the driver was loaded."""
        millijoules = nvml.ask("nvmlDeviceGetTotalEnergyConsumption", self._handle)
        if millijoules is None:
            raise OSError("NVML gives no total energy of this GPU, expected it of Volta and later")
        return float(millijoules) / 1000


class RaplMeter:
    """The processor packages' own counters (RAPL), added up; without memory, with all that runs on them."""

    how = "RAPL counters of the processor packages, other processes included"

    def __init__(self, folder: Path = RAPL) -> None:
        """Raise an OSError with the reason if there are none, or none that may be read."""
        self._packages = [
            package
            for package in sorted(folder.glob("intel-rapl:*"))
            if package.name.count(":") == 1 and (package / "name").read_text().startswith("package")
        ]
        if not self._packages:
            raise OSError(f"{folder} has no counters of processor packages, as is usual in virtual machines")
        self._ranges = [self._read(package, "max_energy_range_uj") for package in self._packages]
        self._last = [self._read(package, "energy_uj") for package in self._packages]
        self._sum = 0

    def joules(self) -> float:
        """Since the meter was made. A counter wraps after minutes or hours, so read it more often than that."""
        now = [self._read(package, "energy_uj") for package in self._packages]
        for before, after, whole in zip(self._last, now, self._ranges, strict=True):
            self._sum += after - before if after >= before else after - before + whole
        self._last = now
        return self._sum * 1e-6

    @staticmethod
    def _read(package: Path, name: str) -> int:
        path = package / name
        try:
            return int(path.read_text())
        except PermissionError as error:
            raise OSError(f"{path} may be read by root only") from error


def open_meter(device: torch.device) -> Meter:
    """The counter of a device.

    Raises:
        OSError: it has none that can be read; says why.
    """
    if device.type != "cuda":
        return RaplMeter()
    from bsa_bench.measure.device_state import gpu_uuid

    return GpuMeter(gpu_uuid(device.index or 0))


def measure_energy(
    call: Callable[[], object],
    *,
    device: torch.device,
    call_s: float,
    open_meter: Callable[[torch.device], Meter] = open_meter,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Energy:
    """Measure a steady call in a loop of at least `LOOP_S`, after a second of rest; caches stay as calls leave them.

    Args:
        call: made often enough before that nothing is set up any more.
        call_s: about how long it takes; so many are enqueued at once that the device does not wait for the host.
        open_meter, clock, sleep: arguments so that tests script them.
    """
    try:
        meter = open_meter(device)
    except OSError as error:
        return Energy(how="a counter of the device around a loop of calls", reason=str(error))
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    sleep(REST_S)
    start, joules = clock(), meter.joules()
    sleep(IDLE_S)
    idle_w = (meter.joules() - joules) / (clock() - start)
    batch = max(1, int(BATCH_S / max(call_s, 1e-6)))
    num_calls = 0
    start, joules = clock(), meter.joules()
    while clock() - start < LOOP_S:
        for _ in range(batch):
            call()
        wait()
        num_calls += batch
    seconds, used = clock() - start, meter.joules() - joules
    return Energy(
        joules_per_call=used / num_calls,
        above_idle_joules_per_call=(used - idle_w * seconds) / num_calls,
        idle_w=idle_w,
        num_calls=num_calls,
        seconds=seconds,
        how=f"{meter.how}; over a loop of calls, caches warm; at rest for {IDLE_S:g} s before it",
    )
