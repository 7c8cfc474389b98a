"""Where a run is made: device, processor, versions, the variables that change behaviour, the commit."""

from __future__ import annotations

import ctypes
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import torch

from bsa_bench.measure import nvml
from bsa_bench.measure.cpu_settings import cpu_load, cpu_settings
from bsa_bench.measure.device_state import gpu_uuid
from bsa_bench.measure.process_start import ProcessStart, is_hashed
from bsa_bench.result import VOLATILE, Environment
from bsa_bench.workload import short_digest

_PACKAGES = (
    "bsa-bench",
    "torch",
    "triton",
    "numpy",
    "av",
    "flash-attn",
    "xformers",
    "nvidia-ml-py",
    "pydantic",
    "safetensors",
)


def device_kind() -> Literal["cpu", "cuda"]:
    """What a run measures on this machine."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def collect_environment(*, started: ProcessStart, threads: int | None, kind: Literal["cpu", "cuda"]) -> Environment:
    """Describe this process's machine. The hash covers what makes timings comparable, not the commit or the load.

    Args:
        started: noted before torch was imported, as that sets variables.
        threads: that a CPU is measured with.
        kind: what is measured.
    """
    cpu = _cpu(started, threads)
    name, details = _gpu() if kind == "cuda" else (str(cpu["model"]), {})
    packages = {package: _version(package) for package in _PACKAGES}
    variables = dict(started.variables)
    hashed = {name: value for name, value in variables.items() if is_hashed(name)}
    commit, dirty = _git()
    settled = {key: value for key, value in cpu.items() if key not in VOLATILE}
    stable = [kind, name, details, settled, platform.machine(), platform.python_version(), packages, hashed]
    return Environment(
        hash=short_digest(stable),
        device_kind=kind,
        device_name=name,
        device_details=details,
        cpu=cpu,
        os=platform.platform(),
        python=platform.python_version(),
        packages=packages,
        variables=variables,
        git_commit=commit,
        git_dirty=dirty,
    )


def _gpu() -> tuple[str, dict[str, str | int | float | bool | None]]:
    properties = torch.cuda.get_device_properties(0)
    details: dict[str, str | int | float | bool | None] = {
        "compute_capability": f"{properties.major}.{properties.minor}",
        "num_sms": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
    import pynvml

    try:
        handle = nvml.open_gpu(gpu_uuid(0))
        details["driver"] = _text(pynvml.nvmlSystemGetDriverVersion())
        details["power_limit_w"] = pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000
        details["max_sm_clock_hz"] = pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM) * 1e6
        details |= nvml.settings(handle)
    except (OSError, pynvml.NVMLError) as error:
        details["nvml_error"] = str(error).removeprefix("NVML: ")
    return properties.name, details


def _cpu(started: ProcessStart, threads: int | None) -> dict[str, str | int | float | None]:
    import psutil

    model = platform.processor()
    flags: set[str] = set()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() == "flags":
                flags = set(value.split())
    return {
        "model": model,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "usable_cores": started.usable_cores,
        "threads": threads,
        "allocator": "freed memory stays mapped" if hasattr(ctypes.CDLL(None), "mallopt") else "system default",
        "memory_bytes": psutil.virtual_memory().total,
        "virtual_machine": "yes" if "hypervisor" in flags else None,
        **cpu_settings(),
        **cpu_load(),
    }


def _git() -> tuple[str | None, bool | None]:
    """Commit and whether the checkout differs from it; None for an installed package outside any checkout."""
    folder = Path(__file__).resolve().parent
    try:
        top = subprocess.run(
            ["git", "ls-files", "--error-unmatch", __file__], cwd=folder, capture_output=True, text=True, check=False
        )
        if top.returncode != 0:
            return None, None
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)
        status = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None, None
    return commit.stdout.strip(), bool(status.stdout.strip())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
