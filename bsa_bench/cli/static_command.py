"""What `static` does: compile, analyse, show."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from bsa_bench.cli.static_app import Request
from bsa_bench.console import plain_console
from bsa_bench.errors import EXIT_OK, EXIT_SOME_FAILED, UsageError
from bsa_bench.limits.file import read_limits, with_limits
from bsa_bench.static.analyse import Analysis, analyse, devices_for
from bsa_bench.static.compile import Compiled, Failure, Settings, Toolchain, Workers, compile_all, default_cache
from bsa_bench.static.config import ARCH_NAMES, ArchName
from bsa_bench.static.devices import Device, device_for
from bsa_bench.static.diff import Change, compare
from bsa_bench.static.document import document
from bsa_bench.static.explain import explain
from bsa_bench.static.figures import design_figures
from bsa_bench.static.measured import Measured, read_measured
from bsa_bench.static.sides import Choice, configurations, open_side, pick_jobs
from bsa_bench.static.tables import markdown, print_tables
from bsa_bench.static.toolchain import triton_toolchain
from bsa_bench.store.find import results_files
from bsa_bench.suite.suggest import did_you_mean

_MOST_CAUSES = 3
"""Different reasons why nothing compiles that an error tells: one for each architecture."""
_WIDTH = 200
"""Columns of a table that goes to a file or a pipe."""


def show(request: Request, form: Literal["table", "md", "json"]) -> int:
    """Compile and show all configurations asked for.

    Returns:
        0, or `EXIT_SOME_FAILED` where some do not compile.
    """
    settings, devices = _settings(request), _devices(request)
    analyses = _analyses(_choice(request), settings, devices, _measured(request))
    content = document(analyses, settings, devices, design_figures())
    if form == "json":  # also where nothing compiled: it holds each failure with its log
        json.dump(content, sys.stdout, indent=1)
        sys.stdout.write("\n")
    code = _exit_code(analyses)
    if form == "md":
        sys.stdout.write(markdown(content))
    elif form == "table":
        print_tables(content, _console())
    return code


def explain_one(request: Request, name: str, *, with_sass: bool) -> int:
    """Explain each configuration that `name` means, on each architecture asked for.

    Returns:
        0, or `EXIT_SOME_FAILED` where it does not compile.
    """
    settings, devices = _settings(request), _devices(request)
    analyses = _analyses(replace(_choice(request), only=[name]), settings, devices, _measured(request))
    console, code = _console(), _exit_code(analyses)
    for each in analyses:
        if isinstance(each, Failure):
            console.print(f"{each.config.name}, {each.arch}: {each.message}\n{each.log}", markup=False, highlight=False)
        else:
            explain(each, console, roots=settings.toolchain.first_paths, with_sass=with_sass)
            console.print()
    return code


def diff_two(request: Request, base: str, head: str, *, as_json: bool) -> int:
    """Compare two toolchains or revisions.

    Returns:
        0, or `EXIT_SOME_FAILED` where something does not compile.
    """
    devices = _devices(request)
    sides: list[list[Analysis | Failure]] = []
    for side in (base, head):
        with open_side(side, _choice(request), _settings(request)) as (choice, settings):
            sides.append(_analyses(choice, settings, devices, _measured(request)))
    changes = compare(*sides)
    if as_json:
        json.dump({"base": base, "head": head, "changes": [c.as_dict() for c in changes]}, sys.stdout, indent=1)
        sys.stdout.write("\n")
    else:
        _print_changes(changes, base, head)
    return EXIT_SOME_FAILED if any(change.verdict == "failed" for change in changes) else EXIT_OK


def _settings(request: Request) -> Settings:
    cache = request.cache or default_cache()
    toolchain = triton_toolchain(request.triton, cache) if request.triton else Toolchain()
    settings = Settings(cache, use_cache=not request.no_cache, fp_fusion=request.fp_fusion, toolchain=toolchain)
    return replace(settings, processes=request.jobs) if request.jobs else settings


def _devices(request: Request) -> list[Device]:
    archs = _archs(request)
    for device in map(device_for, request.devices or []):
        if device.arch not in archs:
            raise UsageError(f"--device: {device.name} is {device.arch}, got --arch {', '.join(archs)}")
    devices = devices_for(archs, request.devices or [])
    return with_limits(devices, read_limits(request.limits)) if request.limits else devices


def _archs(request: Request) -> list[ArchName]:
    for name in request.archs or []:
        if name not in ARCH_NAMES:
            raise UsageError(
                f"--arch: got {name!r}, expected one of {', '.join(ARCH_NAMES)}{did_you_mean(name, ARCH_NAMES)}"
            )
    if request.archs:
        return [name for name in ARCH_NAMES if name in request.archs]
    named = {device_for(name).arch for name in request.devices or []}
    return [name for name in ARCH_NAMES if not named or name in named]


def _choice(request: Request) -> Choice:
    return Choice(
        only=request.only or (),
        kernel_set=request.kernel_set,
        config=request.config,
        kernel=request.kernel,
        archs=_archs(request),
        tokens=request.tokens,
        heads=request.heads,
        kv_density=request.kv_density,
        dtype=request.dtype,
    )


def _analyses(
    choice: Choice, settings: Settings, devices: Sequence[Device], measured: Sequence[Measured]
) -> list[Analysis | Failure]:
    progress = Progress(
        TextColumn("compiling"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=plain_console(file=sys.stderr),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    with Workers(settings.toolchain) as workers:
        jobs = pick_jobs(configurations(choice, workers), choice.only)
        with progress:
            task = progress.add_task("compile", total=len(jobs))

            def on_done(_: Compiled | Failure) -> None:
                progress.advance(task)

            compiled = compile_all(jobs, settings, workers=workers, on_done=on_done)
    return analyse(compiled, devices, measured)


def _measured(request: Request) -> list[Measured]:
    """From the project's committed runs; there are none outside a checkout.

    What ran were shipped tiles: nothing is known of candidates with the same constants.
    """
    if request.kernel_set != "shipped":
        return []
    folder = request.results / "reference"
    return read_measured(path.parent for path in results_files(folder))


def _exit_code(analyses: Sequence[Analysis | Failure]) -> int:
    """Where nothing compiled at all, the request itself was wrong."""
    failures = [each for each in analyses if isinstance(each, Failure)]
    if failures and len(failures) == len(analyses):
        raise UsageError(_all_failed(failures))
    return EXIT_SOME_FAILED if failures else EXIT_OK


def _all_failed(failures: Sequence[Failure]) -> str:
    """Each different cause once, with what it stopped first, and its log; the rest is a count."""
    causes: dict[str, list[Failure]] = {}
    for failure in failures:
        causes.setdefault(failure.message, []).append(failure)
    texts, num_named = [], 0
    for message, group in list(causes.items())[:_MOST_CAUSES]:
        same = [each for each in group if each.config.name == group[0].config.name]
        archs = ", ".join(each.arch for each in same)
        log = f"\n{group[0].log}" if group[0].log else ""
        texts.append(f"{group[0].config.name}, {archs}: {message}{log}")
        num_named += len(same)
    if more := len(failures) - num_named:
        texts.append(f"and {more} more that do not compile; --json lists them")
    return "\n".join(texts)


def _print_changes(changes: Sequence[Change], base: str, head: str) -> None:
    console = _console()
    counts = {verdict: sum(change.verdict == verdict for change in changes) for verdict in ("same", "same main loop")}
    console.print(
        f"{base} -> {head}: {len(changes)} compilations, {counts['same']} with the same code", highlight=False
    )
    for change in changes:
        if change.verdict == "same":
            continue
        console.print(Text(f"\n{change.name}, {change.arch}", "bold") + Text(f": {change.verdict}", "not bold"))
        if change.reason:
            console.print(f"  {change.reason}", markup=False, highlight=False)
        for figure, (before, after) in change.figures.items():
            values = " -> ".join("none" if value is None else str(value) for value in (before, after))
            console.print(f"  {figure}: {values}", markup=False, highlight=False)
        if change.opcodes:
            console.print(
                "  main loop: " + ", ".join(f"{count:+d} {op}" for op, count in change.opcodes.items()),
                markup=False,
                highlight=False,
            )
        for line in change.lines:
            style = {"-": "red", "+": "green", "@": "cyan"}.get(line[0])
            console.print(f"  {line}", style=style, markup=False, highlight=False, soft_wrap=True)


def _console() -> Console:
    return plain_console(elsewhere=_WIDTH)
