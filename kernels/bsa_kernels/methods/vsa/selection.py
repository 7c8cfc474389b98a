"""VSA's choice of cubes: the K highest coarse scores of each row. Source: arXiv 2505.13389.

Shape legend: `B` batch, `H` heads, `N` cubes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bsa_kernels.grid import BlockGrid
from bsa_kernels.methods.vsa.cost import kept_cubes
from bsa_kernels.plan import BlockPlan
from bsa_kernels.ranking import mark_top


@torch.no_grad()
def select(scores: Tensor, *, topk: int | None = None, density: float | None = None) -> Tensor:
    """Pick the highest K of each row of coarse scores [B, H, N, N]; no gradient, no synchronisation.

    Returns:
        [B, H, N, N] bool with exactly K picks a row, ties to the lowest index; K as `kept_cubes` has it, so that
        `density=1` is dense attention. A cube's own is picked only if its score is high enough.

    Raises:
        ValueError: not one of `topk` and `density`, or it is out of range.
    """
    return mark_top(scores, kept_cubes(scores.shape[-1], topk=topk, density=density))


def build_plan(mask: Tensor, grid: BlockGrid) -> BlockPlan:
    """Make the plan of a mask [B, H, N, N]: each token of a cube attends to all real tokens of the cubes picked."""
    return BlockPlan.from_mask(grid, grid, mask)
