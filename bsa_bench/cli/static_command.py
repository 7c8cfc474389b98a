"""What `static` does: compile, analyse, show."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bsa_bench.cli.static_app import Request
from bsa_bench.errors import EXIT_OK, EXIT_SOME_FAILED, UsageError
from bsa_bench.limits.file import read_limits, with_limits
from bsa_bench.static.analyse import Analysis, analyse, devices_for
from bsa_bench.static.compile import (
    Compiled,
    Failure,
    Settings,
    Toolchain,
    compile_all,
    default_cache,
    list_configs,
)
from bsa_bench.static.config import ARCH_NAMES, ArchName, KernelConfig, check_kernel, load_configs, pick
from bsa_bench.static.devices import Device, device_for
from bsa_bench.static.diff import Change, compare
from bsa_bench.static.document import document
from bsa_bench.static.explain import explain
from bsa_bench.static.figures import design_figures
from bsa_bench.static.measured import Measured, read_measured
from bsa_bench.static.tables import markdown, print_tables
from bsa_bench.static.toolchain import revision_sources, triton_toolchain
from bsa_bench.suite.suggest import did_you_mean

_WIDTH = 200
"""Columns of a table that goes to a file or a pipe."""


def show(request: Request, form: Literal["table", "md", "json"]) -> int:
    """Compile and show all configurations asked for.

    Returns:
        0, or `EXIT_SOME_FAILED` where some do not compile.
    """
    settings, devices = _settings(request), _devices(request)
    analyses = _analyses(request, settings, devices)
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
    analyses = _analyses(replace(request, only=[name]), settings, devices)
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
        with _side(request, side) as (settings, own):
            sides.append(_analyses(own, settings, devices))
    changes = compare(*sides)
    if as_json:
        json.dump({"base": base, "head": head, "changes": [c.as_dict() for c in changes]}, sys.stdout, indent=1)
        sys.stdout.write("\n")
    else:
        _print_changes(changes, base, head)
    return EXIT_SOME_FAILED if any(change.verdict == "failed" for change in changes) else EXIT_OK


@contextlib.contextmanager
def _side(request: Request, side: str) -> Iterator[tuple[Settings, Request]]:
    settings = _settings(request)
    if side == ".":
        yield settings, request
    elif side.startswith("triton=="):
        yield _settings(replace(request, triton=side.removeprefix("triton=="))), request
    else:
        with revision_sources(side, Path.cwd()) as folder:
            toolchain = settings.toolchain
            paths = (*toolchain.first_paths, folder, folder / "kernels")
            own = request
            if request.config is not None:
                own = replace(own, config=_in_revision(request.config, folder, side))
            if request.kernel is not None and request.kernel.rpartition(":")[0].endswith(".py"):
                place, _, name = request.kernel.rpartition(":")
                own = replace(own, kernel=f"{_in_revision(Path(place), folder, side)}:{name}")
            yield replace(settings, toolchain=replace(toolchain, label=side, first_paths=paths)), own


def _in_revision(path: Path, folder: Path, revision: str) -> Path:
    """The same file among the sources of a revision."""
    top = next((p for p in (Path.cwd(), *Path.cwd().parents) if (p / ".git").exists()), Path.cwd())
    absolute = path.resolve()
    if not absolute.is_relative_to(top):
        raise UsageError(f"{path}: expected a file of the repository {top}, to find it in revision {revision}")
    found = folder / absolute.relative_to(top)
    if not found.is_file():
        raise UsageError(f"{path}: is not in revision {revision}")
    return found


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


def _jobs(request: Request, toolchain: Toolchain) -> list[tuple[KernelConfig, ArchName]]:
    """What is compiled for which architecture; each has its own tiles."""
    by_arch = _configs(request, toolchain)
    unique = {config.name: config for configs in by_arch.values() for config in configs}
    picked = {config.name for config in pick(list(unique.values()), request.only or [])}
    return [(config, arch) for arch, configs in by_arch.items() for config in configs if config.name in picked]


def _configs(request: Request, toolchain: Toolchain) -> dict[ArchName, list[KernelConfig]]:
    archs = _archs(request)
    if request.config is not None:
        return dict.fromkeys(archs, load_configs(request.config, kernel=request.kernel))
    if request.kernel is not None:
        try:
            check_kernel(request.kernel)
        except ValueError as error:
            raise UsageError(f"--{error}") from error
        raise UsageError("--kernel: needs --config FILE.toml with the kernel's signature; docs/static.md shows one")
    shape = {"tokens": request.tokens, "heads": request.heads, "kv_density": request.kv_density}
    return list_configs(request.kernel_set, shape, archs, dtype=request.dtype, toolchain=toolchain)


def _analyses(request: Request, settings: Settings, devices: Sequence[Device]) -> list[Analysis | Failure]:
    jobs = _jobs(request, settings.toolchain)
    progress = Progress(
        TextColumn("compiling"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    with progress:
        task = progress.add_task("compile", total=len(jobs))

        def on_done(_: Compiled | Failure) -> None:
            progress.advance(task)

        return analyse(compile_all(jobs, settings, on_done=on_done), devices, _measured(request))


def _measured(request: Request) -> list[Measured]:
    """From the project's committed runs; there are none outside a checkout.

    What ran were shipped tiles: nothing is known of candidates with the same constants.
    """
    if request.kernel_set != "shipped":
        return []
    folder = request.results / "reference"
    return read_measured(path.parent for path in sorted(folder.glob("*/results.jsonl")))


def _exit_code(analyses: Sequence[Analysis | Failure]) -> int:
    """Where nothing compiled at all, the request itself was wrong."""
    failures = [each for each in analyses if isinstance(each, Failure)]
    if failures and len(failures) == len(analyses):
        first, more = failures[0], len(failures) - 1
        log = f"\n{first.log}" if first.log else ""
        others = f"\nand {more} more that do not compile; --json lists them" if more else ""
        raise UsageError(f"{first.config.name}, {first.arch}: {first.message}{log}{others}")
    return EXIT_SOME_FAILED if failures else EXIT_OK


def _print_changes(changes: Sequence[Change], base: str, head: str) -> None:
    console = _console()
    counts = {verdict: sum(change.verdict == verdict for change in changes) for verdict in ("same", "same main loop")}
    console.print(
        f"{base} -> {head}: {len(changes)} compilations, {counts['same']} with the same code", highlight=False
    )
    for change in changes:
        if change.verdict == "same":
            continue
        console.print(f"\n[bold]{change.name}, {change.arch}[/bold]: {change.verdict}", highlight=False)
        if change.reason:
            console.print(f"  {change.reason}", markup=False, highlight=False)
        for figure, (before, after) in change.figures.items():
            console.print(f"  {figure}: {before} -> {after}", markup=False, highlight=False)
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
    is_terminal = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console() if is_terminal else Console(width=_WIDTH)
