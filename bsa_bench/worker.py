"""The worker process: runs the cases of one group, and, as `--probe`, says what this machine is and can run.

Started by the scheduler (`bsa_bench.run.job` is the protocol) and by the command line; never imported by them.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from bsa_bench.child_process import PACKAGE
from bsa_bench.descendants import be_child
from bsa_bench.measure.clock import replaced_clocks
from bsa_bench.measure.process_start import ProcessStart
from bsa_bench.prepare import Prepared, correctness_of_pass, failure, prepare, verify_fresh
from bsa_bench.result import Case, Result, Status, TimerName
from bsa_bench.run.cpu import set_up_cpu
from bsa_bench.run.estimate import is_interpreted, loads_torch_compiler
from bsa_bench.run.job import EventPipe, Job, die_with_parent, read_job

if TYPE_CHECKING:
    from torch import device as Device  # noqa: N812

    from bsa_bench.contract import Engine
    from bsa_bench.measure.passes import Timers

OTHER_TIMER: dict[TimerName, TimerName] = {"event": "device-span", "device-span": "event"}
"""Two timers that leave the host out, and should agree."""


def main() -> None:
    """Run a job, or a probe."""
    parser = argparse.ArgumentParser(prog="bsa_bench.worker")
    parser.add_argument("--events-fd", type=int)
    parser.add_argument("--probe", action="store_true")
    arguments = parser.parse_args()
    if arguments.probe:
        be_child()
        answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)  # what libraries and engines of other packages print is no part of the answer
        with answer:
            json.dump({"package": str(PACKAGE)} | _probe(json.load(sys.stdin)), answer)
        return
    job = read_job()
    die_with_parent()
    _GroupRun(job, EventPipe(arguments.events_fd)).run()


def _probe(request: dict[str, Any]) -> dict[str, Any]:
    """Describe the environment and answer what cannot run.

    `request`: `threads`, for each device kind a list of [implementation, dtype, head_dim, backward], and whether to
    measure `ceilings`.
    """
    started = ProcessStart.now()
    threads = set_up_cpu(request["threads"])
    import torch

    from bsa_bench.catalog import unsupported
    from bsa_bench.engines.torch_cache import set_up_torch_cache
    from bsa_bench.measure.environment import collect_environment, device_kind

    set_up_torch_cache()
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
    environment = collect_environment(started=started, threads=threads, kind=kind)
    device = torch.device(kind)
    troubles, notes = _troubles(device)
    ceilings = []
    if request.get("ceilings") and not troubles:
        from bsa_bench.limits.ceilings import measure_ceilings

        if kind == "cpu":
            torch.set_num_threads(threads)
        ceilings = measure_ceilings(device)
    return {
        "environment": environment.model_dump(mode="json"),
        "reasons": [[*q, a] for q, a in zip(questions, answers, strict=True)],
        "troubles": troubles,
        "notes": notes,
        "ceilings": [ceiling.model_dump(mode="json") for ceiling in ceilings],
    }


def _troubles(device: Device) -> tuple[list[str], list[str]]:
    """What is in the way of measuring on a device, and what of that could not be looked at; nothing on a CPU."""
    if device.type != "cuda":
        return [], []
    import torch

    from bsa_bench.measure.device_state import gpu_uuid
    from bsa_bench.measure.preflight import inspect_gpu

    torch.zeros(1, device=device)  # NVML lists a process once it has a context
    torch.cuda.synchronize()
    found = inspect_gpu(gpu_uuid(0))
    return found.troubles, found.notes


class _GroupRun:
    """One job from start to end."""

    def __init__(self, job: Job, events: EventPipe) -> None:
        self.job, self.events = job, events
        self.started = time.monotonic()
        self.num_reported = 0
        threads = set_up_cpu(job.threads)
        if job.device == "cpu" and is_interpreted(job.cases[0].engine):
            os.environ["TRITON_INTERPRET"] = "1"
        events.progress("starting")
        import torch

        from bsa_bench.engines.torch_cache import set_up_torch_cache

        set_up_torch_cache()
        if loads_torch_compiler(job.cases[0].engine):
            # No part of the first call that is timed.
            import torch._dynamo
        self.device = torch.device(job.device)
        if job.device == "cpu":
            torch.set_num_threads(threads)
        # What was imported stays: no collection before a sample, or at the end, looks through it (0.4 s a worker).
        gc.freeze()

    def run(self) -> None:
        """Prepare once, then measure and report each case; a failure is recorded and ends no other case by itself."""
        from bsa_bench.catalog import load_engine

        cases = self.job.cases
        engine = load_engine(cases[0].engine)
        passes = [case.passes for case in cases]
        try:
            prepared = prepare(cases[0], engine, passes, self.device, self.events.progress)
        except Exception as error:  # noqa: BLE001  # the one case boundary: recorded with its traceback
            for case in cases:
                self._report(case, engine, **failure(error))
            return
        for case in cases:
            try:
                outcome = self._measure(case, engine, prepared)
            except Exception as error:  # noqa: BLE001  # the one case boundary
                outcome = failure(error)
            self._report(case, engine, **outcome)

    def _measure(self, case: Case, engine: Engine, prepared: Prepared) -> dict[str, Any]:
        from bsa_bench.measure.device_state import DeviceWatch
        from bsa_bench.measure.energy import measure_energy
        from bsa_bench.measure.memory import measure_memory
        from bsa_bench.measure.passes import pass_call, time_pass
        from bsa_bench.measure.sampling import PROTOCOLS
        from bsa_bench.measure.work import work_of
        from bsa_bench.verify.midway import Midway

        assert prepared.correctness is not None
        correctness = correctness_of_pass(prepared.correctness, case)
        outcome: dict[str, Any] = {
            "input": prepared.input,
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
        midway = Midway()
        with DeviceWatch(self.job.device) as watch:
            timing = time_pass(
                subject,
                which=case.passes,
                timers=self._timers(),
                protocol=protocol,
                first_call_s=prepared.first_call_s[case.passes],
                midway=midway.take,
            )
        untimed = dict(outcome)
        call = pass_call(subject, case.passes)
        names = ["output"] if case.passes == "forward" else [f"grad_{name}" for name in subject.trained]
        if reason := midway.compare(call, correctness, names):
            wrong = correctness.model_copy(update={"passed": False, "reason": reason})
            return untimed | {"status": Status.WRONG, "correctness": wrong, "reason": reason}
        if replaced := replaced_clocks():
            return untimed | {
                "status": Status.IMPLAUSIBLE,
                "reason": f"{', '.join(replaced)} of the process were replaced since it started",
            }
        self.events.progress(f"{case.passes}: memory")
        read = replace(subject, grad=None) if case.passes == "forward" else subject
        memory = measure_memory(call, inputs_bytes=read.inputs_bytes, device=self.device)
        if case.passes == "backward":
            memory = memory.model_copy(update={"how": f"{memory.how}; what the forward keeps for it is not in it"})
        outcome |= {"timing": timing, "state": watch.state, "memory": memory}
        if self.job.profile == "report":
            self.events.progress(f"{case.passes}: energy")
            outcome["energy"] = measure_energy(call, device=self.device, call_s=statistics.median(timing.samples))
        if protocol.verify_after:
            self.events.progress(f"{case.passes}: verifying again")
            after = correctness_of_pass(verify_fresh(case, prepared), case)
            if not after.passed:
                return untimed | {
                    "status": Status.WRONG,
                    "correctness": after,
                    "reason": f"after timing: {after.reason}",
                }
        return outcome | {"status": Status.OK}

    def _timers(self) -> Timers:
        """The job's timer; the same with warm caches where both states are asked for; and on a GPU, by the profile
        `report`, one to compare it with.
        """
        from bsa_bench.measure.passes import Timers
        from bsa_bench.measure.timer import make_timer

        job, device = self.job, self.device
        main = make_timer(device, job.timer, "cold" if job.cache == "both" else job.cache)
        other = OTHER_TIMER.get(main.name) if job.profile == "report" else None
        return Timers(
            main,
            warm=make_timer(device, main.name, "warm") if job.cache == "both" else None,
            check=make_timer(device, other, main.cache) if other else None,
        )

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


if __name__ == "__main__":
    main()
