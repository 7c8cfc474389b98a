"""What `noise` does."""

from __future__ import annotations

from pathlib import Path

from bsa_bench.cli.gate_app import NoiseFlags
from bsa_bench.cli.output import console, progress
from bsa_bench.errors import EXIT_OK
from bsa_bench.gate.calibration import Calibration, calibrate, calibration_path, check_folder, write_calibration
from bsa_bench.gate.execution import LOGS, select
from bsa_bench.gate.lockstep import LockstepBench, LockstepSettings
from bsa_bench.gate.policy import policy_for
from bsa_bench.gate.sides import open_pair_side
from bsa_bench.gate.verdict import tier_of
from bsa_bench.static.sides import HERE
from bsa_bench.units import format_seconds, parse_duration, parse_share


def run_noise_command(flags: NoiseFlags) -> int:
    """Calibrate this machine and write its limits file; returns the exit code.

    Raises:
        UsageError: a flag is wrong, or nothing can be measured.
        StoreError: the file cannot be written.
    """
    limit = parse_share(flags.limit) if flags.limit else None
    check_folder(flags.noise)
    selection = select(flags.suite, flags.overrides or (), flags.device, threads=flags.threads)
    cases = selection.timed | selection.controls
    policy = policy_for(flags.device, limit=limit)
    with open_pair_side(HERE) as side, progress() as tell:
        bench = LockstepBench(
            cases,
            base=side,
            head=side,
            settings=LockstepSettings(
                device=flags.device,
                threads=flags.threads,
                logs=LOGS / "noise",
                turn_error=policy.turn_error,
                call_limit_s=parse_duration(flags.call_limit),
            ),
            seed=flags.seed,
            tell=tell,
        )
        calibration = calibrate(
            list(cases),
            bench,
            policy,
            num_pairs=flags.pairs,
            environment=selection.environment,
            suite=flags.suite,
            threads=flags.threads,
            max_detectable=parse_share(flags.max_detectable),
            seed=flags.seed,
            tell=tell,
        )
    path = calibration_path(flags.noise, selection.environment, tier_of(flags.device))
    write_calibration(path, calibration)
    if flags.as_json:
        print(calibration.model_dump_json(indent=1))
    else:
        _print_calibration(calibration, path)
    return EXIT_OK


def _print_calibration(calibration: Calibration, path: Path) -> None:
    from rich.table import Table
    from rich.text import Text

    out = console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("case", "call", "within", "between", "pair", "bias", "drift", "pairs"):
        table.add_column(header, justify="left" if header == "case" else "right", overflow="fold")
    for case in calibration.cases:
        shares = (case.within, case.between, case.pair_sd)
        signed = (case.bias, case.drift)
        table.add_row(
            Text(case.case_id),
            format_seconds(case.call_s),
            *(f"{100 * share:.1f} %" for share in shares),
            *(f"{100 * share:+.1f} %" for share in signed),
            str(case.num_pairs),
        )
    out.print(table)
    for name, reason in calibration.left_out.items():
        out.print(f"left out: {name}: {reason}", markup=False, highlight=False)
    detectable = ", ".join(f"{100 * share:.1f} % with {count} pairs" for count, share in calibration.detectable.items())
    lines = (
        "",
        "within: samples of a process; between: medians of processes; pair: log ratio of a pair (standard deviations).",
        f"A pair of equal processes comes out {100 * calibration.pair_sd:.1f} % apart.",
        f"Changes below {100 * calibration.limit:.1f} % count as none here.",
        f"Slow-downs found at least 8 times in 10: {detectable}.",
        f"False alarms: {100 * calibration.false_alarm_rate:.1f} % of {calibration.num_trials} trials on these pairs.",
        f"limits file: {path}",
        "This machine may gate."
        if calibration.may_gate
        else f"This machine may not gate: it cannot find a slow-down of {100 * calibration.max_detectable:.0f} %.",
    )
    out.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
