"""The engines that run a `BlockPlan`, by name; each is a `BlockEngine`, loaded on first use."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from bsa_kernels.tracing import ask_once

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


@ask_once
def auto_engine(device: torch.device) -> str:
    """The engine that `auto` means: `triton` on CUDA; on a CPU `cpu`, or `gather` with a warning, once, why not `cpu`.

    Elsewhere `gather`. The first call on a CPU compiles the kernels where they are not in the cache.
    """
    name, fault = _auto(device.type)
    if fault and fault not in _warned:
        _warned.add(fault)
        warnings.warn(_without_kernels(fault), RuntimeWarning, stacklevel=3)
    return name


def explain_engine(device: torch.device | str) -> str:
    """Say in a sentence which engine `auto` is on a device, and why."""
    kind = torch.device(device).type
    name, fault = _auto(kind)
    if fault:
        return _without_kernels(fault)
    what = {"triton": "the kernels in Triton", "cpu": "the kernels in C++, compiled for this machine"}
    return f"engine 'auto' is {name!r} on {kind}: {what.get(name, 'torch, for there are no kernels')}."


_warned: set[str] = set()


def _auto(kind: str) -> tuple[str, str | None]:
    """The name, and why it is not the kernels of this kind of device."""
    if kind == "cuda":
        return "triton", None
    if kind != "cpu":
        return "gather", None
    from bsa_kernels.cpp.build import BuildError
    from bsa_kernels.cpp.library import load

    try:
        load()
    except BuildError as error:
        return "gather", str(error)
    return "cpu", None


def _without_kernels(fault: str) -> str:
    return f"engine 'auto' is 'gather' on this CPU, which is several times as slow as 'cpu': {fault}"
