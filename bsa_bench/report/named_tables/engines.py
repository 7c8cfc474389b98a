"""`engines`: the same method and options on different engines."""

from __future__ import annotations

from dataclasses import replace

from bsa_bench.report.named_tables import notes
from bsa_bench.report.named_tables.cells import BYTES, FLOP_RATES, doubts, number_cell, pick_unit
from bsa_bench.report.named_tables.fields import Field, empty, name_field, pass_fields, rows_of
from bsa_bench.report.named_tables.material import Block, Entry, Material, block_titles
from bsa_bench.report.named_tables.memory import peak_bytes
from bsa_bench.report.table_model import NOTHING, Cell, Column, RowGroup, Table

NAME = "engines"
_EXECUTED = (
    "Executed FLOP/s and memory are of one pass, the first of those shown: FLOP of the tiles that the engine visits, "
    "padding included, over the median latency. Peak memory is above the inputs."
)


def build(material: Material) -> Table:
    """A group of rows for each method with its options at a workload that was measured on several engines.

    Raises:
        EmptyTableError: no method was measured on two engines at one workload.
    """
    passes = material.passes()
    blocks = material.blocks()
    titles = dict(zip(map(id, blocks), block_titles(material, blocks), strict=True))
    compared = [(titles[id(block)], each) for block in blocks for each in _by_method(block)]
    if not compared:
        raise empty(NAME, material, "one method with the same options on two engines", "quick", "kernel-first")
    shown = [row for _, block in compared for row in rows_of(block)]
    rate_unit = pick_unit((row.executed_flop_per_s for row in shown), FLOP_RATES)
    bytes_unit = pick_unit((peak_bytes(row) for row in shown), BYTES)
    fields = [
        name_field(material.labels),
        *pass_fields([block for _, block in compared], passes),
        Field(Column("executed_flop_per_s", "Executed", rate_unit.name, scale=rate_unit.scale), _rate),
        Field(
            Column("peak_above_inputs_bytes", "Peak\nmemory", bytes_unit.name, scale=bytes_unit.scale),
            lambda entry: number_cell(peak_bytes(entry.first)),
        ),
    ]
    groups = [
        RowGroup(_title(block, title), tuple(tuple(field.cell(entry) for field in fields) for entry in block.entries))
        for title, block in compared
    ]
    own = (
        "The rows of a group are one method with the same options; a plan is the same on each engine that takes plans.",
        notes.SPEEDUP,
        _EXECUTED,
        notes.DIGITS,
    )
    return Table(
        NAME,
        "The same attention on different engines",
        tuple(field.column for field in fields),
        tuple(groups),
        notes.notes_for(material, shown, *own),
    )


def _by_method(block: Block) -> list[Block]:
    found: dict[str, list[Entry]] = {}
    for entry in block.entries:
        found.setdefault(f"{entry.case.method} {sorted(entry.case.options.items())!r}", []).append(entry)
    return [replace(block, entries=tuple(own)) for own in found.values() if len(own) > 1]


def _title(block: Block, title: str) -> str:
    case = block.case
    return f"{case.method}{f' {case.label}' if case.label else ''}, {title}"


def _rate(entry: Entry) -> Cell:
    row = entry.first
    work, own = row.result.work, row.whole
    if work is None or work.flops_executed is None or own is None or own.low <= 0:
        return NOTHING
    flop = work.flops_executed
    return Cell(value=flop / own.median, low=flop / own.high, high=flop / own.low, footnotes=doubts(row))
