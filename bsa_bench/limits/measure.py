"""Measure the limits of a GPU, each checked for its result before it is timed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from bsa_bench.errors import BenchError
from bsa_bench.limits.ceilings import MIB, Clock, copy_rate, matmul_rate, seconds_of
from bsa_bench.limits.file import Limit
from bsa_bench.limits.triton_limits import add_tiles, make_lists, read_tiles

ROWS, WIDTH = 64, 128


@dataclass(frozen=True)
class Sizes:
    """How much is moved; tests move less."""

    working_sets_mib: tuple[int, ...] = (8, 16, 24, 32, 48, 64, 96, 150)
    programs: int = 4224  # eight times four on each of 132 SMs
    list_length: int = 120
    copy_mib: int = 2048
    matmul: int = 8192
    launches: int = 200


def measure(device: torch.device, clock: Clock, sizes: Sizes | None = None) -> Iterator[Limit]:
    """Measure one limit after another.

    Raises:
        BenchError: a kernel gave a wrong result; nothing is timed with it.
    """
    sizes = sizes or Sizes()
    _check(device)
    yield _copy(device, clock, sizes)
    yield _matmul(device, clock, sizes)
    for mib in sizes.working_sets_mib:
        for ascending in (True, False):
            yield _reads(device, clock, sizes, mib, ascending=ascending)
    yield _additions(device, clock, sizes)
    yield from _launches(device, clock, sizes)


def _check(device: torch.device) -> None:
    """Compare both kernels with torch on a few tiles."""
    make = torch.Generator().manual_seed(1)
    x = torch.randint(-8, 9, (6, 16, 32), generator=make).to(device, torch.float16)  # sums of integers are exact
    items = make_lists(6, programs=5, length=4, ascending=False, device=device)
    expected = x.float()[items.long()].sum((1, 2))
    if not torch.equal(read_tiles(x, items), expected):
        raise BenchError("limits: the kernel that reads tiles gives wrong sums; nothing was measured")
    y = torch.zeros(6, 16, 32, device=device)
    add_tiles(y, items)
    counts = torch.bincount(items.flatten().long(), minlength=6).float()
    if not torch.equal(y, counts.view(-1, 1, 1).expand_as(y)):
        raise BenchError("limits: the kernel that adds to tiles gives wrong sums; nothing was measured")


def _copy(device: torch.device, clock: Clock, sizes: Sizes) -> Limit:
    detail = f"{sizes.copy_mib:,} MiB by torch, read and written"
    return Limit(name="HBM copy", value=copy_rate(device, clock, sizes.copy_mib), unit="B/s", detail=detail)


def _matmul(device: torch.device, clock: Clock, sizes: Sizes) -> Limit:
    n = sizes.matmul
    detail = f"{n} x {n} x {n}, bf16, normal numbers, by torch"
    rate = matmul_rate(device, clock, n, torch.bfloat16)
    return Limit(name="matrix product", value=rate, unit="FLOP/s", detail=detail)


def _reads(device: torch.device, clock: Clock, sizes: Sizes, mib: int, *, ascending: bool) -> Limit:
    tile_bytes = ROWS * WIDTH * 2
    num_tiles = mib * MIB // tile_bytes
    length = min(sizes.list_length, num_tiles)
    x = torch.randn(num_tiles, ROWS, WIDTH, device=device).to(torch.bfloat16)  # zeros would take less power
    items = make_lists(num_tiles, sizes.programs, length, ascending=ascending, device=device)
    seconds = seconds_of(clock, lambda: read_tiles(x, items))
    order = "ascending" if ascending else "random"
    detail = f"{mib} MiB, {items.shape[0]:,} lists of {length} tiles of 64 x 128 bf16, {order}"
    rate = items.numel() * tile_bytes / seconds
    return Limit(name=f"L2 reads, {mib} MiB, {order}", value=rate, unit="B/s", detail=detail)


def _additions(device: torch.device, clock: Clock, sizes: Sizes) -> Limit:
    num_tiles = max(1, min(sizes.working_sets_mib) * MIB // (ROWS * WIDTH * 4))
    length = min(sizes.list_length, num_tiles)
    y = torch.zeros(num_tiles, ROWS, WIDTH, device=device)
    items = make_lists(num_tiles, sizes.programs, length, ascending=False, device=device)
    seconds = seconds_of(clock, lambda: add_tiles(y, items))
    moved = items.numel() * ROWS * WIDTH * 4
    detail = f"{y.numel() * 4 // MIB} MiB, {items.shape[0]:,} lists of {length} tiles of 64 x 128 fp32, random"
    return Limit(name="fp32 additions to memory", value=moved / seconds, unit="B/s", detail=detail)


def _launches(device: torch.device, clock: Clock, sizes: Sizes) -> Iterator[Limit]:
    """A short kernel in a stream, and in a graph where there are graphs."""
    x = torch.zeros(1, device=device)
    seconds = seconds_of(clock, lambda: x.add_(1), sizes.launches)
    detail = f"{sizes.launches} additions of one number, one after another"
    yield Limit(name="launch", value=seconds, unit="s", detail=f"{detail}, by torch")
    if device.type != "cuda":
        return
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(sizes.launches):
            x.add_(1)
    seconds = seconds_of(clock, graph.replay) / sizes.launches
    yield Limit(name="launch in a graph", value=seconds, unit="s", detail=f"{detail}, in a CUDA graph")
