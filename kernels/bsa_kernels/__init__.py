"""Bidirectional Sparse Attention as tensors in, tensors out: the block grid, the plan, the method, the engines.

Needs torch; triton only when the engine `triton` is used.
"""

from __future__ import annotations

from bsa_kernels.api import block_sparse_attention, bsa_attention, make_bsa_plan, tile_permute, tile_restore
from bsa_kernels.grid import BlockGrid
from bsa_kernels.plan import BlockPlan, full_plan

__all__ = [
    "BlockGrid",
    "BlockPlan",
    "block_sparse_attention",
    "bsa_attention",
    "full_plan",
    "make_bsa_plan",
    "tile_permute",
    "tile_restore",
]
