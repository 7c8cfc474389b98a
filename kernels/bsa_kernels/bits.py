"""Block masks in bits, in bools and in lists, and the ways between them, in torch, none of which waits for a GPU.

Words hold 32 columns of the mask: bit j % 32 of word j // 32 is column j, and bits past the last column are zero.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def pack_bits(mask: Tensor) -> Tensor:
    """Pack a bool mask [..., N] into words [..., ceil(N/32)] int32: bit j % 32 of word j // 32 is entry j, tails zero.

    No host synchronisation; needs twice the mask's memory at most.
    """
    x = functional.pad(mask.view(torch.uint8), (0, -mask.shape[-1] % 32))
    for shift in (1, 2, 4):
        x = x[..., ::2] | (x[..., 1::2] << shift)
    # Four bytes, the lowest first, are a word on every machine that torch runs GPUs with.
    return _dense(x).view(torch.int32)


def unpack_bits(bits: Tensor, n: int) -> Tensor:
    """The inverse of `pack_bits`: words [..., ceil(n/32)] int32 to a bool mask [..., n]."""
    shift = torch.arange(8, dtype=torch.uint8, device=bits.device)
    ones = (_dense(bits).view(torch.uint8).unsqueeze(-1) >> shift) & 1
    return ones.view(torch.bool).flatten(-2)[..., :n]


def count_bits(bits: Tensor) -> Tensor:
    """How many bits are set in each row of words: [..., W] int32 to [...] int32."""
    x = _dense(bits).view(torch.uint8)
    x = x - ((x >> 1) & 0x55)
    x = (x & 0x33) + ((x >> 2) & 0x33)
    return ((x + (x >> 4)) & 0x0F).sum(-1, dtype=torch.int32)


def lists_of_mask(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Turn a bool mask [..., N] into counts [...] and ascending indices [..., N], int32, without a host sync.

    Entries past the count are zero.
    """
    n = mask.shape[-1]
    position = mask.cumsum(-1, dtype=torch.int32)
    counts = position[..., -1].contiguous()
    target = torch.where(mask, position - 1, n).long()
    indices = torch.zeros(*mask.shape[:-1], n + 1, dtype=torch.int32, device=mask.device)
    indices.scatter_(-1, target, torch.arange(n, dtype=torch.int32, device=mask.device).expand_as(mask))
    return counts, indices[..., :n].contiguous()


def _dense(x: Tensor) -> Tensor:
    """A copy that can be viewed in a format of another width; `contiguous` may keep odd strides of sides of one."""
    return x.clone(memory_format=torch.contiguous_format)
