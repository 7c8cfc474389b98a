"""Start one worker process, listen to it, and end it: by itself, by a time limit, or because the run stops."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from bsa_bench.child_process import check_package, child_environment
from bsa_bench.descendants import kill_marked
from bsa_bench.errors import BenchError, StoreError
from bsa_bench.result import Status
from bsa_bench.run.job import HelloEvent, Job, ProgressEvent, ResultEvent, parse_event
from bsa_bench.units import format_bytes, format_seconds

POLL_S = 0.2
"""How often a quiet worker is looked at; rarely, as looking takes time from what is measured."""
GRACE_S = 10.0
"""How long a worker may take to exit after its last result."""
_TAIL_BYTES = 4000
MOST_LOG_BYTES = 8 << 20
"""Of what one worker writes to stdout and stderr; of more, the first and the last part are kept."""

Cause = Literal["exited", "timeout", "stopped", "protocol"]


@dataclass(frozen=True)
class Ending:
    """How a worker process ended.

    Args:
        cause: it exited (or was killed from outside), passed its time limit, was stopped by us, or broke the protocol.
        exit_code: its exit code, or minus the signal's number.
        peak_rss_bytes: the most memory that it had resident; where not `is_peak_own`, it may have been less.
        num_oom_kills: how many processes the kernel's out-of-memory killer ended on this machine meanwhile.
        spoke: whether any event came but the first, which only says who it is.
        log_tail: the last part of its stdout and stderr.
        detail: which event broke the protocol.
    """

    cause: Cause
    exit_code: int
    peak_rss_bytes: int
    is_peak_own: bool
    num_oom_kills: int
    spoke: bool
    log_tail: str
    detail: str | None = None

    @property
    def exit_text(self) -> str:
        """`exit code 1`, `SIGSEGV`."""
        if self.exit_code >= 0:
            return f"exit code {self.exit_code}"
        with contextlib.suppress(ValueError):
            return signal.Signals(-self.exit_code).name
        return f"signal {-self.exit_code}"


def run_worker(
    command: Sequence[str],
    job: Job,
    *,
    log_path: Path,
    limit_s: float,
    on_event: Callable[[ProgressEvent | ResultEvent], None],
    should_stop: Callable[[], bool],
) -> Ending:
    """Run one job in a process of its own and wait for its end; no process of it is left when this returns or raises.

    Args:
        command: what to start; `--events-fd N` is added.
        job: written to the worker's stdin, which stays open until the end.
        log_path: gets the worker's stdout and stderr, appended.
        limit_s: from the start to the first result, and from each result to the next.
        on_event: called with each event; a ValueError that it raises means that the event does not belong here.
        should_stop: asked several times a second.

    Raises:
        StoreError: the log cannot be written.
        BenchError: the command cannot be started.
        UsageError: the worker imports another `bsa_bench` than this one.
    """
    log_start = _start_log(log_path, command, job)
    environment = child_environment()
    read_fd, write_fd = os.pipe()
    try:
        with log_path.open("ab") as log:
            process = subprocess.Popen(
                [*command, "--events-fd", str(write_fd)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=(write_fd,),
                start_new_session=True,  # Ctrl-C reaches us alone, and one killpg ends it with its children
                bufsize=0,
            )
    except OSError as error:
        os.close(read_fd)
        raise BenchError(f"the worker cannot be started: {' '.join(command)}: {error.strerror or error}") from error
    finally:
        os.close(write_fd)
    watch = _Watch(process, read_fd, on_event, num_expected=len(job.cases))
    oom_kills = _num_oom_kills()

    def look() -> bool:
        _trim(log_path, log_start)
        return should_stop()

    try:
        _hand_over(process, job)
        cause = watch.until_end(limit_s, look)
    finally:
        watch.kill()
        kill_marked(environment)  # children in sessions of their own, which a group's signal does not reach
        os.close(read_fd)
        assert process.stdin is not None
        process.stdin.close()
        _trim(log_path, log_start)
    return Ending(
        cause=cause,
        exit_code=process.returncode,
        peak_rss_bytes=watch.peak_rss_bytes,
        is_peak_own=watch.is_peak_own,
        num_oom_kills=_num_oom_kills() - oom_kills,
        spoke=watch.spoke,
        log_tail=_tail(log_path, log_start),
        detail=watch.detail,
    )


def judge(ending: Ending, *, limit_s: float, memory_bytes: int) -> tuple[Status, str]:
    """Say what a worker died of: the status of the case that it was in, and the reason.

    A SIGKILL that we did not send counts as out of memory where the kernel counted an out-of-memory kill meanwhile, or
    where the worker had more than half of `memory_bytes`.
    """
    if ending.cause == "timeout":
        return Status.TIMEOUT, f"not done within the time limit of a case, {format_seconds(limit_s)}"
    if ending.cause == "protocol":
        return Status.CRASHED, f"the worker wrote an event that does not belong there: {ending.detail}"
    peak = f"{'' if ending.is_peak_own else 'at most '}{format_bytes(ending.peak_rss_bytes)}"
    if ending.exit_code == -signal.SIGKILL:
        if ending.num_oom_kills or ending.peak_rss_bytes > memory_bytes // 2:
            return Status.OOM, f"killed by SIGKILL, most likely as the machine ran out of memory; it had {peak}"
        return Status.CRASHED, f"killed by SIGKILL from outside; it had {peak} of memory"
    if ending.exit_code < 0:
        return Status.CRASHED, f"the worker was killed by {ending.exit_text}"
    return Status.CRASHED, f"the worker ended with {ending.exit_text} before it handed its result over"


class _Watch:
    """Reads events and waits for the process, whichever comes first.

    The end of the pipe is not the end of the process, nor the other way round: a child of the worker may hold the pipe
    open, and the last events may still be in it when the process is gone.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        fd: int,
        on_event: Callable[[ProgressEvent | ResultEvent], None],
        *,
        num_expected: int,
    ) -> None:
        self._process = process
        self._fd = fd
        self._on_event = on_event
        self._num_missing = num_expected
        self._rest = b""
        self._open = True
        self._said_hello = False
        self.spoke = False
        self.detail: str | None = None
        self.peak_rss_bytes = 0
        self.is_peak_own = False
        # What wait4 reports of a child is at least the peak of this process when it started it: exec does not reset it.
        self._inherited_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def until_end(self, limit_s: float, should_stop: Callable[[], bool]) -> Cause:
        """Wait until the worker exits, is to be stopped, passes its limit or breaks the protocol; then kill it."""
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        deadline = time.monotonic() + limit_s
        cause: Cause = "exited"
        while not self._has_exited():
            now = time.monotonic()
            if should_stop():
                cause = "stopped"
                break
            if now >= deadline:
                cause = "timeout"
                break
            wait_s = min(POLL_S, deadline - now)
            if not self._open:
                time.sleep(min(wait_s, 0.01))
            elif poller.poll(wait_s * 1000) and self._read():
                deadline = time.monotonic() + (limit_s if self._num_missing else min(GRACE_S, limit_s))
            if self.detail:
                break
        self.kill()
        while self._open and not self.detail and poller.poll(0):
            self._read()
        return "protocol" if self.detail else cause

    def kill(self) -> None:
        """End the process and all of its group, and reap it; harmless when that was done."""
        if self._process.returncode is not None:
            return
        # Before it is reaped, so that the group's number cannot have gone to somebody else.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        _, status, usage = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self.peak_rss_bytes = usage.ru_maxrss * 1024
        self.is_peak_own = usage.ru_maxrss > self._inherited_kib

    def _has_exited(self) -> bool:
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _read(self) -> bool:
        """Take what the pipe holds; True if a result was in it."""
        chunk = os.read(self._fd, 1 << 20)
        self._open = bool(chunk)
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        got_result = False
        for line in lines:
            try:
                event = parse_event(line)
                if isinstance(event, HelloEvent):
                    check_package(event.package, who="the worker")
                    self._said_hello = True
                    continue
                if not self._said_hello:
                    check_package(None, who="the worker")
                self._on_event(event)
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                where = ".".join(map(str, first["loc"]))
                self.detail = f"{line[:80].decode(errors='replace')!r}: {where + ': ' if where else ''}{first['msg']}"
                return got_result
            except ValueError as error:
                self.detail = str(error)
                return got_result
            self.spoke = True
            if isinstance(event, ResultEvent):
                got_result = True
                self._num_missing -= 1
        return got_result


def _hand_over(process: subprocess.Popen[bytes], job: Job) -> None:
    assert process.stdin is not None
    data = job.model_dump_json().encode() + b"\n"
    with contextlib.suppress(BrokenPipeError):  # it died first, which its exit will tell
        while data:
            data = data[process.stdin.write(data) or 0 :]


def _start_log(path: Path, command: Sequence[str], job: Job) -> int:
    """Write the head of a worker's part of the log and return where its own output begins."""
    head = "".join(f"# {line}\n" for line in [" ".join(command), *(case.case_id for case in job.cases)])
    try:
        path.parent.mkdir(exist_ok=True)
        with path.open("ab") as log:
            log.write(head.encode())
        return path.stat().st_size
    except OSError as error:
        raise StoreError(
            f"{path}: cannot write the worker's log: {error.strerror}; free some disk space or see to the folder's "
            "permissions, then go on with --resume"
        ) from error


def _tail(path: Path, start: int) -> str:
    """The end of what a worker wrote; nothing where the log was deleted meanwhile."""
    try:
        with path.open("rb") as log:
            log.seek(max(start, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
            return log.read().decode(errors="replace").strip()
    except OSError:
        return ""


def _trim(path: Path, start: int) -> None:
    """Cut the middle out of what a worker wrote, if that is too much; it may go on, at the end."""
    with contextlib.suppress(OSError):  # whether the log can be read is no matter of a case's
        if path.stat().st_size - start <= MOST_LOG_BYTES:
            return
        with path.open("r+b") as log, path.open("ab") as end:
            size = log.seek(-MOST_LOG_BYTES // 8, os.SEEK_END) + MOST_LOG_BYTES // 8
            tail = log.read()
            log.truncate(start + MOST_LOG_BYTES // 2)
            cut = size - start - MOST_LOG_BYTES // 2 - len(tail)
            end.write(
                f"\n# a log has at most {format_bytes(MOST_LOG_BYTES)} of a worker; cut here: {cut:,} bytes\n".encode()
            )
            end.write(tail)


def _num_oom_kills() -> int:
    """Count the kernel's out-of-memory kills since boot; 0 where the kernel does not tell."""
    try:
        text = Path("/proc/vmstat").read_text(encoding="ascii")
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill ")), 0)
