"""Dense attention: every query sees every key."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bsa_bench.operator import Operator, Stage

if TYPE_CHECKING:
    from bsa_bench.engines.base import Engine
    from bsa_bench.result import BsaOptions


def build(engine: Engine, grid: tuple[int, int, int], options: BsaOptions | None, *, scale: float) -> Operator:  # noqa: ARG001
    """The operator of one stage, `attend`."""
    return Operator((Stage("attend", ("q", "k", "v"), ("o",), lambda q, k, v: (engine.dense(q, k, v, scale=scale),)),))
