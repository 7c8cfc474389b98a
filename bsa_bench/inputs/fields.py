"""Synthetic inputs: independent noise, and a smooth field with a moving object. Legend: C feature channels."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from bsa_bench.inputs.seeding import make_generator

if TYPE_CHECKING:
    import torch

CHANNELS = 64
OCTAVE_STRENGTH = 0.7
"""Strength of an octave against the next coarser one; smaller is smoother."""
OBJECT_RADIUS = 0.18
"""Radius of the object as a share of the shorter of height and width."""


def write_gaussian(out_BHLD: torch.Tensor, *, seed: int, name: str) -> None:
    """Fill `out_BHLD`, of any dtype and device, with N(0, 1); head by head, to keep the fp32 copy small."""
    import torch

    generator = make_generator(seed, "gaussian", name)
    batch, heads, num_tokens, head_dim = out_BHLD.shape
    for b in range(batch):
        for h in range(heads):
            out_BHLD[b, h] = torch.randn(num_tokens, head_dim, generator=generator).to(out_BHLD.dtype)


def smooth_chunks(grid: tuple[int, int, int], *, seed: int, element: int) -> Iterable[torch.Tensor]:
    """Return the features [H*W, C] of each time step of one batch element."""
    return smooth_field(grid, seed=seed, element=element).flatten(1, 2)


def smooth_field(grid: tuple[int, int, int], *, seed: int, element: int) -> torch.Tensor:
    """Return standardised features [T, H, W, C]: a 1/f background and, in front of it, an object with its own feature.

    The background adds octaves, from cells of half the longest axis down to single tokens, each weaker than the one
    before, interpolated linearly; it changes slowly, and the object moves over it (`object_mask`).
    """
    import torch
    from torch.nn.functional import interpolate

    generator = make_generator(seed, "smooth", element)
    field_CTHW = torch.zeros(CHANNELS, *grid)
    cell, strength = max(grid) / 2, 1.0
    while True:
        coarse = [min(math.ceil(size / cell) + 1, size) for size in grid]
        nodes = torch.randn(1, CHANNELS, *coarse, generator=generator)
        field_CTHW += strength * interpolate(nodes, size=grid, mode="trilinear", align_corners=True)[0]
        if cell <= 1:
            break
        cell, strength = cell / 2, strength * OCTAVE_STRENGTH
    mean_C, std_C = field_CTHW.mean(dim=(1, 2, 3)), field_CTHW.std(dim=(1, 2, 3), correction=0).clamp(min=1e-6)
    field_THWC = ((field_CTHW.permute(1, 2, 3, 0) - mean_C) / std_C).contiguous()
    phase = float(torch.rand((), generator=generator))
    mask_THW1 = object_mask(grid, phase=phase)[..., None]
    return field_THWC.lerp(torch.randn(CHANNELS, generator=generator), mask_THW1)


def object_mask(grid: tuple[int, int, int], *, phase: float) -> torch.Tensor:
    """Return the object's opacity [T, H, W], between 0 and 1: a disc with a soft edge.

    It crosses the picture once from left to right while it swings once up and down, starting at `phase` (0 to 1 of a
    swing).
    """
    import torch

    num_t, num_h, num_w = grid
    radius = max(OBJECT_RADIUS * min(num_h, num_w), 0.5)
    progress_T = (torch.arange(num_t) + 0.5) / num_t
    centre_h_T = num_h * (0.5 + 0.25 * torch.sin(2 * math.pi * (progress_T + phase)))
    centre_w_T = num_w * (0.15 + 0.7 * progress_T)
    away_h_TH = torch.arange(num_h) + 0.5 - centre_h_T[:, None]
    away_w_TW = torch.arange(num_w) + 0.5 - centre_w_T[:, None]
    distance_THW = torch.hypot(away_h_TH[:, :, None], away_w_TW[:, None, :])
    return torch.sigmoid((radius - distance_THW) / (0.2 * radius))
