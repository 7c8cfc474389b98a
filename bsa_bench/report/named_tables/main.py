"""`main`: the paper's main comparison, this bench's rows and the paper's own next to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from bsa_bench.report.labels import one_line
from bsa_bench.report.named_tables import notes
from bsa_bench.report.named_tables.cells import FLOPS, doubts, no_figure, number_cell, pick_unit, speedup_cell
from bsa_bench.report.named_tables.fields import (
    Field,
    claims,
    empty,
    latency_field,
    pass_key,
    row_groups,
    rows_of,
    sparsity_field,
    speedup_field,
    time_unit,
)
from bsa_bench.report.named_tables.material import Block, Entry, Material, Source
from bsa_bench.report.named_tables.published import PAPER, PAPER_LABEL, PAPER_MAIN, PaperRow, standing_note
from bsa_bench.report.table_model import NOTHING, Cell, Column, RowGroup, Table
from bsa_bench.result import PassName
from bsa_bench.store.derive import Row, cohort

NAME = "main"
_PASSES: tuple[PassName, ...] = ("forward", "forward+backward")
_TRAINING: PassName = "forward+backward"
#: FlashAttention-2 by its own package, else PyTorch's copy of it, which it has for NVIDIA GPUs alone.
_FLASH_PACKAGE, _FLASH_TORCH = "flash-attn", "sdpa-flash"
_PAPER_FLOP = (
    "The paper's absolute FLOP match no convention that is known, so only its ratio is shown, which leaves selection "
    "out."
)


def build(material: Material) -> Table:
    """One row for each method and its options at each length, on its fastest engine.

    Raises:
        EmptyTableError: no run has a sparse row with a correct dense row to compare it with.
    """
    passes = material.passes(_PASSES)
    blocks = [_fastest_engines(block, passes) for block in material.blocks(_PASSES)]
    blocks = [block for block in blocks if any(not entry.is_dense for entry in block.entries)]
    if not any(row.speedup and not row.is_dense for block in blocks for row in rows_of(block)):
        raise empty(NAME, material, "a sparse row and a dense one of the same workload, both correct", "paper", "quick")
    # The paper's figures are of training, so that column is there even where no run has it.
    fields = _fields(material, blocks, [name for name in _PASSES if name in passes or name == _TRAINING])
    groups = _with_paper(blocks, row_groups(material, blocks, fields), [field.column for field in fields])
    shown = [row for block in blocks for row in rows_of(block)]
    return Table(
        NAME,
        f"Sparsity, FLOP and speed-up of attention; the rows ({PAPER_LABEL}) are those of {PAPER}",
        tuple(field.column for field in fields),
        tuple(groups),
        notes.notes_for(material, shown, *_own_notes(blocks, passes)),
    )


def _fastest_engines(block: Block, passes: Sequence[PassName]) -> Block:
    """Of each method with its options the entry that is fastest in the last pass, a verified one where there is one."""
    best: dict[str, Entry] = {}
    for entry in block.entries:
        key = f"{entry.case.method} {sorted(entry.case.options.items())!r}"
        if key not in best or _speed_order(entry, passes) < _speed_order(best[key], passes):
            best[key] = entry
    return replace(block, entries=tuple(best.values()))


def _speed_order(entry: Entry, passes: Sequence[PassName]) -> tuple[float, ...]:
    return tuple(entry.latency(name) for name in reversed(passes))


def _fields(material: Material, blocks: Sequence[Block], passes: Sequence[PassName]) -> list[Field]:
    labels = material.labels

    def name(entry: Entry) -> Cell:
        method = labels.of(entry.case).replace(f"@{entry.case.engine}", "", 1)
        return Cell(method, is_code=True, footnotes=claims(entry))

    flop_unit = pick_unit((_flop(entry) for block in blocks for entry in block.entries), FLOPS)
    unit = time_unit(blocks)
    fields = [
        Field(Column("method", "Method", align="left"), name),
        Field(Column("engine", "Engine", align="left"), lambda entry: Cell(entry.case.engine, is_code=True)),
        sparsity_field(),
        Field(Column("flop", "FLOP", flop_unit.name, scale=flop_unit.scale), lambda entry: number_cell(_flop(entry))),
        Field(Column("flop_ratio", "Fewer\nFLOP", "x"), lambda entry: number_cell(_flop_ratio(entry))),
    ]
    for passname in passes:
        against_flash = Column(
            f"speedup_over_fa2_{pass_key(passname)}", "Speed-up\nover FA2", "x", group=passname, better="larger"
        )
        over_dense = speedup_field(passname)
        fields += [
            latency_field(passname, unit),
            replace(over_dense, column=replace(over_dense.column, header="Speed-up\nover dense")),
            Field(against_flash, partial(_over_flash, passname)),
        ]
    return fields


def _flop(entry: Entry) -> float | None:
    work = entry.first.result.work
    return work.flops_nominal + work.flops_selection if work else None


def _flop_ratio(entry: Entry) -> float | None:
    own, work = _flop(entry), entry.first.result.work
    return work.flops_dense_equiv / own if work and own else None


def _over_flash(passname: PassName, entry: Entry) -> Cell:
    row = entry.by_pass.get(passname)
    if row is None or not row.is_correct:
        return no_figure(row)
    base = _flash(entry.source, row)
    if base is None:
        return Cell("-", footnotes=(f"FlashAttention-2 did not run: {_why_no_flash(entry.source)}",))
    cell = speedup_cell(row, base)
    which = "the package `flash-attn`" if base.result.case.base_engine == _FLASH_PACKAGE else "PyTorch's, `sdpa-flash`"
    return replace(cell, footnotes=(*cell.footnotes, f"FlashAttention-2 is {which}"))


def _flash(source: Source, row: Row) -> Row | None:
    """The correct row of FlashAttention-2 that a row can be divided by."""
    is_gpu = source.environment.device_kind == "cuda"
    for engine in (_FLASH_PACKAGE, *([_FLASH_TORCH] if is_gpu else [])):
        for other in source.rows:
            is_it = other.is_dense and other.is_correct and other.result.case.base_engine == engine
            if is_it and cohort(other) == cohort(row):
                return other
    return None


def _why_no_flash(source: Source) -> str:
    tried = [row for row in source.rows if row.is_dense and row.result.case.base_engine == _FLASH_PACKAGE]
    reasons = [one_line(row.result.reason) for row in tried if row.result.reason]
    known = {name.rpartition("@")[2]: one_line(why) for name, why in source.run.run_lines[-1].unavailable.items()}
    if reasons or _FLASH_PACKAGE in known:
        return reasons[0] if reasons else known[_FLASH_PACKAGE]
    return "the run has no correct `full@flash-attn` at this workload"


def _with_paper(blocks: Sequence[Block], groups: Sequence[RowGroup], columns: Sequence[Column]) -> list[RowGroup]:
    """The paper's groups behind the measured ones of the same length, else in the order of length."""
    ordered = [
        (block.num_tokens, place, group) for place, (block, group) in enumerate(zip(blocks, groups, strict=True))
    ]
    for tokens in dict.fromkeys(row.num_tokens for row in PAPER_MAIN):
        rows = tuple(_paper_cells(row, columns) for row in PAPER_MAIN if row.num_tokens == tokens)
        ordered.append((tokens, len(blocks), RowGroup(f"{tokens:,} tokens: {PAPER_LABEL}", rows)))
    return [group for _, _, group in sorted(ordered, key=lambda item: item[:2])]


def _paper_cells(row: PaperRow, columns: Sequence[Column]) -> tuple[Cell, ...]:
    note = standing_note(row.standing)
    cells = {
        "method": Cell(row.label),
        "sparsity": Cell(value=row.sparsity, printed=f"{100 * row.sparsity:g}", footnotes=(standing_note("N"),)),
        "flop_ratio": number_cell(row.flop_ratio, *([standing_note(row.flop_standing)] if row.flop_standing else [])),
        f"speedup_{pass_key(_TRAINING)}": Cell(value=row.speedup, printed=f"{row.speedup:g}", footnotes=(note,)),
    }
    return tuple(cells.get(column.key, NOTHING) for column in columns)


def _own_notes(blocks: Sequence[Block], passes: Sequence[PassName]) -> list[str]:
    shown = [row for block in blocks for row in rows_of(block)]
    bases = dict.fromkeys(row.dense.result.case.implementation for row in shown if row.dense)
    own = [
        notes.SPEEDUP,
        f"Fastest dense here: {', '.join(f'`{name}`' for name in bases)}.",
        f"Each method is on the engine that is fastest in {passes[-1]}.",
        f"{notes.SPARSITY} The paper's sparsity is the one that it states.",
        f"{notes.FLOP} The column is of one {passes[0]} pass. {_PAPER_FLOP}",
        notes.DIGITS,
    ]
    if _TRAINING not in passes:
        own.append(
            "No run here has forward+backward, which the paper's figures are of; "
            "`bsa-bench run --suite paper 'passes=forward,forward+backward'` measures it."
        )
    here = {block.num_tokens for block in blocks}
    missing = [f"{tokens:,}" for tokens in dict.fromkeys(row.num_tokens for row in PAPER_MAIN) if tokens not in here]
    if missing:
        own.append(
            f"No run here has the paper's {' and '.join(missing)} tokens, so its rows have no measured ones next to "
            "them; `bsa-bench run --suite paper` measures them."
        )
    if any(doubts(row) for row in shown):
        own.append("Rows in doubt are marked by footnotes and never marked as best.")
    return own
