"""Show how a run goes: a live line on a terminal, one plain line a case elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import IO, TYPE_CHECKING, Protocol, Self

from bsa_bench.result import Case, Result
from bsa_bench.stats import summarise
from bsa_bench.units import format_seconds

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID


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
    """One line a case: `[ 3/40] bsa@gather/16x32x32/2x64-float32/smooth/d0.1-k0.5 forward: OK 52.1 ms`.

    Of several processes one line each, with `, process 2 of 5` behind the pass.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
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
        which = describe(result, self._num_processes)
        self._print(f"[{self._num_done:{width}}/{self._num_measurements}] {which}")

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

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class RichProgress(PlainProgress):
    """The plain lines, and below them a live one: the current case, what it does, n of m, elapsed, time left."""

    def __init__(self, console: Console) -> None:
        super().__init__(console.file)
        from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        self._console = console
        self._bar = Bar(
            SpinnerColumn(),
            MofNCompleteColumn(),
            BarColumn(bar_width=16),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]} left", markup=False),
            TextColumn("{task.description}  {task.fields[doing]}", markup=False),
            console=console,
            transient=True,
            refresh_per_second=2,  # the screen takes time from what is measured
        )
        self._task: TaskID = self._bar.add_task("starting", doing="", left="-")

    def start(self, *, num_measurements: int, num_done: int, num_processes: int, left_s: float) -> None:
        """Open the live line."""
        super().start(num_measurements=num_measurements, num_done=num_done, num_processes=num_processes, left_s=left_s)
        self._bar.update(self._task, total=num_measurements, completed=num_done, left=format_seconds(left_s))
        self._bar.start()

    def begin(self, case: Case, *, left_s: float) -> None:
        """Show the case."""
        self._bar.update(
            self._task, description=f"{_name(case)} {case.passes}", doing="starting", left=format_seconds(left_s)
        )

    def doing(self, text: str) -> None:
        """Show what it does."""
        self._bar.update(self._task, doing=text)

    def finish(self, result: Result, *, left_s: float, num_dropped: int = 0) -> None:
        """Print the case's line above the live one."""
        super().finish(result, left_s=left_s, num_dropped=num_dropped)
        self._bar.update(
            self._task,
            total=self._num_measurements,
            completed=self._num_done,
            doing="",
            left=format_seconds(left_s),
        )

    def stop(self) -> None:
        """Take the live line away."""
        self._bar.stop()

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def make_progress(*, plain: bool = False, stream: IO[str] | None = None) -> Progress:
    """Choose what fits the stream (stderr by default): live on a terminal, plain lines elsewhere or if asked for."""
    stream = stream or sys.stderr
    if plain or not stream.isatty():
        return PlainProgress(stream)
    from rich.console import Console

    return RichProgress(Console(file=stream))


def describe(result: Result, num_processes: int = 1) -> str:
    """`bsa@gather/... forward: OK 52.1 ms`, or the status and why; with the process where there are several."""
    case = result.case
    detail = ""
    if result.timing:
        detail = f" {format_seconds(summarise(result.timing.samples).median)}"
    elif result.reason:
        detail = f" ({result.reason.splitlines()[0]})"
    process = f", process {result.process_index + 1} of {num_processes}" * (num_processes > 1)
    return f"{_name(case)} {case.passes}{process}: {result.status.value}{detail}"


def _name(case: Case) -> str:
    return case.case_id.rpartition("/")[0]
