"""What a run is asked to do, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass

from bsa_bench.child_process import module_command
from bsa_bench.measure.choice import TimerSetting
from bsa_bench.result import Case, Ceiling, Status
from bsa_bench.run.estimate import DeviceModel
from bsa_bench.run.job import Profile

WORKER_COMMAND = module_command("bsa_bench.worker")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How a run is made.

    Args:
        suite, suite_title, suite_sha256, command: stored in the run's line; `suite_sha256` is of the suite's file, null
            where there is none; `command` is what the user typed.
        suite_source: the suite's file, for errors.
        device: what predictions assume; its `memory_bytes` is the limit above which a case is not started.
        profile: how long each case is measured.
        num_processes: in how many processes each case is measured, round after round.
        seed: of the order in a round; null: that of the run that is resumed, else 0.
        threads: of a CPU worker; null leaves the choice to the worker.
        timing: the timer and the cache states; null: the device's usual ones.
        ceilings: measured before the run, stored in its line.
        case_limit_s: the time limit of a case; that of the first one in a worker includes the worker's start.
        budget_s: the time for the whole command; given, pairs of dense and sparse come first, see `Agenda`.
        started: when the command began, by `time.monotonic()`; null: when the run does.
        reserve_s: what of the budget is kept for what follows the run: its report.
        priority: implementations; given with a budget, their groups come in this order instead.
        allow_other_environment: resume although the run was measured elsewhere or otherwise.
        worker_command: starts a worker; an argument so that the scheduler is tested without torch.
    """

    suite: str
    suite_title: str = ""
    suite_sha256: str | None = None
    suite_source: str = ""
    command: tuple[str, ...] = ()
    device: DeviceModel
    profile: Profile = "quick"
    num_processes: int = 1
    seed: int | None = None
    threads: int | None = None
    timing: TimerSetting | None = None
    ceilings: tuple[Ceiling, ...] = ()
    case_limit_s: float = 600.0
    budget_s: float | None = None
    started: float | None = None
    reserve_s: float = 0.0
    priority: tuple[str, ...] = ()
    allow_other_environment: bool = False
    worker_command: tuple[str, ...] = WORKER_COMMAND


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended.

    Args:
        exit_code: see `bsa_bench.errors.EXIT_CODES`.
        counts: the asked cases by status, the worst of the processes that each was measured in; those of before a
            resume included.
        remaining: cases that were not measured in all of their processes; `--resume` goes on with them.
        messages: what to tell the user at the end.
    """

    exit_code: int
    counts: dict[Status, int]
    remaining: list[Case]
    messages: list[str]
