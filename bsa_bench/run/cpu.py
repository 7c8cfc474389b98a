"""Set a worker process up for measuring on a CPU, before torch is imported."""

from __future__ import annotations

import ctypes
import os

from bsa_bench.measure.cpu_settings import usable_cores, usable_threads

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def set_up_cpu(threads: int | None) -> int:
    """Pin the process and its threads to the first usable cores and keep freed memory mapped.

    Memory that malloc hands back to the system is faulted in again page by page by the next call, which on a virtual
    machine can cost more than the attention; a training framework's caching allocator keeps it too. Nothing of this
    can be done once torch has started its threads.

    Args:
        threads: how many cores; all usable ones if null, as far as a quota of processor time keeps them busy.

    Returns:
        How many cores it is.
    """
    cores = usable_cores()
    count = min(threads or usable_threads(), len(cores))
    _pin(cores[:count])
    keep_memory_mapped(count)
    return count


def pin_to_last(count: int) -> None:
    """Pin the process to the last usable cores, away from what the system itself does on the first.

    Threads that there are already stay where they are; torch starts its own when they are first used.
    """
    _pin(usable_cores()[-count:])


def _pin(cores: list[int]) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def keep_memory_mapped(count: int) -> None:
    """State the number of threads, and have malloc keep what is freed; before torch is imported."""
    os.environ["OMP_NUM_THREADS"] = str(count)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)
