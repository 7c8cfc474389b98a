"""The engines that run a `BlockPlan`, by name; each is a `BlockEngine`, loaded on first use."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from bsa_kernels.block_engine import BlockEngine


# Imports that a compiler can trace: it cannot follow `importlib`.
def _reference() -> tuple[BlockEngine, BlockEngine]:
    from bsa_kernels.engines.kept import REFERENCE

    return REFERENCE, REFERENCE


def _gather() -> tuple[BlockEngine, BlockEngine]:
    from bsa_kernels.engines.kept import GATHER

    return GATHER, GATHER


def _flex() -> tuple[BlockEngine, BlockEngine]:
    from bsa_kernels.engines.kept import FLEX

    return FLEX, FLEX


def _triton() -> tuple[BlockEngine, BlockEngine]:
    from bsa_kernels.engines.triton import TRITON, TRITON_TILED

    return TRITON, TRITON_TILED


def _gluon() -> tuple[BlockEngine, BlockEngine]:
    from bsa_kernels.engines.gluon import GLUON, GLUON_TILED

    return GLUON, GLUON_TILED


def _cpu() -> tuple[BlockEngine, BlockEngine]:
    from bsa_kernels.engines.cpu.engine import CPU, CPU_TILED

    return CPU, CPU_TILED


#: For each name a function that loads the engine and its form that reads tile-major tensors.
ENGINES: dict[str, Callable[[], tuple[BlockEngine, BlockEngine]]] = {
    "reference": _reference,
    "gather": _gather,
    "flex": _flex,
    "triton": _triton,
    "gluon": _gluon,
    "cpu": _cpu,
}


def get_engine(name: str, *, tiled: bool = False) -> BlockEngine:
    """Load an engine by name; `tiled`: the form of it that reads tile-major tensors.

    Raises:
        ValueError: there is no such engine.
    """
    if name not in ENGINES:
        raise ValueError(f"engine: expected one of auto, {', '.join(ENGINES)}; got {name!r}")
    plain, of_tiles = ENGINES[name]()
    return of_tiles if tiled else plain


def auto_engine(device: torch.device) -> str:
    """The engine that `auto` means: `triton` on CUDA, `gather` elsewhere. A choice by device, not a fallback."""
    return "triton" if device.type == "cuda" else "gather"
