"""Show how a run goes: one plain line for each case; `live` adds a live view on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType
from typing import IO, Protocol, Self

from bsa_bench.result import Case, Result
from bsa_bench.stats import summarise
from bsa_bench.text import visible
from bsa_bench.units import format_ratio, format_seconds


class Progress(Protocol):
    """What the scheduler tells while it runs. `left_s` is the predicted time left."""

    def start(self, *, num_measurements: int, num_done: int, num_processes: int, left_s: float) -> None:
        """The run begins; a measurement is one process of one case. `num_done` of them were made before."""

    def begin(self, case: Case, *, left_s: float) -> None:
        """The case that runs now."""

    def doing(self, text: str) -> None:
        """What the worker is doing in it."""

    def finish(self, result: Result, *, left_s: float, num_dropped: int = 0) -> None:
        """What became of a case in a process, and how many processes of it are therefore not measured any more."""

    def note(self, text: str) -> None:
        """Something that the user should know."""

    def stop(self) -> None:
        """The run is over; harmless when called twice."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class PlainProgress:
    """One line a case: `[ 3/40] bsa@gather, forward, 16,384 tokens: OK 52.1 ms, 17.3x over full@sdpa-flash`.

    Of several processes one line each, with `, process 2 of 5` behind the length.

    Args:
        name: what reports call a case.
    """

    def __init__(self, stream: IO[str], name: Callable[[Case], str] = lambda case: case.implementation) -> None:
        self._stream = stream
        self._name = name
        self._dense: dict[tuple[str, bool, str, int], tuple[float, str]] = {}
        self._num_measurements = 0
        self._num_done = 0
        self._num_processes = 1

    def start(self, *, num_measurements: int, num_done: int, num_processes: int, left_s: float) -> None:
        """Count what is to come."""
        self._num_measurements, self._num_done, self._num_processes = num_measurements, num_done, num_processes
        what = "cases" if num_processes == 1 else f"measurements, {num_processes} processes a case"
        done = f", {num_done} of them already done" * (num_done > 0)
        left = f"about {format_seconds(left_s)}" if left_s else "nothing to measure"
        self._print(f"{num_measurements} {what}{done}, {left}")

    def begin(self, case: Case, *, left_s: float) -> None:
        """Nothing: its line comes when it is over."""

    def doing(self, text: str) -> None:
        """Nothing."""

    def finish(self, result: Result, *, left_s: float, num_dropped: int = 0) -> None:  # noqa: ARG002 - no live line
        """Print the case's line."""
        self._num_done += 1
        self._num_measurements -= num_dropped
        width = len(str(self._num_measurements))
        which = describe(result, self._num_processes, name=self._name)
        self._print(f"[{self._num_done:{width}}/{self._num_measurements}] {which}{self._over_dense(result)}")

    def note(self, text: str) -> None:
        """Print it on a line of its own."""
        self._print(text)

    def stop(self) -> None:
        """Nothing is left open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _over_dense(self, result: Result) -> str:
        """`, 17.3x over full@sdpa-flash`: over the fastest dense case of the same process so far, if there is one."""
        case = result.case
        if result.timing is None:
            return ""
        key = (case.workload.digest, case.claims.causal, case.passes, result.process_index)
        own_s = summarise(result.timing.samples).median
        if case.claims.is_dense:
            self._dense[key] = min(self._dense.get(key, (own_s, self._name(case))), (own_s, self._name(case)))
            return ""
        dense_s, dense = self._dense.get(key, (None, ""))
        return f", {format_ratio(dense_s / own_s)} over {dense}" if dense_s and own_s else ""

    def _print(self, text: str) -> None:
        print(visible(text), file=self._stream, flush=True)


def make_progress(
    *, plain: bool = False, stream: IO[str] | None = None, name: Callable[[Case], str] | None = None
) -> Progress:
    """Choose what fits the stream (stderr by default): live on a terminal, plain lines elsewhere or if asked for."""
    stream = stream or sys.stderr
    name = name or (lambda case: case.implementation)
    if plain or not stream.isatty():
        return PlainProgress(stream, name)
    from bsa_bench.console import plain_console
    from bsa_bench.run.live import LiveProgress

    return LiveProgress(plain_console(file=stream), name)


def describe(
    result: Result, num_processes: int = 1, *, name: Callable[[Case], str] = lambda case: case.implementation
) -> str:
    """`bsa@gather, forward, 4,096 tokens: OK 52.1 ms`, or the status and why; with the process of several."""
    detail = ""
    if result.timing:
        detail = f" {format_seconds(summarise(result.timing.samples).median)}"
    elif result.reason:
        detail = f" ({result.reason.splitlines()[0]})"
    process = f", process {result.process_index + 1} of {num_processes}" * (num_processes > 1)
    return f"{describe_case(result.case, name)}{process}: {result.status.value}{detail}"


def describe_case(case: Case, name: Callable[[Case], str]) -> str:
    """`bsa@gather, forward, 4,096 tokens`."""
    return f"{name(case)}, {case.passes}, {case.workload.num_tokens:,} tokens"
