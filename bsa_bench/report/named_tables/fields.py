"""Tables laid out by fields: a column, and how its cell is made from an entry."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from bsa_bench.errors import EXIT_NOTHING_MEASURED, BenchError
from bsa_bench.report.labels import Labels
from bsa_bench.report.named_tables.cells import SECONDS, Unit, latency_cell, number_cell, pick_unit, speedup_cell
from bsa_bench.report.named_tables.material import Block, Entry, Material, block_titles
from bsa_bench.report.table_model import Cell, Column, RowGroup
from bsa_bench.result import PassName
from bsa_bench.store.derive import Row


class EmptyTableError(BenchError):
    """The runs hold nothing that a table could show; the message says what it needs and which suite measures that."""

    exit_code: ClassVar[int] = EXIT_NOTHING_MEASURED


@dataclass(frozen=True)
class Field:
    """A column, and the cell of an entry in it."""

    column: Column
    cell: Callable[[Entry], Cell]


def empty(name: str, material: Material, needs: str, *suites: str) -> EmptyTableError:
    """Say what the table needs, and which suites measure it."""
    commands = " or ".join(f"bsa-bench run --suite {suite}" for suite in suites)
    return EmptyTableError(
        f"table {name}: expected {needs}; the run {material.run_names} (suite {material.suites}) has none. "
        f"Measure it with: {commands}"
    )


def row_groups(material: Material, blocks: Sequence[Block], fields: Sequence[Field]) -> list[RowGroup]:
    """A group of rows for each block."""
    titles = block_titles(material, blocks)
    return [
        RowGroup(title, tuple(tuple(field.cell(entry) for field in fields) for entry in block.entries))
        for title, block in zip(titles, blocks, strict=True)
    ]


def name_field(labels: Labels, header: str = "Implementation") -> Field:
    """The label of the entry, with what its method says of itself as footnotes."""
    return Field(
        Column("implementation", header, align="left"),
        lambda entry: Cell(labels.of(entry.case), is_code=True, footnotes=claims(entry)),
    )


def claims(entry: Entry) -> tuple[str, ...]:
    """What a reader must know of a method before comparing it."""
    said = entry.case.claims
    notes = []
    if said.causal:
        notes.append("causal: compared with causal dense attention")
    if said.adapted:
        notes.append("adapted: run otherwise than by its authors")
    if not said.approximates_dense:
        notes.append("does not approximate dense attention")
    return tuple(notes)


def sparsity_field() -> Field:
    """1 - realised density, in percent."""

    def cell(entry: Entry) -> Cell:
        density = entry.first.density
        return number_cell(None if density is None else 1 - density)

    return Field(Column("sparsity", "Sparsity", "%", scale=100), cell)


def pass_key(passes: PassName) -> str:
    """A pass in a column's key: `forward_backward`."""
    return passes.replace("+", "_")


def pass_fields(blocks: Iterable[Block], passes: Sequence[PassName]) -> list[Field]:
    """Latency, and speed-up over the fastest dense row, of each pass."""
    unit = time_unit(blocks)
    return [field for name in passes for field in (latency_field(name, unit), speedup_field(name))]


def time_unit(blocks: Iterable[Block]) -> Unit:
    """What the latencies of all blocks are printed in."""
    return pick_unit((row.whole.median for block in blocks for row in rows_of(block) if row.whole), SECONDS)


def rows_of(block: Block) -> list[Row]:
    """The rows of all entries that have a latency."""
    return [row for entry in block.entries for row in entry.rows]


def latency_field(passes: PassName, unit: Unit) -> Field:
    """The latency of a pass."""
    column = Column(
        f"latency_{pass_key(passes)}_s", "Latency", unit.name, group=passes, scale=unit.scale, better="smaller"
    )
    return Field(column, lambda entry: latency_cell(entry.by_pass.get(passes)))


def speedup_field(passes: PassName) -> Field:
    """The speed-up over the fastest dense row in a pass."""
    column = Column(f"speedup_{pass_key(passes)}", "Speed-up", "x", group=passes, better="larger")
    return Field(column, lambda entry: speedup_cell(entry.by_pass.get(passes)))
