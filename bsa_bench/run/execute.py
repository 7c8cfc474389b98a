"""Run the cases, each group in a worker process of its own, and append each result the moment it is known."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Callable, Sequence

from bsa_bench.errors import (
    EXIT_INTERRUPTED,
    EXIT_NOTHING_MEASURED,
    EXIT_OK,
    EXIT_SOME_FAILED,
    EXIT_WRONG,
    StoreError,
)
from bsa_bench.result import Case, Environment, Result, Status
from bsa_bench.run.agenda import Agenda, Forecast, Listed, Turns
from bsa_bench.run.estimate import group_seconds, predict
from bsa_bench.run.job import Job, ProgressEvent, ResultEvent
from bsa_bench.run.order import group_cases, memory_reason
from bsa_bench.run.pace import Pace
from bsa_bench.run.plausible import judged_time
from bsa_bench.run.progress import Progress
from bsa_bench.run.record import Recorder
from bsa_bench.run.resume import already_done, check_files
from bsa_bench.run.rounds import Ledger
from bsa_bench.run.settings import RunOutcome, RunSettings
from bsa_bench.run.stop import StopSignals
from bsa_bench.run.worker_process import Ending, judge, run_worker
from bsa_bench.store.writer import RunWriter
from bsa_bench.units import format_seconds

#: The share of the budget by which a case that is running may pass its end; then its worker is stopped.
OVERTIME = 0.04

# Cases that a message lists by name.
_LISTED = 6


def execute(
    cases: Sequence[Case],
    settings: RunSettings,
    environment: Environment,
    *,
    unavailable: Callable[[Case], str | None],
    writer: RunWriter,
    progress: Progress,
) -> RunOutcome:
    """Run cases to their end, or until Ctrl-C, SIGTERM or the budget.

    Writes the run's line, then one line for each process of each case. A round runs each group of cases once, in a
    worker process of its own; the next one begins when all groups had their turn, and leaves out what did not end OK. A
    case that cannot run here is UNSUPPORTED, one that is predicted not to fit SKIPPED_OOM, both without a process. What
    dies or hangs ends one case; the rest of its group gets one fresh worker. On the first Ctrl-C or SIGTERM the worker
    is killed and the case that it was in is left unjudged; the second one acts as it would without us. What was not
    reached gets NOT_MEASURED lines, so that a report can list it; a run that is killed outright has no such lines and
    resumes just as well.

    Args:
        cases: what to run, in order; of two that measure the same, the first counts.
        settings: how.
        environment: where; results point at its hash.
        unavailable: the reason (with the remedy) why an implementation cannot run a case here, or None.
        writer: the open run. What it held before is not repeated.
        progress: told what happens.

    Raises:
        UsageError: the run to resume was measured in another environment or profile, by another timer, or with other
            files.
        MachineError: the GPU is set otherwise than when the run was begun.
        StoreError: a result cannot be stored; all results before it are.
    """
    asked = [case for group in group_cases(cases) for case in group]
    previous = writer.previous
    check_files(previous, asked, settings)
    done = already_done(
        previous,
        environment,
        settings.profile,
        timing=settings.timing,
        allow_other_environment=settings.allow_other_environment,
    )
    ledger = Ledger(asked, settings.num_processes, done)
    num_done, num_asked = ledger.num_known, ledger.num_known + ledger.num_missing
    fresh = [case for case in asked if ledger.status(case.case_hash) is None]
    reasons = {case.case_hash: reason for case in fresh if (reason := unavailable(case))}
    seed = settings.seed if settings.seed is not None else (previous.run_lines[-1].seed if previous else None) or 0
    recorder = Recorder(writer, environment, settings, ledger)
    recorder.start(asked, reasons, seed=seed)
    scheduler = _Scheduler(settings, environment, writer, recorder, progress)
    with scheduler.signals, progress:
        for message in writer.messages:
            progress.note(message)
        if num_done:
            what = "cases" if settings.num_processes == 1 else "measurements"
            progress.note(f"{num_done} of {num_asked} {what} are already done")
        scheduler.set_aside([(case, reasons[case.case_hash]) for case in fresh if case.case_hash in reasons])
        scheduler.run(asked, seed=seed, num_done=num_done)
        left = [(case, index) for case in asked for index in ledger.missing(case.case_hash)]
        recorder.record_all([(*each, scheduler.why_left(*each)) for each in left], Status.NOT_MEASURED)
    remaining = list(dict.fromkeys(case for case, _ in left))
    counts = ledger.counts()
    interrupted = scheduler.signals.name is not None
    messages = _messages(remaining, ledger, settings, scheduler.signals.name, _resume_command(settings, writer))
    return RunOutcome(_exit_code(counts, interrupted=interrupted), dict(counts), remaining, messages)


class _Scheduler:
    """Takes group after group, round after round, and keeps the clock: budget, pace, time left."""

    def __init__(
        self,
        settings: RunSettings,
        environment: Environment,
        writer: RunWriter,
        recorder: Recorder,
        progress: Progress,
    ) -> None:
        self.signals = StopSignals()
        self._settings = settings
        self._environment = environment
        self._writer = writer
        self._recorder = recorder
        self._ledger = recorder.ledger
        self._progress = progress
        known = writer.previous.results if writer.previous else []
        self._pace = Pace.of([r for r in known if r.env_hash == environment.hash], settings.device)
        self._forecast = Forecast(settings.device, settings.profile, self._pace)
        self._started = time.monotonic() if settings.started is None else settings.started
        self._turns: Turns | None = None
        self._left: dict[tuple[str, int], str] = {}
        self._num_missing = 0

    def set_aside(self, reasons: Sequence[tuple[Case, str]]) -> None:
        """Store the cases that cannot run here, and say so once for each implementation."""
        self._recorder.record_all([(case, 0, reason) for case, reason in reasons], Status.UNSUPPORTED)
        for (implementation, reason), number in Counter((case.implementation, why) for case, why in reasons).items():
            self._progress.note(f"{implementation}: cannot run here, {number} cases are UNSUPPORTED: {reason}")

    def run(self, asked: Sequence[Case], *, seed: int, num_done: int) -> None:
        """Run all that is missing and fits in memory and in the budget."""
        settings, device = self._settings, self._settings.device
        self._num_missing = self._ledger.num_missing
        able = [case for case in asked if self._ledger.status(case.case_hash) in {None, Status.OK}]
        too_big = [
            (case, why)
            for case in able
            if self._ledger.status(case.case_hash) is None and (why := memory_reason(case, device)) is not None
        ]
        unfit = {case for case, _ in too_big}
        groups = group_cases([case for case in able if case not in unfit])
        self._turns = (
            Listed(groups, self._ledger, self._forecast, num_processes=settings.num_processes, seed=seed)
            if settings.budget_s is None
            else Agenda(
                groups,
                self._ledger,
                self._forecast,
                num_processes=settings.num_processes,
                seed=seed,
                priority=settings.priority,
                reserve_s=settings.reserve_s,
            )
        )
        self._progress.start(
            num_measurements=num_done + self._num_missing,
            num_done=num_done,
            num_processes=settings.num_processes,
            left_s=self._left_s(),
        )
        for case, why in too_big:
            self._tell(self._recorder.record(case, 0, Status.SKIPPED_OOM, why))
        while not self.signals.name and (visit := self._turns.next(self._budget_left_s())):
            self._run_group(list(visit.cases.values()), visit.process_index)

    def why_left(self, case: Case, process_index: int) -> str:
        """Say why a case was not reached in a process."""
        if self.signals.name:
            reason = f"stopped by {self.signals.name} before its turn"
        else:
            reason = f"left out by the budget of {format_seconds(self._settings.budget_s)}"
        return self._left.get((case.case_hash, process_index), reason)

    def _run_group(self, group: list[Case], process_index: int) -> None:
        """Run one group; a worker that died is replaced once, without the case that it died in."""
        pending = list(group)
        for is_second in (False, True):
            started = time.monotonic()
            ending = self._run_job(pending, process_index)
            wall_s = time.monotonic() - started
            if not pending:
                if not is_second:
                    predicted_s = group_seconds(group, self._settings.device, self._settings.profile)
                    self._pace.observe(group[0].base_engine, predicted_s=predicted_s, observed_s=wall_s)
                return
            if ending.cause == "stopped":
                why = f"{self.signals.name or 'the end of the budget'} stopped it"
                self._left[pending[0].case_hash, process_index] = why
                return
            status, reason = judge(
                ending, limit_s=self._settings.case_limit_s, memory_bytes=self._settings.device.memory_bytes
            )
            tail = ending.log_tail or None
            case = pending.pop(0)
            self._tell(self._recorder.record(case, process_index, status, reason, traceback=tail, wall_s=wall_s))
            if is_second or not ending.spoke:
                first = "another pass ended its second worker" if is_second else "the worker ended before it began"
                why = f"not tried, {first}: {reason}"
                for case in pending:
                    self._tell(self._recorder.record(case, process_index, status, why, traceback=tail))
                return
            if not pending:
                return

    def _run_job(self, pending: list[Case], process_index: int) -> Ending:
        """Run one worker on the pending cases; each result takes its case out of `pending`."""
        settings = self._settings
        job = Job(
            run_id=self._writer.run_id,
            env_hash=self._environment.hash,
            cases=pending,
            first_seq=self._recorder.next_seq,
            profile=settings.profile,
            device=settings.device.kind,
            threads=settings.threads,
            timer=settings.timing.timer if settings.timing else None,
            cache=settings.timing.cache if settings.timing else None,
            predicted_bytes=max(predict(case, settings.device).bytes for case in pending),
            memory_limit_bytes=settings.device.memory_bytes,
        )
        self._progress.begin(pending[0], left_s=self._left_s(pending))

        def on_event(event: ProgressEvent | ResultEvent) -> None:
            if isinstance(event, ProgressEvent):
                self._progress.doing(event.text)
                return
            place = next((i for i, c in enumerate(pending) if c.case_hash == event.result.case_hash), None)
            if place is None:
                raise ValueError(f"a result of {event.result.case_id}, which is not (or no longer) in the job")
            case = pending.pop(place)
            result = self._recorder.take_over(case, process_index, judged_time(event.result, settings.ceilings))
            self._pace.observe_calls([result], settings.device)
            self._tell(result, pending)
            if pending:
                self._progress.begin(pending[0], left_s=self._left_s(pending))

        try:
            return run_worker(
                settings.worker_command,
                job,
                log_path=self._writer.folder / "logs" / f"{job.cases[0].group}.log",
                limit_s=settings.case_limit_s,
                on_event=on_event,
                should_stop=self._should_stop,
            )
        except StoreError:  # of the log, perhaps because the run's whole folder went
            self._writer.check()
            raise

    def _tell(self, result: Result, pending: Sequence[Case] = ()) -> None:
        before, self._num_missing = self._num_missing, self._ledger.num_missing
        num_dropped = before - 1 - self._num_missing
        self._progress.finish(result, left_s=self._left_s(pending), num_dropped=num_dropped)

    def _should_stop(self) -> bool:
        """Whether a running worker is to be stopped: by a signal, or by the end of the budget and some overtime.

        Raises:
            StoreError: what the run wrote is not there any more, see `RunWriter.check`.
        """
        self._writer.check()
        late_s = self._settings.reserve_s + OVERTIME * (self._settings.budget_s or 0.0)
        return self.signals.name is not None or self._budget_left_s() <= -late_s

    def _budget_left_s(self) -> float:
        if self._settings.budget_s is None:
            return float("inf")
        return self._started + self._settings.budget_s - self._settings.reserve_s - time.monotonic()

    def _left_s(self, pending: Sequence[Case] = ()) -> float:
        running_s = self._forecast.seconds({case.case_hash: case for case in pending})
        ahead_s = self._turns.seconds() if self._turns else 0.0
        return max(min(running_s + ahead_s, self._budget_left_s()), 0.0)


def _exit_code(counts: Counter[Status], *, interrupted: bool) -> int:
    if interrupted:
        return EXIT_INTERRUPTED
    if counts[Status.WRONG]:
        return EXIT_WRONG
    if not any(status.is_success for status in counts):
        return EXIT_NOTHING_MEASURED
    return EXIT_SOME_FAILED if any(status.is_failure for status in counts) else EXIT_OK


def _messages(
    remaining: Sequence[Case], ledger: Ledger, settings: RunSettings, signal_name: str | None, resume_command: str
) -> list[str]:
    if not remaining:
        return []
    why = f"stopped by {signal_name}" if signal_name else "the budget is spent"
    listed = []
    for case in remaining[:_LISTED]:
        known = ledger.num_measured(case.case_hash)
        listed.append(f"  {case.case_id}" + f", {known} of {settings.num_processes} processes measured" * (known > 0))
    if len(remaining) > _LISTED:
        listed.append(f"  and {len(remaining) - _LISTED} more, which the report lists")
    head = f"{why}; what was measured is stored, {len(remaining)} cases are left:"
    return ["\n".join([head, *listed]), f"go on with: {resume_command}"]


def _resume_command(settings: RunSettings, writer: RunWriter) -> str:
    command = list(settings.command)
    if not command:
        return f"--resume, run {writer.run_id}"
    return shlex.join(command if "--resume" in command else [*command, "--resume"])
