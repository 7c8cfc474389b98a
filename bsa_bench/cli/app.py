"""The verbs and their flags; what they do is in `bsa_bench.cli.commands`, imported when a verb runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from bsa_bench.cli.gate_app import add_gate_verbs
from bsa_bench.cli.group import BoundedGroup
from bsa_bench.cli.plot_app import add_plot_verb
from bsa_bench.cli.profile_app import add_profile_verb
from bsa_bench.cli.static_app import static_app
from bsa_bench.errors import EXIT_CODES
from bsa_bench.exports import FORMATS, FormatName
from bsa_bench.files import user_path
from bsa_bench.imports import FORMATS as IMPORT_FORMATS
from bsa_bench.imports import ImportName
from bsa_bench.report.named_tables import ABOUT, TableFormat, TableName

_CODES = "\n\n".join(f"{code}: {meaning}" for code, meaning in EXIT_CODES.items())
_FORMATS = "; ".join(f"{name}: {each.about}" for name, each in FORMATS.items()) + "."
_IMPORT_FORMATS = "; ".join(f"{name}: {each.about}" for name, each in IMPORT_FORMATS.items())
_TABLES = "; ".join(f"{name}: {about}" for name, about in ABOUT.items()) + "."

app = typer.Typer(
    name="bsa-bench",
    cls=BoundedGroup,
    help="Which attention is fastest on your shapes and hardware, by how much, at what loss of fidelity.",
    epilog=f"Exit codes:\n\n{_CODES}",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(static_app, name="static")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
ResultsRoot = Annotated[
    Path,
    typer.Option("--results", metavar="DIR", help="Folder of the runs.", envvar="BSA_BENCH_RESULTS", parser=user_path),
]
RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's name under the results folder, its folder, or `latest`.")
]
RESULTS = Path("results")


def _version(asked: bool) -> None:
    if asked:
        from bsa_bench import __version__

        typer.echo(f"bsa-bench {__version__}")
        raise typer.Exit


@app.callback()
def _global(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Hold the flags of all verbs."""


@app.command()
def doctor(results: ResultsRoot = RESULTS, json_: Json = False) -> None:
    """Say what this machine is, what can run on it, and for the rest why not and what to do."""
    from bsa_bench.cli.commands import doctor as command

    raise typer.Exit(command(results, as_json=json_))


@app.command(name="list")
def list_(
    what: Annotated[
        Literal["all", "suites", "implementations", "forms", "models"], typer.Argument(help="What to list.")
    ] = "all",
    json_: Json = False,
) -> None:
    """List suites, implementations, forms of our kernels and model presets."""
    from bsa_bench.cli.commands import list_all

    list_all(what, as_json=json_)


@app.command()
def run(
    suite: Annotated[
        str, typer.Option("--suite", metavar="NAME|FILE", help="A built-in suite, or a TOML file of your own.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUES]...",
            help="Override an axis or a key: tokens=4096,16384 kv_density=0.05,0.1 implementation=bsa@gather ...",
        ),
    ] = None,
    video: Annotated[
        Path | None,
        typer.Option("--video", metavar="FILE", help="Measure on this clip; short for video=FILE.", parser=user_path),
    ] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="What to measure; auto: the GPU if there is one.")
    ] = "auto",
    profile: Annotated[
        Literal["quick", "report"] | None, typer.Option(help="How long to look at each case; default: the suite's.")
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1000,
            metavar="N",
            help="Measure each case in N processes; default: the suite's, else 1, of report 5.",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0, max=(1 << 63) - 1, metavar="N", help="Of the order in which several processes run; default: 0."
        ),
    ] = None,
    timer: Annotated[
        Literal["auto", "host", "event", "device-span", "graph"] | None,
        typer.Option(help="How a call is timed (docs/measuring.md); default: the suite's, else auto: host or event."),
    ] = None,
    cache: Annotated[
        Literal["cold", "warm", "both"] | None,
        typer.Option(help="Evict a GPU's L2 before each sample or not; default: cold, of the profile report both."),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads, pinned; default: all usable cores.")] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Of the whole command (90s, 9m, 1h); fair pairs of dense and sparse come first."
        ),
    ] = None,
    time_limit: Annotated[
        str | None, typer.Option(metavar="TIME", help="End a case that takes longer; default: the suite's.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the suite's latest run (or --run-id) where it stopped.")
    ] = False,
    run_id: Annotated[
        str | None, typer.Option("--run-id", metavar="NAME", help="Name of the run; default: suite and time.")
    ] = None,
    allow_other_environment: Annotated[
        bool, typer.Option("--allow-other-environment", help="Resume although machine or versions differ.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the cases with predicted FLOP, memory and time; run nothing.")
    ] = False,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Write the report at the end.")] = True,
    plain: Annotated[bool, typer.Option("--plain", help="Plain lines, no live display.")] = False,
    results: ResultsRoot = RESULTS,
    reports: Annotated[
        Path, typer.Option("--reports", metavar="DIR", help="Folder of the reports.", parser=user_path)
    ] = Path("reports"),
    json_: Json = False,
) -> None:
    """Verify and measure a suite; each result is stored the moment it exists."""
    from bsa_bench.cli.run_command import RunRequest, run_suite

    code = run_suite(
        RunRequest(
            suite=suite,
            overrides=[*(overrides or []), *([_video_setting(video)] if video else [])],
            device=None if device == "auto" else device,
            profile=profile,
            processes=processes,
            seed=seed,
            timer=timer,
            cache=cache,
            threads=threads,
            budget=budget,
            time_limit=time_limit,
            resume=resume,
            run_id=run_id,
            allow_other_environment=allow_other_environment,
            dry_run=dry_run,
            report=report,
            plain=plain,
            results=results,
            reports=reports,
            as_json=json_,
        )
    )
    raise typer.Exit(code)


def _video_setting(video: Path) -> str:
    """A TOML list, so that a comma in the name parts nothing."""
    return f"video={json.dumps([str(video.absolute())], ensure_ascii=False)}"


@app.command()
def report(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN]...",
            help="Runs by name under the results folder, or their folders; default: latest. Several share one page.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Where to write; default: reports/RUN.", parser=user_path),
    ] = None,
    published: Annotated[
        list[Path] | None,
        typer.Option(
            "--published",
            metavar="FILE",
            help="Add a section of figures that others published, from a file of `bsa-bench import`; repeatable.",
            parser=user_path,
        ),
    ] = None,
    format_: Annotated[
        Literal["md", "html", "all"],
        typer.Option(
            "--format", help="md: report.md and plots; html: report.html, one offline file (docs/report.md); all: both."
        ),
    ] = "all",
    results: ResultsRoot = RESULTS,
    json_: Json = False,
) -> None:
    """Write report.md and report.html, tables and plots, from stored runs."""
    from bsa_bench.cli.commands import report as command

    command(
        runs or ["latest"],
        results,
        out,
        published or [],
        formats=("md", "html") if format_ == "all" else (format_,),
        as_json=json_,
    )


@app.command()
def table(
    name: Annotated[TableName, typer.Argument(metavar="NAME", help=_TABLES)],
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN]...", help="Runs by name, folder or `latest` (the default)."),
    ] = None,
    to: Annotated[
        TableFormat, typer.Option("--format", help="Markdown, LaTeX with booktabs, CSV, or text for a terminal.")
    ] = "rich",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="PATH", help="Write to this file; default: print.", parser=user_path)
    ] = None,
    results: ResultsRoot = RESULTS,
) -> None:
    """Print a table for a paper or a review from stored runs (docs/tables.md)."""
    from bsa_bench.cli.table_command import table as command

    command(name, runs or ["latest"], results, to, out)


add_plot_verb(app)


@app.command()
def tune(
    budget: Annotated[str, typer.Option(metavar="TIME", help="Stop within this time (90s, 10m, 1h).")] = "10m",
    arch: Annotated[
        Literal["auto", "sm_80", "sm_90", "sm_100"], typer.Option(help="Entries to tune; auto: this GPU's.")
    ] = "auto",
    kernel: Annotated[
        str, typer.Option(metavar="NAMES", help="Of attend, grad_kv, grad_q, grad_fused, with commas between.")
    ] = "attend,grad_kv,grad_q,grad_fused",
    head_dim: Annotated[str, typer.Option("--head-dim", metavar="SIZES", help="Head sizes.")] = "64,128",
    kept_rows: Annotated[
        str, typer.Option("--kept-rows", metavar="ROWS", help="Kept rows of a block of 64: 32 is half of the queries.")
    ] = "32,64",
    tokens: Annotated[str, typer.Option(metavar="LENGTHS", help="Lengths whose times are added up.")] = "23296,153600",
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where the table goes.", parser=user_path)] = Path(
        "tiles.toml"
    ),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be measured, on any machine; measure nothing.")
    ] = False,
    cache: Annotated[
        Path | None,
        typer.Option(
            "--cache", metavar="DIR", envvar="BSA_BENCH_CACHE", help="Where compiled code is kept.", parser=user_path
        ),
    ] = None,
) -> None:
    """Measure the tiles of our kernels on this GPU and write a table of the fastest."""
    from bsa_bench.cli.tune_command import TuneRequest
    from bsa_bench.cli.tune_command import tune as command

    raise typer.Exit(
        command(
            TuneRequest(
                budget=budget,
                arch=None if arch == "auto" else arch,
                kernels=kernel,
                head_dims=head_dim,
                kept_rows=kept_rows,
                tokens=tokens,
                out=out,
                dry_run=dry_run,
                cache=cache,
            )
        )
    )


@app.command()
def limits(
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write the figures there, for `static --limits`.", parser=user_path),
    ] = None,
    json_: Json = False,
) -> None:
    """Measure what this GPU delivers: L2 reads, HBM, matrix products, additions to memory, launches."""
    from bsa_bench.cli.limits_command import limits as command

    raise typer.Exit(command(out, as_json=json_))


@app.command()
def export(
    run: RunArgument = "latest",
    to: Annotated[FormatName, typer.Option(help=_FORMATS)] = "csv",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="PATH",
            help="Where to write, of asv a folder; default: RUN.csv and so on.",
            parser=user_path,
        ),
    ] = None,
    results: ResultsRoot = RESULTS,
) -> None:
    """Export a run, as one flat table or for another tool (docs/exports.md)."""
    from bsa_bench.cli.commands import export as command

    command(run, results, to, out)


@app.command(name="import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A result file of another tool.", parser=user_path)],
    source_format: Annotated[
        ImportName | None,
        typer.Option("--from", help=f"Default: guessed from the content. {_IMPORT_FORMATS}."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="PATH", help="Where to write; default: its name with .published.jsonl.", parser=user_path
        ),
    ] = None,
    label: Annotated[
        str | None, typer.Option("--label", metavar="TEXT", help="Name the figures so in reports, not by the tool.")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="TEXT", help="What they were measured on, for a file that does not say."),
    ] = None,
    passes: Annotated[
        Literal["forward", "backward", "forward+backward"] | None,
        typer.Option("--pass", help="What was timed, for a file that does not say."),
    ] = None,
    json_: Json = False,
) -> None:
    """Import figures of another tool, for `report --published` (docs/imports.md)."""
    from bsa_bench.cli.import_command import import_published

    import_published(file, source_format, out, label=label, device=device, passes=passes, as_json=json_)


add_gate_verbs(app)
add_profile_verb(app)
