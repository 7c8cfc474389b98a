"""What the tables of `static` show: columns that take their cells from the document, and which stand together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bsa_bench.units import three_digits

Row = Mapping[str, Any]
_SHORT_NAMES = {
    "exp and other special functions": "exp",
    "additions to memory": "additions",
    "integer and logic": "integer",
    "integer multiply-adds": "multiply-adds",
    "comparisons, minimum and maximum": "comparisons",
}


@dataclass(frozen=True)
class Column:
    """A column: its header, in the lines that a terminal gives it, and the text of its cell.

    `rank`: a terminal shows the lowest first, and as many as there is room for; those without one are for Markdown,
    which shows all but the `is_short` ones, which stand for a longer one.
    """

    header: str
    cell: Callable[[Row], str]
    rank: int | None = None
    is_text: bool = False
    is_short: bool = False

    def width(self, rows: Sequence[Row]) -> int:
        """Of its longest line."""
        return max(map(len, (*self.header.splitlines(), *(self.cell(row) for row in rows))))


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
    return f"{inside}/{row['spill_loads'] + row['spill_stores']}"


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


def _instructions(row: Row) -> str:
    main = _main(row)
    if main is None:
        return "-"
    always = main["num_instructions"] - main["num_optional"]
    return f"{always} + {main['num_optional']}" if main["num_optional"] else str(always)


COLUMNS = (
    Column("configuration", lambda r: r["name"], rank=0, is_text=True),
    Column("registers", lambda r: str(r["registers"]), rank=4),
    Column("stack\nB", lambda r: str(r["stack_bytes"]), rank=14),
    Column("spills\nmain/all", _spills, rank=5),
    Column("shared\nKiB", lambda r: f"{r['shared_bytes'] / 1024:.1f}", rank=11),
    Column("CTAs\non an SM", lambda r: str(r["occupancy"]["ctas"]), rank=6),
    Column("CTAs\nset by", lambda r: r["occupancy"]["limited_by"].removesuffix(" memory"), rank=12, is_text=True),
    Column("tensor\ncores", _classes, rank=8, is_text=True, is_short=True),
    Column("tensor instructions a trip", _tensor, is_text=True),
    Column("A from", _a_source, is_text=True),
    Column("buffers", _buffers, rank=9),
    Column("loads a trip", _loads, is_text=True),
    Column("instructions\na trip", _instructions, rank=10),
    Column("exp2", _in_main("exp2"), rank=13),
    Column("conversions", _in_main("conversion")),
    Column("barriers", _in_main("barrier")),
    Column("shuffles", _in_main("shuffle")),
)


def _ceiling_columns(device: str) -> tuple[Column, ...]:
    def of(row: Row) -> Row | None:
        return next((each for each in row["ceilings"] if each["device"] == device), None)

    def tera(key: str) -> Callable[[Row], str]:
        return lambda row: three_digits(found[key] / 1e12) if (found := of(row)) else "-"

    def limited(row: Row) -> str:
        name = str(found["limited_by"]) if (found := of(row)) else "-"
        return _SHORT_NAMES.get(name, name)

    def measured(row: Row) -> str:
        rates = [each["flop_per_s"] / 1e12 for each in row["measured"] if each["device"] == device]
        return ", ".join(map(three_digits, rates)) or "-"

    return (
        Column("overlapped\nTFLOP/s", tera("overlapped_flop_per_s"), rank=1),
        Column("set by", limited, rank=2, is_text=True),
        Column("in order\nTFLOP/s", tera("in_order_flop_per_s"), rank=7),
        Column("measured\nTFLOP/s", measured, rank=3),
    )


def _figure(row: Row, key: str) -> str:
    figures = row["design_figures"] or {}
    value = figures.get(key)
    if value is None:
        return "-"
    return f"{value[0]}-{value[1]}" if isinstance(value, list) else str(value)


DESIGN_COLUMNS = (
    COLUMNS[0],
    Column("registers", lambda r: f"{r['registers']} | {_figure(r, 'registers')}", rank=1),
    Column("shared\nkB", lambda r: f"{r['shared_bytes'] / 1000:.0f} | {_figure(r, 'shared_kb')}", rank=2),
    Column("CTAs", lambda r: f"{r['occupancy']['ctas']} | {_figure(r, 'ctas')}", rank=3),
    Column("stack B |\nspilled B", lambda r: f"{r['stack_bytes']} | {_figure(r, 'spill_bytes')}", rank=4),
    Column("buffers", lambda r: f"{r['pipeline']['depth']} | {_figure(r, 'buffers')}", rank=5),
    Column("tensor", lambda r: f"{_classes(r)} | {_figure(r, 'tensor')}", rank=6, is_text=True),
)


@dataclass(frozen=True)
class Section:
    """A table with its title."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]


def sections(document: Row) -> Iterator[Section]:
    """One table for each architecture, with all columns; then, where there are design figures, ours beside them."""
    archs = list(dict.fromkeys(row["arch"] for row in document["configurations"]))
    for arch in archs:
        rows = [row for row in document["configurations"] if row["arch"] == arch]
        devices = {name: device for name, device in document["devices"].items() if device["arch"] == arch}
        ceilings = [column for name in devices for column in _named(_ceiling_columns(name), name, len(devices))]
        if not any(row["measured"] for row in rows):
            ceilings = [column for column in ceilings if not column.header.startswith("measured")]
        on = " and ".join(_titled(name, device) for name, device in devices.items())
        yield Section(f"{arch}, ceilings on {on}" if on else arch, [*COLUMNS, *ceilings], rows)
    for arch in archs:
        known = [row for row in document["configurations"] if row["arch"] == arch and row["design_figures"]]
        if known:
            title = f"{arch}: read now | the design's figure ({document['design_figures_source']})"
            yield Section(title, DESIGN_COLUMNS, known)


def _titled(name: str, device: Row) -> str:
    measured = device["matmul_flop_per_s"]
    if measured is None:
        return name
    return f"{name} (largest matrix product measured: {three_digits(measured['value'] / 1e12)} TFLOP/s)"


def _named(columns: Sequence[Column], device: str, num_devices: int) -> Iterator[Column]:
    for column in columns:
        yield replace(column, header=f"{column.header}\n({device})") if num_devices > 1 else column
