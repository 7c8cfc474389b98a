"""Engines that run block plans: those of `bsa_kernels`, told to the bench."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bsa_bench.contract import BLOCKS, CAUSAL_DENSE, DENSE, ELEMENT_RULES
from bsa_bench.engines.dense import dense_flop, interpreted_on_gpu
from bsa_bench.engines.forms import Extent, Form, parse_forms
from bsa_bench.engines.torch_cache import torch_cache_fault
from bsa_bench.result import PassName
from bsa_kernels import CAUSAL, BlockGrid, BlockPlan, full_plan
from bsa_kernels.block_engine import lse_runner, runs_cpp
from bsa_kernels.block_sparse.tile_table import padded
from bsa_kernels.cpp.build import BuildError, find_compiler
from bsa_kernels.engines.cpu.engine import CPU as CPU_KERNELS
from bsa_kernels.engines.gluon import GLUON as GLUON_KERNELS
from bsa_kernels.engines.kept import FLEX as FLEX_KERNELS
from bsa_kernels.engines.kept import GATHER as GATHER_KERNELS
from bsa_kernels.engines.triton import TRITON as TRITON_KERNELS
from bsa_kernels.engines.triton import TritonEngine
from bsa_kernels.operator import Operator
from bsa_kernels.stages import plan_stages

if TYPE_CHECKING:
    from bsa_kernels.block_engine import BlockEngine, Order
    from bsa_kernels.block_sparse.tables import KernelTables
    from bsa_kernels.block_sparse.tile_table import Tiles

#: Blocks of the plan of everything, by which a block engine computes dense attention.
_DENSE_BLOCK = 64


@dataclass(frozen=True)
class Blocks:
    """One of `bsa_kernels.engines`: `block`."""

    name: str
    package: str
    block: BlockEngine
    offers: frozenset[str] = frozenset({DENSE, CAUSAL_DENSE, BLOCKS, ELEMENT_RULES})
    untimed_on_cpu: str | None = None
    expected_ops: tuple[str, ...] = ()

    @property
    def layout(self) -> Order:
        """See `BlockEngine`."""
        return self.block.layout

    @property
    def fills(self) -> bool:
        """See `BlockEngine`."""
        return self.block.fills

    @property
    def runs_triton(self) -> bool:
        """See `BlockEngine`."""
        return self.block.runs_triton

    @property
    def runs_cpp(self) -> bool:
        """See `runs_cpp` of `bsa_kernels.block_engine`."""
        return runs_cpp(self.block)

    @property
    def gives_lse(self) -> bool:
        """See `BlockEngine`."""
        return self.block.gives_lse

    def version(self) -> str:
        """The package that computes."""
        return f"{self.package} {version(self.package)}"

    def unsupported(self, device: torch.device, dtype: torch.dtype, head_dim: int, *, backward: bool) -> str | None:
        """What the engine itself says."""
        return self.block.unsupported(device, dtype, head_dim, backward=backward)

    def unsupported_plan(self, plan: BlockPlan) -> str | None:
        """What the engine itself says."""
        return self.block.unsupported_plan(plan)

    def untimed(self, device: torch.device) -> str | None:
        """The interpreter on a CPU verifies; its time says nothing."""
        return self.untimed_on_cpu if device.type == "cpu" else None

    def dense(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float, causal: bool = False) -> Tensor:
        """Dense attention by the plan of everything."""
        plan = dense_plan(q, causal=causal)
        return Operator(plan_stages(self.block, plan, scale=scale)).forward({"q": q, "k": k, "v": v})

    def prepare(self, plan: BlockPlan, like: Tensor) -> Any:
        """What the engine derives from a plan."""
        return self.block.prepare(plan, like)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, prepared: Any, *, scale: float) -> Tensor:
        """As the engine itself."""
        return self.block.attend(q, k, v, plan, prepared, scale=scale)

    def attend_lse(
        self, q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, prepared: Any, *, scale: float
    ) -> tuple[Tensor, Tensor]:
        """As the engine itself."""
        return lse_runner(self.block).attend_lse(q, k, v, plan, prepared, scale=scale)

    def executed_flop(self, contract: str, state: Mapping[str, Any], which: PassName) -> float:
        """What the engine's tiles compute, by its own count."""
        q = state["q"]
        plan = state["plan"] if contract == BLOCKS else dense_plan(q, causal=contract == CAUSAL_DENSE)
        return self.block.executed_flop(plan, q.shape[-1], which, dtype=q.dtype)


def dense_plan(q: Tensor, *, causal: bool) -> BlockPlan:
    """The plan of dense attention over q [B, H, L, D]; causal, of the blocks that a query may see something of."""
    b, h, length, _ = q.shape
    grid = BlockGrid((1, 1, length), (1, 1, _DENSE_BLOCK))
    if not causal:
        return full_plan(b, h, grid, device=q.device)
    mask = CAUSAL.touches(grid, grid, q.device)
    return BlockPlan.from_mask(grid, grid, mask.expand(b, h, -1, -1), rule=CAUSAL)


@dataclass(frozen=True)
class Formed(Blocks):
    """Our kernels; `forms` are what they change in each call."""

    block: TritonEngine = TRITON_KERNELS
    forms: tuple[Form, ...] = ()

    def untimed(self, device: torch.device) -> str | None:
        """The interpreter's time says nothing, on a CPU and on a GPU."""
        return super().untimed(device) or interpreted_on_gpu(device)

    def in_forms(self, text: str) -> Formed:
        """The same in some forms, as `quad` or `fused+pack`.

        Raises:
            UsageError: as `parse_forms`.
        """
        name = f"{self.name}:{text}"
        forms = parse_forms(text, engine=name)
        block = replace(self.block, change_tiles=_changed_tiles(forms), change_tables=_changed_tables(forms))
        return replace(self, name=name, forms=forms, block=block)

    def list_members(self, plan: BlockPlan, like: Tensor) -> Tensor:
        """Query blocks that share a list, [B, H, R, G]."""
        return self.block.list_members(plan, head_dim=like.shape[-1], dtype=like.dtype)

    def work_members(self, plan: BlockPlan, like: Tensor) -> Tensor:
        """Query blocks that are multiplied with the union of what they listed, [B, H, R, G]."""
        return self.block.work_members(plan, head_dim=like.shape[-1], dtype=like.dtype)


def _changed_tiles(forms: tuple[Form, ...]) -> Callable[[Tiles, int, int], Tiles]:
    def change(tiles: Tiles, kept_rows: int, head_dim: int) -> Tiles:
        for form in forms:
            if form.change_tiles:
                tiles = form.change_tiles(tiles, Extent(padded(kept_rows), head_dim))
        return tiles

    return change


def _changed_tables(forms: tuple[Form, ...]) -> Callable[[KernelTables], KernelTables]:
    def change(tables: KernelTables) -> KernelTables:
        for form in forms:
            if form.change_tables:
                tables = form.change_tables(tables)
        return tables

    return change


class Flex(Blocks):
    """FlexAttention; dense without any mask on a GPU, and with a mask of everything on a CPU, where that is faster."""

    def unsupported(self, device: torch.device, dtype: torch.dtype, head_dim: int, *, backward: bool) -> str | None:
        """What the engine says, and whether the compile cache is the one that the process was started with."""
        return super().unsupported(device, dtype, head_dim, backward=backward) or torch_cache_fault()

    def dense(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float, causal: bool = False) -> Tensor:
        """Compiled FlexAttention over all pairs; causal by the plan."""
        if causal:
            return super().dense(q, k, v, scale=scale, causal=True)
        from bsa_kernels.engines.flex import compiled_flex_attention, everything_mask

        mask = everything_mask(q.shape[2], q.device) if q.device.type == "cpu" else None
        out = compiled_flex_attention()(q, k, v, block_mask=mask, scale=scale)
        assert isinstance(out, Tensor)
        return out

    def executed_flop(self, contract: str, state: Mapping[str, Any], which: PassName) -> float:
        """Of dense attention all pairs: two products forward, seven backward; else what the plan comes to."""
        if contract == DENSE:
            return dense_flop(state["q"], which, backward_products=7)
        return super().executed_flop(contract, state, which)


class Cpu(Blocks):
    """Our kernels for CPUs, compiled on this machine."""

    def version(self) -> str:
        """This package, whose source it is, and what compiled it, if there is something that can."""
        try:
            return f"{super().version()}, {find_compiler().version}"
        except BuildError:
            return super().version()


GATHER = Blocks("gather", "torch", GATHER_KERNELS)
CPU = Cpu("cpu", "bsa-bench", CPU_KERNELS)
FLEX = Flex("flex", "torch", FLEX_KERNELS)
_INTERPRETED = "Triton ran in its interpreter, which verifies on a CPU and tells no speed; time it on a GPU."
TRITON = Formed("triton", "triton", TRITON_KERNELS, untimed_on_cpu=_INTERPRETED)
TRITON_TILED = Formed(
    "triton-tiled",
    "triton",
    replace(TRITON_KERNELS, layout="tiled"),
    frozenset({BLOCKS, ELEMENT_RULES}),
    _INTERPRETED,
)
GLUON = Formed("gluon", "triton", GLUON_KERNELS, frozenset({DENSE, BLOCKS}))
