"""`bsa-bench run --dry-run`: what would be measured, and for how long."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Mapping, Sequence
from itertools import groupby

from bsa_bench.cli.preview import Preview
from bsa_bench.errors import EXIT_OK
from bsa_bench.report.labels import Labels, describe_cases, workload_label
from bsa_bench.run import PlannedCase
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
    labels = Labels(row.case for row in rows)
    for lines in (_running(rows, labels), _not_running(rows, labels), left_out(suite)):
        if lines:
            print("\n".join([*lines, ""]))
    runs = sum(row.runs for row in rows)
    each = f" in {settings.num_processes} processes each" * (settings.num_processes > 1)
    if settings.budget_s is not None:
        each = f", as far as they fit in {format_seconds(settings.budget_s)}"
    print(f"{runs} of {len(rows)} cases would run{each}, about {format_seconds(total_s)} (predicted, not measured)")
    return EXIT_OK


def _running(rows: Sequence[PlannedCase], labels: Labels) -> list[str]:
    """What would run, in its order, those of one workload that follow each other below it."""
    lines = []
    for workload, cases in groupby((row for row in rows if row.runs), key=lambda row: workload_label(row.case)):
        lines.append(workload)
        for row in cases:
            need = f"{format_flop(row.estimate.flop):>10} {format_bytes(row.estimate.bytes):>9}"
            lines.append(f"  {labels.of(row.case):29} {row.case.passes:16} {need} {format_seconds(row.seconds):>9}")
    return lines


def _not_running(rows: Sequence[PlannedCase], labels: Labels) -> list[str]:
    """What would not, by reason."""
    reasons: dict[str, list[PlannedCase]] = {}
    for row in rows:
        if row.reason is not None:
            reasons.setdefault(row.reason, []).append(row)
    return _folded(
        {f"no: {reason}": describe_cases(cases, labels).replace("`", "") for reason, cases in reasons.items()}
    )


def left_out(suite: Suite) -> list[str]:
    """What the suite itself leaves out, by reason."""
    reasons: dict[str, list[str]] = {}
    for dropped in suite.dropped:
        reasons.setdefault(dropped.reason, []).append(dropped.what)
    return _folded({f"left out: {reason}": "; ".join(what) for reason, what in reasons.items()})


def _folded(texts: Mapping[str, str]) -> list[str]:
    """Each reason and what it holds for, on lines of at most 79 letters."""
    fold = textwrap.TextWrapper(width=79, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    return [line for reason, what in texts.items() for line in fold.wrap(f"{reason.rstrip('.')}: {what}")]
