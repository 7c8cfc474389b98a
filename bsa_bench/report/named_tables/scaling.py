"""`scaling`: the speed-up by length at a fixed density."""

from __future__ import annotations

from bsa_bench.report.named_tables import notes
from bsa_bench.report.named_tables.cells import number_cell, speedup_cell
from bsa_bench.report.named_tables.families import Family, families, group_title
from bsa_bench.report.named_tables.fields import empty
from bsa_bench.report.named_tables.material import Material
from bsa_bench.report.table_model import NOTHING, Cell, Column, RowGroup, Table
from bsa_bench.store.break_even import BreakEven, break_even_lengths

NAME = "scaling"
_OPTIONS = (
    "Options are the same at all lengths; the density that a plan comes to differs a little from one length to the "
    "next. Break-even is the length from which on it is faster than dense attention, interpolated between two "
    "measured ones on logarithmic axes."
)


def build(material: Material) -> Table:
    """One row for each sparse implementation with its options and each pass, one column for each length.

    Raises:
        EmptyTableError: no sparse implementation has speed-ups at two lengths with the same options.
    """
    groups = [
        (key, [family for family in own if not family.case.claims.is_dense and len(_lengths(family)) > 1])
        for key, own in families(material)
    ]
    groups = [(key, own) for key, own in groups if own]
    if not groups:
        raise empty(NAME, material, "a sparse row with the same options at two lengths", "long-video", "quick")
    lengths = sorted({tokens for _, own in groups for family in own for tokens in _lengths(family)})
    found = {
        id(row.result): each
        for source in material.sources
        for each in break_even_lengths(source.rows)
        for row in each.rows
    }
    columns = (
        Column("implementation", "Implementation", align="left"),
        Column("sparsity_nominal", "Sparsity\nasked for", "%", scale=100),
        *(Column(f"speedup_{n}_tokens", f"{n:,}\ntokens", "x", better="larger") for n in lengths),
        Column("break_even_tokens", "Break-even", "tokens"),
    )
    body = [
        RowGroup(
            group_title(material, groups, key),
            tuple(
                (
                    Cell(material.labels.of(family.case), is_code=True),
                    _sparsity(family),
                    *(speedup_cell(family.by_tokens[n]) if n in family.by_tokens else NOTHING for n in lengths),
                    _break_even(family, found),
                )
                for family in own
            ),
        )
        for key, own in groups
    ]
    rows = [row for _, own in groups for family in own for row in family.by_tokens.values()]
    own_notes = (
        notes.SPEEDUP,
        _OPTIONS,
        notes.DIGITS,
    )
    return Table(
        NAME,
        "Speed-up over dense attention by length",
        columns,
        tuple(body),
        notes.notes_for(material, rows, *own_notes),
    )


def _lengths(family: Family) -> list[int]:
    return [tokens for tokens, row in family.by_tokens.items() if row.speedup]


def _sparsity(family: Family) -> Cell:
    work = next((row.result.work for row in family.by_tokens.values() if row.result.work), None)
    return number_cell(work.sparsity_nominal if work else None)


def _break_even(family: Family, found: dict[int, BreakEven]) -> Cell:
    """Interpolated, or on which side of the measured lengths it lies."""
    each = next((found[id(row.result)] for row in family.by_tokens.values() if id(row.result) in found), None)
    if each is None:
        return NOTHING
    if each.at is None:
        return Cell(f"> {max(_lengths(family)):,}", footnotes=("not reached at any measured length",))
    if each.below is None:
        return Cell(f"< {min(_lengths(family)):,}", footnotes=("faster at every measured length",))
    digits = max(len(str(round(each.at))) - 2, 0)
    return Cell(value=float(round(each.at, -digits)))
