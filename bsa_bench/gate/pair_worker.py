"""One side of a pair: prepares cases and samples them when it is told to.

Started by the gate; `bsa_bench.gate.pair_job` is the protocol. The benchmark's code is the same for both sides unless
asked otherwise, the kernels (`bsa_kernels`) are those of the side.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from bsa_bench.child_process import PACKAGE
from bsa_bench.gate.pair_job import Asked, Finish, Prepare, PrepareHost, Reply, Request, Sample, SetUp
from bsa_bench.measure.cpu_settings import usable_cores
from bsa_bench.prepare import Prepared, correctness_of_pass, failure, prepare, verify_fresh
from bsa_bench.result import Case, Status
from bsa_bench.run.cpu import keep_memory_mapped, pin_to_last
from bsa_bench.run.estimate import is_interpreted
from bsa_bench.run.job import die_with_parent
from bsa_bench.run.sources import sources_digest

if TYPE_CHECKING:
    from torch import Tensor
    from torch import device as Device  # noqa: N812

    from bsa_bench.measure.nvml import GpuWatch
    from bsa_bench.measure.timer import Timer
    from bsa_bench.workload import Workload

_REQUEST: TypeAdapter[Asked] = TypeAdapter(Request)


def main() -> None:
    """Answer requests until there are no more."""
    parser = argparse.ArgumentParser(prog="bsa_bench.gate.pair_worker")
    parser.add_argument("--requests-fd", type=int, required=True)
    parser.add_argument("--events-fd", type=int, required=True)
    arguments = parser.parse_args()
    die_with_parent()
    for fd in (arguments.requests_fd, arguments.events_fd):
        os.set_inheritable(fd, False)  # a child of the worker must not keep a pipe open after it
    side = _Side()
    with (
        os.fdopen(arguments.requests_fd, "rb") as requests,
        os.fdopen(arguments.events_fd, "wb", buffering=0) as events,
    ):
        for line in requests:
            reply = side.answer(_REQUEST.validate_json(line))
            events.write(reply.model_dump_json().encode() + b"\n")


@dataclass
class _Current:
    """What is sampled, and for a case what it is verified by afterwards."""

    call: Callable[[], object]
    case: tuple[Case, Prepared] | None = None


class _Side:
    """What this process has set up."""

    def __init__(self) -> None:
        self._device: Device | None = None
        self._timer: Timer | None = None
        self._current: _Current | None = None
        self._watch: GpuWatch | None = None
        #: q, k and v of the workload at hand, by its digest: the cases of a workload come one after the other.
        self._inputs: tuple[str, Mapping[str, Tensor]] | None = None

    def answer(self, request: Asked) -> Reply:
        """Do what is asked; what a case raises is a reply like any other."""
        if isinstance(request, SetUp):
            return self._set_up(request)
        if isinstance(request, Sample):
            return self._sample()
        try:
            if isinstance(request, PrepareHost):
                return self._prepare_host(request.operation)
            return self._prepare(request) if isinstance(request, Prepare) else self._finish(request)
        except Exception as error:  # noqa: BLE001  # the one case boundary
            self._current = None
            return _failed(error)

    def _set_up(self, request: SetUp) -> Reply:
        count = min(request.threads, len(usable_cores()))
        keep_memory_mapped(count)
        import torch

        from bsa_bench.engines.torch_cache import set_up_torch_cache

        set_up_torch_cache()
        import torch._dynamo

        import bsa_kernels
        from bsa_bench.measure.device_state import gpu_uuid
        from bsa_bench.measure.nvml import GpuWatch
        from bsa_bench.measure.timer import make_timer

        self._device = torch.device(request.device)
        # After the imports, or both sides would take turns on the same cores already there.
        pin_to_last(count)
        if request.device == "cpu":
            torch.set_num_threads(count)
        else:
            with contextlib.suppress(OSError):  # without NVML clocks and slow-downs stay unknown
                self._watch = GpuWatch(gpu_uuid(self._device.index or 0))
        self._timer = make_timer(self._device)
        folder = Path(bsa_kernels.__file__).parent
        return Reply(sources=sources_digest(folder), kernels=str(folder), package=str(PACKAGE))

    def _prepare(self, request: Prepare) -> Reply:
        from bsa_bench.catalog import load_engine
        from bsa_bench.measure.passes import pass_call

        assert self._device is not None
        self._current = None
        case = request.case
        if self._device.type == "cpu" and is_interpreted(case.engine):
            os.environ["TRITON_INTERPRET"] = "1"
        engine = load_engine(case.engine)
        prepared = prepare(
            case,
            engine,
            [case.passes],
            self._device,
            lambda _: None,
            with_oracle=request.verify,
            qkv=self._qkv(case.workload, request.inputs),
        )
        if prepared.correctness is not None:
            correctness = correctness_of_pass(prepared.correctness, case)
            if not correctness.passed:
                return Reply(status=Status.WRONG, reason=correctness.reason)
        if prepared.fell_back:
            return Reply(status=Status.FELL_BACK, reason=prepared.fell_back)
        if not case.claims.timed:
            return Reply(status=Status.COUNTED)
        if reason := engine.untimed(self._device):
            return Reply(status=Status.VERIFIED_ONLY, reason=reason)
        return self._warm_up(_Current(pass_call(prepared.subject, case.passes), (case, prepared)))

    def _prepare_host(self, operation: str) -> Reply:
        from bsa_bench.gate.host_cases import HOST_CASES

        self._current = None
        return self._warm_up(_Current(HOST_CASES[operation].make()))

    def _warm_up(self, current: _Current) -> Reply:
        """Call it until it settles; from then on it can be sampled."""
        from bsa_bench.measure.sampling import PROTOCOLS, warm_up

        times = list[float]()

        def sample() -> float:
            assert self._timer is not None
            times.append(self._timer.sample(current.call))
            return times[-1]

        warm_up(sample, PROTOCOLS["gate"])
        self._current = current
        if self._watch:
            self._watch.slowdown_ns()  # of the warm-up, which does not count
        return Reply(seconds=statistics.median(times[len(times) // 2 :]))

    def _qkv(self, workload: Workload, folder: str | None) -> Mapping[str, Tensor]:
        from bsa_bench.inputs import make_qkv

        assert self._device is not None
        if self._inputs is None or self._inputs[0] != workload.digest:
            self._inputs = None  # before the next are made
            device = self._device.type
            kept = Path(folder) / f"{workload.digest}.pt" if folder else None
            self._inputs = (workload.digest, _kept(kept, lambda: make_qkv(workload, device=device).tensors, device))
        return self._inputs[1]

    def _sample(self) -> Reply:
        assert self._current is not None
        assert self._timer is not None
        try:
            seconds = self._timer.sample(self._current.call)
            return Reply(seconds=seconds, clock_hz=self._watch.clock_hz() if self._watch else None)
        except Exception as error:  # noqa: BLE001  # the one case boundary
            return _failed(error)

    def _finish(self, request: Finish) -> Reply:
        from bsa_bench.measure.memory import measure_memory

        assert self._device is not None
        current, self._current = self._current, None
        if current is None:
            return Reply()
        slowdown_ns = self._watch.slowdown_ns() if self._watch else 0
        peak_bytes = None
        if request.memory:
            peak_bytes = measure_memory(current.call, inputs_bytes=0, device=self._device).peak_above_inputs_bytes
        if request.verify and current.case is not None:
            case, prepared = current.case
            after = correctness_of_pass(verify_fresh(case, prepared), case)
            if not after.passed:
                return Reply(status=Status.WRONG, reason=f"after timing: {after.reason}")
        return Reply(peak_bytes=peak_bytes, slowdown_ns=slowdown_ns)


def _kept(path: Path | None, make: Callable[[], Mapping[str, Tensor]], device: str) -> Mapping[str, Tensor]:
    """Tensors from a file, or made and put there for the processes to come."""
    import torch

    if path is None:
        return make()
    if path.is_file():
        return dict(torch.load(path, map_location=device, weights_only=True))
    made = dict(make())
    part = path.with_suffix(f".{os.getpid()}")
    try:
        torch.save(made, part)
        part.replace(path)
    except (OSError, RuntimeError) as error:  # torch has a RuntimeError for a full disk; the next process makes its own
        sys.stderr.write(f"{path}: not kept: {error}\n")
        part.unlink(missing_ok=True)
    return made


def _failed(error: Exception) -> Reply:
    outcome = failure(error)
    if trace := outcome.get("traceback"):
        with contextlib.suppress(OSError):  # a full disk takes the words, not the answer
            sys.stderr.write(trace)
            sys.stderr.flush()
    return Reply(status=outcome["status"], reason=outcome["reason"])


if __name__ == "__main__":
    main()
