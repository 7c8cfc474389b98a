"""Kernels that do nothing but load one resource: tiles read through L2, and fp32 additions to memory.

Shape legend: `N` tiles of `ROWS` x `D` numbers, `P` programs, each with a list of `C` tiles.
"""
# The types inside jitted functions are Triton's.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_WARPS = 4


@triton.jit
def read_tiles_kernel(x_ptr, items_ptr, sums_ptr, length, ROWS: tl.constexpr, D: tl.constexpr):
    """The traffic of a block-sparse forward without its products: a program adds up its tiles. Past L1 by `.cg`."""
    pid = tl.program_id(0).to(tl.int64)
    rows, columns = tl.arange(0, ROWS), tl.arange(0, D)
    inside = rows[:, None] * D + columns[None, :]
    items_ptr += pid * length
    acc = tl.zeros([ROWS, D], tl.float32)
    upcoming = tl.load(items_ptr)
    for step in range(length):
        item = upcoming
        upcoming = tl.load(items_ptr + step + 1)  # the last list has an entry to spare
        acc += tl.load(x_ptr + item.to(tl.int64) * (ROWS * D) + inside, cache_modifier=".cg")
    tl.store(sums_ptr + pid * D + columns, tl.sum(acc, 0))


@triton.jit
def add_tiles_kernel(y_ptr, items_ptr, length, ROWS: tl.constexpr, D: tl.constexpr):
    """The reductions of a fused backward: a program adds one to every number of its tiles, in fp32."""
    pid = tl.program_id(0).to(tl.int64)
    rows, columns = tl.arange(0, ROWS), tl.arange(0, D)
    inside = rows[:, None] * D + columns[None, :]
    items_ptr += pid * length
    ones = tl.full([ROWS, D], 1.0, tl.float32)
    for step in range(length):
        item = tl.load(items_ptr + step)
        tl.atomic_add(y_ptr + item.to(tl.int64) * (ROWS * D) + inside, ones, sem="relaxed")


def read_tiles(x: Tensor, items: Tensor) -> Tensor:
    """Sums [P, D] fp32, over rows and listed tiles, of x [N, ROWS, D]; `items` [P, C] int32 from `make_lists`."""
    _, rows, width = x.shape
    programs = items.shape[0]
    sums = torch.empty(programs, width, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        read_tiles_kernel[(programs,)](x, items, sums, items.shape[1], ROWS=rows, D=width, num_warps=_WARPS)
    return sums


def add_tiles(y: Tensor, items: Tensor) -> None:
    """Add one to each number of the listed tiles of y [N, ROWS, D] fp32, as often as they are listed."""
    _, rows, width = y.shape
    with torch.cuda.device_of(y):
        add_tiles_kernel[(items.shape[0],)](y, items, items.shape[1], ROWS=rows, D=width, num_warps=_WARPS)


def make_lists(num_tiles: int, programs: int, length: int, *, ascending: bool, device: torch.device) -> Tensor:
    """Lists [programs, length] int32 of different tiles, random or ascending; one entry is spare behind them."""
    make = torch.Generator(device).manual_seed(0)
    draw = torch.rand(programs, num_tiles, generator=make, device=device).topk(length, dim=1).indices
    chosen = draw.sort(dim=1).values if ascending else draw
    room = torch.zeros(programs * length + 1, dtype=torch.int32, device=device)
    room[:-1] = chosen.flatten().to(torch.int32)
    return room[:-1].view(programs, length)
