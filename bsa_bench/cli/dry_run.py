"""`bsa-bench run --dry-run`: what would be measured, and for how long."""

from __future__ import annotations

import json
import sys

from bsa_bench.cli.preview import Preview
from bsa_bench.errors import EXIT_OK
from bsa_bench.suite import Suite
from bsa_bench.units import format_bytes, format_flop, format_seconds


def show_dry_run(suite: Suite, preview: Preview, *, as_json: bool) -> int:
    """Print what a run would do; returns the exit code."""
    settings = preview.settings
    rows = preview.plan()
    total_s = sum(row.seconds for row in rows if row.runs)
    if as_json:
        json.dump(
            {
                "suite": suite.name,
                "num_processes": settings.num_processes,
                "budget_s": settings.budget_s,
                "seconds": total_s,
                "cases": [
                    {
                        "case": row.case.case_id,
                        "runs": row.runs,
                        "reason": row.reason,
                        "flop": row.estimate.flop,
                        "bytes": row.estimate.bytes,
                        "seconds": row.seconds,
                    }
                    for row in rows
                ],
                "left_out": [str(dropped) for dropped in suite.dropped],
            },
            sys.stdout,
            indent=2,
        )
        print()
        return EXIT_OK
    for row in rows:
        need = f"{format_flop(row.estimate.flop):>10} {format_bytes(row.estimate.bytes):>9}"
        when = f"{format_seconds(row.seconds):>9}" if row.runs else f"      no: {row.reason}"
        print(f"{row.case.case_id:76} {need} {when}")
    for dropped in suite.dropped:
        print(f"left out: {dropped}")
    runs = sum(row.runs for row in rows)
    each = f" in {settings.num_processes} processes each" * (settings.num_processes > 1)
    if settings.budget_s is not None:
        each = f", as far as they fit in {format_seconds(settings.budget_s)}"
    print(f"{runs} of {len(rows)} cases would run{each}, about {format_seconds(total_s)} (predicted, not measured)")
    return EXIT_OK
