"""Measure a pair: one fresh process of each side, alive at the same time, one call of each in turn.

What disturbs the machine for longer than a call disturbs both sides alike and leaves their ratio; what a process keeps
for its life, the placement of its memory above all, does not, which is why pairs of processes are repeated.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from bsa_bench.errors import BenchError
from bsa_bench.gate.two_stage import PairSample, Problem
from bsa_bench.gate.verdict import Verdict
from bsa_bench.result import Case, Status
from bsa_bench.run.job import DeviceKind
from bsa_bench.run.pair_job import Finish, Prepare, Reply, Sample, SetUp

WORKER_COMMAND = (sys.executable, "-m", "bsa_bench.pair_worker")
CPU_VARIABLES = {
    # Memory in huge pages: where its pages lie is most of what a process keeps for its life.
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    # Threads that spin lose whole time slices to any other job on the machine.
    "OMP_WAIT_POLICY": "PASSIVE",
}
_GRACE_S = 5.0


@dataclass(frozen=True, kw_only=True)
class PairSide:
    """One side of a pair: where its code comes from.

    Args:
        label: what to call it.
        first_paths: folders that come before all others on the module path; none for what is installed.
        command: starts the worker.
        variables: added to its environment.
    """

    label: str
    first_paths: tuple[Path, ...] = ()
    command: tuple[str, ...] = WORKER_COMMAND
    variables: dict[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        """The environment of its process."""
        paths = [*map(str, self.first_paths), *filter(None, [os.environ.get("PYTHONPATH")])]
        return os.environ | ({"PYTHONPATH": os.pathsep.join(paths)} if paths else {}) | self.variables


@dataclass(frozen=True, kw_only=True)
class LockstepSettings:
    """How a pair is measured.

    Args:
        device, threads: of the workers.
        turns_s: how long the turns of a case may take; between `min_turns` and `max_turns` of them in any case.
        answer_s: how long a worker may take to answer anything.
        call_limit_s: a case whose call takes longer is left out.
        logs: a folder; `base.log` and `head.log` there get what the workers write to stdout and stderr.
    """

    device: DeviceKind
    threads: int
    logs: Path
    turns_s: float = 1.5
    min_turns: int = 5
    max_turns: int = 80
    answer_s: float = 180.0
    call_limit_s: float = math.inf


class LockstepBench:
    """A `PairBench` of real processes.

    Args:
        cases: by the name that the decision uses.
        base, head: the two sides.
        settings: how.
        seed: of which side calls first in a turn.
        tell: told what happens.
    """

    def __init__(
        self,
        cases: Mapping[str, Case],
        *,
        base: PairSide,
        head: PairSide,
        settings: LockstepSettings,
        seed: int = 0,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._cases, self._sides, self._settings = cases, (base, head), settings
        self._random = random.Random(seed)
        self._tell = tell
        self._verified: set[str] = set()

    def measure(self, names: Sequence[str]) -> dict[str, PairSample | Problem]:
        """Start a process of each side, visit the cases in this order, end both.

        A process that dies ends the case that it was in; the pair is started again for the rest.
        """
        found: dict[str, PairSample | Problem] = {}
        pending = list(names)
        while pending:
            with contextlib.ExitStack() as stack:
                sides = self._processes(stack)
                if problem := self._start(sides):
                    return found | dict.fromkeys(pending, problem)
                while pending and all(side.is_alive for side in sides):
                    name = pending.pop(0)
                    self._tell(name)
                    found[name] = self._visit(name, sides)
        return found

    def probe(self) -> tuple[Reply, Reply]:
        """Start both sides once and say what code they import.

        Raises:
            BenchError: a side cannot be started.
        """
        with contextlib.ExitStack() as stack:
            sides = self._processes(stack)
            base, head = self._set_up(sides)
        for side, reply in zip(self._sides, (base, head), strict=True):
            if reply.status is not Status.OK:
                raise BenchError(f"{side.label}: {reply.reason}")
        return base, head

    def _processes(self, stack: contextlib.ExitStack) -> list[_Process]:
        logs = [self._settings.logs / f"{role}.log" for role in ("base", "head")]
        return [
            stack.enter_context(_Process(side, self._settings, log))
            for side, log in zip(self._sides, logs, strict=True)
        ]

    def _set_up(self, sides: Sequence[_Process]) -> list[Reply]:
        for side in sides:
            side.send(SetUp(device=self._settings.device, threads=self._settings.threads))
        return [side.receive() for side in sides]

    def _start(self, sides: Sequence[_Process]) -> Problem | None:
        for side, reply in zip(self._sides, self._set_up(sides), strict=True):
            if reply.status is not Status.OK:
                return Problem(Verdict.NOT_MEASURED, f"{side.label} cannot be started: {reply.reason}")
        return None

    def _visit(self, name: str, sides: Sequence[_Process]) -> PairSample | Problem:
        case, is_first = self._cases[name], name not in self._verified
        # One after the other: two that prepare at once would take each other's processor.
        prepared = [side.ask(Prepare(case=case, verify=is_first)) for side in sides]
        if problem := self._problem(prepared):
            return problem
        call_s = [reply.seconds or 0.0 for reply in prepared]
        if min(call_s) > self._settings.call_limit_s:
            self._finish(sides, is_first=False)
            return Problem(
                Verdict.NOT_MEASURED,
                f"a call takes {min(call_s):.2f} s, more than the limit of {self._settings.call_limit_s:g} s",
            )
        samples: tuple[list[float], list[float]] = ([], [])
        clocks: tuple[list[float], list[float]] = ([], [])
        for _ in range(self._num_turns(sum(call_s))):
            for index in self._random.sample((0, 1), 2):
                reply = sides[index].ask(Sample())
                if reply.status is not Status.OK or reply.seconds is None:
                    replies = [Reply(), Reply()]
                    replies[index] = reply
                    return self._problem(replies) or Problem(Verdict.INFRA_ERROR, "a sample without a time")
                samples[index].append(reply.seconds)
                clocks[index].extend([reply.clock_hz] if reply.clock_hz else [])
        finished = self._finish(sides, is_first=is_first)
        if problem := self._problem(finished):
            return problem
        self._verified.add(name)
        middle = [sorted(each)[len(each) // 2] if each else None for each in clocks]
        return PairSample(
            base=samples[0],
            head=samples[1],
            base_clock_hz=middle[0],
            head_clock_hz=middle[1],
            base_peak_bytes=finished[0].peak_bytes,
            head_peak_bytes=finished[1].peak_bytes,
        )

    def _finish(self, sides: Sequence[_Process], *, is_first: bool) -> list[Reply]:
        # The resident set of a process that has measured other cases says little of this one; an allocator's peak does.
        memory = is_first and self._settings.device == "cuda"
        return [side.ask(Finish(verify=is_first, memory=memory)) for side in sides]

    def _num_turns(self, turn_s: float) -> int:
        wanted = int(self._settings.turns_s / turn_s) if turn_s else self._settings.max_turns
        return min(max(wanted, self._settings.min_turns), self._settings.max_turns)

    def _problem(self, replies: Sequence[Reply]) -> Problem | None:
        """What the replies of base and head come to, unless both are OK."""
        (base, head), (base_side, head_side) = replies, self._sides
        if head.status is Status.WRONG:
            return Problem(Verdict.WRONG, f"{head_side.label}: {head.reason}")
        if base.status is not Status.OK:
            both = f", and so does {head_side.label}" if head.status is base.status else ""
            return Problem(Verdict.NOT_MEASURED, f"{base_side.label} came to {base.status}{both}: {base.reason}")
        if head.status is not Status.OK:
            return Problem(Verdict.FAILED, f"{head_side.label} came to {head.status}, the base did not: {head.reason}")
        return None


class _Process:
    """One worker of a pair."""

    def __init__(self, side: PairSide, settings: LockstepSettings, log: Path) -> None:
        self._side, self._settings, self._log = side, settings, log
        self._rest = b""
        self.is_alive = True

    def __enter__(self) -> Self:
        requests, self._requests = os.pipe()
        self._events, events = os.pipe()
        variables = CPU_VARIABLES if self._settings.device == "cpu" else {}
        try:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with self._log.open("ab") as log:
                self._log_start = log.tell()
                self._process = subprocess.Popen(
                    [*self._side.command, "--requests-fd", str(requests), "--events-fd", str(events)],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**variables, **self._side.environment()},
                    pass_fds=(requests, events),
                    start_new_session=True,  # Ctrl-C reaches us alone, and one killpg ends it with its children
                )
        except OSError as error:
            os.close(self._requests)
            os.close(self._events)
            command = " ".join(self._side.command)
            raise BenchError(f"the worker of {self._side.label} cannot be started: {command}: {error}") from error
        finally:
            os.close(requests)
            os.close(events)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_requests()
        if kind is None and self.is_alive:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE_S)
        self._kill()
        os.close(self._events)
        assert self._process.stdin is not None
        self._process.stdin.close()

    def ask(self, request: SetUp | Prepare | Sample | Finish) -> Reply:
        """Send a request and wait for what comes of it; a process that dies or hangs is an answer too."""
        self.send(request)
        return self.receive()

    def send(self, request: SetUp | Prepare | Sample | Finish) -> None:
        """Send a request."""
        with contextlib.suppress(BrokenPipeError):  # it died before, which `receive` finds out
            data = request.model_dump_json().encode() + b"\n"
            while data:
                data = data[os.write(self._requests, data) :]

    def receive(self) -> Reply:
        """Wait for the reply to a request."""
        if not self.is_alive:
            return Reply(status=Status.CRASHED, reason="its process has ended before")
        deadline = time.monotonic() + self._settings.answer_s
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._events], [], [], max(deadline - time.monotonic(), 0))
            if not ready:
                self._kill()
                return Reply(status=Status.TIMEOUT, reason=f"no answer within {self._settings.answer_s:g} s")
            chunk = os.read(self._events, 1 << 16)
            if not chunk:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(_GRACE_S)
                self._kill()
                return Reply(status=Status.CRASHED, reason=self._how_it_ended())
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        return Reply.model_validate(json.loads(line))

    def _how_it_ended(self) -> str:
        code = self._process.returncode
        how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        with self._log.open("rb") as log:
            log.seek(self._log_start)
            words = log.read().decode(errors="replace").strip().splitlines()
        last = f": {words[-1]}" if words else ""
        return f"its process ended with {how}{last}"

    def _close_requests(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._requests)

    def _kill(self) -> None:
        """End the process with its children, and reap it."""
        self.is_alive = False
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
