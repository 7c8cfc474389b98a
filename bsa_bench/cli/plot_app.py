"""The verb `plot` and its flags; what it does is imported when it runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from bsa_bench.cli.flags import with_flags
from bsa_bench.files import user_path

NAMES = ("speedup", "density", "latency", "tflops", "phases", "memory", "pareto", "lists", "samples", "plan")


@dataclass(frozen=True, kw_only=True)
class PlotFlags:
    """The flags of `plot`, as they were given."""

    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Runs by name under the results folder, by folder, or `latest`; several are drawn together.",
        ),
    ]
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where to write.", parser=user_path)] = Path("plots")
    formats: Annotated[
        str, typer.Option("--format", metavar="FORMATS", help="Of png, svg and pdf, with commas between.")
    ] = "png"
    style: Annotated[
        Literal["screen", "paper"],
        typer.Option(help="paper: one column of 3.35 in, 8 pt, no title, labels of one line."),
    ] = "screen"
    theme: Annotated[Literal["light", "dark"], typer.Option(help="Dark or light ground.")] = "light"
    case: Annotated[
        str | None,
        typer.Option("--case", metavar="PATTERN", help="Only cases with this in their id, or whose id matches it."),
    ] = None
    head: Annotated[int, typer.Option(min=0, metavar="N", help="plan: the head.")] = 0
    query_block: Annotated[
        int | None,
        typer.Option("--query-block", min=0, metavar="N", help="plan: the query block; default: the middle one."),
    ] = None
    results: Annotated[
        Path,
        typer.Option(
            "--results", metavar="DIR", help="Folder of the runs.", envvar="BSA_BENCH_RESULTS", parser=user_path
        ),
    ] = Path("results")
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")] = False


def add_plot_verb(app: typer.Typer) -> None:
    """Add `plot` to the command line."""

    @app.command()
    @with_flags(PlotFlags)
    def plot(
        name: Annotated[str, typer.Argument(metavar="NAME", help=f"One of {', '.join(NAMES)} (docs/plots.md).")],
        flags: PlotFlags,
    ) -> None:
        """Draw one kind of plot of stored runs, for a screen or a paper; print the files."""
        from bsa_bench.cli.plot_command import plot as command

        command(name, flags)
