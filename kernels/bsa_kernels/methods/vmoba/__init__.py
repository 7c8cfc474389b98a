"""VMoBA: each query attends to the blocks whose mean key it resembles, blocks cut anew by layer. arXiv 2506.23858."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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

# Where each name is; loaded on first use, so that the arithmetic of a method needs no torch.
_HOMES = {
    "SCOPES": "bsa_kernels.methods.vmoba.cost",
    "Scope": "bsa_kernels.methods.vmoba.cost",
    "SelectMode": "bsa_kernels.methods.vmoba.cost",
    "expected": "bsa_kernels.methods.vmoba.cost",
    "layer_block": "bsa_kernels.methods.vmoba.cost",
    "selection_flop": "bsa_kernels.methods.vmoba.cost",
    "build_plan": "bsa_kernels.methods.vmoba.selection",
    "grids": "bsa_kernels.methods.vmoba.selection",
    "score": "bsa_kernels.methods.vmoba.selection",
    "select": "bsa_kernels.methods.vmoba.selection",
    "select_threshold": "bsa_kernels.methods.vmoba.selection",
    "select_topk": "bsa_kernels.methods.vmoba.selection",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
