"""The protocol between the scheduler and a worker process.

The scheduler starts `<command> --events-fd N` as the leader of a session of its own. It writes one `Job` as one JSON
line to the worker's stdin and **keeps stdin open** for as long as it lives. The worker

1. calls `read_job()` and then `die_with_parent()`, both before any slow import;
2. runs the cases of the job in their order, in one process, and writes JSON lines to the file descriptor N through
   `EventPipe`: first a `hello`, by which the scheduler sees that the worker runs the scheduler's own package, then any
   number of `progress` events, and one `result` event for each case as soon as it is known;
3. exits with 0. What it writes to stdout and stderr goes to the run's log.

The time limit counts from the start of the process to the first result and from each result to the next. A worker that
ends before all results are in has been killed by the first case without one: that case gets the status, the others get
one fresh worker. The scheduler assigns `seq` (the worker writes `first_seq` plus its own count), the process index and
the predicted bytes of each case.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, TypeAdapter

from bsa_bench.child_process import PACKAGE
from bsa_bench.descendants import be_child
from bsa_bench.result import CacheChoice, Case, Line, Result, TimerName

Profile = Literal["quick", "report"]
DeviceKind = Literal["cpu", "cuda"]


class Job(Line):
    """What one worker process is to do: the cases of one group, or what is left of them after a worker died.

    `timer` and `cache` are null for the device's usual ones.
    """

    run_id: str
    env_hash: str
    cases: Annotated[list[Case], Field(min_length=1)]
    first_seq: NonNegativeInt
    profile: Profile
    device: DeviceKind
    threads: PositiveInt | None = None
    timer: TimerName | None = None
    cache: CacheChoice | None = None
    predicted_bytes: NonNegativeInt | None = None
    memory_limit_bytes: NonNegativeInt


class HelloEvent(Line):
    """The first event: the folder of the `bsa_bench` that the worker imported."""

    event: Literal["hello"] = "hello"
    package: str


class ProgressEvent(Line):
    """What the worker is doing now: `compiling`, `verifying`, `forward: 12 samples`."""

    event: Literal["progress"] = "progress"
    text: str


class ResultEvent(Line):
    """What became of one case of the job."""

    event: Literal["result"] = "result"
    result: Result


Event = HelloEvent | ProgressEvent | ResultEvent
_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


def parse_event(line: bytes) -> Event:
    """Validate one line of the event pipe.

    Raises:
        pydantic.ValidationError: the line is no event.
    """
    return _EVENT.validate_json(line)


class EventPipe:
    """The worker's end of the event pipe; says hello. Each event is written whole before the call returns."""

    def __init__(self, fd: int) -> None:
        os.set_inheritable(fd, False)  # a child of the worker must not keep the pipe open after it
        self._fd = fd
        self._write(HelloEvent(package=str(PACKAGE)))

    def progress(self, text: str) -> None:
        """Say what is being done now."""
        self._write(ProgressEvent(text=text))

    def result(self, result: Result) -> None:
        """Hand a result over."""
        self._write(ResultEvent(result=result))

    def _write(self, event: Event) -> None:
        data = event.model_dump_json().encode() + b"\n"
        while data:
            data = data[os.write(self._fd, data) :]


def read_job() -> Job:
    """Read the job from stdin, once."""
    return Job.model_validate_json(sys.stdin.buffer.readline())


def die_with_parent() -> None:
    """Make this worker and its children end at once when the scheduler does, however that ends; call after `read_job`.

    A shell in the worker's process group waits for stdin to close, as it does when the scheduler is gone, and kills the
    group. A thread could not do it while native code holds the interpreter's lock, and the kernel's parent-death signal
    would spare the worker's children. Those in a session of their own are ended by their mark, see
    `bsa_bench.descendants`. The process also offers itself as the kernel's first choice when memory runs
    out, so that the scheduler is not the one to be killed.
    """
    be_child()
    with contextlib.suppress(OSError):  # a sandbox may refuse it; the run is then only less well protected
        Path("/proc/self/oom_score_adj").write_text("900", encoding="ascii")
    worker = os.getpid()
    whom = -worker if os.getpgrp() == worker else worker
    subprocess.Popen(["/bin/sh", "-c", f"read -r _; kill -s KILL -- {whom}"], stdin=sys.stdin)
