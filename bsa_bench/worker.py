"""The worker process: runs the cases of one group, and, as `--probe`, says what this machine is and can run.

Started by the scheduler (`bsa_bench.run.job` is the protocol) and by the command line; never imported by them.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
import time
import traceback
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from bsa_bench.errors import InputError, UnsupportedError
from bsa_bench.result import Case, Correctness, Result, Status
from bsa_bench.run.estimate import VERIFIED_SCORES, is_interpreted
from bsa_bench.run.job import EventPipe, Job, die_with_parent, read_job

if TYPE_CHECKING:
    from bsa_bench.contract import Engine, Method, MethodOptions
    from bsa_bench.measure.passes import Subject

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def main() -> None:
    """Run a job, or a probe."""
    parser = argparse.ArgumentParser(prog="bsa_bench.worker")
    parser.add_argument("--events-fd", type=int)
    parser.add_argument("--probe", action="store_true")
    arguments = parser.parse_args()
    if arguments.probe:
        json.dump(_probe(json.load(sys.stdin)), sys.stdout)
        return
    job = read_job()
    die_with_parent()
    _GroupRun(job, EventPipe(arguments.events_fd)).run()


def _probe(request: dict[str, Any]) -> dict[str, Any]:
    """Describe the environment and answer what cannot run.

    `request`: `threads`, and for each device kind a list of [implementation, dtype, head_dim, backward].
    """
    threads = _set_up_cpu(request["threads"])
    import torch

    from bsa_bench.catalog import unsupported
    from bsa_bench.measure.environment import collect_environment, device_kind

    kind = request.get("device") or device_kind()
    if kind == "cuda" and not torch.cuda.is_available():
        return {"error": "there is no CUDA device that torch can use here; use --device cpu"}
    questions = request["questions"].get(kind, [])
    answers = []
    for implementation, dtype, head_dim, backward in questions:
        if kind == "cpu" and is_interpreted(implementation.partition("@")[2]):
            os.environ["TRITON_INTERPRET"] = "1"
        answers.append(
            unsupported(implementation, torch.device(kind), getattr(torch, dtype), head_dim, backward=backward)
        )
    os.environ.pop("TRITON_INTERPRET", None)
    environment = collect_environment(threads=threads, kind=kind)
    return {
        "environment": environment.model_dump(mode="json"),
        "reasons": [[*q, a] for q, a in zip(questions, answers, strict=True)],
    }


def _set_up_cpu(threads: int | None) -> int:
    """Pin the process and its threads to the first usable cores and keep freed memory mapped.

    Memory that malloc hands back to the system is faulted in again page by page by the next call, which on a virtual
    machine can cost more than the attention; a training framework's caching allocator keeps it too. Nothing of this
    can be done once torch has started its threads.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    count = min(threads or len(cores), len(cores))
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores[:count])
    os.environ["OMP_NUM_THREADS"] = str(count)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)
    return count


@dataclass
class _Prepared:
    """What the cases of a group share."""

    method: Method
    options: MethodOptions
    subject: Subject
    correctness: Correctness
    state: dict[str, Any]
    backend: str | None
    fell_back: str | None
    first_call_s: dict[str, float]


class _GroupRun:
    """One job from start to end."""

    def __init__(self, job: Job, events: EventPipe) -> None:
        self.job, self.events = job, events
        self.started = time.monotonic()
        self.num_reported = 0
        _set_up_cpu(job.threads)
        if job.device == "cpu" and is_interpreted(job.cases[0].engine):
            os.environ["TRITON_INTERPRET"] = "1"
        events.progress("starting")
        import torch

        if not job.cases[0].claims.is_dense:
            # torch loads it with the first call of a library's operator; no part of the first call that is timed.
            import torch._dynamo
        self.torch = torch
        self.device = torch.device(job.device)
        if job.device == "cpu":
            torch.set_num_threads(_set_up_cpu(job.threads))

    def run(self) -> None:
        """Prepare once, then measure and report each case; a failure is recorded and ends no other case by itself."""
        from bsa_bench.catalog import load_engine

        cases = self.job.cases
        engine = load_engine(cases[0].engine)
        try:
            prepared = self._prepare(cases[0], engine)
        except Exception as error:  # noqa: BLE001  # the one case boundary: recorded with its traceback
            for case in cases:
                self._report(case, engine, **self._failure(error))
            return
        for case in cases:
            try:
                outcome = self._measure(case, engine, prepared)
            except Exception as error:  # noqa: BLE001  # the one case boundary
                outcome = self._failure(error)
            self._report(case, engine, **outcome)

    def _prepare(self, case: Case, engine: Engine) -> _Prepared:
        from bsa_bench.catalog import build_operator, load_method, options_of
        from bsa_bench.inputs import draw_tensors, make_qkv, random_like_output
        from bsa_bench.measure.passes import Subject, time_first_call

        workload, method, options = case.workload, load_method(case.method), options_of(case)
        self.events.progress(f"making inputs ({workload.input.label})")
        specs = method.tensors(workload, options)
        qkv = make_qkv(workload, device=self.job.device).tensors
        needs_grad = any(c.passes != "forward" for c in self.job.cases)
        subject = Subject(
            operator=build_operator(case, scale=self._scale(case)),
            tensors=qkv | draw_tensors(workload, specs, device=self.job.device),
            trained=(*qkv, *(name for name, spec in specs.items() if spec.trains)),
            grad=random_like_output(workload, self.job.device) if needs_grad else None,
        )
        first_call_s: dict[str, float] = {}
        if case.claims.timed and not engine.untimed(self.device):
            # Before verification, or that would be the first call.
            for each in self.job.cases:
                self.events.progress(f"{each.passes}: first call")
                first_call_s[each.passes] = time_first_call(subject, each.passes)
        self.events.progress("verifying")
        correctness, state = self._verify(case, method, options, subject, seed=workload.input.seed)
        backend, fell_back = self._resolved_backend(engine, subject)
        return _Prepared(method, options, subject, correctness, state, backend, fell_back, first_call_s)

    def _verify(
        self, case: Case, method: Method, options: MethodOptions, subject: Subject, *, seed: int
    ) -> tuple[Correctness, dict[str, Any]]:
        from bsa_bench.verify import verify_case

        return verify_case(
            case,
            method,
            subject.operator,
            subject.tensors,
            subject.grad,
            options=options,
            scale=self._scale(case),
            seed=seed,
            max_scores=VERIFIED_SCORES[self.job.device],
        )

    def _measure(self, case: Case, engine: Engine, prepared: _Prepared) -> dict[str, Any]:
        from bsa_bench.measure.device_state import DeviceWatch
        from bsa_bench.measure.memory import measure_memory
        from bsa_bench.measure.passes import pass_call, time_pass
        from bsa_bench.measure.sampling import PROTOCOLS
        from bsa_bench.measure.timer import make_timer
        from bsa_bench.measure.work import work_of

        correctness = _of_pass(prepared.correctness, case)
        outcome: dict[str, Any] = {
            "correctness": correctness,
            "backend": prepared.backend,
            "work": work_of(case, prepared.method, prepared.options, engine, prepared.state),
        }
        if not correctness.passed:
            return outcome | {"status": Status.WRONG, "reason": correctness.reason}
        if prepared.fell_back:
            return outcome | {"status": Status.FELL_BACK, "reason": prepared.fell_back}
        if not case.claims.timed:
            return outcome | {"status": Status.COUNTED}
        if reason := engine.untimed(self.device):
            return outcome | {"status": Status.VERIFIED_ONLY, "reason": reason}
        protocol, subject = PROTOCOLS[self.job.profile], prepared.subject
        self.events.progress(f"{case.passes}: timing")
        with DeviceWatch(self.job.device) as watch:
            timing = time_pass(
                subject,
                which=case.passes,
                timer=make_timer(self.device),
                protocol=protocol,
                first_call_s=prepared.first_call_s[case.passes],
            )
        self.events.progress(f"{case.passes}: memory")
        inputs = [*subject.tensors.values(), *([] if case.passes == "forward" else [subject.grad])]
        memory = measure_memory(
            pass_call(subject, case.passes),
            inputs_bytes=sum(x.numel() * x.element_size() for x in inputs if x is not None),
            device=self.device,
        )
        if case.passes == "backward":
            memory = memory.model_copy(update={"how": f"{memory.how}; what the forward keeps for it is not in it"})
        outcome |= {"timing": timing, "state": watch.state, "memory": memory}
        if protocol.verify_after:
            self.events.progress(f"{case.passes}: verifying again")
            # Shifted by a token: an engine that hands a remembered result back is found out.
            fresh = replace(subject, tensors={name: x.roll(1, 2) for name, x in subject.tensors.items()})
            seed = case.workload.input.seed + 1
            after, _ = self._verify(case, prepared.method, prepared.options, fresh, seed=seed)
            if not after.passed:
                return outcome | {
                    "status": Status.WRONG,
                    "correctness": after,
                    "timing": None,
                    "reason": f"after timing: {after.reason}",
                }
        return outcome | {"status": Status.OK}

    def _resolved_backend(self, engine: Engine, subject: Subject) -> tuple[str | None, str | None]:
        """Names of what ran in one profiled call, and why that is not what was asked for."""
        expected = engine.expected_ops
        is_cuda = subject.tensors["q"].is_cuda
        ops, kernels = _profiled_names(lambda: subject.operator.forward(subject.tensors), cuda=is_cuda)
        attention = sorted(op for op in ops if op.startswith("aten::_scaled_dot_product"))
        backend = ", ".join([*attention, *sorted(kernels)][:12]) or None
        if expected and not ops & set(expected):
            return backend, f"expected one of {', '.join(expected)} in a profiled call, found {attention or 'none'}"
        return backend, None

    def _failure(self, error: Exception) -> dict[str, Any]:
        from bsa_kernels.block_engine import UnsupportedPlanError

        if isinstance(error, (UnsupportedError, UnsupportedPlanError)):
            return {"status": Status.UNSUPPORTED, "reason": str(error)}
        text = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        # The stage of the operator that it came from.
        text += "".join(f" ({note})" for note in getattr(error, "__notes__", []))
        if _is_out_of_memory(error, self.torch):
            return {"status": Status.OOM, "reason": text, "traceback": traceback.format_exc()}
        reason = str(error) if isinstance(error, InputError) else text
        return {"status": Status.CRASHED, "reason": reason, "traceback": traceback.format_exc()}

    def _report(self, case: Case, engine: Engine, **outcome: Any) -> None:
        now = time.monotonic()
        self.events.result(
            Result(
                run_id=self.job.run_id,
                seq=self.job.first_seq + self.num_reported,
                utc=datetime.now(UTC).isoformat(timespec="milliseconds"),
                case=case,
                case_id=case.case_id,
                case_hash=case.case_hash,
                env_hash=self.job.env_hash,
                engine_version=engine.version(),
                wall_s=now - self.started,
                **outcome,
            )
        )
        self.started = now
        self.num_reported += 1

    @staticmethod
    def _scale(case: Case) -> float:
        return case.workload.head_dim**-0.5


def _of_pass(correctness: Correctness, case: Case) -> Correctness:
    """The part of a group's verdict that concerns one pass: a forward is not blamed for its gradients."""
    from bsa_bench.verify import judged

    return judged(correctness, ["output"]) if case.passes == "forward" else correctness


def _profiled_names(call: Any, *, cuda: bool) -> tuple[set[str], set[str]]:
    """Names of the torch operators and of the GPU kernels of one call."""
    from torch.autograd import DeviceType  # type: ignore[attr-defined]  # public, but missing from __all__

    if cuda:
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            call()
        events = profiler.events() or []
    else:
        # What the above is made of; it alone does not load torch's compiler, which takes 2 s.
        from torch.autograd.profiler import profile as profile_cpu

        with profile_cpu(use_kineto=True) as recorder:
            call()
        events = recorder.function_events or []
    kernels = {e.name for e in events if e.device_type == DeviceType.CUDA and not e.name.startswith(("Mem", "mem"))}
    return {e.name for e in events if e.device_type == DeviceType.CPU}, kernels


def _is_out_of_memory(error: Exception, torch: Any) -> bool:
    text = str(error)
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and ("DefaultCPUAllocator" in text or "out of memory" in text.lower())
    )


if __name__ == "__main__":
    main()
