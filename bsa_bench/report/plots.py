"""Which plots there are, what each needs, and which a run has: a figure for each pass, a panel for each shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bsa_bench.errors import UsageError
from bsa_bench.imports.record import Published
from bsa_bench.report.kit import Kit, Plot, Source, looks
from bsa_bench.report.labels import Labels
from bsa_bench.report.level_plots import latency, memory
from bsa_bench.report.list_plot import lists
from bsa_bench.report.page import Page
from bsa_bench.report.pareto_plot import pareto
from bsa_bench.report.phases import phase_stack
from bsa_bench.report.published_plot import throughput_among_published
from bsa_bench.report.sample_plot import samples
from bsa_bench.report.speedup_plots import speedup_by_density, speedup_by_tokens
from bsa_bench.report.tflops_plot import roofline, tflops
from bsa_bench.result import PASSES
from bsa_bench.store.derive import Row, derive
from bsa_bench.store.reader import Run

Draw = Callable[[Sequence[Row], Kit], Plot | None]


@dataclass(frozen=True)
class Kind:
    """A kind of plot.

    Attributes:
        about: what it shows.
        draw: make its figures of the rows of one pass; None where these lack something.
        needs: what the rows must have, as the rest of a sentence.
        command: what measures such rows.
    """

    about: str
    draw: tuple[Draw, ...]
    needs: str
    command: str


_SPARSE = "a sparse implementation that was measured and proved correct"
KINDS: dict[str, Kind] = {
    "speedup": Kind(
        "speed-up over the fastest dense attention against length, with the ideal 1/density and the break-even",
        (speedup_by_tokens,),
        f"{_SPARSE}, and a dense one of the same workload, at two lengths or more",
        "bsa-bench run --suite quick",
    ),
    "density": Kind(
        "speed-up against realised density, with the ideal",
        (speedup_by_density,),
        f"{_SPARSE}, at two densities or more of one workload, and a dense one",
        "bsa-bench run --suite sparsity",
    ),
    "latency": Kind(
        "median latency against length, log-log", (latency,), "a case with a latency", "bsa-bench run --suite quick"
    ),
    "tflops": Kind(
        "executed TFLOP/s under the ceilings, and as a roofline where the run measured a copy",
        (tflops, roofline),
        "a case with a latency and a count of executed FLOP",
        "bsa-bench run --suite quick",
    ),
    "phases": Kind(
        "where the time of each sparse row goes",
        (phase_stack,),
        "a sparse case with timed phases",
        "bsa-bench run --suite quick",
    ),
    "memory": Kind(
        "peak memory above the inputs against length",
        (memory,),
        "a case with a measured peak of memory",
        "bsa-bench run --suite quick",
    ),
    "pareto": Kind(
        "error against dense attention over time, with the frontier",
        (pareto,),
        f"{_SPARSE} and compared with dense attention's output",
        "bsa-bench run --suite sparsity",
    ),
    "lists": Kind(
        "lengths of the lists of KV blocks, union efficiency and imbalance",
        (lists,),
        "a case with a block plan whose lists were counted",
        "bsa-bench run --suite quick",
    ),
    "samples": Kind(
        "samples in order, process by process, with the clock and disturbed stretches",
        (samples,),
        "a case with samples",
        "bsa-bench run --suite quick --processes 5",
    ),
}
"""All that is drawn from stored results alone; a report has each for which there is data."""


FIGURES = tuple(
    f"{name}-{passes.replace('+', '-')}{suffix}"
    for name in (*KINDS, "roofline", "tflops-published", "error-speedup")
    for passes in PASSES
    for suffix in (".png", ".svg")
)
"""The files that a report writes, or that one of an earlier version wrote."""


def draw_plots(
    rows: Sequence[Row],
    labels: Labels,
    folder: Path,
    published: Sequence[Published] = (),
    runs: Sequence[Run] = (),
    page: Page | None = None,
) -> list[Plot]:
    """Draw every plot for which there are measured rows into `folder`, which exists."""
    page, sources = page or Page(), tuple(map(Source.of, runs))
    plots: list[Plot | None] = []
    with page.settings():
        for kit, of_pass in kits(rows, labels, folder, page, sources):
            plots += [draw(of_pass, kit) for kind in KINDS.values() for draw in kind.draw]
            plots += [throughput_among_published([row for row in of_pass if row.is_correct], kit, published)]
    return [plot for plot in plots if plot]


def draw_kind(name: str, runs: Sequence[Run], folder: Path, *, page: Page, case: str | None = None) -> list[Plot]:
    """Draw one kind of plot of several runs together into `folder`, which is made.

    Args:
        name: of `KINDS`.
        runs: each of another name; rows of one run are never compared with those of another.
        folder: where to write.
        page: style, theme and formats.
        case: leave out all cases but those whose id has this part or matches it as a pattern.

    Raises:
        UsageError: the runs lack what the plot needs, or have no such case; the message says what and how to get it.
    """
    kind, sources = KINDS[name], tuple(map(Source.of, runs))
    rows = rows_of(runs, case)
    labels = Labels(row.result.case for row in rows)
    with page.settings():
        # Nothing is made where nothing can be drawn.
        drawable = list(kits(rows, labels, folder, page, sources))
        folder.mkdir(parents=True, exist_ok=True)
        made = [draw(of_pass, kit) for kit, of_pass in drawable for draw in kind.draw]
    plots = [plot for plot in made if plot]
    if not plots:
        raise UsageError(f"plot {name}: {lacking(runs, rows)}; expected {kind.needs}. To make it: {kind.command}")
    return plots


def kits(
    rows: Sequence[Row], labels: Labels, folder: Path, page: Page, sources: tuple[Source, ...]
) -> list[tuple[Kit, list[Row]]]:
    """What the plots of each pass share, and its rows; passes without any are left out."""
    measured = [row for row in rows if row.whole or row.is_counted]
    shared = looks(measured, labels, page, sources)
    found = [(which, [row for row in measured if row.result.case.passes == which]) for which in PASSES]
    return [(Kit(which, labels, shared, folder, page, sources), of_pass) for which, of_pass in found if of_pass]


def rows_of(runs: Sequence[Run], case: str | None = None) -> list[Row]:
    """The rows of several runs, each run's own baselines beside them.

    Raises:
        UsageError: two runs have one name, or none has such a case.
    """
    from fnmatch import fnmatchcase

    names = [run.run_id for run in runs]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"runs: got {twice!r} twice, expected runs of different names")
    rows = [row for run in runs for row in derive(run.latest())]
    if case is None:
        return rows
    found = [row for row in rows if case in row.result.case_id or fnmatchcase(row.result.case_id, case)]
    if not found:
        some = ", ".join(dict.fromkeys(row.result.case_id for row in rows[:3])) or "none"
        raise UsageError(f"--case {case!r}: no case of {', '.join(names)} has that in its id; ids are such as {some}")
    return found


def lacking(runs: Sequence[Run], rows: Sequence[Row]) -> str:
    """What there is instead: `run quick-1 has 3 cases (2 OK, 1 OOM)`."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.status_word] = counts.get(row.status_word, 0) + 1
    statuses = f" ({', '.join(f'{count} {word}' for word, count in counts.items())})" if counts else ""
    names = ", ".join(run.run_id for run in runs)
    lengths = len({row.num_tokens for row in rows if row.whole})
    cases = f"{len(rows)} case{'s' * (len(rows) != 1)}{statuses}"
    at = f" with a latency at {lengths} length{'s' * (lengths != 1)}" if lengths else ""
    return f"run{'s' * (len(runs) > 1)} {names} {'have' if len(runs) > 1 else 'has'} {cases}{at}"
