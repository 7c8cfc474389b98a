"""`bsa-bench run`: from a suite's name to stored results, a table and a report."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bsa_bench.catalog import check_implementations, unsupported_case
from bsa_bench.cli.clock import command_started
from bsa_bench.cli.dry_run import left_out, show_dry_run
from bsa_bench.cli.output import command_line
from bsa_bench.cli.preview import Preview, report_seconds
from bsa_bench.cli.streams import lasting_streams, print_error
from bsa_bench.console import plain_console
from bsa_bench.errors import EXIT_OK, EXIT_REPORT_FAILED, BenchError, UsageError
from bsa_bench.inputs import check_inputs
from bsa_bench.measure.choice import choose_timer
from bsa_bench.result import CacheChoice, Case, TimerChoice
from bsa_bench.run import DeviceModel, RunOutcome, RunSettings, execute, make_progress
from bsa_bench.run.job import DeviceKind
from bsa_bench.run.probe import probe, question_of
from bsa_bench.run.rounds import NUM_PROCESSES
from bsa_bench.store.find import latest_run
from bsa_bench.store.writer import RunWriter, check_writable, run_to_resume
from bsa_bench.suite import Suite, load_suite, override
from bsa_bench.text import shortened, visible
from bsa_bench.units import parse_duration

if TYPE_CHECKING:
    from bsa_bench.report import WrittenReports

MOST_LETTERS = 300
"""Of what a report says that failed; its own command shows all of it."""
_KINDS: tuple[DeviceKind, ...] = ("cpu", "cuda")


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """The flags of `bsa-bench run`, as they were given."""

    suite: str
    overrides: Sequence[str]
    device: DeviceKind | None
    profile: Literal["quick", "report"] | None
    processes: int | None
    seed: int | None
    timer: TimerChoice | None
    cache: CacheChoice | None
    threads: int | None
    budget: str | None
    time_limit: str | None
    resume: bool
    run_id: str | None
    allow_other_environment: bool
    dry_run: bool
    report: bool
    plain: bool
    results: Path
    reports: Path
    as_json: bool


def run_suite(request: RunRequest) -> int:
    """Check everything that can be checked first, then run, whoever reads along; returns the exit code.

    Raises:
        UsageError: the suite, an override, an implementation, an input or the run to resume is wrong.
        StoreError: results cannot be stored.
    """
    with lasting_streams():
        return _run_suite(request)


def _run_suite(request: RunRequest) -> int:
    started = command_started()
    budget_s = parse_duration(request.budget) if request.budget else None
    limit_s = parse_duration(request.time_limit) if request.time_limit else None
    suites = {kind: override(load_suite(request.suite, device_kind=kind), request.overrides) for kind in _KINDS}
    for suite in suites.values():
        check_implementations(suite.implementations)
    if not request.dry_run:
        check_writable(request.results)
    asked_at = time.monotonic()
    found = probe(
        {kind: [question_of(case) for case in suite.cases()] for kind, suite in suites.items()},
        device=request.device,
        threads=request.threads,
        must_be_ready=not request.dry_run,
        with_ceilings=not request.dry_run,
    )
    probe_s = time.monotonic() - asked_at
    suite = suites[found.environment.device_kind]
    cases = suite.cases()
    try:
        check_inputs(cases)
    except UsageError as error:
        raise type(error)(f"suite {suite.name}: {error}") from None
    profile = request.profile or suite.profile
    timing = choose_timer(
        request.timer or suite.timer, request.cache or suite.cache, environment=found.environment, profile=profile
    )
    settings = RunSettings(
        suite=suite.name,
        suite_title=suite.title,
        suite_sha256=suite.sha256,
        suite_source=suite.source,
        command=tuple(command_line()),
        device=DeviceModel.of(found.environment, probe_s=probe_s, ceilings=found.ceilings),
        profile=profile,
        num_processes=request.processes or suite.num_processes or NUM_PROCESSES[profile],
        seed=request.seed,
        threads=request.threads,
        timing=timing,
        ceilings=found.ceilings,
        case_limit_s=limit_s or suite.limits.time_limit_s,
        budget_s=budget_s or suite.limits.budget_s,
        started=started,
        reserve_s=report_seconds(probe_s) if request.report else 0.0,
        priority=suite.priority,
        allow_other_environment=request.allow_other_environment,
    )

    def unavailable(case: Case) -> str | None:
        return unsupported_case(case) or found.unavailable(case)

    resumed = _resumed_run_id(request, suite)
    previous = run_to_resume(request.results, resumed) if resumed else None
    preview = Preview(cases, settings, found.environment, unavailable, previous)
    if request.dry_run:
        return show_dry_run(suite, preview, as_json=request.as_json)
    preview.check_budget()
    from bsa_bench.report.labels import Labels

    progress = make_progress(plain=request.plain or request.as_json, name=Labels(cases).of)
    with _open_writer(request, suite) as writer:
        for note in found.notes:
            progress.note(note)
        for line in left_out(suite):
            progress.note(line)
        outcome = execute(cases, settings, found.environment, unavailable=unavailable, writer=writer, progress=progress)
        folder = writer.folder
    return _finish(request, folder, outcome, settings.num_processes)


def _finish(request: RunRequest, folder: Path, outcome: RunOutcome, num_processes: int) -> int:
    """Print what was measured and where it is, then write the report, which may fail without taking that away."""
    from bsa_bench.report import print_table
    from bsa_bench.store.reader import read_run

    if not request.as_json:
        print_table(read_run(folder), plain_console())
        for message in outcome.messages:
            print(*(visible(line) for line in message.splitlines()), sep="\n")
        print(f"results: {visible(str(folder))}", flush=True)
    written, trouble = _report(folder, request.reports / folder.name) if request.report else (None, None)
    code = outcome.exit_code or (EXIT_REPORT_FAILED if trouble else EXIT_OK)
    if request.as_json:
        json.dump(
            {
                "run": folder.name,
                "results": visible(str(folder)),
                "report": visible(str(written.markdown[0].markdown)) if written else None,
                "report_html": visible(str(written.page)) if written else None,
                "report_error": trouble,
                "exit_code": code,
                "num_processes": num_processes,
                "counts": {status.value: count for status, count in outcome.counts.items()},
                "remaining": [case.case_id for case in outcome.remaining],
                "messages": outcome.messages,
            },
            sys.stdout,
            indent=2,
        )
        print()
    for path in written.texts if written and not request.as_json else ():
        print(f"report: {visible(str(path))}")
    if trouble:
        print_error(f"the report failed: {trouble}; the results are kept, `bsa-bench report {folder}` tries again")
    return code


def _report(folder: Path, out_dir: Path) -> tuple[WrittenReports | None, str | None]:
    """Write a run's reports; what was written, or why that failed, in one line."""
    from bsa_bench.report.labels import one_line

    try:
        from bsa_bench.report import write_reports

        return write_reports([folder], out_dir), None
    except BenchError as error:
        return None, one_line(str(error))
    except Exception as error:  # noqa: BLE001  # a defect of the report must not hide hours of measuring
        return None, shortened(one_line(f"{type(error).__name__}: {error}"), MOST_LETTERS)


def _resumed_run_id(request: RunRequest, suite: Suite) -> str | None:
    """The name of the run to resume; null where a new one is begun."""
    if not request.resume or request.run_id:
        return request.run_id if request.resume else None
    latest = latest_run(request.results, suite.name)
    if latest is None:
        raise UsageError(f"--resume: there is no run of suite {suite.name} in {request.results}; start without it")
    return latest.name


def _open_writer(request: RunRequest, suite: Suite) -> RunWriter:
    resumed = _resumed_run_id(request, suite)
    if resumed is not None:
        return RunWriter.resume(request.results, resumed)
    if request.run_id is not None:
        return RunWriter.create(request.results, request.run_id)
    return RunWriter.begin(request.results, suite.name)
