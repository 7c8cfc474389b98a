"""The engines that run a `BlockPlan`: a name, what it can run here, and how.

`ENGINES` maps a name to its module, which is imported on first use. An engine is a module with four functions:

* `unsupported(device, dtype, head_dim, *, backward) -> str | None`: why it cannot run that here, in a sentence with
  the remedy, or None;
* `prepare(plan) -> object`: what it derives from a plan alone (part of the phase *plan*);
* `attend(q_tiles, k_tiles, v_tiles, plan, prepared, *, scale) -> o_kept` [B, H, Nq, K, D]: differentiable in q, k, v
  where `unsupported(..., backward=True)` is None;
* `executed_flop(plan, head_dim) -> int`: what the forward's matrix products execute, padding included.

An engine in `FUSED` has, in place of the two in the middle, `prepare(plan, *, head_dim, dtype, is_tiled)` and
`attend_tokens(q, k, v, prepared, *, scale) -> o`, which reads q, k and v [B, H, L, D] where they are and fills all.
"""

from __future__ import annotations

from importlib import import_module
from typing import Protocol, cast

import torch
from torch import Tensor

from bsa_kernels.plan import BlockPlan

ENGINES: dict[str, str] = {
    "reference": "bsa_kernels.engines.reference",
    "gather": "bsa_kernels.engines.gather",
    "flex": "bsa_kernels.engines.flex",
    "triton": "bsa_kernels.engines.triton",
    "gluon": "bsa_kernels.engines.gluon",
}

FUSED = frozenset({"triton", "gluon"})


class PlanEngine(Protocol):
    """What the modules in `ENGINES` offer."""

    def unsupported(self, device: torch.device, dtype: torch.dtype, head_dim: int, *, backward: bool) -> str | None:
        """Why this cannot run here, or None."""

    def prepare(self, plan: BlockPlan) -> object:
        """Derive what the engine needs from the plan alone."""

    def attend(
        self, q_tiles: Tensor, k_tiles: Tensor, v_tiles: Tensor, plan: BlockPlan, prepared: object, *, scale: float
    ) -> Tensor:
        """Compute the outputs of the kept rows, [B, H, Nq, K, D]."""

    def executed_flop(self, plan: BlockPlan, head_dim: int) -> int:
        """FLOP of the forward's matrix products as run here, padding included (synchronises)."""


class FusedEngine(Protocol):
    """What the modules of `FUSED` offer in place of `prepare` and `attend`."""

    def prepare(self, plan: BlockPlan, *, head_dim: int, dtype: torch.dtype, is_tiled: bool = False) -> object:
        """Bring the plan into the kernels' form."""

    def attend_tokens(self, q: Tensor, k: Tensor, v: Tensor, tables: object, *, scale: float) -> Tensor:
        """Attend and fill: o like q."""


def get_fused(name: str) -> FusedEngine:
    """Load an engine of `FUSED`."""
    return cast("FusedEngine", import_module(ENGINES[name]))


def get_engine(name: str) -> PlanEngine:
    """Load an engine by name.

    Raises:
        ValueError: there is no such engine.
    """
    if name not in ENGINES:
        raise ValueError(f"engine: expected one of auto, {', '.join(ENGINES)}; got {name!r}")
    return cast("PlanEngine", import_module(ENGINES[name]))


def auto_engine(device: torch.device) -> str:
    """The engine that `auto` means: `triton` on CUDA, `gather` elsewhere. A choice by device, not a fallback."""
    return "triton" if device.type == "cuda" else "gather"
