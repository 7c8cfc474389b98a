"""What methods that rank blocks share: the mean of each block, the block of each token, the highest of a row of scores.

Shape legend: `B` batch, `H` heads, `L` tokens, `N` blocks, `M` slots a block, `D` head size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from bsa_kernels.grid import BlockGrid


def score_dtype(x: Tensor) -> torch.dtype:
    """The format of selection's arithmetic: fp64 for fp64 inputs, fp32 for all others."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def block_means(x: Tensor, grid: BlockGrid, *, is_tiled: bool = False) -> Tensor:
    """Average the real tokens of each block: [B, H, L, D], or [B, H, N*M, D] where tiled, -> [B, H, N, D].

    Sums in fp32, or fp64 for fp64 inputs, and returns this format. Differentiable. Tokens in natural order are read
    where they are; a grid that the block does not divide is padded with zeros first.

    Raises:
        ValueError: `x` has not the grid's tokens or slots.
    """
    rows = grid.num_slots if is_tiled else grid.num_tokens
    if x.dim() != 4 or x.shape[2] != rows:
        raise ValueError(f"x: expected [B, H, {rows}, D] of {grid}, got {list(x.shape)}")
    wide = score_dtype(x)
    if is_tiled:
        sums = x.unflatten(2, (grid.num_blocks, grid.block_size)).sum(3, dtype=wide)
    else:
        video = x.unflatten(2, grid.grid)
        if not grid.is_even:
            video = functional.pad(video, (0, 0, *_padding(grid)))
        (t, h, w), (bt, bh, bw) = grid.blocks, grid.block
        cubes = video.reshape(*x.shape[:2], t, bt, h, bh, w, bw, x.shape[3])
        sums = cubes.sum((3, 5, 7), dtype=wide).flatten(2, 4)
    return sums / grid.real_counts(x.device).unsqueeze(-1)


def block_of_token(grid: BlockGrid, device: torch.device) -> Tensor:
    """[L] int64: the block of each token, in natural order."""
    return grid.slot_of_token(device) // grid.block_size


def mark_highest(scores: Tensor, threshold: Tensor, count: Tensor | int) -> Tensor:
    """Mark exactly `count` entries of each row, the highest, ties to the lowest index, without a sort.

    Args:
        scores: [..., S].
        threshold: [..., 1], the value of the last entry that is marked, which a top-k has found.
        count: how many to mark, one number or [..., 1].

    Returns:
        [..., S] bool.
    """
    above = scores > threshold
    tied = scores == threshold
    room = count - above.sum(-1, keepdim=True, dtype=torch.int32)
    return above | (tied & (tied.cumsum(-1, dtype=torch.int32) <= room))


def mark_top(scores: Tensor, count: int) -> Tensor:
    """Mark the `count` highest entries of each row [..., S], all where it has fewer; ties to the lowest index."""
    if count >= scores.shape[-1]:
        return torch.ones_like(scores, dtype=torch.bool)
    threshold = scores.topk(count, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    return mark_highest(scores, threshold, count)


def require_count(name: str, value: object) -> int:
    """Return a count of at least one.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: expected an integer of at least 1, got {value!r}")
    return value


def require_share(name: str, value: object) -> float:
    """Return a share above zero and at most one.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (math.isfinite(value) and 0 < value <= 1):
        raise ValueError(f"{name}: expected a share above 0 and at most 1, got {value!r}")
    return value


def _padding(grid: BlockGrid) -> tuple[int, ...]:
    """How much the ends of w, h and t lack to whole blocks, as `functional.pad` has it."""
    t, h, w = (n * b - g for n, b, g in zip(grid.blocks, grid.block, grid.grid, strict=True))
    return 0, w, 0, h, 0, t
