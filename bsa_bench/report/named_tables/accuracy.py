"""`accuracy`: the error of the kernels against their oracle, and of the methods against dense attention."""

from __future__ import annotations

from bsa_bench.report.named_tables import notes
from bsa_bench.report.named_tables.cells import number_cell
from bsa_bench.report.named_tables.fields import Field, empty, name_field, row_groups, rows_of, sparsity_field
from bsa_bench.report.named_tables.material import Entry, Material
from bsa_bench.report.table_model import NOTHING, Cell, Column, Table
from bsa_bench.store.derive import WorstError

NAME = "accuracy"
_ERRORS = (
    "Errors are relative L2 errors, without an interval: of one input each. Against its oracle (the very same mask in "
    "float64) it is that of the output or gradient nearest to its budget, which is what the number format itself "
    "costs; against dense attention it is that of the output."
)


def build(material: Material) -> Table:
    """One row for each implementation with its options: of its passes that which errs most.

    Raises:
        EmptyTableError: no measured row was verified.
    """
    blocks = material.blocks()
    shown = [row for block in blocks for row in rows_of(block)]
    if not any(row.result.correctness for row in shown):
        raise empty(NAME, material, "a row that was verified", "quick", "methods")
    fields = [
        name_field(material.labels),
        sparsity_field(),
        Field(Column("oracle_error_relative_l2", "Error", group="against its oracle", notation="scientific"), _oracle),
        Field(Column("oracle_error_budget", "Budget", group="against its oracle", notation="scientific"), _budget),
        dense_error_field("against dense"),
        Field(
            Column("dense_error_cosine", "1 - cosine", group="against dense", notation="scientific"),
            lambda entry: number_cell(_distance(entry)),
        ),
        mass_field(),
        Field(Column("repeat_identical", "Repeats\nbitwise", align="left"), _repeats),
    ]
    own = (
        _ERRORS,
        "Mass kept is the mean share of the dense attention mass of a computed query that its plan kept.",
        notes.SPARSITY,
        "Nothing is marked as best: how large an error may be is a question to the model, not to this table.",
    )
    return Table(
        NAME,
        "Accuracy: of each implementation against its oracle, of each method against dense attention",
        tuple(field.column for field in fields),
        tuple(row_groups(material, blocks, fields)),
        notes.notes_for(material, shown, *own, has_intervals=False),
    )


def dense_error_field(group: str = "") -> Field:
    """Relative L2 error of the output against dense attention."""

    def cell(entry: Entry) -> Cell:
        checks = entry.first.result.correctness
        return number_cell(checks.dense.relative_l2) if checks and checks.dense and not entry.is_dense else NOTHING

    return Field(Column("dense_error_relative_l2", "Error", group=group, notation="scientific"), cell)


def mass_field() -> Field:
    """Attention mass kept."""

    def cell(entry: Entry) -> Cell:
        checks = entry.first.result.correctness
        return number_cell(checks.mass_kept) if checks else NOTHING

    return Field(Column("mass_kept", "Mass\nkept", "%", scale=100), cell)


def _worst(entry: Entry) -> WorstError | None:
    errors = [row.worst_error for row in entry.rows if row.worst_error]
    return max(errors, key=lambda e: e.relative_l2 / e.budget if e.budget else e.relative_l2, default=None)


def _oracle(entry: Entry) -> Cell:
    worst = _worst(entry)
    if worst is None:
        return Cell("-", footnotes=("unverified: never compared with an oracle",))
    return number_cell(worst.relative_l2, *([f"of {worst.output}"] if worst.output != "output" else []))


def _budget(entry: Entry) -> Cell:
    worst = _worst(entry)
    return number_cell(worst.budget if worst else None)


def _distance(entry: Entry) -> float | None:
    checks = entry.first.result.correctness
    return max(1 - checks.dense.cosine, 0.0) if checks and checks.dense and not entry.is_dense else None


def _repeats(entry: Entry) -> Cell:
    known = [row.repeat_identical for row in entry.rows if row.repeat_identical is not None]
    return Cell("-" if not known else "yes" if all(known) else "no")
