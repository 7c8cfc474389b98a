"""Bidirectional Sparse Attention as tensors in, tensors out: the block grid, the plan, the method, the engines.

Needs torch; triton only when the engine `triton` is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bsa_kernels.lazy import lazy_names

if TYPE_CHECKING:
    from bsa_kernels.api import block_sparse_attention, bsa_attention, make_bsa_plan, tile_permute, tile_restore
    from bsa_kernels.engines import explain_engine
    from bsa_kernels.grid import BlockGrid
    from bsa_kernels.plan import BlockPlan, full_plan
    from bsa_kernels.rules import CAUSAL, FULL, ElementRule
    from bsa_kernels.streams import merge_streams

__all__ = [
    "CAUSAL",
    "FULL",
    "BlockGrid",
    "BlockPlan",
    "ElementRule",
    "block_sparse_attention",
    "bsa_attention",
    "explain_engine",
    "full_plan",
    "make_bsa_plan",
    "merge_streams",
    "tile_permute",
    "tile_restore",
]

__getattr__ = lazy_names(
    __name__,
    {
        "api": ("block_sparse_attention", "bsa_attention", "make_bsa_plan", "tile_permute", "tile_restore"),
        "engines": ("explain_engine",),
        "grid": ("BlockGrid",),
        "plan": ("BlockPlan", "full_plan"),
        "rules": ("CAUSAL", "ElementRule", "FULL"),
        "streams": ("merge_streams",),
    },
)
