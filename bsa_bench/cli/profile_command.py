"""What `profile` does: choose the case, ask the machine, profile in worker processes, print the summary."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from bsa_bench.catalog import check_implementations, unsupported_case
from bsa_bench.cli.commands import find_run
from bsa_bench.cli.output import command_line, console, progress
from bsa_bench.cli.profile_app import ProfileFlags
from bsa_bench.errors import EXIT_NOTHING_MEASURED, EXIT_OK, EXIT_SOME_FAILED, EXIT_WRONG, UsageError
from bsa_bench.inputs import check_input, check_inputs
from bsa_bench.profiling.choose import choose_case, run_cases, suite_cases
from bsa_bench.profiling.document import ProfileDocument
from bsa_bench.profiling.drive import SUMMARY_FILE, NotProfiledError, ProfileSettings, profile_case
from bsa_bench.profiling.folder import check_folder, default_folder, whole_folder
from bsa_bench.profiling.summary import markdown, print_summary
from bsa_bench.result import Case, Status
from bsa_bench.run import DeviceModel
from bsa_bench.run.job import DeviceKind
from bsa_bench.run.order import memory_reason
from bsa_bench.run.probe import Probe, probe, question_of
from bsa_bench.store.whole_file import write_whole
from bsa_bench.units import parse_duration

_SUITE = "quick"
_KINDS: tuple[DeviceKind, ...] = ("cpu", "cuda")


def run_profile_command(asked: str, flags: ProfileFlags) -> int:
    """Profile; returns the exit code.

    Raises:
        UsageError: there is no such case, or the folder exists.
        StoreError: the folder cannot be written.
    """
    limit_s = parse_duration(flags.time_limit)
    cases = _cases(asked, flags)
    folder = flags.out or default_folder(flags.results, next(iter(cases.values())))
    check_folder(folder)
    with progress() as tell:

        def tell_profiling(text: str) -> None:
            tell(f"profile: {text}")

        tell_profiling("asking what this machine is")
        found = probe(
            {kind: [question_of(case)] for kind, case in cases.items()},
            device=None if flags.device == "auto" else flags.device,
            threads=flags.threads,
            with_ceilings=True,
        )
        kind = found.environment.device_kind
        if kind not in cases:
            _cases(asked, flags, kinds=(kind,))  # raises: only the suite of the other device has it
        case = cases[kind]
        check_inputs([case])
        folder = flags.out or default_folder(flags.results, case)
        settings = ProfileSettings(
            device=DeviceModel.of(found.environment),
            environment=found.environment,
            ceilings=found.ceilings,
            threads=flags.threads,
            num_calls=flags.calls,
            limit_s=limit_s,
            command=tuple(command_line()),
        )
        try:
            made = _profile(case, settings, found, folder, tell_profiling)
        except NotProfiledError as error:
            print(f"bsa-bench: {error}", file=sys.stderr)
            return _exit_code(error.status)
    if flags.as_json:
        print(made.model_dump_json(indent=1))
    else:
        print_summary(made, console())
    print(f"profile: {folder}", file=sys.stderr if flags.as_json else sys.stdout)
    return EXIT_OK


def _profile(
    case: Case, settings: ProfileSettings, found: Probe, folder: Path, tell: Callable[[str], None]
) -> ProfileDocument:
    if reason := unsupported_case(case) or found.unavailable(case):
        raise NotProfiledError(case, Status.UNSUPPORTED, reason)
    if reason := memory_reason(case, settings.device):
        raise NotProfiledError(case, Status.SKIPPED_OOM, reason)
    with whole_folder(folder) as part:
        made = profile_case(case, settings, part, tell)
        write_whole(part / SUMMARY_FILE, markdown(made))
    return made


def _cases(asked: str, flags: ProfileFlags, kinds: tuple[DeviceKind, ...] = _KINDS) -> dict[DeviceKind, Case]:
    """The case on each kind of device whose suite has it; of a run the one that it measured, wherever."""
    if flags.run is not None:
        if flags.suite is not None or flags.overrides:
            raise UsageError("--run: a case of a run is profiled as it is; leave --suite and the overrides out")
        run = find_run(flags.run, flags.results)
        case = choose_case(asked, run_cases(run), where=f"run {run.name}")
        check_input(case.workload)
        return dict.fromkeys(kinds, case)
    suite, overrides = flags.suite or _SUITE, flags.overrides or ()
    if flags.device != "auto":
        kinds = (flags.device,)
    found: dict[DeviceKind, Case] = {}
    errors: list[UsageError] = []
    for kind in kinds:
        cases = suite_cases(suite, overrides, kind)
        check_implementations(dict.fromkeys(case.implementation for case in cases))
        try:
            found[kind] = choose_case(asked, cases, where=f"suite {suite} on {kind}")
        except UsageError as error:
            errors.append(error)
    if not found:
        raise errors[0]
    for case in found.values():
        check_input(case.workload)
    return found


def _exit_code(status: Status) -> int:
    if status is Status.WRONG:
        return EXIT_WRONG
    return EXIT_SOME_FAILED if status.is_failure else EXIT_NOTHING_MEASURED
