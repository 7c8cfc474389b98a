"""VSA: attention between cube averages, which also picks the few cubes that get exact attention. arXiv 2505.13389."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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

# Where each name is; loaded on first use, so that the arithmetic of a method needs no torch.
_HOMES = {
    "coarse": "bsa_kernels.methods.vsa.branches",
    "coarse_stage": "bsa_kernels.methods.vsa.branches",
    "combine": "bsa_kernels.methods.vsa.branches",
    "combine_stage": "bsa_kernels.methods.vsa.branches",
    "expand": "bsa_kernels.methods.vsa.branches",
    "pool": "bsa_kernels.methods.vsa.branches",
    "coarse_flop": "bsa_kernels.methods.vsa.cost",
    "expected": "bsa_kernels.methods.vsa.cost",
    "kept_cubes": "bsa_kernels.methods.vsa.cost",
    "selection_flop": "bsa_kernels.methods.vsa.cost",
    "build_plan": "bsa_kernels.methods.vsa.selection",
    "select": "bsa_kernels.methods.vsa.selection",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
