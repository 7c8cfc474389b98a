"""What of a machine's set-up changes CPU timings: frequency, siblings, quotas, pages, addresses. Loads no torch."""

from __future__ import annotations

import os
from pathlib import Path

Value = str | int | float | None
_CPUS = Path("sys/devices/system/cpu")
_CGROUP = Path("sys/fs/cgroup")
_BOOST = {"1": "on", "0": "off"}


def cpu_settings(root: Path = Path("/")) -> dict[str, Value]:
    """Settings that stay between runs; null where the system does not tell.

    `cpu_quota_cores` is the cores' worth of time that control groups allow, or "unlimited"; `aslr` is the kernel's
    randomize_va_space (0: off, 2: full).

    Args:
        root: of the file system; tests have one of their own.
    """
    aslr = _text(root / "proc/sys/kernel/randomize_va_space")
    return {
        "governor": _text(root / _CPUS / "cpu0/cpufreq/scaling_governor"),
        "turbo": _turbo(root),
        "smt": _BOOST.get(_text(root / _CPUS / "smt/active") or ""),
        "cpu_quota_cores": _quota(root),
        "aslr": int(aslr) if aslr is not None and aslr.isdigit() else None,
        "transparent_huge_pages": _chosen(_text(root / "sys/kernel/mm/transparent_hugepage/enabled")),
    }


def usable_cores() -> list[int]:
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def cpu_load() -> dict[str, Value]:
    """How busy the machine is: its load average, and the share of time since boot that its host took from it."""
    import psutil

    times = psutil.cpu_times()
    steal = getattr(times, "steal", None)
    return {
        "load_average": os.getloadavg()[0],
        "steal_share": None if steal is None else steal / max(sum(times), 1e-9),
    }


def _turbo(root: Path) -> str | None:
    """Of Intel's own driver, or of the generic one."""
    no_turbo = _text(root / _CPUS / "intel_pstate/no_turbo")
    if no_turbo is not None:
        return {"0": "on", "1": "off"}.get(no_turbo)
    return _BOOST.get(_text(root / _CPUS / "cpufreq/boost") or "")


def _quota(root: Path) -> float | str | None:
    """The least of the quotas of this process's control group and those above it, of version 1 or 2."""
    groups = [line.split(":", 2) for line in (_text(root / "proc/self/cgroup") or "").splitlines()]
    paths = {name: path for _, names, path in groups for name in names.split(",")}
    if not paths:
        return None
    is_first = "cpu" in paths
    mount = root / _CGROUP / ("cpu" if is_first else "")
    # In a container the path is often that of the host; the container's own root is then mounted in its place.
    folders = [mount, *(mount / part for part in _prefixes(paths["cpu"] if is_first else paths.get("", "")))]
    cores = [limit for folder in folders if (limit := (_quota_1 if is_first else _quota_2)(folder)) is not None]
    return min(cores) if cores else "unlimited"


def _quota_1(folder: Path) -> float | None:
    quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
    return int(quota) / int(period) if quota and period and quota != "-1" else None


def _quota_2(folder: Path) -> float | None:
    quota, _, period = (_text(folder / "cpu.max") or "max").partition(" ")
    return int(quota) / int(period) if quota != "max" else None


def _prefixes(path: str) -> list[str]:
    parts = [part for part in path.split("/") if part and part != ".."]
    return ["/".join(parts[: end + 1]) for end in range(len(parts))]


def _chosen(text: str | None) -> str | None:
    """`madvise` of `always [madvise] never`."""
    return text.partition("[")[2].partition("]")[0] or None if text is not None else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
