"""Ask a worker process what this machine is and what cannot run on it, so that the command line never loads torch."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bsa_bench.child_process import PACKAGE, check_package, child_environment
from bsa_bench.descendants import kill_marked, new_mark
from bsa_bench.errors import MachineError, StoreError, UsageError
from bsa_bench.result import Case, Ceiling, Environment
from bsa_bench.run.job import DeviceKind
from bsa_bench.run.settings import WORKER_COMMAND

#: [implementation, dtype, head_dim, backward]
Question = tuple[str, str, int, bool]
PROBE_LIMIT_S = 300
_MOST_BYTES = 4 << 20
"""Of its answer, and of what it says besides."""


@dataclass(frozen=True)
class Probe:
    """The environment, and by question why that cannot run here (None: it can).

    Args:
        troubles: what is in the way of measuring on this machine.
        notes: what of that could not be looked at.
        ceilings: what the device delivers, where that was asked for.
    """

    environment: Environment
    reasons: dict[Question, str | None]
    troubles: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    ceilings: tuple[Ceiling, ...] = ()

    def unavailable(self, case: Case) -> str | None:
        """The reason why a case cannot run here, or None."""
        return self.reasons[question_of(case)]


def question_of(case: Case) -> Question:
    """What has to be known about a case."""
    return case.implementation, case.workload.dtype, case.workload.head_dim, case.passes != "forward"


def probe(
    questions: Mapping[DeviceKind, Iterable[Question]],
    *,
    device: DeviceKind | None,
    threads: int | None,
    must_be_ready: bool = True,
    with_ceilings: bool = False,
    command: tuple[str, ...] = WORKER_COMMAND,
    environment: Mapping[str, str] | None = None,
    package: Path = PACKAGE,
) -> Probe:
    """Start a worker that describes the machine and answers the questions for the device it finds.

    Args:
        device: the kind to use, or None for a GPU where there is one.
        must_be_ready: refuse a GPU on which others compute, or that is held back.
        with_ceilings: measure matrix products and a copy too, on a machine that is ready.
        command, environment: of the worker; None for the environment of this process.
        package: the folder of the `bsa_bench` that the worker is to import.

    Raises:
        UsageError: the device asked for is not here, or the worker imports another `bsa_bench`.
        MachineError: it is not in a state to be measured.
        StoreError: the worker failed; the message ends with its last words.
    """
    request = {
        "threads": threads,
        "device": device,
        "ceilings": with_ceilings,
        "questions": {kind: sorted(set(asked)) for kind, asked in questions.items()},
    }
    code, said, complained = _ask([*command, "--probe"], json.dumps(request), environment)
    if code != 0:
        last = "\n".join(complained.strip().splitlines()[-5:])
        raise StoreError(f"the probe of this machine failed with exit code {code}:\n{last}")
    try:
        answer = json.loads((said.splitlines() or [""])[-1])
    except (ValueError, RecursionError):
        said = said[-200:]
        raise StoreError(f"the probe of this machine gave no answer, its output ends with {said!r}") from None
    check_package(answer.get("package"), who="the probe of this machine", expected=package)
    if "error" in answer:
        raise UsageError(str(answer["error"]))
    found = Probe(
        Environment.model_validate(answer["environment"]),
        {(q[0], q[1], q[2], q[3]): q[4] for q in answer["reasons"]},
        troubles=tuple(answer["troubles"]),
        notes=tuple(answer["notes"]),
        ceilings=tuple(map(Ceiling.model_validate, answer["ceilings"])),
    )
    if must_be_ready and found.troubles:
        raise MachineError(f"{found.environment.device_name} is not measured: {'; '.join(found.troubles)}")
    return found


def _ask(command: list[str], request: str, environment: Mapping[str, str] | None) -> tuple[int, str, str]:
    """Run the probe to its end; returns its exit code, and the end of what it wrote to stdout and to stderr.

    However much it writes, so much is kept; nothing of it is left, whatever it started.
    """
    marked = new_mark() | dict(child_environment() if environment is None else environment)
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=marked)
    assert process.stdin is not None
    ends = [_End(stream) for stream in (process.stdout, process.stderr) if stream is not None]
    timer = threading.Timer(PROBE_LIMIT_S, process.kill)
    for thread in (*ends, timer):
        thread.start()
    started = time.monotonic()
    try:
        with contextlib.suppress(BrokenPipeError), process.stdin:  # where it died first, its exit code tells
            process.stdin.write(request.encode())
        process.wait()
    finally:
        timer.cancel()
        process.kill()
        process.wait()
        kill_marked(marked)  # what it started may hold the pipes open
        for end in ends:
            end.join()
    if process.returncode == -signal.SIGKILL and time.monotonic() - started >= PROBE_LIMIT_S:
        raise StoreError(f"the probe of this machine did not answer within {PROBE_LIMIT_S} s")
    return process.returncode, ends[0].text, ends[1].text


class _End(threading.Thread):
    """Reads a pipe to its end, and keeps the last of it."""

    def __init__(self, pipe: IO[bytes]) -> None:
        super().__init__(daemon=True)
        self._pipe = pipe
        self._kept = b""

    @property
    def text(self) -> str:
        return self._kept.decode(errors="replace")

    def run(self) -> None:
        with self._pipe:
            while chunk := self._pipe.read1(1 << 16):  # type: ignore[attr-defined]
                self._kept = (self._kept + chunk)[-_MOST_BYTES:]
