"""The document as tables: for the terminal (rich) and for Markdown, from one list of columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from bsa_bench.units import three_digits

Row = Mapping[str, Any]
_ROOMY = 130


@dataclass(frozen=True)
class Column:
    """A column: its header and the text of its cell.

    `from_width`: characters a line that it asks for to be shown; Markdown has room for all but the `is_short` ones,
    which stand for a longer one.
    """

    header: str
    cell: Callable[[Row], str]
    from_width: float = 0
    is_text: bool = False
    is_short: bool = False


def _main(row: Row) -> Row | None:
    return next((loop for loop in row["loops"] if loop["is_main"]), None)


def _in_main(key: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        main = _main(row)
        return "-" if main is None else str(main["mix"].get(key, 0))

    return cell


def _spills(row: Row) -> str:
    main = _main(row)
    inside = main["spill_loads"] + main["spill_stores"] if main else 0
    return f"{inside} / {row['spill_loads'] + row['spill_stores']}"


def _tensor(row: Row) -> str:
    main = _main(row)
    if main is None or not main["tensor"]:
        return "-"
    groups: dict[str, dict[str, int]] = {}
    for each in main["tensor"]:
        shapes = groups.setdefault(each["class"], {})
        shapes[each["shape"]] = shapes.get(each["shape"], 0) + each["count"]
    texts = {
        name: ", ".join(f"{count} x {shape}" for shape, count in shapes.items()) for name, shapes in groups.items()
    }
    return "; ".join(f"{name} {text}" for name, text in texts.items())


def _classes(row: Row) -> str:
    main = _main(row)
    return ", ".join(dict.fromkeys(each["class"] for each in main["tensor"])) if main else "-"


def _a_source(row: Row) -> str:
    main = _main(row)
    return ", ".join(dict.fromkeys(each["a_source"] for each in main["tensor"])) if main else "-"


def _loads(row: Row) -> str:
    main = _main(row)
    if main is None:
        return "-"
    kinds = ("plain", "cp.async", "TMA", "atomic")
    found: dict[str, int] = {}
    for each in main["accesses"]:
        if each["kind"] in kinds:
            width = "" if each["bytes_per_lane"] is None else f" {each['bytes_per_lane']} B"
            found[each["kind"] + width] = found.get(each["kind"] + width, 0) + each["count"]
    return ", ".join(f"{count} x {what}" for what, count in found.items()) or "-"


def _buffers(row: Row) -> str:
    pipeline = row["pipeline"]
    if _main(row) is None:
        return "-"
    return f"{pipeline['depth']} of {pipeline['wanted_depth']}"


def _occupancy(row: Row) -> str:
    return f"{row['occupancy']['ctas']} ({row['occupancy']['limited_by'].removesuffix(' memory')})"


def _instructions(row: Row) -> str:
    main = _main(row)
    if main is None:
        return "-"
    return str(main["num_instructions"])


COLUMNS = (
    Column("configuration", lambda r: r["name"], is_text=True),
    Column("registers", lambda r: str(r["registers"])),
    Column("stack B", lambda r: str(r["stack_bytes"]), from_width=_ROOMY),
    Column("spills main / all", _spills),
    Column("shared KiB", lambda r: f"{r['shared_bytes'] / 1024:.1f}", from_width=_ROOMY),
    Column("CTAs on an SM", _occupancy, is_text=True),
    Column("tensor cores", _classes, is_text=True, is_short=True),
    Column("tensor instructions a trip", _tensor, is_text=True, from_width=math.inf),
    Column("A from", _a_source, from_width=math.inf, is_text=True),
    Column("buffers", _buffers),
    Column("loads a trip", _loads, from_width=math.inf, is_text=True),
    Column("instructions a trip", _instructions, from_width=_ROOMY),
    Column("exp2", _in_main("exp2"), from_width=_ROOMY),
    Column("conversions", _in_main("conversion"), from_width=math.inf),
    Column("barriers", _in_main("barrier"), from_width=math.inf),
    Column("shuffles", _in_main("shuffle"), from_width=math.inf),
)


def _ceiling_columns(device: str) -> tuple[Column, ...]:
    def of(row: Row) -> Row | None:
        return next((each for each in row["ceilings"] if each["device"] == device), None)

    def tera(key: str) -> Callable[[Row], str]:
        return lambda row: three_digits(found[key] / 1e12) if (found := of(row)) else "-"

    def limited(row: Row) -> str:
        return found["limited_by"] if (found := of(row)) else str(row["no_ceiling"] or "-")

    def measured(row: Row) -> str:
        rates = [each["flop_per_s"] / 1e12 for each in row["measured"] if each["device"] == device]
        return ", ".join(map(three_digits, rates)) or "-"

    return (
        Column("overlapped TFLOP/s", tera("overlapped_flop_per_s")),
        Column("limited by", limited, is_text=True),
        Column("in order TFLOP/s", tera("in_order_flop_per_s"), from_width=_ROOMY),
        Column("measured TFLOP/s", measured),
    )


def _figure(row: Row, key: str) -> str:
    figures = row["design_figures"] or {}
    value = figures.get(key)
    if value is None:
        return "-"
    return f"{value[0]}-{value[1]}" if isinstance(value, list) else str(value)


DESIGN_COLUMNS = (
    COLUMNS[0],
    Column("registers", lambda r: f"{r['registers']} | {_figure(r, 'registers')}"),
    Column("shared kB", lambda r: f"{r['shared_bytes'] / 1000:.0f} | {_figure(r, 'shared_kb')}"),
    Column("CTAs", lambda r: f"{r['occupancy']['ctas']} | {_figure(r, 'ctas')}"),
    Column("stack B | spilled B", lambda r: f"{r['stack_bytes']} | {_figure(r, 'spill_bytes')}"),
    Column("buffers", lambda r: f"{r['pipeline']['depth']} | {_figure(r, 'buffers')}"),
    Column("tensor", lambda r: f"{_classes(r)} | {_figure(r, 'tensor')}", is_text=True),
)


@dataclass(frozen=True)
class Section:
    """A table with its title."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]


def sections(document: Row, *, width: float) -> Iterator[Section]:
    """One table for each architecture; then, where there are design figures, ours beside them."""
    columns = [c for c in COLUMNS if c.from_width <= width and not (c.is_short and math.isinf(width))]
    archs = list(dict.fromkeys(row["arch"] for row in document["configurations"]))
    for arch in archs:
        rows = [row for row in document["configurations"] if row["arch"] == arch]
        devices = [name for name, device in document["devices"].items() if device["arch"] == arch]
        ceilings = [c for d in devices for c in _named(_ceiling_columns(d), d, devices) if c.from_width <= width]
        if not any(row["measured"] for row in rows):
            ceilings = [column for column in ceilings if not column.header.startswith("measured")]
        on = (
            f", ceilings on {' and '.join(_titled(name, document['devices'][name]) for name in devices)}"
            if devices
            else ""
        )
        yield Section(f"{arch}{on}", [*columns, *ceilings], rows)
    for arch in archs:
        known = [row for row in document["configurations"] if row["arch"] == arch and row["design_figures"]]
        if known:
            yield Section(f"{arch}: read now | the design's figure", DESIGN_COLUMNS, known)


def _titled(name: str, device: Row) -> str:
    measured = device["matmul_flop_per_s"]
    if measured is None:
        return name
    return f"{name} (largest matrix product measured: {three_digits(measured['value'] / 1e12)} TFLOP/s)"


def _named(columns: Sequence[Column], device: str, devices: Sequence[str]) -> Iterator[Column]:
    for column in columns:
        header = f"{column.header} ({device})" if len(devices) > 1 else column.header
        yield replace(column, header=header)


def grouped_findings(document: Row) -> list[tuple[str, list[str]]]:
    """Each finding once, with the configurations that have it."""
    groups: dict[str, list[str]] = {}
    for row in document["configurations"]:
        for finding in row["findings"]:
            groups.setdefault(f"{row['arch']}: {finding}", []).append(row["name"])
    return sorted(groups.items())


def markdown(document: Row) -> str:
    """The whole document as Markdown."""
    parts = [f"Compiled by Triton {', '.join(document['toolchain']['triton']) or '-'} ({_flags(document)}).", ""]
    for section in sections(document, width=math.inf):
        parts += [f"### {section.title}", "", _markdown_table(section), ""]
    if failures := document["failures"]:
        parts += [
            "### Not compiled",
            "",
            *(f"- `{f['name']}`, {f['arch']}: {f['kind']}: {f['message']}" for f in failures),
        ]
        parts.append("")
    if found := grouped_findings(document):
        parts += [
            "### Findings",
            "",
            *(f"- {text} — {', '.join(f'`{n}`' for n in names)}" for text, names in found),
            "",
        ]
    parts += ["### What the ceilings assume", "", *(f"- {text}" for text in document["assumptions"])]
    parts += [f"- Left out: {text}." for text in document["left_out"]]
    parts += ["", "### Figures of the architectures and devices", "", *_figure_lines(document)]
    return "\n".join(parts) + "\n"


def _flags(document: Row) -> str:
    toolchain = document["toolchain"]
    fusion = "on" if toolchain["fp_fusion"] else "off"
    return f"floating-point fusion {fusion}, line info {'on' if toolchain['line_info'] else 'off'}"


def _markdown_table(section: Section) -> str:
    def escaped(text: str) -> str:
        return text.replace("|", "\\|")

    header = "| " + " | ".join(escaped(column.header) for column in section.columns) + " |"
    rule = "|" + "|".join("---" if column.is_text else "---:" for column in section.columns) + "|"
    rows = ("| " + " | ".join(escaped(column.cell(row)) for column in section.columns) + " |" for row in section.rows)
    return "\n".join([header, rule, *rows])


def _figure_lines(document: Row) -> Iterator[str]:
    for name, figures in {**document["architectures"], **document["devices"]}.items():
        groups: dict[tuple[str, bool], list[str]] = {}
        for key, figure in _flattened(figures):
            groups.setdefault((figure["source"], figure["measured"]), []).append(f"{key} {figure['value']:.6g}")
        for (source, measured), texts in groups.items():
            yield f"- {name}: {', '.join(texts)} ({'measured; ' if measured else ''}{source})"


def _flattened(figures: Row, prefix: str = "") -> Iterator[tuple[str, Row]]:
    for key, value in figures.items():
        if isinstance(value, Mapping) and "source" in value:
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{key} ")


def print_tables(document: Row, console: Console) -> None:
    """Show the document on a terminal."""
    for section in sections(document, width=console.width):
        table = Table(
            title=section.title, title_justify="left", header_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
        )
        for column in section.columns:
            is_name = column is section.columns[0]
            table.add_column(
                column.header, justify="left" if column.is_text else "right", no_wrap=is_name or column.is_short
            )
        for row in section.rows:
            table.add_row(*(column.cell(row) for column in section.columns))
        console.print(table)
    for text, names in grouped_findings(document):
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        console.print(f"- {text} [{shown}]", markup=False, highlight=False)
    for failure in document["failures"]:
        console.print(
            f"not compiled: {failure['name']}, {failure['arch']}: {failure['message']}", markup=False, highlight=False
        )
    console.print(f"\nTriton {', '.join(document['toolchain']['triton'])}; {_flags(document)}. Ceilings assume:")
    for text in document["assumptions"]:
        console.print(f"- {text}", markup=False, highlight=False)
    for text in document["left_out"]:
        console.print(f"- left out: {text}", markup=False, highlight=False)
