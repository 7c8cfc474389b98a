"""What `plot` does: check the flags, read the runs, draw, print the files."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from bsa_bench.cli.commands import find_run
from bsa_bench.cli.plot_app import NAMES, PlotFlags
from bsa_bench.errors import StoreError, UsageError
from bsa_bench.report.kit import Plot, label_of
from bsa_bench.report.labels import Labels
from bsa_bench.report.page import Page
from bsa_bench.report.plots import draw_kind, lacking, rows_of
from bsa_bench.report.style import FORMATS, Format
from bsa_bench.store.reader import Run, read_run
from bsa_bench.suite.suggest import did_you_mean

PLAN = "plan"


def plot(name: str, flags: PlotFlags) -> None:
    """Draw the plots of a name; the files go to stdout.

    Raises:
        UsageError: there is no such plot, format, run or case, or the runs lack what it needs.
        StoreError: the folder cannot be written.
    """
    if name not in NAMES:
        raise UsageError(f"plot: got {name!r}, expected one of {', '.join(NAMES)}{did_you_mean(name, NAMES)}")
    if name != PLAN and (flags.head or flags.query_block is not None):
        raise UsageError(f"--head and --query-block: they choose what `plot plan` shows, got them with {name!r}")
    page = Page(flags.style, flags.theme, _formats(flags.formats))
    runs = [read_run(find_run(run, flags.results)) for run in flags.runs]
    try:
        if name == PLAN:
            plots = [_plot_plan(runs, flags, page)]
        else:
            plots = draw_kind(name, runs, flags.out, page=page, case=flags.case)
    except OSError as error:
        raise StoreError(f"{flags.out}: the plots cannot be written: {error.strerror or error}") from error
    _print(plots, as_json=flags.as_json)


def _plot_plan(runs: Sequence[Run], flags: PlotFlags, page: Page) -> Plot:
    """Plan the shortest case that has a block plan, and draw one query block of it."""
    from bsa_bench.planning import picture_of_plan
    from bsa_bench.report.plan_plot import draw_plan

    rows = rows_of(runs, flags.case)
    labels = Labels(row.result.case for row in rows)
    planned = [row for row in rows if row.result.work and row.result.work.plan_digest]
    if not planned:
        raise UsageError(
            f"plot {PLAN}: {lacking(runs, rows)}, and none has a block plan; expected a case of a block method such as "
            "bsa. To make it: bsa-bench run --suite quick"
        )
    row = min(planned, key=lambda each: each.num_tokens)
    label = f"{label_of(row, labels, ())}, {row.num_tokens:,} tokens"
    picture = picture_of_plan(row.processes, label, head=flags.head, query_block=flags.query_block)
    flags.out.mkdir(parents=True, exist_ok=True)
    return draw_plan(picture, flags.out, page)


def _formats(text: str) -> tuple[Format, ...]:
    """The formats of `png,svg`, each once."""
    names = list(dict.fromkeys(part.strip() for part in text.split(",")))
    unknown = [each for each in names if each not in FORMATS]
    if unknown:
        raise UsageError(f"--format: got {text!r}, expected some of {','.join(FORMATS)}, with commas between")
    return cast("tuple[Format, ...]", tuple(names))


def _print(plots: Sequence[Plot], *, as_json: bool) -> None:
    files: list[Path] = [path for each in plots for path in each.files]
    if as_json:
        document = [{"title": each.title, "files": [str(path) for path in each.files]} for each in plots]
        json.dump({"plots": document}, sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    for path in files:
        print(path)
