"""`memory`: peak memory by length."""

from __future__ import annotations

from bsa_bench.report.named_tables import notes
from bsa_bench.report.named_tables.cells import BYTES, Unit, no_figure, number_cell, pick_unit
from bsa_bench.report.named_tables.families import Family, families, group_title
from bsa_bench.report.named_tables.fields import empty
from bsa_bench.report.named_tables.material import Material
from bsa_bench.report.table_model import NOTHING, Cell, Column, RowGroup, Table
from bsa_bench.store.derive import Row

NAME = "memory"
_READINGS = (
    "Peak bytes above q, k and v, in an untimed pass of its own; of several processes the largest reading. Readings "
    "have no interval, so that nothing is marked as best."
)


def build(material: Material) -> Table:
    """One row for each implementation with its options and each pass, one column for each length.

    Raises:
        EmptyTableError: no run has a reading of memory.
    """
    groups = families(material)
    rows = [row for _, own in groups for family in own for row in family.by_tokens.values()]
    if not any(peak_bytes(row) is not None for row in rows):
        raise empty(NAME, material, "a reading of peak memory", "quick", "long-video")
    lengths = sorted({row.num_tokens for row in rows if row.whole})
    unit = pick_unit((peak_bytes(row) for row in rows), BYTES)
    columns = [
        Column("implementation", "Implementation", align="left"),
        *(_length_column(tokens, unit) for tokens in lengths),
    ]
    body = [
        RowGroup(
            group_title(material, groups, key),
            tuple(
                (Cell(material.labels.of(family.case), is_code=True), *(_cell(family, tokens) for tokens in lengths))
                for family in own
            ),
        )
        for key, own in groups
    ]
    own_notes = (_READINGS,)
    return Table(
        NAME,
        "Peak memory above the inputs",
        tuple(columns),
        tuple(body),
        notes.notes_for(material, rows, *own_notes, has_intervals=False),
    )


def peak_bytes(row: Row) -> int | None:
    """The largest reading of all processes; null where there is none."""
    readings = [each.memory.peak_above_inputs_bytes for each in row.processes if each.memory] if row.whole else []
    return max((each for each in readings if each is not None), default=None)


def _length_column(tokens: int, unit: Unit) -> Column:
    return Column(f"peak_bytes_{tokens}_tokens", f"{tokens:,}\ntokens", unit.name, scale=unit.scale)


def _cell(family: Family, tokens: int) -> Cell:
    row = family.by_tokens.get(tokens)
    if row is None or row.whole is None:
        return no_figure(row) if row else NOTHING
    return number_cell(peak_bytes(row))
