"""`phases`: where the time of the sparse operators goes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bsa_bench.report.named_tables import notes
from bsa_bench.report.named_tables.cells import SECONDS, doubts, duration_cell, latency_cell, phase_latency, pick_unit
from bsa_bench.report.named_tables.fields import claims, empty
from bsa_bench.report.named_tables.material import Block, Entry, Material, block_titles
from bsa_bench.report.table_model import NOTHING, Cell, Column, RowGroup, Table
from bsa_bench.result import PassName
from bsa_bench.store.derive import Latency, Row
from bsa_bench.store.frame import PHASES

NAME = "phases"
_PHASES = (
    "Phases are timed in a pass of their own, with a time stamp between them, so that their sum need not be the "
    "whole. An engine that does the work of a phase inside another one has no figure for it."
)


def build(material: Material) -> Table:
    """One row for each sparse implementation with its options, a group for each length and pass.

    Raises:
        EmptyTableError: no correct sparse row has phases.
    """
    blocks = material.blocks()
    titled = [
        (f"{title}, {name}", _rows(block, name))
        for block, title in zip(blocks, block_titles(material, blocks), strict=True)
        for name in material.passes()
    ]
    titled = [(title, rows) for title, rows in titled if rows]
    if not titled:
        raise empty(NAME, material, "a correct sparse row whose phases were timed", "quick", "methods")
    shown = [row for _, rows in titled for _, row in rows]
    names = [name for name in PHASES if any(name in row.phases for row in shown)]
    names += sorted({name for row in shown for name in row.phases} - set(PHASES))
    unit = pick_unit((row.whole.median for row in shown if row.whole), SECONDS)
    columns = (
        Column("implementation", "Implementation", align="left"),
        *(
            Column(f"phase_{name}_s", name.replace("_", "\n"), unit.name, scale=unit.scale, better="smaller")
            for name in names
        ),
        Column("phases_sum_s", "Sum", unit.name, scale=unit.scale),
        Column("whole_s", "Whole\noperator", unit.name, scale=unit.scale, better="smaller"),
    )
    groups = tuple(
        RowGroup(title, tuple(_cells(material, entry, row, names) for entry, row in rows)) for title, rows in titled
    )
    own = (
        _PHASES,
        notes.DIGITS,
    )
    return Table(NAME, "Time by phase", columns, groups, notes.notes_for(material, shown, *own))


def _rows(block: Block, passes: PassName) -> list[tuple[Entry, Row]]:
    pairs = [(entry, entry.by_pass[passes]) for entry in block.entries if passes in entry.by_pass]
    return [(entry, row) for entry, row in pairs if row.is_correct and not row.is_dense and row.phases]


def _sum(phases: Sequence[Latency], footnotes: tuple[str, ...]) -> Cell:
    """Of the medians; of the ends of the intervals, which is wider than that of a sum measured as one."""
    value, low, high = (math.fsum(getattr(each, name) for each in phases) for name in ("median", "low", "high"))
    return Cell(value=value, low=low, high=high, footnotes=footnotes)


def _cells(material: Material, entry: Entry, row: Row, names: Sequence[str]) -> tuple[Cell, ...]:
    phases = [phase_latency(row, name) for name in names]
    return (
        Cell(material.labels.of(entry.case), is_code=True, footnotes=claims(entry)),
        *(duration_cell(row, phase) if phase else NOTHING for phase in phases),
        _sum([phase for phase in phases if phase], doubts(row)),
        latency_cell(row),
    )
