"""Bidirectional Sparse Attention as tensors in, tensors out: the block grid, the plan, the method, the engines.

Needs torch; triton only when the engine `triton` is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bsa_kernels.api import block_sparse_attention, bsa_attention, make_bsa_plan, tile_permute, tile_restore
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
    "full_plan",
    "make_bsa_plan",
    "merge_streams",
    "tile_permute",
    "tile_restore",
]

# Where each name is; loaded on first use, so that the arithmetic of a method needs no torch.
_HOMES = {
    "block_sparse_attention": "bsa_kernels.api",
    "bsa_attention": "bsa_kernels.api",
    "make_bsa_plan": "bsa_kernels.api",
    "tile_permute": "bsa_kernels.api",
    "tile_restore": "bsa_kernels.api",
    "BlockGrid": "bsa_kernels.grid",
    "BlockPlan": "bsa_kernels.plan",
    "full_plan": "bsa_kernels.plan",
    "CAUSAL": "bsa_kernels.rules",
    "ElementRule": "bsa_kernels.rules",
    "FULL": "bsa_kernels.rules",
    "merge_streams": "bsa_kernels.streams",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
