"""The verb `profile` and its flags; what it does is imported when it runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from bsa_bench.cli.flags import with_flags
from bsa_bench.cli.gate_app import Json, Overrides, Results, end_with
from bsa_bench.files import user_path


@dataclass(frozen=True, kw_only=True)
class ProfileFlags:
    """The flags of `profile`, as they were given."""

    overrides: Overrides = None
    suite: Annotated[
        str | None, typer.Option("--suite", metavar="NAME|FILE", help="The suite of the case; default: quick.")
    ] = None
    run: Annotated[
        str | None,
        typer.Option("--run", metavar="RUN", help="A stored run of the case, or `latest`, in place of a suite."),
    ] = None
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="Where to profile; auto: the GPU if there is one.")
    ] = "auto"
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="CPU threads, pinned; default: all usable cores.")
    ] = None
    calls: Annotated[int, typer.Option("--calls", min=1, max=1000, help="Calls that each profiler records.")] = 3
    time_limit: Annotated[
        str, typer.Option("--time-limit", metavar="TIME", help="End a profiler that takes longer (90s, 9m).")
    ] = "10m"
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="The folder to make; default: RESULTS/profiles/CASE-TIME.", parser=user_path
        ),
    ] = None
    results: Results = Path("results")
    as_json: Json = False


def add_profile_verb(app: typer.Typer) -> None:
    """Register the verb."""
    app.command()(profile)


@with_flags(ProfileFlags)
def profile(
    case: Annotated[
        str,
        typer.Argument(metavar="CASE", help="A case id, or an implementation of which there is one case (bsa@gather)."),
    ],
    flags: ProfileFlags,
) -> None:
    """Show where the time and the memory of one case go, phase by phase, with traces for other tools."""
    from bsa_bench.cli.profile_command import run_profile_command

    end_with(lambda: run_profile_command(case, flags))
