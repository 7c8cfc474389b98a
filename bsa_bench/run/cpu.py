"""Set a worker process up for measuring on a CPU, before torch is imported."""

from __future__ import annotations

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def set_up_cpu(threads: int | None, *, last: bool = False) -> int:
    """Pin the process and its threads to the first usable cores and keep freed memory mapped.

    Memory that malloc hands back to the system is faulted in again page by page by the next call, which on a virtual
    machine can cost more than the attention; a training framework's caching allocator keeps it too. Nothing of this
    can be done once torch has started its threads.

    Args:
        threads: how many cores; all usable ones if null.
        last: take the last usable cores instead, away from what the system itself does on the first.

    Returns:
        How many cores it is.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    count = min(threads or len(cores), len(cores))
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores[-count:] if last else cores[:count])
    os.environ["OMP_NUM_THREADS"] = str(count)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)
    return count
