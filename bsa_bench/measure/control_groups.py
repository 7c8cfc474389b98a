"""What the control groups of this process allow it: processor time and memory, of version 1 and 2. Loads no torch.

A group's limit holds for all groups below it, so each is looked at from the process's own up to the highest that can be
seen. A container sees its own group as the root of the hierarchy, or the path of the host's above a root that is not
mounted; batch systems and systemd put processes into groups several levels down.
"""

from __future__ import annotations

import re
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Controller = Literal["cpu", "memory"]
ROOT = Path("/")
_NO_LIMIT = 1 << 60
"""Version 1 writes the largest number of pages for "unlimited"."""
_RECLAIMED = ("inactive_file", "active_file")
"""Pages of files, which a group's use includes and the kernel takes back when they are wanted."""


@dataclass(frozen=True)
class MemoryLimit:
    """A limit in bytes, and how much of it is taken by what cannot be reclaimed."""

    limit_bytes: int
    used_bytes: int

    @property
    def free_bytes(self) -> int:
        """What is left."""
        return max(self.limit_bytes - self.used_bytes, 0)


def cpu_quota(root: Path = ROOT) -> float | str | None:
    """The cores' worth of time that the groups allow, or "unlimited"; None where the system tells nothing of groups."""
    groups = list(_groups("cpu", root))
    if not groups:
        return None
    quotas = [(_quota_1 if version == 1 else _quota_2)(folder) for folder, version in groups]
    return min((quota for quota in quotas if quota is not None), default="unlimited")


def throttled_ns(root: Path = ROOT) -> int | None:
    """For how long so far the groups kept their processes from running, by their quotas; None where none tells."""
    found = []
    for folder, version in _groups("cpu", root):
        stat = _stat(folder / "cpu.stat")
        name, unit_ns = ("throttled_time", 1) if version == 1 else ("throttled_usec", 1000)
        if name in stat:
            found.append(stat[name] * unit_ns)
    return sum(found) if found else None


def memory_limits(root: Path = ROOT) -> list[MemoryLimit] | None:
    """The limits of the groups that have one; None where the system tells nothing of groups."""
    groups = list(_groups("memory", root))
    if not groups:
        return None
    found = []
    for folder, version in groups:
        names = ("memory.limit_in_bytes",) if version == 1 else ("memory.max", "memory.high")
        limits = [limit for name in names if (limit := _number(folder / name)) is not None and limit < _NO_LIMIT]
        used = _number(folder / ("memory.usage_in_bytes" if version == 1 else "memory.current"))
        if limits and used is not None:
            stat = _stat(folder / "memory.stat")
            prefix = "total_" * (version == 1)  # without it, of the group alone and not of those below
            reclaimed = sum(stat.get(f"{prefix}{name}", 0) for name in _RECLAIMED)
            found.append(MemoryLimit(min(limits), max(used - reclaimed, 0)))
    return found


def address_space_limit() -> int | None:
    """The bytes of address space that `ulimit -v` or a batch system allows a process, or None."""
    limits = [resource.getrlimit(which)[0] for which in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    return min((limit for limit in limits if limit not in {resource.RLIM_INFINITY, -1}), default=None)


def _groups(controller: Controller, root: Path) -> Iterator[tuple[Path, Literal[1, 2]]]:
    """The folders of the process's group of a controller and of those above it, as far as they are mounted."""
    lines = [line.split(":", 2) for line in (_text(root / "proc/self/cgroup") or "").splitlines()]
    paths = {name: path for _, names, path in lines for name in names.split(",")}
    if not paths:
        return
    version: Literal[1, 2] = 1 if controller in paths else 2
    mount, mounted = _mount(controller if version == 1 else None, root)
    own = paths.get(controller if version == 1 else "", "/")
    parts = [part for part in own.split("/") if part and part != ".."]
    # Of the path as it is in the hierarchy, what lies above the group that is mounted is not there.
    if parts[: len(mounted)] == mounted:
        parts = parts[len(mounted) :]
    for length in range(len(parts) + 1):
        yield mount.joinpath(*parts[:length]), version


def _mount(controller: Controller | None, root: Path) -> tuple[Path, list[str]]:
    """Where a controller of version 1, or version 2 for None, is mounted, and which group of its hierarchy that is."""
    for line in (_text(root / "proc/self/mountinfo") or "").splitlines():
        before, _, after = line.partition(" - ")
        fields, kinds = before.split(), after.split()
        if len(fields) < 5 or len(kinds) < 3:
            continue
        if kinds[0] == ("cgroup2" if controller is None else "cgroup") and (
            controller is None or controller in kinds[2].split(",")
        ):
            return root / _unescaped(fields[4]).lstrip("/"), [part for part in _unescaped(fields[3]).split("/") if part]
    return root / "sys/fs/cgroup" / (controller or ""), []


def _unescaped(path: str) -> str:
    """A path as `mountinfo` writes it, a space in octal."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path)


def _quota_1(folder: Path) -> float | None:
    quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return quota / period if quota and period else None  # -1, which is no number here, is no limit


def _quota_2(folder: Path) -> float | None:
    quota, _, period = (_text(folder / "cpu.max") or "max").partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None


def _stat(path: Path) -> dict[str, int]:
    pairs = (line.split() for line in (_text(path) or "").splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text is not None and text.isdigit() else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
