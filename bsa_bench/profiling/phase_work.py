"""FLOP and bytes of each phase, by arithmetic on what the operator ran with (synchronises)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bsa_bench.gate.count_traffic import list_bytes
from bsa_bench.profiling.job import PhaseWork
from bsa_bench.profiling.phases import phases_of
from bsa_kernels import BlockPlan

if TYPE_CHECKING:
    from bsa_bench.contract import Engine, Method, MethodOptions
    from bsa_bench.measure.passes import Subject
    from bsa_bench.result import Case, PassName
    from bsa_kernels.operator import Operator, Stage

_ATTEND, _SELECT, _PLAN = "attend", "select", "plan"
_MOVES = frozenset({"permute", "fill", "restore", "fill_lse", "split", "join"})
"""Stages that only move rows, so that their backward moves the same bytes back."""


def work_by_phase(
    case: Case,
    method: Method,
    options: MethodOptions,
    engine: Engine,
    subject: Subject,
    state: Mapping[str, Any],
) -> dict[str, PhaseWork]:
    """The work of each phase of a case's pass.

    Args:
        case, method, options, engine: what runs.
        subject: on which tensors.
        state: what the verified operator left behind, by which the engine counts its FLOP.
    """
    operator, which = subject.operator, case.passes
    flop = _flop_by_phase(case, method, options, engine, operator, state)
    with torch.no_grad():
        full = operator.run(subject.tensors)
    stages = {stage.name: stage for stage in operator.stages}
    return {
        name: PhaseWork(flop=flop.get(name), bytes=_phase_bytes(stages[name.removesuffix("_backward")], name, full))
        for name in phases_of(operator, which)
    }


def _flop_by_phase(
    case: Case,
    method: Method,
    options: MethodOptions,
    engine: Engine,
    operator: Operator,
    state: Mapping[str, Any],
) -> dict[str, float]:
    """Of the phase that the engine attends in, and of the selection; of others the share is not known.

    Where several stages attend, the engine's count is of all of them, and of none alone.
    """
    names = [stage.name for stage in operator.stages]
    attends = names if len(names) == 1 else [name for name in names if name.partition("[")[0] == _ATTEND]
    found: dict[str, float] = {}
    if len(attends) == 1:
        plans = [value for value in state.values() if isinstance(value, BlockPlan)]
        views: list[Mapping[str, Any]] = [{**state, "plan": plan} for plan in plans] or [state]
        parts: dict[str, PassName] = {attends[0]: "forward", f"{attends[0]}_backward": "backward"}
        for phase, part in parts.items():
            counts = [engine.executed_flop(method.needs[0], view, part) for view in views]
            if None not in counts:
                found[phase] = sum(count for count in counts if count is not None)
    if _SELECT in names and case.passes != "backward":
        selection_flop = method.work(case.workload, options, state, "forward").selection_flop
        if selection_flop > 0:
            found[_SELECT] = selection_flop
    return found


def _phase_bytes(stage: Stage, phase: str, state: Mapping[str, Any]) -> int | None:
    base = stage.name.partition("[")[0]
    if base == _PLAN:
        return None  # it takes q for its shape alone, and what else it reads is no tensor
    reads = _bytes_in(state[name] for name in stage.inputs)
    constants = _bytes_in(state[name] for name in stage.constants)
    makes = _bytes_in(state[name] for name in stage.outputs)
    if not phase.endswith("_backward"):
        return reads + constants + makes
    if base in _MOVES:
        return reads + constants + makes
    # Reads what the forward read and made and the gradient of that; makes the gradients of what it read.
    return 2 * reads + constants + 2 * makes if base == _ATTEND else None


def _bytes_in(values: Iterable[Any]) -> int:
    total = 0
    for value in values:
        if isinstance(value, Tensor):
            total += min(value.nbytes, value.untyped_storage().nbytes())  # an expanded one has less than it says
        elif isinstance(value, BlockPlan):
            total += list_bytes(value)
        elif isinstance(value, tuple | list):
            total += _bytes_in(value)
    return total
