"""The live view of a run on a terminal: finished cases scroll by, the case that runs now stands below them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from bsa_bench.result import Case, Result
from bsa_bench.run.progress import PlainProgress, describe_case
from bsa_bench.text import visible
from bsa_bench.units import format_seconds, three_digits


class LiveProgress(PlainProgress):
    """The plain lines, and below them the current case, what it does, n of m, elapsed, time left, the device."""

    def __init__(self, console: Console, name: Callable[[Case], str] = lambda case: case.implementation) -> None:
        super().__init__(console.file, name)
        self._console = console
        self._begun = time.monotonic()
        self._left_s = 0.0
        self._current = "starting"
        self._doing = ""
        self._device = ""
        self._live = Live(
            console=console,
            get_renderable=self._view,
            transient=True,
            refresh_per_second=2,  # the screen takes time from what is measured
        )

    def start(self, *, num_measurements: int, num_done: int, num_processes: int, left_s: float) -> None:
        """Open the view."""
        super().start(num_measurements=num_measurements, num_done=num_done, num_processes=num_processes, left_s=left_s)
        self._left_s = left_s
        self._live.start()

    def begin(self, case: Case, *, left_s: float) -> None:
        """Show the case."""
        self._current, self._doing, self._left_s = describe_case(case, self._name), "starting", left_s

    def doing(self, text: str) -> None:
        """Show what it does."""
        self._doing = text

    def finish(self, result: Result, *, left_s: float, num_dropped: int = 0) -> None:
        """Print the case's line above the view, and show how the device was during it."""
        super().finish(result, left_s=left_s, num_dropped=num_dropped)
        self._doing, self._left_s = "", left_s
        self._device = device_text(result) or self._device

    def stop(self) -> None:
        """Take the view away."""
        self._live.stop()

    def _print(self, text: str) -> None:
        self._console.print(Text(visible(text)), soft_wrap=True)

    def _view(self) -> Group:
        bar = Table.grid(padding=(0, 1))
        done = f"{self._num_done}/{self._num_measurements}"
        elapsed_s = time.monotonic() - self._begun
        elapsed = f"{_whole(elapsed_s)}, {_whole(self._left_s)} left"
        bar.add_row(done, ProgressBar(total=self._num_measurements, completed=self._num_done, width=16), elapsed)
        current = f"{self._current}: {self._doing}" if self._doing else self._current
        lines: list[RenderableType] = [Text(visible(current), overflow="ellipsis", no_wrap=True), bar]
        load = f"load average {three_digits(os.getloadavg()[0])}" if hasattr(os, "getloadavg") else ""
        if state := ", ".join(filter(None, (load, self._device))):
            lines.append(Text(state, style="dim", overflow="ellipsis", no_wrap=True))
        return Group(*lines)


def device_text(result: Result) -> str:
    """`others took 12% of the CPU`, `1.98 GHz, 64 C, 512 W, throttled`: the device while the last case was timed."""
    state = result.state
    if state is None:
        return ""
    parts = []
    if state.other_cpu_share is not None and not state.sm_clock_hz:
        parts.append(f"others took {three_digits(100 * state.other_cpu_share)}% of the CPU")
    if state.sm_clock_hz:
        parts.append(f"{three_digits(min(state.sm_clock_hz) / 1e9)} GHz")
    if state.temperature_c:
        parts.append(f"{max(state.temperature_c):.0f} C")
    if state.power_w:
        parts.append(f"{max(state.power_w):.0f} W")
    if any((state.throttle_ns or {}).values()):
        parts.append("throttled")
    return ", ".join(parts)


def _whole(seconds: float) -> str:
    """Whole seconds, at least one: the view is drawn twice a second."""
    return format_seconds(max(round(seconds), 1)) if seconds < 120 else format_seconds(seconds)
