"""Peak memory of one call above what was there before it, in an untimed pass of its own."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import torch

from bsa_bench.result import Memory

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def measure_memory(call: Callable[[], object], *, inputs_bytes: int, device: torch.device) -> Memory:
    """Measure a steady call (make a first one before).

    CUDA: the caching allocator's peak. CPU: the peak of the resident set, reset before the call, after free memory was
    handed back to the system; null with a reason where the platform cannot reset it.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
        return Memory(
            peak_above_inputs_bytes=peak - before,
            peak_bytes=peak,
            inputs_bytes=inputs_bytes,
            how="peak of torch's CUDA allocator in one steady call",
        )
    how = "peak resident set of one steady call above the resident set before it"
    try:
        _return_free_memory()
        _CLEAR_REFS.write_text("5")
        before = _resident("VmRSS")
    except OSError as error:
        return Memory(inputs_bytes=inputs_bytes, how=how, reason=f"the peak cannot be reset here: {error}")
    call()
    peak = _resident("VmHWM")
    return Memory(peak_above_inputs_bytes=max(peak - before, 0), peak_bytes=peak, inputs_bytes=inputs_bytes, how=how)


def _return_free_memory() -> None:
    """Hand freed heap pages back, or a new call would live in them unseen."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        raise OSError("the C library has no malloc_trim")
    trim(0)


def _resident(key: str) -> int:
    """A size of /proc/self/status in bytes."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no {key}")
