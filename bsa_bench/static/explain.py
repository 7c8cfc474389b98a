"""One configuration explained: what its main loop does, line by line of the source, and which resource limits it."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bsa_bench.static.analyse import Analysis
from bsa_bench.static.classify import Kind, kind_of, pipe_of
from bsa_bench.static.model import Ceiling
from bsa_bench.static.regions import LineCount, Region, own_line
from bsa_bench.static.sass import Instruction, SourceLine
from bsa_bench.units import three_digits

_COLUMNS: dict[str, tuple[Kind, ...]] = {
    "tensor": ("tensor",),
    "exp2": ("exp2", "other special function"),
    "fp32": ("fp32",),
    "convert": ("conversion",),
    "integer": ("integer and logic", "uniform"),
    "shuffle": ("shuffle",),
    "global": ("global load", "cp.async", "TMA", "global store", "atomic"),
    "shared": ("shared load", "shared store", "tensor memory"),
    "spill": ("spill load", "spill store"),
    "barrier": ("barrier",),
}
_LEAST_SOURCE = 16
"""Characters; with less room, source lines are left out."""
_LOADS = {"global load", "cp.async", "TMA"}
_USERS: dict[str, Callable[[Instruction], bool]] = {
    "tensor cores": lambda each: kind_of(each) == "tensor",
    "shared memory": lambda each: (
        kind_of(each) in {"shared load", "shared store", "cp.async", "TMA"} or "gdesc" in each.operands
    ),
    "issue slots": lambda _: True,
    "fp32": lambda each: pipe_of(each) == "fma",
    "integer and logic": lambda each: pipe_of(each) == "alu",
    "exp and other special functions": lambda each: pipe_of(each) == "mufu",
    "shuffles": lambda each: kind_of(each) == "shuffle",
    "L2": lambda each: kind_of(each) in _LOADS,
    "HBM": lambda each: kind_of(each) in _LOADS,
}


def explain(analysis: Analysis, console: Console, *, roots: Sequence[Path] = (), with_sass: bool = False) -> None:
    """Print a configuration's resources, its ceilings and its annotated main loop.

    Args:
        analysis: what to explain.
        console: where to.
        roots: folders in which source files are looked up before those of Python's path.
        with_sass: also each instruction of the main loop, under its source line.
    """
    reading, record = analysis.reading, analysis.reading.compiled.record
    console.print(Text(analysis.name, "bold") + Text(f", {reading.sass.target}, Triton {record.triton}", "not bold"))
    console.print(
        f"{record.registers} registers, {record.stack_bytes} bytes of stack, {record.shared_bytes / 1024:.1f} KiB of "
        f"shared memory, {record.num_warps} warps: {reading.occupancy.ctas} CTAs on an SM "
        f"({reading.occupancy.limited_by})",
        highlight=False,
    )
    for finding in analysis.findings:
        console.print(f"- {finding}", markup=False, highlight=False)
    main = reading.main
    if main is None:
        console.print("no loop with matrix products, so nothing more to say about a main loop")
        return
    for ceiling in analysis.ceilings:
        _print_resources(ceiling, console)
    if analysis.no_ceiling:
        console.print(f"no ceiling: {analysis.no_ceiling}", markup=False, highlight=False)
    limit = analysis.ceilings[0].resources[0].name if analysis.ceilings else None
    own_folder = Path(reading.compiled.config.kernel.rpartition(":")[0]).parent
    source = _Source([*roots, own_folder])
    lines = itertools.chain(
        _by_line(main, limit, source, width=console.width), _sass(main, limit, source) if with_sass else ()
    )
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _print_resources(ceiling: Ceiling, console: Console) -> None:
    console.print(
        f"{ceiling.device}: at most {three_digits(ceiling.overlapped_flop_per_s / 1e12)} TFLOP/s, set by "
        f"{ceiling.limited_by}; {three_digits(ceiling.in_order_flop_per_s / 1e12)} if products and the rest take turns",
        highlight=False,
    )
    table = Table(header_style="bold", box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("resource")
    table.add_column("clocks\na trip", justify="right")
    table.add_column("of the\nslowest", justify="right")
    has_branches = any(round(resource.optional_clocks) for resource in ceiling.resources)
    if has_branches:
        table.add_column("more with\nall branches", justify="right")
    table.add_column("for")
    for resource in ceiling.resources:
        share = resource.clocks / ceiling.overlapped_clocks
        more = [f"{resource.optional_clocks:.0f}" if round(resource.optional_clocks) else ""] if has_branches else []
        name = f"{resource.name} ({resource.filled_by})" if resource.filled_by else resource.name
        table.add_row(Text(name), f"{resource.clocks:.0f}", f"{share:.0%}", *more, Text(resource.detail))
    console.print(table, "")


def _by_line(main: Region, limit: str | None, source: _Source, *, width: int) -> Iterator[str]:
    """A table by hand, file by file: the numbers as narrow as they are, what is left for the source."""
    shown = {name: kinds for name, kinds in _COLUMNS.items() if any(main.count(kind) for kind in kinds)}
    uses = _USERS[limit] if limit else (lambda _: False)
    users = {own_line(each.source) for each in main.instructions if uses(each)}
    branches = ["branch"] if any(each.num_optional for each in main.lines) else []
    table = [["  line", "all", *branches, *shown]]
    for each in main.lines:
        counts = [each.num_optional for _ in branches]
        counts += [sum(each.mix.get(kind, 0) for kind in kinds) for kinds in shown.values()]
        place = str(each.line.line) if each.line else "?"
        mark = "*" if each.line in users else " "
        table.append([f"{mark}{place:>5}", str(each.count), *(str(count or "") for count in counts)])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    gap = 2 if sum(widths) + 2 * len(widths) + _LEAST_SOURCE <= width else 1
    room = width - sum(widths) - gap * len(widths)
    texts = ["source", *(source.text(each.line) for each in main.lines)]
    rows = [
        (" " * gap).join([*(c.rjust(w) for c, w in zip(cells, widths, strict=True)), _cut(text, room)]).rstrip()
        for cells, text in zip(table, texts, strict=True)
    ]
    about = "; branch: not in each trip" if branches else ""
    yield f"main loop, one trip of a warp{f'; * uses {limit}' if limit else ''}{about}"
    yield rows[0]
    yield "─" * max(map(len, rows))
    # Lines of one file stand together, so that its name needs no column.
    for file, group in itertools.groupby(zip(main.lines, rows[1:], strict=True), key=lambda pair: _file(pair[0])):
        yield file
        yield from (row for _, row in group)


def _file(each: LineCount) -> str:
    return each.line.file if each.line else "no line info"


def _cut(text: str, room: int) -> str:
    if room < _LEAST_SOURCE:
        return ""
    return text if len(text) <= room else f"{text[: room - 1]}…"


def _sass(main: Region, limit: str | None, source: _Source) -> Iterator[str]:
    uses = _USERS[limit] if limit else (lambda _: False)
    last: SourceLine | None = None
    yield ""
    for number, each in enumerate(main.instructions):
        line = own_line(each.source)
        if line != last or number == 0:
            yield f"{line or '?'}  {source.text(line)}"
            last = line
        yield f"  {'*' if uses(each) else ' '} {each.address:05x}  {each}"


class _Source:
    """The text of source lines, from files that are found below some folders."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self._roots = [*roots, *(Path(entry) for entry in sys.path if entry)]
        self._files: dict[str, list[str]] = {}

    def text(self, line: SourceLine | None) -> str:
        """The line without its indentation; empty where the file is not here."""
        if line is None:
            return ""
        if line.file not in self._files:
            found = next((path for root in self._roots if (path := root / line.file).is_file()), None)
            self._files[line.file] = found.read_text(encoding="utf-8").splitlines() if found else []
        lines = self._files[line.file]
        return lines[line.line - 1].strip() if line.line <= len(lines) else ""
