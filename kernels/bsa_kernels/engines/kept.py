"""The engines that compute kept rows from tile-major tensors, as objects: `reference`, `gather` and `flex`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from bsa_kernels.block_engine import Order, Passes
from bsa_kernels.engines import flex, gather, reference
from bsa_kernels.plan import BlockPlan


class _Functions(Protocol):
    """The functions of an engine's module."""

    def unsupported(self, device: torch.device, dtype: torch.dtype, head_dim: int, *, backward: bool) -> str | None: ...

    def unsupported_plan(self, plan: BlockPlan) -> str | None: ...

    def prepare(self, plan: BlockPlan) -> object: ...

    def attend(
        self, q_tiles: Tensor, k_tiles: Tensor, v_tiles: Tensor, plan: BlockPlan, prepared: Any, *, scale: float
    ) -> Tensor: ...

    def attend_lse(
        self, q_tiles: Tensor, k_tiles: Tensor, v_tiles: Tensor, plan: BlockPlan, prepared: Any, *, scale: float
    ) -> tuple[Tensor, Tensor]: ...

    def executed_flop(self, plan: BlockPlan, head_dim: int, which: Passes) -> float: ...


@dataclass(frozen=True)
class KeptEngine:
    """An engine whose module computes kept rows; a plan alone tells it what it needs."""

    name: str
    functions: _Functions
    layout: Order = "tiled"
    fills: bool = False
    runs_triton: bool = False
    gives_lse: bool = True

    def unsupported(self, device: torch.device, dtype: torch.dtype, head_dim: int, *, backward: bool) -> str | None:
        """See `BlockEngine`."""
        return self.functions.unsupported(device, dtype, head_dim, backward=backward)

    def unsupported_plan(self, plan: BlockPlan) -> str | None:
        """See `BlockEngine`."""
        return self.functions.unsupported_plan(plan)

    def prepare(self, plan: BlockPlan, like: Tensor) -> object:  # noqa: ARG002
        """See `BlockEngine`."""
        return self.functions.prepare(plan)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, prepared: Any, *, scale: float) -> Tensor:
        """See `BlockEngine`."""
        return self.functions.attend(q, k, v, plan, prepared, scale=scale)

    def attend_lse(
        self, q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, prepared: Any, *, scale: float
    ) -> tuple[Tensor, Tensor]:
        """See `LseRunner`; `merge_streams` joins streams by it."""
        return self.functions.attend_lse(q, k, v, plan, prepared, scale=scale)

    def executed_flop(
        self,
        plan: BlockPlan,
        head_dim: int,
        which: Passes,
        *,
        dtype: torch.dtype = torch.bfloat16,  # noqa: ARG002
    ) -> float:
        """See `BlockEngine`."""
        return self.functions.executed_flop(plan, head_dim, which)


REFERENCE = KeptEngine("reference", reference)
GATHER = KeptEngine("gather", gather)
FLEX = KeptEngine("flex", flex)
