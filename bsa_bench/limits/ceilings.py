"""The ceilings of a run, measured before its first case: a big matrix product and a stream copy, by torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Protocol

import torch

from bsa_bench.result import Ceiling

REPEATS = 7
MIB = 1 << 20


class Clock(Protocol):
    """Times work on a device: seconds of one call, the mean over `times` of them in a row, caches left as they are."""

    def __call__(self, call: Callable[[], object], times: int) -> float: ...


class CudaClock:
    """CUDA events around the calls."""

    def __call__(self, call: Callable[[], object], times: int) -> float:
        """Seconds of one call."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(times):
            call()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) * 1e-3 / times


class CpuClock:
    """`perf_counter` around the calls."""

    def __call__(self, call: Callable[[], object], times: int) -> float:
        """Seconds of one call."""
        start = time.perf_counter()
        for _ in range(times):
            call()
        return (time.perf_counter() - start) / times


@dataclass(frozen=True)
class CeilingSizes:
    """Sides of the square matrices by format, and how much is copied."""

    matrix: dict[torch.dtype, int]
    copy_mib: int


#: A matrix product and a copy take some milliseconds on a GPU; on two CPU cores, some tens of them.
CUDA_SIZES = CeilingSizes({torch.bfloat16: 8192, torch.float32: 4096}, copy_mib=1024)
CPU_SIZES = CeilingSizes({torch.float32: 1024}, copy_mib=128)


def measure_ceilings(
    device: torch.device, clock: Clock | None = None, sizes: CeilingSizes | None = None
) -> list[Ceiling]:
    """Measure matrix products and a copy, with torch's own number of threads on a CPU; less than 2 s.

    Args:
        device: a CPU or a CUDA device.
        clock, sizes: arguments so that tests script them; the usual ones of the device where null.
    """
    is_cuda = device.type == "cuda"
    clock = clock or (CudaClock() if is_cuda else CpuClock())
    sizes = sizes or (CUDA_SIZES if is_cuda else CPU_SIZES)
    threads = "" if is_cuda else f", {torch.get_num_threads()} threads"
    found = []
    for dtype, side in sizes.matrix.items():
        name = str(dtype).removeprefix("torch.")
        precise = f" ({torch.get_float32_matmul_precision()} precision)" if dtype is torch.float32 else ""
        detail = f"{side} x {side} x {side}, {name}{precise}, normal numbers, by torch{threads}, median of {REPEATS}"
        rate = matmul_rate(device, clock, side, dtype)
        found.append(Ceiling(name=f"GEMM {name}", value=rate, unit="FLOP/s", detail=detail))
    detail = f"{sizes.copy_mib:,} MiB, read and written, by torch{threads}, median of {REPEATS}"
    found.append(Ceiling(name="copy", value=copy_rate(device, clock, sizes.copy_mib), unit="B/s", detail=detail))
    return found


def copy_rate(device: torch.device, clock: Clock, copy_mib: int) -> float:
    """Bytes per second of a copy, read and written ones."""
    source = torch.randint(1 << 62, (copy_mib * MIB // 8,), device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds_of(clock, lambda: target.copy_(source))


def matmul_rate(device: torch.device, clock: Clock, side: int, dtype: torch.dtype) -> float:
    """FLOP per second of a product of two square matrices of normal numbers; zeros would take less power."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * side**3 / seconds_of(clock, lambda: torch.mm(a, b, out=out))


def seconds_of(clock: Clock, call: Callable[[], object], times: int = 1) -> float:
    """The median of some spans, after one that compiles and warms."""
    clock(call, times)
    return median(clock(call, times) for _ in range(REPEATS))
