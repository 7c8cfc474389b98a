"""Tables for papers and reviews, by name: each takes the rows of one or several runs and says what it lacks."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from bsa_bench.report.table_model import Table

TableName = Literal["main", "ablation", "engines", "systems", "phases", "scaling", "memory", "accuracy", "retention"]
TableFormat = Literal["md", "latex", "csv", "rich"]
TABLE_NAMES: tuple[TableName, ...] = get_args(TableName)

ABOUT: dict[TableName, str] = {
    "main": "the paper's main comparison: sparsity, FLOP and speed-up by length, the paper's rows next to ours",
    "ablation": "query sparsity alone, KV sparsity alone, and both",
    "engines": "the same method and options on different engines",
    "systems": "all methods of a run: time, speed-up, memory and what they keep of dense attention",
    "phases": "where the time goes: permutation, selection, lists, attention, fill",
    "scaling": "the speed-up by length at a fixed density, and the break-even length",
    "memory": "peak memory above the inputs, by length",
    "accuracy": "error against the oracle and against dense attention, attention mass kept",
    "retention": "effective over dense FLOP/s on the same device, NVIDIA's published figures next to it",
}
assert tuple(ABOUT) == TABLE_NAMES


def make_table(name: TableName, run_paths: Iterable[str | Path]) -> Table:
    """Make a table of the runs at these paths (their folders or results files).

    Raises:
        StoreError: there is no readable run at one of them.
        EmptyTableError: the runs hold nothing that the table could show.
    """
    from bsa_bench.report.named_tables.material import material_of
    from bsa_bench.report.table_marks import with_marks, with_shared_footnotes
    from bsa_bench.store.reader import read_run

    home = import_module(f"bsa_bench.report.named_tables.{name}")
    table: Table = home.build(material_of(read_run(path) for path in run_paths))
    return with_shared_footnotes(with_marks(table))
