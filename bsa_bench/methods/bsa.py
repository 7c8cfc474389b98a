"""Bidirectional Sparse Attention as stages: permute, select, plan, attend, fill."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bsa_bench.operator import Operator, Stage
from bsa_kernels.bsa import stages
from bsa_kernels.bsa.options import BsaOptions as KernelOptions

if TYPE_CHECKING:
    from bsa_bench.engines.base import Engine
    from bsa_bench.result import BsaOptions
    from bsa_kernels import BlockPlan


def build(engine: Engine, grid: tuple[int, int, int], options: BsaOptions | None, *, scale: float) -> Operator:
    """The operator that `bsa_kernels.bsa_attention` runs in a row, on any engine that runs plans."""
    assert options is not None
    kernel_options = KernelOptions(grid=grid, **options.model_dump())

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
