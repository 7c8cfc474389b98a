"""`systems`: all methods of a run, by what they cost and what they keep."""

from __future__ import annotations

from bsa_bench.report.named_tables import notes
from bsa_bench.report.named_tables.accuracy import dense_error_field, mass_field
from bsa_bench.report.named_tables.cells import BYTES, number_cell, pick_unit
from bsa_bench.report.named_tables.fields import (
    Field,
    empty,
    name_field,
    pass_fields,
    row_groups,
    rows_of,
    sparsity_field,
)
from bsa_bench.report.named_tables.material import Material
from bsa_bench.report.named_tables.memory import peak_bytes
from bsa_bench.report.table_model import Column, Table

NAME = "systems"
_FIDELITY = (
    "Peak memory is above the inputs, of one pass, the first of those shown. Error is the relative L2 error of the "
    "output against dense attention, and mass the share of dense attention mass that the plan kept, both on the "
    "inputs of the run: they say nothing of a model trained with the method."
)


def build(material: Material) -> Table:
    """One row for each implementation with its options.

    Raises:
        EmptyTableError: the runs have fewer than two methods with a latency.
    """
    passes, blocks = material.passes(), material.blocks()
    if len({entry.case.method for block in blocks for entry in block.entries}) < 2:
        raise empty(NAME, material, "two methods with a latency", "methods")
    shown = [row for block in blocks for row in rows_of(block)]
    unit = pick_unit((peak_bytes(row) for row in shown), BYTES)
    fields = [
        name_field(material.labels),
        sparsity_field(),
        *pass_fields(blocks, passes),
        Field(
            Column("peak_above_inputs_bytes", "Peak\nmemory", unit.name, scale=unit.scale),
            lambda entry: number_cell(peak_bytes(entry.first)),
        ),
        dense_error_field(),
        mass_field(),
    ]
    own = (
        notes.SPEEDUP,
        notes.SPARSITY,
        _FIDELITY,
        notes.DIGITS,
    )
    return Table(
        NAME,
        "Sparse and dense attention: time, memory and fidelity",
        tuple(field.column for field in fields),
        tuple(row_groups(material, blocks, fields)),
        notes.notes_for(material, shown, *own),
    )
