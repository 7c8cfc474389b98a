"""VMoBA: each query attends to the blocks whose mean key it resembles, blocks cut anew by layer. arXiv 2506.23858."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bsa_kernels.lazy import lazy_names

if TYPE_CHECKING:
    from bsa_kernels.methods.vmoba.cost import SCOPES, Scope, SelectMode, expected, layer_block, selection_flop
    from bsa_kernels.methods.vmoba.selection import build_plan, grids, score, select, select_threshold, select_topk

__all__ = [
    "SCOPES",
    "Scope",
    "SelectMode",
    "build_plan",
    "expected",
    "grids",
    "layer_block",
    "score",
    "select",
    "select_threshold",
    "select_topk",
    "selection_flop",
]

__getattr__ = lazy_names(
    __name__,
    {
        "cost": ("SCOPES", "Scope", "SelectMode", "expected", "layer_block", "selection_flop"),
        "selection": ("build_plan", "grids", "score", "select", "select_threshold", "select_topk"),
    },
)
