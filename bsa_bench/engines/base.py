"""What an engine tells the bench about itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from bsa_kernels import BlockPlan


class Engine(Protocol):
    """One engine. A third party's engine implements this and registers under `bsa_bench.engines`.

    Attributes:
        name: as in `method@name`.
        runs_plans: whether it can run a `BlockPlan` (methods such as `bsa`); every engine runs `full`.
        backward_factor: FLOP its backward executes over those of its forward (2.5: five products with recomputation).
        expected_ops: torch operators of which one must appear in a profiled call, or the backend fell back; empty
            where nothing can fall back.
        is_fused: optional, False by default: it reads q, k and v where they are and fills the output, by
            `prepare_tokens(plan, q)` and `attend_tokens(q, k, v, prepared, scale=...)` in place of `prepare` and
            `attend`; `is_tiled` then says that they are tile-major.
        list_members: optional, `list_members(plan, head_dim, dtype)`: [B, H, R, G] query blocks that share a list; each
            has its own without it. `work_members`: those multiplied with the union of what they listed; the same
            without.
        in_forms: optional, `in_forms(text)`: the engine in the forms that stand behind a colon in its name.
    """

    name: str
    runs_plans: bool
    backward_factor: float
    expected_ops: tuple[str, ...]

    def version(self) -> str | None:
        """The version of what really computes."""

    def unsupported(self, device: torch.device, dtype: torch.dtype, head_dim: int, *, backward: bool) -> str | None:
        """Why it cannot run that here, in a sentence with the remedy, or None."""

    def untimed(self, device: torch.device) -> str | None:
        """Why its time means nothing on a device where it runs, or None."""

    def dense(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
        """Dense attention [B, H, L, D] -> [B, H, L, D], differentiable."""

    def prepare(self, plan: BlockPlan) -> Any:
        """Derive what it needs from a plan alone."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, prepared: Any, *, scale: float) -> Tensor:
        """Outputs of a plan's kept rows from tile-major q, k, v."""

    def executed_flop(self, plan: BlockPlan, head_dim: int) -> float:
        """Forward FLOP that its tiles compute on a plan."""
