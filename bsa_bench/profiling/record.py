"""What each profiler records of an annotated call, as files."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from bsa_bench.profiling.job import HOST_HTML_FILE, HOST_TEXT_FILE, PROTON_NAME, PhaseWork
from bsa_bench.profiling.trace import PREFIX

_HOST_INTERVAL_S = 2e-4
_MAX_SNAPSHOT_ENTRIES = 100_000


def trace_range(name: str) -> AbstractContextManager[object]:
    """A range of torch's profiler."""
    return torch.profiler.record_function(name)


def nvtx_range(name: str) -> AbstractContextManager[object]:
    """A range of NVTX, for the Nsight tools."""
    return torch.cuda.nvtx.range(name)


def record_trace(
    call: Callable[[], object], path: Path, *, num_calls: int, is_cuda: bool, with_memory: bool = False
) -> None:
    """Write a Chrome trace of some calls, gzipped; a call before it, profiled too, pays for starting the profiler."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]
    with profile(activities=activities):
        call()
        _synchronise(is_cuda=is_cuda)
    with profile(activities=activities, record_shapes=not with_memory, profile_memory=with_memory) as profiler:
        for _ in range(num_calls):
            call()
            _synchronise(is_cuda=is_cuda)
    profiler.export_chrome_trace(str(path))


def record_snapshot(call: Callable[[], object], path: Path) -> None:
    """Write the CUDA allocator's history of a call, for pytorch.org/memory_viz."""
    memory: Any = torch.cuda.memory
    memory._record_memory_history(max_entries=_MAX_SNAPSHOT_ENTRIES)  # noqa: SLF001  # documented, without a public name
    try:
        call()
        torch.cuda.synchronize()
        memory._dump_snapshot(str(path))  # noqa: SLF001
    finally:
        memory._record_memory_history(enabled=None)  # noqa: SLF001


def record_host(call: Callable[[], object], folder: Path, *, seconds: float, is_cuda: bool) -> str | None:
    """Sample Python's stack by pyinstrument over repeated calls; returns why there is nothing of it, or None."""
    if importlib.util.find_spec("pyinstrument") is None:
        return "host code: pyinstrument is not installed; pip install 'bsa-bench[profile]'"
    from pyinstrument import Profiler

    profiler = Profiler(interval=_HOST_INTERVAL_S, async_mode="disabled")
    until = time.perf_counter() + seconds
    with profiler:
        call()
        while time.perf_counter() < until:
            call()
        _synchronise(is_cuda=is_cuda)
    (folder / HOST_TEXT_FILE).write_text(profiler.output_text(unicode=True, color=False), "utf-8")
    (folder / HOST_HTML_FILE).write_text(profiler.output_html(), "utf-8")
    return None


def record_proton(
    make: Callable[[Callable[[str], AbstractContextManager[object]]], Callable[[], object]],
    folder: Path,
    *,
    num_calls: int,
    phase_work: Mapping[str, PhaseWork],
) -> None:
    """Record calls by Triton's profiler, a scope for each phase with its FLOP and bytes.

    Args:
        make: a call whose ranges are opened by the given function.
        folder: gets `proton.hatchet`, for proton-viewer.
        num_calls: how many.
        phase_work: what each phase declares.
    """
    from triton import profiler as proton

    def scope(name: str) -> AbstractContextManager[object]:
        work = phase_work.get(name.removeprefix(PREFIX), PhaseWork())
        metrics = {"flops": work.flop, "bytes": work.bytes}
        found: AbstractContextManager[object] = proton.scope(
            name, {key: float(value) for key, value in metrics.items() if value is not None}
        )
        return found

    call = make(scope)
    call()
    torch.cuda.synchronize()
    proton.start(str(folder / PROTON_NAME), hook="triton")
    for _ in range(num_calls):
        call()
    torch.cuda.synchronize()
    proton.finalize()


def replay(call: Callable[[], object], *, num_calls: int) -> None:
    """Make calls between the start and the stop that the Nsight tools wait for."""
    runtime: Any = torch.cuda.cudart()
    call()
    torch.cuda.synchronize()
    runtime.cudaProfilerStart()
    for _ in range(num_calls):
        call()
    torch.cuda.synchronize()
    runtime.cudaProfilerStop()


def _synchronise(*, is_cuda: bool) -> None:
    if is_cuda:
        torch.cuda.synchronize()
