"""A worker of a pair as a process: started, asked, and ended with all that it started."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from pydantic import ValidationError

from bsa_bench.child_process import PACKAGE, child_environment, module_command
from bsa_bench.errors import BenchError, StoreError
from bsa_bench.gate.pair_job import Asked, Reply
from bsa_bench.result import Status
from bsa_bench.run.job import DeviceKind

WORKER_COMMAND = module_command("bsa_bench.gate.pair_worker")
CPU_VARIABLES = {
    # Memory in huge pages: where its pages lie is most of what a process keeps for its life.
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    # Threads that spin lose whole time slices to any other job on the machine.
    "OMP_WAIT_POLICY": "PASSIVE",
}
_GRACE_S = 5.0
_LOOK_S = 1.0
"""How often a silent process is looked at: its end closes the pipe, unless a child of it holds that open."""
_TAIL_BYTES = 4000


@dataclass(frozen=True, kw_only=True)
class PairSide:
    """One side of a pair: where its code comes from.

    Args:
        label: what to call it.
        first_paths: folders that come before all others on the module path; none for the code that runs this.
        own_code: folders beside the kernels whose code is the side's own; if they differ, so do the sides.
        bench: the benchmark's package as it is there, whether or not the side runs it; None where it has none.
        last_paths: folders that come after all others.
        command: starts the worker.
        variables: added to its environment.
        packages: versions of packages where the Python of `command` is another than the one that runs this.
        notes: what a result says of its Python environment.
    """

    label: str
    first_paths: tuple[Path, ...] = ()
    own_code: tuple[Path, ...] = ()
    bench: Path | None = None
    last_paths: tuple[Path, ...] = ()
    command: tuple[str, ...] = WORKER_COMMAND
    variables: dict[str, str] = field(default_factory=dict)
    packages: dict[str, str | None] | None = None
    notes: tuple[str, ...] = ()

    def environment(self) -> dict[str, str]:
        """The environment of its process."""
        return child_environment(first=self.first_paths, last=self.last_paths) | self.variables

    @property
    def package(self) -> Path:
        """The folder of the `bsa_bench` that its process is to import."""
        found = [folder / PACKAGE.name for folder in self.first_paths if (folder / PACKAGE.name).is_dir()]
        return (found or [PACKAGE])[0]


class PairProcess:
    """One worker of a pair, alive for as long as the context lasts; nothing of it is left after that.

    Args:
        side: whose it is.
        device: where it measures.
        log: gets what it writes to stdout and stderr, appended.
        answer_s: how long it may take to answer anything.

    Raises:
        BenchError: it cannot be started.
        StoreError: the log cannot be written.
    """

    def __init__(self, side: PairSide, *, device: DeviceKind, log: Path, answer_s: float) -> None:
        self._side, self._device, self._log, self._answer_s = side, device, log, answer_s
        self._rest = b""
        self.is_alive = True

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as opened:
            log = opened.enter_context(self._open_log())
            self._log_start = log.tell()
            requests, self._requests = os.pipe()
            opened.callback(os.close, requests)
            failed = opened.enter_context(contextlib.ExitStack())
            failed.callback(os.close, self._requests)
            self._events, events = os.pipe()
            opened.callback(os.close, events)
            failed.callback(os.close, self._events)
            variables = CPU_VARIABLES if self._device == "cpu" else {}
            try:
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
                command = " ".join(self._side.command)
                raise BenchError(f"the worker of {self._side.label} cannot be started: {command}: {error}") from error
            failed.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            os.close(self._requests)  # which tells it to end
            if kind is None and self.is_alive:
                self._wait(_GRACE_S)
        finally:
            self._kill()
            os.close(self._events)
            assert self._process.stdin is not None
            self._process.stdin.close()

    def ask(self, request: Asked) -> Reply:
        """Send a request and wait for what comes of it; a process that dies or hangs is an answer too."""
        self.send(request)
        return self.receive()

    def send(self, request: Asked) -> None:
        """Send a request."""
        with contextlib.suppress(BrokenPipeError):  # it died before, which `receive` finds out
            data = request.model_dump_json().encode() + b"\n"
            while data:
                data = data[os.write(self._requests, data) :]

    def receive(self) -> Reply:
        """Wait for the reply to a request."""
        if not self.is_alive:
            return Reply(status=Status.CRASHED, reason="its process has ended before")
        deadline = time.monotonic() + self._answer_s
        while b"\n" not in self._rest:
            left_s = deadline - time.monotonic()
            ready, _, _ = select.select([self._events], [], [], min(max(left_s, 0), _LOOK_S))
            if ready:
                chunk = os.read(self._events, 1 << 16)
                if not chunk:
                    self._wait(_GRACE_S)
                    return self._crashed()
                self._rest += chunk
            elif left_s <= 0:
                self._kill()
                return Reply(status=Status.TIMEOUT, reason=f"no answer within {self._answer_s:g} s")
            elif self._has_exited():
                return self._crashed()
        line, _, self._rest = self._rest.partition(b"\n")
        try:
            reply = Reply.model_validate_json(line)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = "".join(f"{each}: " for each in first["loc"])
            return self._out_of_turn(f"{_shown(line)}: {place}{first['msg']}")
        # With one answer too many, each later one would be taken for that to another request.
        return self._out_of_turn(f"a second answer to one request, {_shown(self._rest)}") if self._rest else reply

    def _out_of_turn(self, what: str) -> Reply:
        self._kill()
        return Reply(status=Status.CRASHED, reason=f"its process broke the protocol: {what}")

    def _crashed(self) -> Reply:
        self._kill()
        return Reply(status=Status.CRASHED, reason=self._how_it_ended())

    def _how_it_ended(self) -> str:
        code = self._process.returncode
        how = f"exit code {code}"
        if code < 0:
            how = f"signal {-code}"
            with contextlib.suppress(ValueError):
                how = signal.Signals(-code).name
        words = self._last_words()
        return f"its process ended with {how}{': ' if words else ''}{words}"

    def _last_words(self) -> str:
        """The last line that it wrote, of a traceback the exception; empty where it wrote none."""
        try:
            with self._log.open("rb") as log:
                log.seek(max(self._log_start, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
                lines = log.read(_TAIL_BYTES).decode(errors="replace").strip().splitlines()
        except OSError:  # somebody removed it, or it is no file that can be read
            return ""
        return lines[-1] if lines else ""

    def _open_log(self) -> BinaryIO:
        try:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            return self._log.open("ab")
        except OSError as error:
            raise StoreError(f"{self._log}: cannot write the worker's log: {error.strerror or error}") from error

    def _has_exited(self) -> bool:
        # Not reaped yet, so that the number of its group cannot go to somebody else before `_kill`.
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _wait(self, limit_s: float) -> None:
        """Wait for its end, at most so long."""
        deadline = time.monotonic() + limit_s
        while not self._has_exited() and time.monotonic() < deadline:
            time.sleep(0.005)

    def _kill(self) -> None:
        """End the process and its children, and reap it; harmless when that was done."""
        self.is_alive = False
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def _shown(line: bytes) -> str:
    return repr(line[:80].decode(errors="replace"))
