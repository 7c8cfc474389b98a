"""Before the clock starts: whether a GPU is this process's alone and runs at the clocks that it chooses itself."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from bsa_bench.measure import nvml

WATCH_S = 0.5


@dataclass(frozen=True)
class Preflight:
    """What is in the way of measuring (`troubles`), and what could not be looked at (`notes`)."""

    troubles: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def inspect_gpu(uuid: str, *, own_pid: int | None = None, sleep: Callable[[float], None] = time.sleep) -> Preflight:
    """Look at a GPU on which this process has a context.

    In the way are other compute processes, a slow-down by hardware (heat, power brake) in force, and counters of such
    that move while they are watched for `WATCH_S`. Nothing is ever set.

    Args:
        uuid: NVML's name of the GPU.
        own_pid: this process; an argument, as is `sleep`, so that tests script it.
    """
    try:
        handle = nvml.open_gpu(uuid)
    except OSError as error:
        return Preflight(notes=[f"other processes and slow-downs were not looked for: {error}"])
    troubles, notes = list[str](), list[str]()
    others = nvml.other_processes(handle, own_pid=os.getpid() if own_pid is None else own_pid)
    if others is None:
        notes.append("other processes were not looked for: NVML shows no process here, not even this one")
    elif others:
        troubles.append(f"other compute processes are on the GPU: {', '.join(others)}; end them, or wait for them")
    before = nvml.hardware_slowdown_ns(handle)
    in_force = nvml.slowdowns_now(handle)
    sleep(WATCH_S)
    after = nvml.hardware_slowdown_ns(handle)
    moved = [name for name in before.keys() & after.keys() if after[name] > before[name]]
    if in_force:
        troubles.append(f"the GPU is held back by {', '.join(in_force)}; see to its cooling and power supply")
    elif moved:
        names = ", ".join(sorted(name.replace("_", " ") for name in moved))
        troubles.append(f"the counters of slow-downs by hardware move ({names}); see to its cooling and power supply")
    if in_force is None and not before:
        notes.append("slow-downs by hardware were not looked for: NVML does not tell of them here")
    return Preflight(troubles, notes)
