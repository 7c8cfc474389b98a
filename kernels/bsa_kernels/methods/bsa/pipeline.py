"""BSA as an operator: what `bsa_attention` runs and a benchmark times, on any engine that runs plans."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bsa_kernels.block_engine import BlockRunner, runs_cpp
from bsa_kernels.methods.bsa import cpp_select, ops, stages
from bsa_kernels.methods.bsa.options import BsaOptions
from bsa_kernels.operator import Operator
from bsa_kernels.stages import block_stages


def bsa_operator(options: BsaOptions, engine: BlockRunner, *, scale: float, is_tiled: bool = False) -> Operator:
    """The operator of BSA: `q`, `k`, `v` in, `o` out.

    Args:
        options: what is selected.
        engine: what attends; the selection runs in Triton or C++ if the engine does, in torch otherwise.
        scale: of the logits.
        is_tiled: q, k, v and o are tile-major, for an engine that reads them so.
    """

    def select(q: Tensor, k: Tensor, *, is_tiled: bool) -> stages.Selected:
        if engine.runs_triton:
            return ops.select(q, k, options, scale=scale, is_tiled=is_tiled)
        if torch.compiler.is_compiling() and not runs_cpp(engine):
            return ops.select_in_torch(q, k, options, scale=scale, is_tiled=is_tiled)
        if runs_cpp(engine):
            return cpp_select.select(q, k, options, scale=scale, is_tiled=is_tiled)
        return stages.select_tokens(q, k, options, scale=scale, is_tiled=is_tiled, in_triton=False)

    def build(selected: Any) -> Any:
        return stages.build_plan(selected, options)

    return Operator(block_stages(engine, *stages.grids(options), select, build, scale=scale, is_tiled=is_tiled))
