"""`ablation`: what sparsity of the queries, of keys and values, and of both gain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bsa_bench.report.named_tables import notes
from bsa_bench.report.named_tables.cells import number_cell, ratio_cell
from bsa_bench.report.named_tables.fields import Field, claims, empty, pass_fields, row_groups, rows_of, sparsity_field
from bsa_bench.report.named_tables.material import Block, Entry, Material
from bsa_bench.report.named_tables.published import standing_note
from bsa_bench.report.table_model import NOTHING, Cell, Column, Table
from bsa_bench.result import PASSES, PassName

NAME = "ablation"
PARTS = ("query only", "KV only", "both", "neither")
_ALL = 1 - 1e-6


def build(material: Material) -> Table:
    """One row for each set of options of the methods that can prune queries; nothing sparse is the last of them.

    Raises:
        EmptyTableError: no run has both a row that prunes queries and one that does not.
    """
    passes = material.passes()
    blocks = [ablated for block in material.blocks() if (ablated := _ablated(block))]
    if not blocks:
        raise empty(
            NAME,
            material,
            "at one workload a sparse row that prunes queries and one that does not",
            "paper",
            "sparsity",
        )
    fields = _fields(material, blocks, passes)
    found = {part_of(entry) for block in blocks for entry in block.entries}
    missing = [part for part in PARTS[:3] if part not in found]
    own = [
        "Query only: KV blocks are all kept; KV only: all queries are; as the plans in use came out.",
        notes.SPEEDUP,
        notes.SPARSITY,
        "Ideal is 1 / (1 - sparsity); achieved is speed-up / ideal, of the last pass that is shown.",
        "Error is the relative L2 error of the output against dense attention, on the inputs of the run.",
        notes.DIGITS,
    ]
    if missing:
        own.append(
            f"No run here has a correct row of: {', '.join(missing)}; `bsa-bench run --suite paper` measures all parts."
        )
    shown = [row for block in blocks for row in rows_of(block)]
    return Table(
        NAME,
        "Ablation: sparsity of queries, of keys and values, and of both",
        tuple(field.column for field in fields),
        tuple(row_groups(material, blocks, fields)),
        notes.notes_for(material, shown, *own),
    )


def part_of(entry: Entry) -> str | None:
    """Which side an entry prunes; null where the method has no such plan."""
    work = entry.first.result.work
    if work is None or work.query_keep_realised is None or work.kv_density_realised is None:
        return None
    keeps_queries, keeps_keys = work.query_keep_realised >= _ALL, work.kv_density_realised >= _ALL
    return (
        PARTS[3]
        if keeps_queries and keeps_keys
        else PARTS[1]
        if keeps_queries
        else PARTS[0]
        if keeps_keys
        else PARTS[2]
    )


def _ablated(block: Block) -> Block | None:
    """The entries of methods of which the block has rows with and without pruned queries."""
    parts: dict[str, set[str]] = {}
    for entry in block.entries:
        if not entry.is_dense and (part := part_of(entry)):
            parts.setdefault(entry.case.method, set()).add(part)
    methods = {name for name, own in parts.items() if own & {"query only", "both"} and len(own) > 1}
    kept = [entry for entry in block.entries if entry.case.method in methods and part_of(entry)]
    kept.sort(key=lambda entry: (entry.case.method, PARTS.index(part_of(entry) or PARTS[3])))
    return replace(block, entries=tuple(kept)) if kept else None


def _fields(material: Material, blocks: Sequence[Block], passes: Sequence[PassName]) -> list[Field]:
    labels = material.labels
    fields = [
        Field(
            Column("part", "Sparse", align="left"), lambda entry: Cell(part_of(entry) or "-", footnotes=claims(entry))
        ),
        Field(
            Column("implementation", "Implementation", align="left"),
            lambda entry: Cell(labels.of(entry.case), is_code=True),
        ),
        Field(Column("query_keep", "Queries\nkept", "%", scale=100), lambda entry: number_cell(_share(entry, "query"))),
        Field(Column("kv_density", "KV\nkept", "%", scale=100), lambda entry: number_cell(_share(entry, "kv"))),
        sparsity_field(),
        *pass_fields(blocks, passes),
        Field(Column("ideal_speedup", "Ideal", "x"), lambda entry: number_cell(entry.first.ideal_speedup)),
        Field(Column("achieved", "Achieved", "%", scale=100, better="larger"), _achieved),
        Field(Column("dense_error_relative_l2", "Error", notation="scientific"), _error),
    ]
    if any(entry.case.paper for block in blocks for entry in block.entries):
        fields.append(Field(Column("paper_speedup", "Paper,\nH100", "x"), _paper))
    return fields


def _share(entry: Entry, side: str) -> float | None:
    work = entry.first.result.work
    if work is None:
        return None
    return work.query_keep_realised if side == "query" else work.kv_density_realised


def _achieved(entry: Entry) -> Cell:
    """Of the last pass that has a speed-up."""
    row = next(
        (entry.by_pass[name] for name in reversed(PASSES) if name in entry.by_pass and entry.by_pass[name].speedup),
        None,
    )
    if row is None or row.speedup is None or not row.ideal_speedup:
        return NOTHING
    assert row.dense is not None
    ideal, own = row.ideal_speedup, row.speedup
    share = replace(own, value=own.value / ideal, low=own.low / ideal, high=own.high / ideal)
    return ratio_cell(share, row, row.dense)


def _error(entry: Entry) -> Cell:
    checks = entry.first.result.correctness
    return number_cell(checks.dense.relative_l2) if checks and checks.dense else NOTHING


def _paper(entry: Entry) -> Cell:
    paper = entry.case.paper
    if paper is None:
        return NOTHING
    return Cell(value=paper.speedup, printed=f"{paper.speedup:g}", footnotes=(standing_note(paper.standing),))
