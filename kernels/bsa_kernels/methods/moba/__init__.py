"""MoBA: each query attends to its own chunk of the sequence and to the earlier ones it resembles. arXiv 2502.13189."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bsa_kernels.lazy import lazy_names

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

__getattr__ = lazy_names(
    __name__,
    {
        "cost": ("expected", "selection_flop"),
        "selection": ("build_plan", "grids", "score", "select"),
    },
)
