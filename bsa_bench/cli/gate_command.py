"""What `gate` does: check the flags, run the tiers, show the result, accept it if asked to."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import cast

from bsa_bench.cli.gate_app import GateFlags
from bsa_bench.cli.output import command_line, console, progress
from bsa_bench.errors import EXIT_OK, UsageError
from bsa_bench.gate.run import GateRequest, accept, run_gate
from bsa_bench.gate.show.files import check_outputs, write_outputs
from bsa_bench.gate.show.github import SUMMARY_VARIABLE, workflow_commands, write_step_summary
from bsa_bench.gate.show.terminal import print_result
from bsa_bench.gate.verdict import Tier
from bsa_bench.static.config import ARCH_NAMES, ArchName
from bsa_bench.suite.suggest import did_you_mean
from bsa_bench.units import parse_duration, parse_share


def run_gate_command(flags: GateFlags) -> int:
    """Run the gate; returns the exit code.

    Raises:
        UsageError: a flag is wrong.
        StoreError: a file cannot be written.
    """
    if flags.accept and not (flags.reason or "").strip():
        raise UsageError("--accept: needs --reason TEXT, which is kept in the baselines for whoever reads them")
    if flags.reason and not flags.accept:
        raise UsageError("--reason: got it without --accept")
    tiers = cast("tuple[Tier, ...]", tuple(sorted(set(flags.tiers or (0, 1, 2, 3)))))
    if flags.require_gpu and 3 not in tiers:
        raise UsageError("--require-gpu: tier 3 is not among --tier, so that it would never be measured")
    if flags.require_calibration and not {2, 3} & set(tiers):
        raise UsageError("--require-calibration: only tiers 2 and 3 are calibrated, expected one of them among --tier")
    if (flags.own_environment or flags.base_python) and not {2, 3} & set(tiers):
        name = "--own-environment" if flags.own_environment else "--base-python"
        raise UsageError(f"{name}: only tiers 2 and 3 run the base, expected one of them among --tier")
    if flags.github and not os.environ.get(SUMMARY_VARIABLE):
        raise UsageError(f"--github: {SUMMARY_VARIABLE} is not set, expected a step of a GitHub workflow")
    check_outputs(json_path=flags.out, markdown_path=flags.markdown, junit_path=flags.junit)
    request = GateRequest(
        tiers=tiers,
        base=flags.base,
        own_bench=flags.own_bench,
        own_environment=flags.own_environment,
        base_python=flags.base_python,
        paths=flags.paths or (),
        baselines=flags.baselines,
        noise=flags.noise,
        archs=_archs(flags.archs or ()),
        kernels=flags.kernels or (),
        cache=flags.cache,
        jobs=flags.jobs,
        suite=flags.suite,
        overrides=flags.overrides or (),
        threads=flags.threads,
        budget_s=parse_duration(flags.budget),
        call_limit_s=parse_duration(flags.call_limit),
        measure_unchanged=flags.measure_unchanged,
        seed=flags.seed,
        limit=parse_share(flags.limit) if flags.limit else None,
        accepting=flags.accept,
        require_gpu=flags.require_gpu,
        require_calibration=flags.require_calibration,
        ambiguous=flags.ambiguous,
        command=tuple(command_line()),
    )
    with progress() as tell:
        outcome = run_gate(request, tell)
    result = outcome.result
    write_outputs(result, json_path=flags.out, markdown_path=flags.markdown, junit_path=flags.junit)
    if flags.as_json:
        print(result.model_dump_json(indent=1))
    else:
        print_result(result, console(), verbose=flags.verbose)
    if flags.github:
        # Commands of the runner, which reads them from stdout; with --json that is the document's.
        print("\n".join(workflow_commands(result)), file=sys.stderr if flags.as_json else sys.stdout)
        write_step_summary(result)
    if not flags.accept:
        return result.exit_code
    for path in accept(outcome, request, (flags.reason or "").strip()):
        print(f"wrote {path}", file=sys.stderr if flags.as_json else sys.stdout)
    return EXIT_OK


def _archs(names: Sequence[str]) -> tuple[ArchName, ...]:
    for name in names:
        if name not in ARCH_NAMES:
            raise UsageError(
                f"--arch: got {name!r}, expected one of {', '.join(ARCH_NAMES)}{did_you_mean(name, ARCH_NAMES)}"
            )
    return tuple(name for name in ARCH_NAMES if not names or name in names)
