"""No process of ours outlives us, however we end: with SIGKILL, and with children in sessions of their own.

What this process starts has a mark in its environment, and so has all that it starts in turn, whatever session, group
or parent it gives itself. A *guard*, a shell in a session of its own, waits for the end of a pipe whose other end only
this process holds, and then kills what has the mark. It sleeps until then, so that it disturbs no timing.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import secrets
import signal
import subprocess
from pathlib import Path

MARK = "BSA_BENCH_STARTED_BY"
"""The variable: `<process that started it>.<number>`."""
_ROUNDS = 20
_GUARD = f"""
read -r _ && pauses=0 || pauses='0 0.1 0.3 0.6'
for pause in $pauses; do
  sleep $pause
  for file in $(grep -lz "^{MARK}=$1[.]" /proc/[0-9]*/environ); do
    pid=${{file#/proc/}}
    kill -s KILL "${{pid%/environ}}"
  done
done
"""
"""A line on the pipe means that this process ends by itself. Else it was killed, perhaps while it started another."""


class _Guard:
    def __init__(self) -> None:
        self.pid = os.getpid()
        self.name = f"{self.pid}-{secrets.token_hex(8)}"
        self.numbers = itertools.count()
        self._process: subprocess.Popen[bytes] | None = None
        read_fd, self._write_fd = os.pipe()
        try:
            with contextlib.suppress(OSError):  # a sandbox may refuse it; the run is then only less well protected
                self._process = subprocess.Popen(
                    ["/bin/sh", "-c", _GUARD, "bsa-bench-guard", self.name],
                    stdin=read_fd,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
                    cwd="/",
                    start_new_session=True,  # a Ctrl-C, or the end of the terminal, is not for it
                )
        finally:
            os.close(read_fd)
        atexit.register(self._say_end)

    def _say_end(self) -> None:
        if self.pid == os.getpid():
            with contextlib.suppress(OSError):
                os.write(self._write_fd, b"\n")


class _State:
    guard: _Guard | None = None
    is_child: bool = False


def be_child() -> None:
    """Let what this process starts have the mark that it has itself; for a worker, which its scheduler guards."""
    _State.is_child = True


def new_mark() -> dict[str, str]:
    """The mark for a process that is about to be started, as a part of its environment; starts the guard."""
    if _State.is_child and MARK in os.environ:
        return {MARK: os.environ[MARK]}
    if _State.guard is None or _State.guard.pid != os.getpid():  # another one after a fork
        _State.guard = _Guard()
    return {MARK: f"{_State.guard.name}.{next(_State.guard.numbers)}"}


def kill_marked(environment: dict[str, str]) -> int:
    """Kill whatever has the mark of this environment, and say how many processes that were; none without one."""
    if MARK not in environment:
        return 0
    entry = f"{MARK}={environment[MARK]}".encode()
    killed: set[int] = set()
    for _ in range(_ROUNDS):  # what is killed may have started another meanwhile
        found = [pid for pid in _processes() if pid != os.getpid() and entry in _environment_of(pid)]
        if not found:
            break
        for pid in found:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        killed.update(found)
    return len(killed)


def _processes() -> list[int]:
    """All processes; none where there is no /proc."""
    with contextlib.suppress(OSError):
        return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    return []


def _environment_of(pid: int) -> list[bytes]:
    """With which a process was started; nothing of one that has ended, or is another user's."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return []
