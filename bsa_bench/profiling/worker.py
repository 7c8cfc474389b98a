"""The worker process that profiles one case. `bsa_bench.profiling.job` is the protocol."""

from __future__ import annotations

import argparse
import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bsa_bench.prepare import Prepared, correctness_of_pass, failure, prepare
from bsa_bench.profiling.job import (
    FINDINGS_FILE,
    MEMORY_TRACE_FILE,
    SNAPSHOT_FILE,
    TRACE_FILE,
    Findings,
    ProfileJob,
    read_profile_job,
)
from bsa_bench.result import Status
from bsa_bench.run.cpu import set_up_cpu
from bsa_bench.run.estimate import is_interpreted, loads_torch_compiler
from bsa_bench.run.job import EventPipe, die_with_parent

if TYPE_CHECKING:
    from collections.abc import Callable

    from bsa_bench.contract import Engine


def main() -> None:
    """Profile as the job says. With `--job FILE` there is nobody to talk to: an Nsight tool started the process."""
    parser = argparse.ArgumentParser(prog="bsa_bench.profiling.worker")
    parser.add_argument("--events-fd", type=int)
    parser.add_argument("--job", type=Path)
    arguments = parser.parse_args()
    job = read_profile_job(arguments.job)
    signal.alarm(job.limit_s)
    if arguments.job:
        _Profile(job, lambda _: None).replay()
        return
    die_with_parent()
    found = _Profile(job, EventPipe(arguments.events_fd).progress).run()
    (Path(job.folder) / FINDINGS_FILE).write_text(found.model_dump_json(indent=1), encoding="utf-8")


class _Profile:
    """One job from start to end."""

    def __init__(self, job: ProfileJob, tell: Callable[[str], None]) -> None:
        self.job, self.case, self.tell = job, job.cases[0], tell
        self.folder, self.is_cuda = Path(job.folder), job.device == "cuda"
        threads = set_up_cpu(job.threads)
        if not self.is_cuda and is_interpreted(self.case.engine):
            os.environ["TRITON_INTERPRET"] = "1"
        tell("starting")
        import torch

        from bsa_bench.engines.torch_cache import set_up_torch_cache

        set_up_torch_cache()
        if loads_torch_compiler(self.case.engine):
            # As in the worker of a run: no part of the first call that is timed.
            import torch._dynamo
        self.device = torch.device(job.device)
        if not self.is_cuda:
            torch.set_num_threads(threads)

    def run(self) -> Findings:
        """Prepare, and profile by the tools of the job's part."""
        from bsa_bench.catalog import load_engine

        try:
            engine = load_engine(self.case.engine)
            if refused := self._untimed(engine):
                return refused
            prepared = self._prepared(engine, with_oracle=self.job.part == "torch")
            return self._by_torch(engine, prepared) if self.job.part == "torch" else self._by_proton(prepared)
        except Exception as error:  # noqa: BLE001  # the one case boundary: recorded with its traceback
            return Findings(**failure(error))

    def replay(self) -> None:
        """Make the calls that an Nsight tool records."""
        from bsa_bench.catalog import load_engine
        from bsa_bench.profiling.phases import annotated_call
        from bsa_bench.profiling.record import nvtx_range, replay

        prepared = self._prepared(load_engine(self.case.engine), with_oracle=False)
        replay(annotated_call(prepared.subject, self.case.passes, nvtx_range), num_calls=self.job.num_calls)

    def _prepared(self, engine: Engine, *, with_oracle: bool) -> Prepared:
        return prepare(self.case, engine, [self.case.passes], self.device, self.tell, with_oracle=with_oracle)

    def _untimed(self, engine: Engine) -> Findings | None:
        """Where times mean nothing, their shares mean nothing either."""
        if not self.case.claims.timed:
            simulates = f"{self.case.method} simulates hardware, so that where its time goes says nothing"
            return Findings(status=Status.COUNTED, reason=simulates)
        if reason := engine.untimed(self.device):
            return Findings(status=Status.VERIFIED_ONLY, reason=reason)
        return None

    def _by_torch(self, engine: Engine, prepared: Prepared) -> Findings:
        """Time the call, then record it; in this order, as a profiler that was loaded may slow what follows."""
        from bsa_bench.measure.passes import Timers, time_pass
        from bsa_bench.measure.sampling import PROTOCOLS
        from bsa_bench.measure.timer import make_timer
        from bsa_bench.measure.work import work_of
        from bsa_bench.profiling.phase_work import work_by_phase
        from bsa_bench.profiling.phases import annotated_call
        from bsa_bench.profiling.record import record_host, record_snapshot, record_trace, trace_range

        case, job, subject = self.case, self.job, prepared.subject
        assert prepared.correctness is not None
        correctness = correctness_of_pass(prepared.correctness, case)
        if not correctness.passed:
            return Findings(status=Status.WRONG, reason=correctness.reason)
        if prepared.fell_back:
            return Findings(status=Status.FELL_BACK, reason=prepared.fell_back)
        work = work_of(case, prepared.method, prepared.options, engine, prepared.state)
        by_phase = work_by_phase(case, prepared.method, prepared.options, engine, subject, prepared.state)
        prepared.state.clear()  # tensors that no call of the operator holds
        self.tell("timing without a profiler")
        timing = time_pass(
            subject,
            which=case.passes,
            timers=Timers(make_timer(self.device)),
            protocol=PROTOCOLS["quick"],
            first_call_s=prepared.first_call_s[case.passes],
        )
        call = annotated_call(subject, case.passes, trace_range)
        record = partial(record_trace, call, is_cuda=self.is_cuda)
        self.tell("tracing by torch.profiler")
        record(self.folder / TRACE_FILE, num_calls=job.num_calls)
        self.tell("recording allocations")
        record(self.folder / MEMORY_TRACE_FILE, num_calls=1, with_memory=True)
        if self.is_cuda:
            record_snapshot(call, self.folder / SNAPSHOT_FILE)
        self.tell("sampling host code")
        note = record_host(self._plain_call(prepared), self.folder, seconds=job.seconds, is_cuda=self.is_cuda)
        return Findings(
            status=Status.OK,
            engine_version=engine.version(),
            timing=timing,
            work=work,
            phase_work=by_phase,
            inputs_bytes=(replace(subject, grad=None) if case.passes == "forward" else subject).inputs_bytes,
            notes=(note,) if note else (),
        )

    def _by_proton(self, prepared: Prepared) -> Findings:
        from bsa_bench.profiling.phases import annotated_call
        from bsa_bench.profiling.record import record_proton

        self.tell("recording by Triton Proton")
        make: Any = partial(annotated_call, prepared.subject, self.case.passes)
        record_proton(make, self.folder, num_calls=self.job.num_calls, phase_work=self.job.phase_work)
        return Findings(status=Status.OK)

    def _plain_call(self, prepared: Prepared) -> Callable[[], object]:
        from bsa_bench.measure.passes import pass_call

        return pass_call(prepared.subject, self.case.passes)


if __name__ == "__main__":
    main()
