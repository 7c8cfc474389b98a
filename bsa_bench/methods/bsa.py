"""Bidirectional Sparse Attention as stages: permute, select, plan, attend, fill."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, cast

from bsa_bench.operator import Operator, Stage
from bsa_kernels.bsa import stages
from bsa_kernels.bsa.fused import FusedSelection
from bsa_kernels.bsa.options import BsaOptions as KernelOptions

if TYPE_CHECKING:
    from torch import Tensor

    from bsa_bench.engines.base import Engine
    from bsa_bench.result import BsaOptions
    from bsa_kernels import BlockPlan


def build(engine: Engine, grid: tuple[int, int, int], options: BsaOptions | None, *, scale: float) -> Operator:
    """The operator that `bsa_kernels.bsa_attention` runs in a row, on any engine that runs plans."""
    assert options is not None
    kernel_options = KernelOptions(grid=grid, **options.model_dump())

    if getattr(engine, "is_fused", False):
        return _fused(cast("FusedEngine", engine), kernel_options, scale)

    def plan(selection: stages.Selection) -> tuple[BlockPlan, object]:
        made = stages.build_plan(selection, kernel_options)
        return made, engine.prepare(made)

    def permute(q, k, v):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        tiles = stages.permute(q, k, v, kernel_options)
        return tiles.q, tiles.k, tiles.v

    return Operator(
        (
            Stage("permute", ("q", "k", "v"), ("q_tiles", "k_tiles", "v_tiles"), permute),
            Stage(
                "select",
                ("q_tiles", "k_tiles"),
                ("selection",),
                lambda q, k: (stages.select(q, k, kernel_options, scale=scale),),
                differentiable=False,
            ),
            Stage("plan", ("selection",), ("plan", "prepared"), plan, differentiable=False),
            Stage(
                "attend",
                ("q_tiles", "k_tiles", "v_tiles", "plan", "prepared"),
                ("o_kept",),
                lambda q, k, v, made, prepared: (engine.attend(q, k, v, made, prepared, scale=scale),),
            ),
            Stage("fill", ("o_kept", "plan"), ("o",), lambda o_kept, made: (made.fill_output(o_kept),)),
        )
    )


class FusedEngine(Protocol):
    """What an engine with `is_fused` has besides."""

    is_tiled: bool

    def prepare_tokens(self, plan: BlockPlan, q: Tensor) -> Any:
        """Derive what it needs from a plan, for q, k and v like q."""

    def attend_tokens(self, q: Tensor, k: Tensor, v: Tensor, prepared: Any, *, scale: float) -> Tensor:
        """The filled output, like q."""


def _fused(engine: FusedEngine, options: KernelOptions, scale: float) -> Operator:
    """Select, plan, attend where the tokens are; tile-major ones are made and restored by stages of their own."""
    q_grid, kv_grid = stages.grids(options)
    is_tiled = engine.is_tiled
    names = ("q_tiles", "k_tiles", "v_tiles") if is_tiled else ("q", "k", "v")

    def plan(selection: stages.Selection | FusedSelection, q: Tensor) -> tuple[BlockPlan, object]:
        made = stages.build_plan(selection, options)
        return made, engine.prepare_tokens(made, q)

    middle = (
        Stage(
            "select",
            names[:2],
            ("selection",),
            lambda q, k: (stages.select_tokens(q, k, options, scale=scale, is_tiled=is_tiled),),
            differentiable=False,
        ),
        Stage("plan", ("selection", names[0]), ("plan", "prepared"), plan, differentiable=False),
        Stage(
            "attend",
            (*names, "prepared"),
            ("o_tiles" if is_tiled else "o",),
            lambda q, k, v, prepared: (engine.attend_tokens(q, k, v, prepared, scale=scale),),
        ),
    )
    if not is_tiled:
        return Operator(middle)
    permute = Stage(
        "permute",
        ("q", "k", "v"),
        names,
        lambda q, k, v: (q_grid.permute(q), kv_grid.permute(k), kv_grid.permute(v)),
    )
    return Operator((permute, *middle, Stage("restore", ("o_tiles",), ("o",), lambda o: (q_grid.restore(o),))))
