"""What `bisect` and its step do."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

from bsa_bench.cli.gate_app import BisectFlags
from bsa_bench.cli.output import console, progress
from bsa_bench.errors import EXIT_AMBIGUOUS, EXIT_OK, BenchError, UsageError
from bsa_bench.gate.bisect import ABORT, Found, find_slower_revision, judge_here
from bsa_bench.gate.policy import LEAST_CHANGE
from bsa_bench.inputs import check_inputs
from bsa_bench.suite import load_suite, override
from bsa_bench.suite.suggest import did_you_mean
from bsa_bench.units import parse_share


def run_bisect_command(case: str, flags: BisectFlags) -> int:
    """Bisect; returns the exit code: 0 where one revision was found, 7 where skipped ones leave several.

    Raises:
        UsageError: the case or a revision is not there, or the case is not slower.
        BenchError: git cannot bisect.
    """
    suite = override(load_suite(flags.suite, device_kind=flags.device), flags.overrides or ())
    cases = {each.case_id: each for each in suite.cases()}
    if case not in cases:
        hint = did_you_mean(case, list(cases))
        raise UsageError(f"case {case!r}: suite {flags.suite} has none of this id on {flags.device}{hint}")
    check_inputs([cases[case]])
    with progress() as tell:
        found = find_slower_revision(
            cases[case],
            good=flags.good,
            bad=flags.bad,
            device=flags.device,
            threads=flags.threads,
            limit=parse_share(flags.limit) if flags.limit else LEAST_CHANGE[flags.device],
            tell=tell,
        )
    if flags.as_json:
        print(found.model_dump_json(indent=1))
    else:
        _print_found(found, case)
    return EXIT_OK if found.commit else EXIT_AMBIGUOUS


def run_bisect_step(state: Path) -> int:
    """Judge the revision that is checked out; the exit code is for `git bisect run`.

    What goes wrong ends the bisection: git would take the exit codes of errors for those of a slow revision.
    """
    try:
        return judge_here(state)
    except BenchError as error:
        print(f"bsa-bench: {error}", file=sys.stderr)
    except Exception:  # noqa: BLE001  # it ends the bisection, which shows the traceback
        traceback.print_exc()
    return ABORT


def _print_found(found: Found, case: str) -> None:
    out = console()
    for step in found.steps:
        ratio = f"{step.ratio:.3f}x the time" if step.ratio is not None else "not measured"
        reason = f", {step.reason}" if step.reason else ""
        out.print(f"{step.commit[:12]}  {step.judgement}: {ratio}{reason}", markup=False, highlight=False)
    num_measured = sum(step.ratio is not None and step.reason is None for step in found.steps)
    out.print(f"{len(found.steps)} revisions judged, {num_measured} of them measured", highlight=False)
    if found.commit is None:
        listed = ", ".join(each[:12] for each in found.candidates) or "those that were skipped"
        out.print(f"{case} got slower in one of: {listed}", markup=False, highlight=False, soft_wrap=True)
        return
    out.print(
        f"{case} takes {found.ratio:.2f} times as long since {found.commit[:12]} {found.subject}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
