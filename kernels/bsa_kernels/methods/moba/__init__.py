"""MoBA: each query attends to its own chunk of the sequence and to the earlier ones it resembles. arXiv 2502.13189."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bsa_kernels.methods.moba.cost import expected, selection_flop
    from bsa_kernels.methods.moba.selection import build_plan, grids, score, select

__all__ = [
    "build_plan",
    "expected",
    "grids",
    "score",
    "select",
    "selection_flop",
]

# Where each name is; loaded on first use, so that the arithmetic of a method needs no torch.
_HOMES = {
    "expected": "bsa_kernels.methods.moba.cost",
    "selection_flop": "bsa_kernels.methods.moba.cost",
    "build_plan": "bsa_kernels.methods.moba.selection",
    "grids": "bsa_kernels.methods.moba.selection",
    "score": "bsa_kernels.methods.moba.selection",
    "select": "bsa_kernels.methods.moba.selection",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
