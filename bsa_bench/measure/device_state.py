"""What the device did while it was timed: clocks, power, temperature and throttling, polled from a process of its own.

Run as `python -m bsa_bench.measure.device_state UUID` it prints one JSON line about every 100 ms until its stdin
closes; `DeviceWatch` starts that and summarises. The poller imports neither torch nor anything heavy. A GPU goes by its
UUID, as NVML numbers them all and CUDA_VISIBLE_DEVICES only those of this process.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from statistics import median
from types import TracebackType
from typing import IO, Self

from bsa_bench.child_process import child_environment, module_command
from bsa_bench.measure import nvml
from bsa_bench.measure.control_groups import throttled_ns
from bsa_bench.result import QUOTA, DeviceState

POLL_S = 0.1
#: How long the poller may take to its first reading, and to its end.
START_S, END_S = 5.0, 10.0
_VIOLATIONS = {
    "power": "NVML_PERF_POLICY_POWER",
    "thermal": "NVML_PERF_POLICY_THERMAL",
    "reliability": "NVML_PERF_POLICY_RELIABILITY",
    "board_limit": "NVML_PERF_POLICY_BOARD_LIMIT",
}


class DeviceWatch:
    """Watch a device during a `with` block; `state` is there afterwards.

    On a CPU there is no poller: the load average, the share of processor time that others took, and for how long the
    control groups' quota kept the process from running can be told.
    """

    def __init__(self, device_type: str, index: int = 0) -> None:
        self._uuid = gpu_uuid(index) if device_type == "cuda" else None
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: IO[bytes] | None = None
        self.state: DeviceState | None = None

    def __enter__(self) -> Self:
        self._start, self._throttled_ns = _cpu_seconds(), throttled_ns()
        if self._uuid is not None:
            # A file, as nobody reads while the operator is timed and a full pipe would stop the poller.
            self._lines = tempfile.TemporaryFile()
            self._process = subprocess.Popen(
                [*module_command("bsa_bench.measure.device_state"), self._uuid],
                env=child_environment(),
                stdin=subprocess.PIPE,
                stdout=self._lines,
            )
            self._await_first_reading()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        load = os.getloadavg()[0]
        others = _share_of_others(self._start, _cpu_seconds())
        before_ns, now_ns = self._throttled_ns, throttled_ns()
        known = before_ns is not None and now_ns is not None
        quota = {QUOTA: max((now_ns or 0) - (before_ns or 0), 0)} if known else {}
        if self._process is None or self._lines is None:
            reason = "clocks, power and temperature are read on GPUs only"
            self.state = DeviceState(
                load_average=load, other_cpu_share=others, throttle_ns=quota or None, reason=reason
            )
            return
        try:
            self._process.communicate(timeout=END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with self._lines as file:
            file.seek(0)
            *whole, _ = file.read().split(b"\n")  # what a killed poller left after its last newline is torn
        state = summarise_polls([json.loads(line) for line in whole], load)
        update = {"other_cpu_share": others, "throttle_ns": (state.throttle_ns or {}) | quota or None}
        self.state = state.model_copy(update=update)

    def _await_first_reading(self) -> None:
        """Wait until the poller runs, so that its start takes no time from what is timed."""
        assert self._lines is not None
        assert self._process is not None
        deadline = time.monotonic() + START_S
        while os.fstat(self._lines.fileno()).st_size == 0 and time.monotonic() < deadline:
            if self._process.poll() is not None:
                return
            time.sleep(0.01)


def gpu_uuid(index: int) -> str:
    """NVML's name of the GPU that torch calls `cuda:index`."""
    import torch

    return "GPU-" + str(torch.cuda.get_device_properties(index).uuid).removeprefix("GPU-")


def _cpu_seconds() -> tuple[float, float, float]:
    """Seconds so far: of all processors, of them busy or stolen, and busy with this process."""
    import psutil

    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    own = os.times()
    # Guest time stands inside user time already.
    total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return total, total - idle, own.user + own.system


def _share_of_others(start: tuple[float, float, float], end: tuple[float, float, float]) -> float | None:
    """Share of all processor time that neither idled nor was this process's; None over too short a span to tell."""
    total, busy, own = (e - s for s, e in zip(start, end, strict=True))
    return min(max(busy - own, 0.0) / total, 1.0) if total > 0.1 else None


def summarise_polls(polls: list[dict[str, float | str]], load_average: float) -> DeviceState:
    """Turn polled lines into [min, median, max] of each reading and the growth of the throttle counters."""
    errors = [str(p["error"]) for p in polls if "error" in p]
    good = [{k: float(v) for k, v in p.items()} for p in polls if "error" not in p]
    if not good:
        return DeviceState(load_average=load_average, reason=errors[0] if errors else "the poller gave no reading")

    def spread(key: str) -> list[float] | None:
        values = [p[key] for p in good if key in p]
        return [min(values), median(values), max(values)] if values else None

    counters = [k for k in good[0] if k.startswith("throttle_") and k in good[-1]]
    return DeviceState(
        sm_clock_hz=spread("sm_clock_hz"),
        memory_clock_hz=spread("memory_clock_hz"),
        power_w=spread("power_w"),
        temperature_c=spread("temperature_c"),
        throttle_ns={k.removeprefix("throttle_"): int(good[-1][k] - good[0][k]) for k in counters} or None,
        load_average=load_average,
        reason=errors[0] if errors else None,
    )


def _poll(uuid: str) -> None:
    import pynvml

    try:
        handle = nvml.open_gpu(uuid)
    except OSError as error:
        _print({"error": str(error)})
        return
    readings = {
        "sm_clock_hz": lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM) * 1e6,
        "memory_clock_hz": lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM) * 1e6,
        "power_w": lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        "temperature_c": lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
    } | {
        f"throttle_{name}": lambda policy=policy: (
            pynvml.nvmlDeviceGetViolationStatus(handle, getattr(pynvml, policy)).violationTime
        )
        for name, policy in _VIOLATIONS.items()
    }
    while True:
        counters = nvml.hardware_slowdown_ns(handle)
        line: dict[str, float | str] = {f"throttle_{name}": float(ns) for name, ns in counters.items()}
        for name, read in list(readings.items()):
            try:
                line[name] = float(read())
            except pynvml.NVMLError:
                del readings[name]  # this card does not tell; the field stays null
        _print(line)
        if select.select([sys.stdin], [], [], POLL_S)[0]:
            return


def _print(line: dict[str, float | str]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _poll(sys.argv[1])
