"""Prepare what a worker measures: inputs, operator, first call, verification, and what really ran.

Shared by the worker of a run and that of a pair.
"""

from __future__ import annotations

import secrets
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from bsa_bench.errors import InputError, UnsupportedError
from bsa_bench.result import Case, Correctness, InputFacts, Status
from bsa_bench.run.estimate import VERIFIED_SCORES

if TYPE_CHECKING:
    from torch import Tensor
    from torch import device as Device  # noqa: N812

    from bsa_bench.contract import Engine, Method, MethodOptions
    from bsa_bench.measure.passes import Subject
    from bsa_bench.result import PassName
    from bsa_bench.verify import Witness


#: What the check after the clock allows of errors over their budgets: by two query blocks of a clip, correct engines
#: came to 4.2 in 300 draws (fp32, both passes, 4,096 tokens, 2026-11-27), a result of other inputs to thousands.
AGAIN_SLACK = 16.0
#: Up to so many times its budget an error by a sample is a close call (1.002 in one of 99 draws), and how many times as
#: many rows decide it.
CLOSE_CALL = 2.0
CLOSE_CALL_ROWS = 4


@dataclass
class Prepared:
    """What the cases of a group share.

    Attributes:
        subject: the operator and its inputs.
        correctness, state: the verdict of the verification, and what the method kept for counting its work; none and
            empty where it was not asked for.
        backend: what really ran, as far as it was asked.
        fell_back: why that is not what was asked for, or None.
        first_call_s: of each pass.
        input: what q, k and v were made of; none where they were given.
    """

    method: Method
    options: MethodOptions
    engine: Engine
    subject: Subject
    correctness: Correctness | None
    state: dict[str, Any]
    backend: str | None
    fell_back: str | None
    first_call_s: dict[str, float]
    input: InputFacts | None = None


def prepare(
    case: Case,
    engine: Engine,
    passes: Sequence[PassName],
    device: Device,
    tell: Callable[[str], None],
    *,
    with_oracle: bool = True,
    qkv: Mapping[str, Tensor] | None = None,
) -> Prepared:
    """Make the inputs and the operator, call it for the first time, verify it, and see what ran.

    Args:
        case: one of the group.
        passes: those of the group.
        tell: told what is being done.
        with_oracle: verify, and see what ran; without it nothing says that what is timed is right.
        qkv: the workload's q, k and v where they were made before.
    """
    from bsa_bench.catalog import build_operator, load_method, options_of
    from bsa_bench.inputs import draw_tensors, make_qkv, random_like_output
    from bsa_bench.measure.passes import Subject, time_first_call

    workload, method, options = case.workload, load_method(case.method), options_of(case)
    tell(f"making inputs ({workload.input.label})")
    specs = method.tensors(workload, options)
    facts = None
    if qkv is None:
        made = make_qkv(workload, device=device.type)
        qkv, facts = made.tensors, made.facts
    needs_grad = any(which != "forward" for which in passes)
    subject = Subject(
        operator=build_operator(case, scale=_scale(case)),
        tensors={**qkv, **draw_tensors(workload, specs, device=device.type)},
        trained=(*qkv, *(name for name, spec in specs.items() if spec.trains)),
        grad=random_like_output(workload, device.type) if needs_grad else None,
    )
    first_call_s: dict[str, float] = {}
    if case.claims.timed and not engine.untimed(device):
        # Before verification, or that would be the first call.
        for which in passes:
            tell(f"{which}: first call")
            first_call_s[which] = time_first_call(subject, which)
    correctness: Correctness | None = None
    state: dict[str, Any] = {}
    if with_oracle:
        tell("verifying")
        correctness, state = _verify(case, method, options, subject, engine)
    backend, fell_back = _resolved_backend(engine, subject) if with_oracle else (None, None)
    return Prepared(method, options, engine, subject, correctness, state, backend, fell_back, first_call_s, facts)


def verify_fresh(case: Case, prepared: Prepared) -> Correctness:
    """Verify again on other content in the same memory, so that what was remembered by its address is found out.

    All tensors, and dO, are shifted along the tokens in place by a number that is drawn, and brought back in the end.
    Few rows are compared, and few err more, beside their budget, than many: `AGAIN_SLACK` times it is allowed.
    """
    import torch

    from bsa_bench.verify import judged

    subject = replace(prepared.subject, grad=None) if case.passes == "forward" else prepared.subject
    given = [*subject.tensors.values(), *([] if subject.grad is None else [subject.grad])]
    kept = [x.clone() for x in given]
    shift = 1 + secrets.randbelow(max(case.workload.num_tokens - 1, 1))
    try:
        with torch.no_grad():
            for x, before in zip(given, kept, strict=True):
                x.copy_(before.roll(shift, 2))
        found = _verify(case, prepared.method, prepared.options, subject, prepared.engine, is_again=True)[0]
        return judged(found, list(found.checked), slack=AGAIN_SLACK)
    finally:
        with torch.no_grad():
            for x, before in zip(given, kept, strict=True):
                x.copy_(before)


def correctness_of_pass(correctness: Correctness, case: Case) -> Correctness:
    """The part of a group's verdict that concerns one pass: a forward is not blamed for its gradients."""
    from bsa_bench.verify import judged

    return judged(correctness, ["output"]) if case.passes == "forward" else correctness


def failure(error: Exception) -> dict[str, Any]:
    """Status, reason and traceback of what preparing or measuring raised."""
    from bsa_kernels.block_engine import UnsupportedPlanError

    if isinstance(error, (UnsupportedError, UnsupportedPlanError)):
        return {"status": Status.UNSUPPORTED, "reason": str(error)}
    text = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    # The stage of the operator that it came from.
    text += "".join(f" ({note})" for note in getattr(error, "__notes__", []))
    if is_out_of_memory(error):
        return {"status": Status.OOM, "reason": text, "traceback": traceback.format_exc()}
    reason = str(error) if isinstance(error, InputError) else text
    return {"status": Status.CRASHED, "reason": reason, "traceback": traceback.format_exc()}


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, by whichever words torch has for it."""
    import torch

    text = str(error)
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and ("DefaultCPUAllocator" in text or "out of memory" in text.lower())
    )


def _verify(
    case: Case,
    method: Method,
    options: MethodOptions,
    subject: Subject,
    engine: Engine,
    *,
    is_again: bool = False,
    rows: int = 1,
) -> tuple[Correctness, dict[str, Any]]:
    """`is_again`: after timing, with an eighth of the rows, all of them drawn, and without another engine.

    What errs by a little more than its budget is judged once more, by `CLOSE_CALL_ROWS` times as many rows.
    """
    from bsa_bench.verify import judged, verify_case

    device = subject.tensors["q"].device
    max_scores = VERIFIED_SCORES["cuda" if device.type == "cuda" else "cpu"]
    found = verify_case(
        case,
        method,
        subject.operator,
        subject.tensors,
        subject.grad,
        options=options,
        scale=_scale(case),
        seed=secrets.randbits(31),  # not the input's, which an engine may know
        max_scores=max_scores // 8 if is_again else rows * max_scores,
        with_dense=not is_again,
        with_ends=not is_again,
        deterministic=getattr(engine, "deterministic", True),
        witness=None if is_again or case.workload.num_tokens**2 <= max_scores else _witness(case, method, device),
    )
    is_close = not found[0].passed and judged(found[0], list(found[0].checked), slack=CLOSE_CALL).passed
    if is_close and not is_again and rows == 1 and found[0].rows < case.workload.num_tokens:
        return _verify(case, method, options, subject, engine, rows=CLOSE_CALL_ROWS)
    return found


#: Engines of our own that another is compared with on all rows of long workloads; by device, the fastest first.
WITNESSES = {"cpu": ("sdpa-flash", "cpu", "gather", "chunked"), "cuda": ("sdpa-flash", "triton", "flex", "chunked")}


def _witness(case: Case, method: Method, device: Device) -> Witness | None:
    """The first engine that can run the case and is not the case's own; one form of an engine does not witness another.

    None where there is none.
    """
    import torch

    from bsa_bench.catalog import build_operator, unsupported
    from bsa_bench.verify import Witness

    w = case.workload
    for name in WITNESSES.get(device.type, ()):
        pair, dtype = f"{method.name}@{name}", getattr(torch, w.dtype)
        if name != case.base_engine and not unsupported(pair, device, dtype, w.head_dim, backward=case.claims.trains):
            other = case.model_copy(update={"implementation": pair})
            return Witness(name, build_operator(other, scale=_scale(case)))
    return None


def _resolved_backend(engine: Engine, subject: Subject) -> tuple[str | None, str | None]:
    """Names of what ran in one profiled call, and why that is not what was asked for."""
    expected = engine.expected_ops
    ops, kernels = profiled_names(lambda: subject.operator.forward(subject.tensors), cuda=subject.tensors["q"].is_cuda)
    attention = sorted(op for op in ops if op.startswith("aten::_scaled_dot_product"))
    backend = ", ".join([*attention, *sorted(kernels)][:12]) or None
    if expected and not any(fnmatchcase(op, pattern) for op in ops for pattern in expected):
        return backend, f"expected one of {', '.join(expected)} in a profiled call, found {attention or 'none'}"
    return backend, None


def profiled_names(call: Callable[[], object], *, cuda: bool) -> tuple[set[str], set[str]]:
    """Names of the torch operators and of the GPU kernels of one call."""
    from torch.autograd import DeviceType  # type: ignore[attr-defined]  # public, but missing from __all__

    if cuda:
        from bsa_bench.measure.device_span import profiled_events

        events = profiled_events(call)
    else:
        # What the above is made of; it alone does not load torch's compiler, which takes 2 s.
        from torch.autograd.profiler import profile as profile_cpu

        with profile_cpu(use_kineto=True) as recorder:
            call()
        events = recorder.function_events or []
    kernels = {e.name for e in events if e.device_type == DeviceType.CUDA and not e.name.startswith(("Mem", "mem"))}
    return {e.name for e in events if e.device_type == DeviceType.CPU}, kernels


def _scale(case: Case) -> float:
    return case.workload.head_dim**-0.5
