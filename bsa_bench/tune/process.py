"""The worker process seen from outside: started when first asked, and again after a crash or a hang."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bsa_bench.child_process import check_package, child_environment, module_command
from bsa_bench.tune.candidates import Candidate
from bsa_bench.tune.search import Outcome

WORKER_COMMAND = module_command("bsa_bench.tune.worker")


class Worker:
    """Measures candidates, one after another; what it writes to stderr goes to the log."""

    def __init__(self, tokens: Sequence[int], log: Path, *, command: Sequence[str] = WORKER_COMMAND) -> None:
        self._tokens, self._command = tuple(tokens), tuple(command)
        self._log = log.open("ab")
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        self._log.close()

    def measure(self, candidate: Candidate, limit_s: float) -> Outcome:
        """Ask for one candidate; a crash and a hang are outcomes too.

        Raises:
            UsageError: the worker imports another `bsa_bench` than this one.
        """
        answer = self._ask(
            {"question": asdict(candidate.question), "tile": asdict(candidate.tile), "tokens": self._tokens}, limit_s
        )
        seconds = {int(tokens): float(s) for tokens, s in answer.get("seconds", {}).items()}
        return Outcome(candidate, answer["status"], seconds, answer.get("reason"))

    def _ask(self, request: dict[str, Any], limit_s: float) -> dict[str, Any]:
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        is_late = threading.Event()

        def end() -> None:
            is_late.set()
            _kill(process)

        timer = threading.Timer(limit_s, end)
        timer.start()
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.flush()
            line = process.stdout.readline()
        finally:
            timer.cancel()
        answer: dict[str, Any] = json.loads(line) if line else {"status": "FAILED"}
        if not line:
            reason = f"not done within {limit_s:.0f} s" if is_late.is_set() else "its process ended"
            answer["reason"] = f"{reason}; see {self._log.name}"
        else:
            check_package(answer.pop("package", None), who="the tuning worker")
        if not line or answer.get("is_over"):
            self._end()
        return answer

    def _start(self) -> subprocess.Popen[str]:
        self._process = subprocess.Popen(
            self._command,
            env=child_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,  # Ctrl-C is for the parent, which ends its worker
        )
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            _kill(self._process)
            self._process.wait()
            self._process = None


def _kill(process: subprocess.Popen[str]) -> None:
    """Kill a worker with the compilers that it may have started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
