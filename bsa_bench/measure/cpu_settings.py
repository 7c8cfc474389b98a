"""What of a machine's set-up changes CPU timings: frequency, siblings, quotas, pages, addresses. Loads no torch."""

from __future__ import annotations

import os
from pathlib import Path

from bsa_bench.measure.control_groups import address_space_limit, cpu_quota, memory_limits

Value = str | int | float | None
_CPUS = Path("sys/devices/system/cpu")
_BOOST = {"1": "on", "0": "off"}


def cpu_settings(root: Path = Path("/")) -> dict[str, Value]:
    """Settings that stay between runs; null where the system does not tell.

    `cpu_quota_cores` is the cores' worth of time that control groups allow, `memory_limit_bytes` what they or `ulimit`
    allow of memory, both "unlimited" where there is no limit; `aslr` is the kernel's
    randomize_va_space (0: off, 2: full).

    Args:
        root: of the file system; tests have one of their own.
    """
    aslr = _text(root / "proc/sys/kernel/randomize_va_space")
    return {
        "governor": _text(root / _CPUS / "cpu0/cpufreq/scaling_governor"),
        "turbo": _turbo(root),
        "smt": _BOOST.get(_text(root / _CPUS / "smt/active") or ""),
        "cpu_quota_cores": cpu_quota(root),
        "memory_limit_bytes": memory_limit(root),
        "aslr": int(aslr) if aslr is not None and aslr.isdigit() else None,
        "transparent_huge_pages": _chosen(_text(root / "sys/kernel/mm/transparent_hugepage/enabled")),
    }


def usable_cores() -> list[int]:
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def usable_threads() -> int:
    """How many threads to compute with: one a usable core, and no more than the control groups' quota keeps busy.

    With more the group uses its share of a period up before the period's end, and all of them wait.
    """
    quota = cpu_quota()
    cores = len(usable_cores())
    return min(cores, max(int(quota), 1)) if isinstance(quota, float) else cores


def memory_limit(root: Path = Path("/")) -> int | str | None:
    """Bytes that control groups or `ulimit` allow, or "unlimited"; null where the system does not tell."""
    groups, own = memory_limits(root), address_space_limit()
    limits = [*(each.limit_bytes for each in groups or ()), *([own] if own is not None else [])]
    return min(limits, default=None if groups is None else "unlimited")


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


def _chosen(text: str | None) -> str | None:
    """`madvise` of `always [madvise] never`."""
    return text.partition("[")[2].partition("]")[0] or None if text is not None else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
