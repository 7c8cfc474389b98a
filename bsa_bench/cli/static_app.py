"""The verb `static` with its flags; what it does is in `bsa_bench.cli.static_command`, imported when it runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from bsa_bench.cli.flags import with_flags
from bsa_bench.errors import UsageError
from bsa_bench.files import user_path

static_app = typer.Typer(
    help="See what a Triton kernel compiles to, and what that allows, without a GPU.",
    rich_markup_mode=None,
    invoke_without_command=True,
)


@dataclass(frozen=True)
class Request:
    """The flags that `static` and its verbs share; the fields are the parameters of the command line."""

    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="PATTERN", help="Configurations such as 'forward-*-d128*'; repeatable."),
    ] = None
    kernel_set: Annotated[
        Literal["shipped", "candidates"],
        typer.Option("--set", help="The project's kernels: what calls come to, or the tiles that compete with that."),
    ] = "shipped"
    kernel: Annotated[
        str | None,
        typer.Option("--kernel", metavar="FILE.py:NAME", help="A kernel of your own, described by --config."),
    ] = None
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE.toml",
            help="Its signature, constants, options; see docs/static.md.",
            parser=user_path,
        ),
    ] = None
    archs: Annotated[
        list[str] | None,
        typer.Option("--arch", metavar="NAME", help="sm_80, sm_90 or sm_100; repeatable; default: all."),
    ] = None
    devices: Annotated[
        list[str] | None,
        typer.Option("--device", metavar="NAME", help="Predict for this device; default: one an architecture."),
    ] = None
    limits: Annotated[
        Path | None,
        typer.Option(
            "--limits",
            metavar="FILE",
            help="Figures of the device as `bsa-bench limits` measured them.",
            parser=user_path,
        ),
    ] = None
    tokens: Annotated[int, typer.Option(min=64, help="Predict for so many tokens (the project's kernels).")] = 153_600
    heads: Annotated[int, typer.Option(min=1, help="And so many heads.")] = 12
    kv_density: Annotated[
        float, typer.Option("--kv-density", min=1e-6, max=1.0, help="And lists with this share of the KV blocks.")
    ] = 0.1
    dtype: Annotated[Literal["bf16", "fp16", "fp32"], typer.Option(help="Number format of the project's kernels.")] = (
        "bf16"
    )
    triton: Annotated[
        str | None,
        typer.Option("--triton", metavar="VERSION", help="Compile with this release, fetched by pip into the cache."),
    ] = None
    fp_fusion: Annotated[
        bool, typer.Option("--fp-fusion/--no-fp-fusion", help="Let the compiler fuse multiplications and additions.")
    ] = True
    cache: Annotated[
        Path | None,
        typer.Option(
            "--cache", metavar="DIR", envvar="BSA_BENCH_CACHE", help="Where compiled code is kept.", parser=user_path
        ),
    ] = None
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Compile again what the cache has.")] = False
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", min=1, help="Compilers at a time; default: all usable cores.")
    ] = None
    results: Annotated[
        Path,
        typer.Option(
            "--results",
            metavar="DIR",
            envvar="BSA_BENCH_RESULTS",
            help="Stored runs to compare with.",
            parser=user_path,
        ),
    ] = Path("results")


_with_request = with_flags(Request, "request")


@static_app.callback()
@_with_request
def static(
    context: typer.Context,
    request: Request,
    form: Annotated[
        Literal["table", "md", "json"], typer.Option("--format", help="A table, Markdown, or one JSON document.")
    ] = "table",
    json_: Annotated[bool, typer.Option("--json", help="Short for --format json.")] = False,
) -> None:
    """Compile kernels for GPUs that need not be here; report resources, loops, pipelines and ceilings."""
    if context.invoked_subcommand is not None:
        _refuse_flags_before(context.invoked_subcommand, context)
    else:
        from bsa_bench.cli.static_command import show

        if json_ and form == "md":
            raise UsageError("--json: got --format md beside it, expected one of them")
        raise typer.Exit(show(request, "json" if json_ else form))


def _refuse_flags_before(verb: str, context: typer.Context) -> None:
    """A flag before the verb is one of `static` itself, which the verb would not see."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is not None and source.name == "COMMANDLINE":
            raise UsageError(f"static: {parameter.opts[0]} stands before {verb}, expected after it")


@static_app.command()
@_with_request
def explain(
    request: Request,
    name: Annotated[str, typer.Argument(metavar="CONFIG", help="A configuration's name; `static` lists them.")],
    sass: Annotated[bool, typer.Option("--sass", help="Also every instruction of the main loop.")] = False,
) -> None:
    """Show one configuration's main loop by source line, and the resource that limits it."""
    from bsa_bench.cli.static_command import explain_one

    raise typer.Exit(explain_one(request, name, with_sass=sass))


@static_app.command()
@_with_request
def diff(
    request: Request,
    base: Annotated[
        str, typer.Argument(metavar="BASE", help="A git revision, triton==VERSION, or . for these sources.")
    ],
    head: Annotated[str, typer.Argument(metavar="HEAD", help="The same.")] = ".",
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show what changed in compiled kernels between two revisions or two releases of Triton."""
    from bsa_bench.cli.static_command import diff_two

    raise typer.Exit(diff_two(request, base, head, as_json=json_))
