"""What an engine that runs a `BlockPlan` offers; `bsa_kernels.engines` has ours, `bsa_kernels.stages` runs any."""

from __future__ import annotations

from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor

from bsa_kernels.plan import BlockPlan

Order = Literal["natural", "tiled"]
Passes = Literal["forward", "backward", "forward+backward"]


class UnsupportedPlanError(ValueError):
    """An engine has not what a plan asks for; says what, and the remedy."""


class BlockRunner(Protocol):
    """Attends by a `BlockPlan`: what `block_stages` needs of an engine. Hashable, so that operators can be kept.

    Attributes:
        name: as a caller asks for it.
        layout: the order of q, k and v that `attend` reads: `natural` [B, H, L, D], or `tiled` [B, H, N*M, D] as
            `BlockGrid.permute` leaves them.
        fills: `attend` returns the filled output, like q; otherwise kept rows [B, H, Nq, K, D], for `fill_output`.
        runs_triton: it runs in Triton, so that a method may select in Triton too.
        gives_lse: it has `attend_lse`, see `LseRunner`.
    """

    def __hash__(self) -> int: ...

    @property
    def name(self) -> str: ...

    @property
    def layout(self) -> Order: ...

    @property
    def fills(self) -> bool: ...

    @property
    def runs_triton(self) -> bool: ...

    @property
    def gives_lse(self) -> bool: ...

    def unsupported_plan(self, plan: BlockPlan) -> str | None:
        """Why it cannot run this plan, in a sentence with the remedy, or None; without looking at its tensors."""

    def prepare(self, plan: BlockPlan, like: Tensor) -> Any:
        """Derive from the plan what it needs, for q, k and v like `like`: lists, masks, schedules."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, prepared: Any, *, scale: float) -> Tensor:
        """Attend by the plan; differentiable in q, k and v where `unsupported(..., backward=True)` is None."""


def runs_cpp(engine: BlockRunner) -> bool:
    """Whether an engine says that it runs `bsa_kernels.cpp`, by an attribute of this name, so that a method may too."""
    return bool(getattr(engine, "runs_cpp", False))


class LseRunner(BlockRunner, Protocol):
    """A runner whose `gives_lse` is True."""

    def attend_lse(
        self, q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, prepared: Any, *, scale: float
    ) -> tuple[Tensor, Tensor]:
        """What `attend` returns, and the log-sum-exp of the logits of kept rows [B, H, Nq, K], natural.

        fp32, or fp64 for fp64 inputs; -inf where a row sees nothing. Differentiable as `attend` is.
        """


def lse_runner(engine: BlockRunner) -> LseRunner:
    """The engine as one that gives the log-sum-exp.

    Raises:
        ValueError: it does not.
    """
    if not engine.gives_lse:
        raise ValueError(f"engine {engine.name!r}: it gives no log-sum-exp; use the engine gather.")
    return cast("LseRunner", engine)


class BlockEngine(BlockRunner, Protocol):
    """What an engine of `bsa_kernels.engines` says besides: where it runs, and what it executes."""

    def unsupported(self, device: torch.device, dtype: torch.dtype, head_dim: int, *, backward: bool) -> str | None:
        """Why it cannot run that here, in a sentence with the remedy, or None."""

    def executed_flop(
        self, plan: BlockPlan, head_dim: int, which: Passes, *, dtype: torch.dtype = torch.bfloat16
    ) -> float:
        """FLOP of the matrix products over (row, key) pairs that a pass executes, padding of tiles included.

        Synchronises. The backward counts what it computes again. `dtype` is that of q, k and v, where tiles depend on
        it; 16-bit formats have the same.
        """
