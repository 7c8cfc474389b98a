"""VSA: attention between cube averages, which also picks the few cubes that get exact attention. arXiv 2505.13389."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bsa_kernels.lazy import lazy_names

if TYPE_CHECKING:
    from bsa_kernels.methods.vsa.branches import coarse, coarse_stage, combine, combine_stage, expand, pool
    from bsa_kernels.methods.vsa.cost import coarse_flop, expected, kept_cubes, selection_flop
    from bsa_kernels.methods.vsa.selection import build_plan, select

__all__ = [
    "build_plan",
    "coarse",
    "coarse_flop",
    "coarse_stage",
    "combine",
    "combine_stage",
    "expand",
    "expected",
    "kept_cubes",
    "pool",
    "select",
    "selection_flop",
]

__getattr__ = lazy_names(
    __name__,
    {
        "branches": ("coarse", "coarse_stage", "combine", "combine_stage", "expand", "pool"),
        "cost": ("coarse_flop", "expected", "kept_cubes", "selection_flop"),
        "selection": ("build_plan", "select"),
    },
)
