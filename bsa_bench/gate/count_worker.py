"""The process that counts: one request from stdin, one JSON document to stdout.

A process of its own, because the command line loads no torch, because kernels that were defined for Triton's
interpreter launch nothing that could be recorded, and because another revision of the kernels is another set of
imports.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bsa_bench.catalog import build_operator, load_engine, load_method, options_of
from bsa_bench.child_process import PACKAGE
from bsa_bench.contract import BLOCKS, CAUSAL_DENSE, DENSE, SIMULATION
from bsa_bench.gate.counters_record import CaseCounters, Counted, HostCost, Launch, Request, Versions, name_of
from bsa_bench.result import Case

if TYPE_CHECKING:
    from torch import Tensor

    from bsa_bench.contract import Engine, Method
    from bsa_bench.gate.count_host import Recorder
    from bsa_kernels import BlockPlan

_PLANNER = "gather"
"""The engine whose operator plans: it selects in torch, and really."""


def main() -> None:
    """Answer the request."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what is printed must not break the document
    request = Request.model_validate_json(sys.stdin.read())
    answers.write(count_request(request).model_dump_json(exclude_defaults=True))
    answers.close()


def count_request(request: Request) -> Counted:
    """Count all cases of a request.

    Raises:
        RuntimeError: kernels were imported from another folder than the request says, or would be interpreted.
    """
    import bsa_kernels  # first, for it takes no time to see that it is broken
    from bsa_bench.gate.count_host import record_launches

    if os.environ.get("TRITON_INTERPRET"):
        raise RuntimeError("TRITON_INTERPRET: expected it unset, for an interpreted kernel makes no launch")
    import torch

    from bsa_bench.engines.torch_cache import set_up_torch_cache

    set_up_torch_cache()
    torch.set_num_threads(1)
    cases = [Case.model_validate(each) for each in request.cases]
    with record_launches() as recorder:
        counter = _Counter(recorder)
        counted = [counter.count(case) for case in cases]
    if request.kernels is not None:
        _check_sources(Path(request.kernels))
    assert bsa_kernels.__file__ is not None
    return Counted(
        versions=Versions.installed(),
        kernels=str(Path(bsa_kernels.__file__).parents[1]),
        package=str(PACKAGE),
        cases=tuple(counted),
    )


@dataclass(frozen=True)
class _Inputs:
    """Inputs of a case in its dtype, the names of those that a backward owes gradients of, and dO."""

    tensors: dict[str, Tensor]
    trained: tuple[str, ...]
    grad: Tensor


class _Counter:
    """Counts one case after another. What several share, inputs and what a method decides on them, is made once."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._inputs: dict[tuple[str, str], _Inputs] = {}
        self._decisions: dict[tuple[str, str, str, str], dict[str, Any]] = {}

    def count(self, case: Case) -> CaseCounters:
        """The counters of a case, or what it raised."""
        try:
            return self._count(case)
        except Exception as error:  # noqa: BLE001  # the one boundary of a case: recorded, its traceback in the log
            traceback.print_exception(error)
            last = traceback.extract_tb(error.__traceback__)[-1]
            said = f"{type(error).__name__}: {error}".strip().splitlines()[0]
            return CaseCounters(name=name_of(case), reason=f"{said} ({Path(last.filename).name}:{last.lineno})")

    def _count(self, case: Case) -> CaseCounters:
        from bsa_bench.gate.count_host import count_host, forget_caches
        from bsa_bench.gate.count_traffic import traffic_of
        from bsa_bench.measure.passes import Subject, pass_call
        from bsa_bench.measure.work import work_of

        method, options, engine = load_method(case.method), options_of(case), load_engine(case.engine)
        inputs = self._inputs_of(case)
        state = {**self._decided(case), **inputs.tensors}
        launches: tuple[Launch, ...] = ()
        host: HostCost | None = None
        if case.claims.timed:
            forget_caches()
            operator = build_operator(case, scale=_scale(case))
            subject = Subject(operator, inputs.tensors, inputs.trained, inputs.grad)
            launches, host = count_host(pass_call(subject, case.passes), self._recorder)
        plan = _attended_plan(method, engine, state)
        return CaseCounters(
            name=name_of(case),
            work=work_of(case, method, options, engine, state),
            traffic=traffic_of(inputs.tensors, inputs.trained, plan, engine, case.passes),
            launches=launches,
            host=host,
        )

    def _inputs_of(self, case: Case) -> _Inputs:
        from bsa_bench.gate.count_inputs import make_inputs
        from bsa_bench.inputs import draw_tensors, random_like_output

        key = (case.workload.digest, case.method)
        if key not in self._inputs:
            specs = load_method(case.method).tensors(case.workload, options_of(case))
            qkv = make_inputs(case.workload)
            self._inputs[key] = _Inputs(
                tensors=qkv | draw_tensors(case.workload, specs, device="cpu"),
                trained=(*qkv, *(name for name, spec in specs.items() if spec.trains)),
                grad=random_like_output(case.workload, "cpu"),
            )
        return self._inputs[key]

    def _decided(self, case: Case) -> dict[str, Any]:
        """What the operator leaves behind before it attends; nothing where the method decides nothing.

        In double precision, so that no rounding of one machine or of one release of torch decides otherwise.
        """
        method, options = load_method(case.method), options_of(case)
        needs = method.needs[0]
        if needs not in {BLOCKS, SIMULATION}:
            return {}
        planner = _PLANNER if needs == BLOCKS else case.engine
        key = (case.workload.digest, case.method, options.model_dump_json(), planner)
        if key not in self._decisions:
            operator = method.operator(case.workload, options, load_engine(planner), scale=_scale(case))
            state: dict[str, Any] = {name: x.double() for name, x in self._inputs_of(case).tensors.items()}
            for stage in operator.stages:
                if stage.name == "attend":
                    break
                stage(state)
            self._decisions[key] = state
        return self._decisions[key]


def _attended_plan(method: Method, engine: Engine, state: Mapping[str, Any]) -> BlockPlan | None:
    """By what the engine attends: the method's plan, or that of everything where it does dense attention by one."""
    needs = method.needs[0]
    if needs in {DENSE, CAUSAL_DENSE} and hasattr(engine, "prepare"):
        from bsa_bench.engines.blocks import dense_plan

        return dense_plan(state["q"], causal=needs == CAUSAL_DENSE)
    plan: BlockPlan | None = state.get("plan")
    return plan


def _check_sources(folder: Path) -> None:
    """See that every module of the kernels came from there: an editable install lends what a revision lacks."""
    loaded = [(name, module) for name, module in sys.modules.items() if name.partition(".")[0] == "bsa_kernels"]
    for name, module in loaded:
        place = getattr(module, "__file__", None)
        if place is not None and not Path(place).resolve().is_relative_to(folder.resolve()):
            raise RuntimeError(f"{name}: expected it in {folder}, it was imported from {place}")


def _scale(case: Case) -> float:
    return float(case.workload.head_dim**-0.5)


if __name__ == "__main__":
    main()
