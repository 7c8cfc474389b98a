"""What others published: a section of its own, apart from all that was measured."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bsa_bench.imports.record import Published, read_published
from bsa_bench.report.tables import table
from bsa_bench.units import format_bytes, format_seconds, three_digits

MOST_ROWS = 200
NOTE = (
    "None of these figures was measured here. They are what others published, from other machines, by their own timers "
    "and FLOP counts; no other table, finding or speed-up of this report contains one."
)


@dataclass(frozen=True)
class Collection:
    """The files of published figures that a report was given, and what is in them, each figure once."""

    paths: tuple[Path, ...]
    figures: tuple[Published, ...]


def read_collection(paths: Sequence[Path]) -> Collection:
    """Read the files.

    Raises:
        UsageError: one of them is not as `bsa-bench import` writes it.
    """
    found: dict[str, Published] = {}
    for path in paths:
        for figure in read_published(path):
            found.setdefault(figure.model_dump_json(), figure)
    return Collection(tuple(paths), tuple(found.values()))


def published_lines(collection: Collection) -> list[str]:
    """The section's lines: a note, a table with a row for each published case, and the files that they are from."""
    figures = collection.figures
    if not figures:
        return []
    cases: dict[tuple[object, ...], list[Published]] = {}
    for each in figures:
        case = (each.source_sha256, each.label, each.implementation, each.device, each.axes.model_dump_json())
        cases.setdefault(case, []).append(each)
    head = ["Tool", "Implementation", "Device", "Shape", "Pass", "Length", "Value"]
    lines = [NOTE, "", *table(head, [_row(each) for each in list(cases.values())[:MOST_ROWS]], words=5)]
    if len(cases) > MOST_ROWS:
        lines += ["", f"The first {MOST_ROWS} of {len(cases):,} cases; the files have all of them."]
    sources = {(each.source_file, each.source_sha256, each.tool) for each in figures}
    lines += ["", "Imported from:", ""]
    lines += [f"- {plain(name)} ({tool}), SHA-256 `{digest}`" for name, digest, tool in sorted(sources)]
    return lines


def value_text(figure: Published) -> str:
    """`median 803 us`, `1552 TFLOP/s`, `1.50 GiB`."""
    match figure.metric:
        case "latency":
            return f"{figure.statistic or ''} {format_seconds(figure.value)}".strip()
        case "throughput":
            return f"{three_digits(figure.value / 1e12)} TFLOP/s"
        case "memory":
            return format_bytes(figure.value)


def shape_words(figure: Published) -> list[str]:
    """What the file says but for the length: `batch 2`, `40 heads x 128`, `bfloat16`, `no mask`, `model wan`."""
    axes = figure.axes
    words = [f"batch {axes.batch}"] if axes.batch not in {None, 1} else []
    if axes.heads:
        grouped = f"/{axes.heads_kv}" if axes.heads_kv not in {None, axes.heads} else ""
        words.append(f"{axes.heads}{grouped} heads" + (f" x {axes.head_dim}" if axes.head_dim else ""))
    elif axes.head_dim:
        words.append(f"head dim {axes.head_dim}")
    words += [axes.dtype] if axes.dtype else []
    words += [f"{'no' if axes.mask == 'none' else axes.mask} mask"] if axes.mask else []
    words += [f"density {axes.density:g}"] if axes.density else []
    return words + [name if value == "True" else f"{name} {value}" for name, value in axes.other.items()]


def plain(text: str) -> str:
    """Text from a file, so that Markdown shows it as it is."""
    return re.sub(r"([\\`*_\[\]<>#~&])", r"\\\1", text)


def _row(figures: Sequence[Published]) -> list[str]:
    """The row of one published case."""
    first = figures[0]
    axes = first.axes
    length = f"{axes.length:,}" if axes.length else "-"
    if axes.length_kv not in {None, axes.length}:
        length += f" x {axes.length_kv:,}"
    return [
        plain(f"{first.tool} ({first.label})" if first.label else first.tool),
        plain(first.implementation),
        plain(first.origin),
        plain(", ".join(shape_words(first))) or "-",
        axes.passes or "-",
        length,
        ", ".join(value_text(each) for each in figures),
    ]
