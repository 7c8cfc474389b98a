"""Measure a pair: one fresh process of each side, alive at the same time, one call of each in turn.

What disturbs the machine for longer than a call disturbs both sides alike and leaves their ratio; what a process keeps
for its life, the placement of its memory above all, does not, which is why pairs of processes are repeated.
"""

from __future__ import annotations

import contextlib
import math
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bsa_bench.child_process import check_package
from bsa_bench.errors import BenchError
from bsa_bench.gate.pair_job import Finish, Prepare, PrepareHost, Reply, Sample, SetUp
from bsa_bench.gate.pair_process import CPU_VARIABLES, WORKER_COMMAND, PairProcess, PairSide
from bsa_bench.gate.two_stage import PairSample, Problem
from bsa_bench.gate.verdict import Verdict
from bsa_bench.result import Case, Status
from bsa_bench.run.job import DeviceKind
from bsa_bench.stats.pairs import lockstep_error

__all__ = ["CPU_VARIABLES", "WORKER_COMMAND", "LockstepBench", "LockstepSettings", "PairSide"]


@dataclass(frozen=True, kw_only=True)
class LockstepSettings:
    """How a pair is measured.

    Args:
        device, threads: of the workers.
        turns_s: how long the turns of a case may take; between `min_turns` and `max_turns` of them in any case.
        turn_error: turns end sooner where the standard error of their median log ratio is below it; 0: never.
        answer_s: how long a worker may take to answer anything.
        call_limit_s: a case whose call takes longer is left out.
        logs: a folder; `base.log` and `head.log` there get what the workers write to stdout and stderr.
    """

    device: DeviceKind
    threads: int
    logs: Path
    turns_s: float = 1.0
    turn_error: float = 0.0
    min_turns: int = 3
    max_turns: int = 80
    answer_s: float = 180.0
    call_limit_s: float = math.inf


@dataclass(frozen=True)
class HostOperation:
    """An operation of `host_cases` by its name, measured like a case."""

    name: str


class LockstepBench:
    """A `PairBench` of real processes.

    Args:
        cases: by the name that the decision uses.
        base, head: the two sides.
        settings: how.
        seed: of which side calls first in a turn.
        out_of_time: asked before each case; what is left of a pair then is not measured.
        tell: told what happens.
    """

    def __init__(
        self,
        cases: Mapping[str, Case | HostOperation],
        *,
        base: PairSide,
        head: PairSide,
        settings: LockstepSettings,
        seed: int = 0,
        out_of_time: Callable[[], bool] = lambda: False,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._cases, self._sides, self._settings = cases, (base, head), settings
        self._random = random.Random(seed)
        self._out_of_time, self._tell = out_of_time, tell
        self._verified: set[str] = set()
        self._visit_s: dict[str, float] = {}
        self._start_s = 0.0
        self._inputs: tempfile.TemporaryDirectory[str] | None = None

    def cost_s(self, names: Sequence[str]) -> float:
        """How long a pair of these cases will take, as far as earlier pairs tell."""
        return self._start_s + sum(self._visit_s.get(name, 0.0) for name in names)

    def measure(self, names: Sequence[str]) -> dict[str, PairSample | Problem]:
        """Start a process of each side, visit the cases in this order, but those of a workload together, end both.

        A process that dies ends the case that it was in; the pair is started again for the rest.

        Raises:
            BenchError: a process cannot be started at all.
            StoreError: the logs cannot be written.
        """
        if self._inputs is None:
            with contextlib.suppress(OSError):  # then each process makes its own
                self._inputs = tempfile.TemporaryDirectory(prefix="bsa-bench-inputs-")
        return self._measure(names)

    def _measure(self, names: Sequence[str]) -> dict[str, PairSample | Problem]:
        found: dict[str, PairSample | Problem] = {}
        workloads = dict.fromkeys(map(self._workload, names))
        pending = [name for each in workloads for name in names if self._workload(name) == each]
        while pending:
            with contextlib.ExitStack() as stack:
                started = time.monotonic()
                sides = self._processes(stack)
                if problem := self._start(sides):
                    return found | dict.fromkeys(pending, problem)
                self._start_s = time.monotonic() - started
                while pending and all(side.is_alive for side in sides):
                    if self._out_of_time():
                        late = Problem(Verdict.NOT_MEASURED, "no time was left for it in this pair")
                        return found | dict.fromkeys(pending, late)
                    name = pending.pop(0)
                    self._tell(name)
                    started = time.monotonic()
                    found[name] = self._visit(name, sides)
                    self._visit_s[name] = time.monotonic() - started
        return found

    def _workload(self, name: str) -> str:
        """What the cases of one input have in common."""
        case = self._cases[name]
        return case.workload.digest if isinstance(case, Case) else ""

    def probe(self) -> tuple[Reply, Reply]:
        """Start both sides once and say what code they import; the reply of a head that cannot start is not OK.

        Raises:
            BenchError: the base cannot be started, or a worker of either side not at all.
        """
        with contextlib.ExitStack() as stack:
            sides = self._processes(stack)
            base, head = self._set_up(sides)
        if base.status is not Status.OK:
            raise BenchError(f"{self._sides[0].label} cannot be started: {base.reason}")
        return base, head

    def verify(self, names: Sequence[str]) -> dict[str, Reply]:
        """Verify cases that cannot be timed here, on the head alone, in a process of their own.

        A process that dies ends the case that it was in; another one goes on with the rest.
        """
        head = self._sides[1]
        side = replace(head, variables=head.variables | {"TRITON_INTERPRET": "1"})
        found: dict[str, Reply] = {}
        pending = list(names)
        while pending:
            with self._process(side, "verify") as process:
                started = process.ask(SetUp(device=self._settings.device, threads=self._settings.threads))
                if started.status is not Status.OK:
                    return found | dict.fromkeys(pending, started)
                while pending and process.is_alive:
                    name = pending.pop(0)
                    self._tell(name)
                    case = self._cases[name]
                    assert isinstance(case, Case), "an operation on the host has no oracle"
                    found[name] = process.ask(Prepare(case=case, verify=True))
        return found

    def _processes(self, stack: contextlib.ExitStack) -> list[PairProcess]:
        roles = zip(self._sides, ("base", "head"), strict=True)
        return [stack.enter_context(self._process(side, role)) for side, role in roles]

    def _process(self, side: PairSide, role: str) -> PairProcess:
        settings = self._settings
        log = settings.logs / f"{role}.log"
        return PairProcess(side, device=settings.device, log=log, answer_s=settings.answer_s)

    def _set_up(self, sides: Sequence[PairProcess]) -> list[Reply]:
        for process in sides:
            process.send(SetUp(device=self._settings.device, threads=self._settings.threads))
        replies = [process.receive() for process in sides]
        for side, reply in zip(self._sides, replies, strict=True):
            if reply.status is Status.OK:
                check_package(reply.package, who=f"the worker of {side.label}", expected=side.package)
        return replies

    def _start(self, sides: Sequence[PairProcess]) -> Problem | None:
        for side, reply in zip(self._sides, self._set_up(sides), strict=True):
            if reply.status is not Status.OK:
                return Problem(Verdict.NOT_MEASURED, f"{side.label} cannot be started: {reply.reason}")
        return None

    def _visit(self, name: str, sides: Sequence[PairProcess]) -> PairSample | Problem:
        case, is_first = self._cases[name], name not in self._verified
        # One after the other: two that prepare at once would take each other's processor.
        request = Prepare(case=case, verify=is_first) if isinstance(case, Case) else PrepareHost(operation=case.name)
        prepared = [side.ask(request) for side in sides]
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
            if lockstep_error(*samples) < self._settings.turn_error:
                break
        finished = self._finish(sides, is_first=is_first)
        if problem := self._problem(finished):
            return problem
        middle = [sorted(each)[len(each) // 2] if each else None for each in clocks]
        sample = PairSample(
            base=samples[0],
            head=samples[1],
            base_clock_hz=middle[0],
            head_clock_hz=middle[1],
            base_peak_bytes=finished[0].peak_bytes,
            head_peak_bytes=finished[1].peak_bytes,
            throttle_ns=max(reply.slowdown_ns for reply in finished),
        )
        if not sample.throttle_ns:  # else the pair is dropped, and the memory that it measured with it
            self._verified.add(name)
        return sample

    def _finish(self, sides: Sequence[PairProcess], *, is_first: bool) -> list[Reply]:
        # The resident set of a process that has measured other cases says little of this one; an allocator's peak does.
        memory = is_first and self._settings.device == "cuda"
        # After timing the head alone: what it keeps and hands back is found out there, and the base is no news.
        return [side.ask(Finish(verify=is_first and side is sides[1], memory=memory)) for side in sides]

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
