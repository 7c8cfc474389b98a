"""What a run would measure, before it begins: for `--dry-run`, and to refuse a budget that answers nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from bsa_bench.errors import UsageError
from bsa_bench.result import Case, Environment, Result, Status
from bsa_bench.run import PlannedCase, RunSettings, plan_run
from bsa_bench.run.order import smallest_budget_s
from bsa_bench.run.resume import already_done, check_files
from bsa_bench.store.reader import Run
from bsa_bench.units import format_seconds


def report_seconds(probe_s: float) -> float:
    """Predict how long a report takes: about the processor time of the probe where the plots are few."""
    return 1.0 + probe_s


@dataclass(frozen=True)
class Preview:
    """A run before it begins.

    Args:
        previous: the run to resume, or None.
    """

    cases: Sequence[Case]
    settings: RunSettings
    environment: Environment
    unavailable: Callable[[Case], str | None]
    previous: Run | None

    @cached_property
    def done(self) -> dict[tuple[str, int], Status]:
        """What the run to resume knows.

        Raises:
            UsageError, MachineError: it cannot be resumed here, see `check_files` and `already_done`.
        """
        settings = self.settings
        check_files(self.previous, self.cases, settings)
        return already_done(
            self.previous,
            self.environment,
            settings.profile,
            timing=settings.timing,
            allow_other_environment=settings.allow_other_environment,
        )

    @property
    def known(self) -> list[Result]:
        """Its results in this environment."""
        results = self.previous.results if self.previous else []
        return [result for result in results if result.env_hash == self.environment.hash]

    def plan(self) -> list[PlannedCase]:
        """The cases with predictions, those that are done or do not fit in the budget with that reason."""
        settings = self.settings
        return plan_run(
            self.cases,
            device=settings.device,
            profile=settings.profile,
            num_processes=settings.num_processes,
            unavailable=self.unavailable,
            done=self.done,
            known=self.known,
            budget_s=settings.budget_s,
            left_s=math.inf if settings.budget_s is None else settings.budget_s - self.overhead_s,
            seed=settings.seed or 0,
            priority=settings.priority,
        )

    @property
    def overhead_s(self) -> float:
        """What the command has taken by now, and what its report will take."""
        now = time.monotonic()
        return now - (now if self.settings.started is None else self.settings.started) + self.settings.reserve_s

    def check_budget(self) -> None:
        """Refuse a budget that is predicted to answer nothing.

        Raises:
            UsageError: names the smallest budget that does.
        """
        settings = self.settings
        if settings.budget_s is None:
            return
        needed_s = smallest_budget_s(
            self.cases,
            device=settings.device,
            profile=settings.profile,
            num_processes=settings.num_processes,
            unavailable=self.unavailable,
            done=self.done,
            known=self.known,
            priority=settings.priority,
        )
        useful_s = needed_s + self.overhead_s
        if needed_s and useful_s > settings.budget_s:
            rounded_s = math.ceil(useful_s / 10) * 10
            raise UsageError(
                f"budget: got {format_seconds(settings.budget_s)}, expected at least about {rounded_s}s here: start "
                f"and report take {format_seconds(self.overhead_s)}, the cheapest comparison of suite {settings.suite} "
                f"another {format_seconds(needed_s)}; nothing was run"
            )
