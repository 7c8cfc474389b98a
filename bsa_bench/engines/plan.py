"""Engines that run block plans: those of `bsa_kernels`, told to the bench."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bsa_bench.engines.forms import Extent, Form, parse_forms
from bsa_bench.errors import UnsupportedError
from bsa_kernels import BlockGrid, full_plan
from bsa_kernels.block_sparse.groups import choose_groups_reference
from bsa_kernels.block_sparse.tile_table import padded
from bsa_kernels.engines import get_engine, gluon, triton

if TYPE_CHECKING:
    from bsa_kernels import BlockPlan
    from bsa_kernels.block_sparse.tables import KernelTables
    from bsa_kernels.block_sparse.tile_table import Tiles

#: Blocks of the plan of everything, on which a plan engine computes dense attention.
_DENSE_BLOCK = 64


@dataclass(frozen=True)
class PlanEngine:
    """One of `bsa_kernels.engines`, by name."""

    name: str
    backward_factor: float
    package: str
    untimed_on_cpu: str | None = None
    runs_plans: bool = True
    expected_ops: tuple[str, ...] = ()

    def version(self) -> str:
        """The package that computes, and ours, which drives it."""
        return f"{self.package} {version(self.package)}"

    def unsupported(self, device: torch.device, dtype: torch.dtype, head_dim: int, *, backward: bool) -> str | None:
        """What the engine itself says."""
        return get_engine(self.name).unsupported(device, dtype, head_dim, backward=backward)

    def untimed(self, device: torch.device) -> str | None:
        """The interpreter on a CPU verifies; its time says nothing."""
        return self.untimed_on_cpu if device.type == "cpu" else None

    def dense(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
        """Dense attention by the plan of everything."""
        b, h, length, _ = q.shape
        grid = BlockGrid((1, 1, length), (1, 1, _DENSE_BLOCK))
        plan = full_plan(b, h, grid, device=q.device)
        q, k, v = (grid.permute(x) for x in (q, k, v))
        return plan.fill_output(self.attend(q, k, v, plan, self.prepare(plan), scale=scale))

    def prepare(self, plan: BlockPlan) -> Any:
        """What the engine derives from a plan."""
        return get_engine(self.name).prepare(plan)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, prepared: Any, *, scale: float) -> Tensor:
        """Outputs of the kept rows."""
        return get_engine(self.name).attend(q, k, v, plan, prepared, scale=scale)

    def executed_flop(self, plan: BlockPlan, head_dim: int) -> float:
        """What the engine's tiles compute."""
        return get_engine(self.name).executed_flop(plan, head_dim)


@dataclass(frozen=True)
class Fused(PlanEngine):
    """Our kernels, which read q, k and v where they are and fill the output; `is_tiled`: from tile-major order.

    `forms` are what it changes in each call.
    """

    is_fused: bool = True
    is_tiled: bool = False
    forms: tuple[Form, ...] = ()

    def in_forms(self, text: str) -> Fused:
        """The same in some forms, as `quad` or `fused+pack`.

        Raises:
            UsageError: as `parse_forms`.
        """
        name = f"{self.name}:{text}"
        return replace(self, name=name, forms=parse_forms(text, engine=name))

    def version(self) -> str:
        """Triton, which compiles them."""
        return f"triton {version('triton')}"

    def unsupported(self, device: torch.device, dtype: torch.dtype, head_dim: int, *, backward: bool) -> str | None:
        """What the engine itself says."""
        return triton.unsupported(device, dtype, head_dim, backward=backward)

    def dense(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
        """Dense attention by the plan of everything, in natural order."""
        b, h, length, _ = q.shape
        plan = full_plan(b, h, BlockGrid((1, 1, length), (1, 1, _DENSE_BLOCK)), device=q.device)
        return triton.attend_tokens(q, k, v, self._tables(plan, q, is_tiled=False), scale=scale)

    def prepare_tokens(self, plan: BlockPlan, q: Tensor) -> Any:
        """Lists and tables for q, k and v like q."""
        return self._tables(plan, q, is_tiled=self.is_tiled)

    def attend_tokens(self, q: Tensor, k: Tensor, v: Tensor, prepared: Any, *, scale: float) -> Tensor:
        """The filled output, like q."""
        return triton.attend_tokens(q, k, v, prepared, scale=scale)

    def executed_flop(self, plan: BlockPlan, head_dim: int) -> float:
        """What the tiles compute, unions included."""
        return triton.executed_flop(plan, head_dim, self._tiles(plan, head_dim, torch.bfloat16))

    def list_members(self, plan: BlockPlan, head_dim: int, dtype: torch.dtype) -> Tensor:
        """Query blocks that share a list, [B, H, R, G]."""
        group = self._tiles(plan, head_dim, dtype).attend.group
        return choose_groups_reference(plan.block_bits, plan.q_grid, group)

    def work_members(self, plan: BlockPlan, head_dim: int, dtype: torch.dtype) -> Tensor:
        """Query blocks that are multiplied with the union of what they listed, [B, H, R, G]."""
        return self.list_members(plan, head_dim, dtype)

    def _tiles(self, plan: BlockPlan, head_dim: int, dtype: torch.dtype) -> Tiles:
        tiles = triton.choose_tiles(plan, head_dim=head_dim, dtype=dtype)
        for form in self.forms:
            if form.change_tiles:
                tiles = form.change_tiles(tiles, Extent(padded(plan.shape[3]), head_dim))
        return tiles

    def _tables(self, plan: BlockPlan, q: Tensor, *, is_tiled: bool) -> KernelTables:
        tiles = self._tiles(plan, q.shape[-1], q.dtype)
        tables = triton.prepare(plan, head_dim=q.shape[-1], dtype=q.dtype, is_tiled=is_tiled, tiles=tiles)
        for form in self.forms:
            if form.change_tables:
                tables = form.change_tables(tables)
        return tables


class Specialized(Fused):
    """The forward whose warps load or multiply, over lists of 128 rows; backward as Fused."""

    def unsupported(self, device: torch.device, dtype: torch.dtype, head_dim: int, *, backward: bool) -> str | None:
        """What the engine itself says."""
        return gluon.unsupported(device, dtype, head_dim, backward=backward)

    def executed_flop(self, plan: BlockPlan, head_dim: int) -> float:
        """What the halves of programs compute."""
        return gluon.executed_flop(plan, head_dim, self._tiles(plan, head_dim, torch.bfloat16))

    def work_members(self, plan: BlockPlan, head_dim: int, dtype: torch.dtype) -> Tensor:
        """Those of each half."""
        return gluon.half_members(self.list_members(plan, head_dim, dtype))

    def _tiles(self, plan: BlockPlan, head_dim: int, dtype: torch.dtype) -> Tiles:
        try:
            return gluon.choose_tiles(plan, head_dim=head_dim, dtype=dtype)
        except ValueError as error:
            raise UnsupportedError(str(error)) from error


class Flex(PlanEngine):
    """FlexAttention; dense without any mask on a GPU, and with a mask of everything on a CPU, where that is faster."""

    def dense(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
        """Compiled FlexAttention over all pairs."""
        from bsa_kernels.engines.flex import compiled_flex_attention, everything_mask

        mask = everything_mask(q.shape[2], q.device) if q.device.type == "cpu" else None
        out = compiled_flex_attention()(q, k, v, block_mask=mask, scale=scale)
        assert isinstance(out, Tensor)
        return out


GATHER = PlanEngine("gather", 3.5, "torch")
FLEX = Flex("flex", 3.5, "torch")
_INTERPRETED = "Triton ran in its interpreter, which verifies on a CPU and tells no speed; time it on a GPU."
TRITON = Fused("triton", 3.5, "triton", untimed_on_cpu=_INTERPRETED)
TRITON_TILED = Fused("triton-tiled", 3.5, "triton", untimed_on_cpu=_INTERPRETED, is_tiled=True)
GLUON = Specialized("gluon", 3.5, "triton")
