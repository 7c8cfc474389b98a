"""`retention`: how much of dense attention's rate an operator keeps on the pairs that it computes."""

from __future__ import annotations

from bsa_bench.report.named_tables import notes
from bsa_bench.report.named_tables.cells import doubts, number_cell, ratio_cell
from bsa_bench.report.named_tables.fields import claims, empty
from bsa_bench.report.named_tables.material import Entry, Material, block_titles
from bsa_bench.report.named_tables.published import NVIDIA_RATES, NVIDIA_SOURCE, PublishedRate
from bsa_bench.report.table_model import NOTHING, Cell, Column, RowGroup, Table
from bsa_bench.result import PassName
from bsa_bench.store.derive import Latency, Ratio, Row
from bsa_bench.store.latency import over

NAME = "retention"
_RATES = (
    "The effective rate counts the pairs that the method asks for and nothing else: neither tiles and padding nor "
    "selection; the dense rate is that of the fastest correct dense implementation, on the same device. Retention is "
    "the one over the other: 100% would turn all sparsity into speed."
)


def build(material: Material) -> Table:
    """One row for each sparse implementation with its options, a group for each length and pass.

    Raises:
        EmptyTableError: no correct sparse row has a correct dense row to compare it with.
    """
    blocks = material.blocks()
    titled = [
        (
            f"{title}, {name}",
            [(entry, entry.by_pass[name]) for entry in block.entries if _has_rate(entry.by_pass.get(name))],
        )
        for block, title in zip(blocks, block_titles(material, blocks), strict=True)
        for name in _passes(material)
    ]
    titled = [(title, rows) for title, rows in titled if rows]
    if not titled:
        raise empty(NAME, material, "a sparse row and a dense one of the same workload, both correct", "paper", "quick")
    shown = [row for _, rows in titled for _, row in rows]
    columns = (
        Column("implementation", "Implementation", align="left"),
        Column("sparsity", "Sparsity", "%", scale=100),
        Column("dense_flop_per_s", "Dense\nrate", "TFLOP/s", scale=1e-12),
        Column("attend_flop_per_s", "Rate", "TFLOP/s", group="attend phase alone", scale=1e-12),
        Column("attend_retention", "Retention", "%", group="attend phase alone", scale=100, better="larger"),
        Column("whole_flop_per_s", "Rate", "TFLOP/s", group="whole operator", scale=1e-12),
        Column("whole_retention", "Retention", "%", group="whole operator", scale=100, better="larger"),
    )
    groups = [RowGroup(title, tuple(_cells(material, entry, row) for entry, row in rows)) for title, rows in titled]
    groups += [
        RowGroup(title, tuple(_published(each) for each in NVIDIA_RATES if each.title == title))
        for title in dict.fromkeys(each.title for each in NVIDIA_RATES)
    ]
    own = (
        _RATES,
        "NVIDIA's figures are of the attention kernel given a mask, so that they compare with the attend phase alone.",
        notes.SPARSITY,
        "A multiply-add is 2 FLOP, softmax is not counted, backward is 2.5x forward.",
        notes.DIGITS,
    )
    return Table(
        NAME,
        "Retention: effective over dense rate",
        columns,
        tuple(groups),
        notes.notes_for(material, shown, *own),
    )


def _passes(material: Material) -> list[PassName]:
    """Forward and backward apart, as NVIDIA's figures are; both together where backward was not measured alone."""
    measured = material.passes()
    return [name for name in measured if name != "forward+backward" or "backward" not in measured]


def _has_rate(row: Row | None) -> bool:
    return row is not None and row.speedup is not None and not row.is_dense and row.density is not None


def _dense_rate(row: Row) -> Ratio:
    """FLOP/s of the dense row."""
    assert row.dense is not None
    assert row.dense.whole is not None
    assert row.result.work is not None
    return _rate(row.result.work.flops_dense_equiv, row.dense.whole)


def _rate(flop: float, own: Latency) -> Ratio:
    return Ratio(flop / own.median, flop / own.high, flop / own.low, own.num_processes, own.interval_level)


def _cells(material: Material, entry: Entry, row: Row) -> tuple[Cell, ...]:
    return (
        Cell(material.labels.of(entry.case), is_code=True, footnotes=claims(entry)),
        number_cell(None if row.density is None else 1 - row.density),
        _plain(_dense_rate(row), *(doubts(row.dense) if row.dense else ())),
        *_pair(row, row.attend_only),
        *_pair(row, row.whole),
    )


def _pair(row: Row, own: Latency | None) -> tuple[Cell, Cell]:
    """The effective rate, and its share of the dense one."""
    work, dense = row.result.work, row.dense
    if own is None or work is None or dense is None or dense.whole is None:
        return NOTHING, NOTHING
    share = work.flops_nominal / work.flops_dense_equiv
    ratio = over(dense.whole, own)
    if ratio is None:
        return NOTHING, NOTHING
    kept = Ratio(ratio.value * share, ratio.low * share, ratio.high * share, ratio.num_processes, ratio.interval_level)
    return _plain(_rate(work.flops_nominal, own), *doubts(row)), ratio_cell(kept, row, dense)


def _plain(ratio: Ratio, *footnotes: str) -> Cell:
    return Cell(value=ratio.value, low=ratio.low, high=ratio.high, footnotes=footnotes)


def _published(each: PublishedRate) -> tuple[Cell, ...]:
    return (
        Cell(each.kernel, footnotes=(NVIDIA_SOURCE,)),
        number_cell(each.sparsity),
        number_cell(each.dense_rate * 1e12),
        number_cell(each.rate * 1e12),
        number_cell(each.retention),
        NOTHING,
        NOTHING,
    )
