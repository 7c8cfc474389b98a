"""What runs on the host and could get slow: named operations of a few milliseconds, each made ready before it is timed.

`HOST_CASES` holds them by name; tests/benchmarks times them by hand, and checks what they give.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING

import bsa_bench

if TYPE_CHECKING:
    from torch import Tensor

    from bsa_bench.store.reader import Run
    from bsa_kernels.grid import BlockGrid
    from bsa_kernels.plan import BlockPlan

GRID, SMALL_GRID, LARGE_GRID = (16, 32, 32), (8, 16, 16), (32, 48, 48)
"""16,384, 2,048 and 73,728 tokens: what is slower gets less."""
BLOCK, SMALL_BLOCK = (4, 4, 4), (1, 4, 4)
NUM_HEADS, DENSITY = 4, 0.1
REFERENCE_RUN = Path(bsa_bench.__file__).parents[1] / "results" / "reference" / "quick-amd-epyc-2-cores"
"""A checkout has it; elsewhere what reads it raises a StoreError when it is made."""


@dataclass(frozen=True, kw_only=True)
class HostCase:
    """An operation on the host.

    Args:
        title: what it does, for a table.
        make: makes everything that it needs; what it returns is the operation, which gives the same at each call.
    """

    title: str
    make: Callable[[], Callable[[], object]]


def _plan_from_scores() -> Callable[[], BlockPlan]:
    from bsa_kernels.methods.bsa.blocks import select_blocks
    from bsa_kernels.plan import BlockPlan

    grid = _grid(GRID)
    scores = _scores(grid.num_blocks)

    def plan() -> BlockPlan:
        mask = select_blocks(scores, kv_density=DENSITY, rule="statistical")
        return BlockPlan.from_mask(grid, grid, mask)

    return plan


def _block_lists() -> Callable[[], tuple[Tensor, Tensor]]:
    from bsa_kernels.bits import lists_of_mask, unpack_bits

    plan = _plan_from_scores()()
    return lambda: lists_of_mask(unpack_bits(plan.block_bits, plan.num_kv_blocks))


def _group_tables() -> Callable[[], object]:
    import torch

    from bsa_kernels.block_sparse.groups import group_tables

    return partial(group_tables.__wrapped__, _grid(LARGE_GRID), 2, torch.device("cpu"))


def _shared_lists() -> Callable[[], tuple[Tensor, Tensor]]:
    from bsa_kernels.block_sparse.groups import choose_groups_reference, group_tables, union_counts

    plan, grid = _plan_from_scores()(), _grid(GRID)
    group_tables(grid, 2, plan.device)  # kept from then on, as for a model that calls again and again

    def share() -> tuple[Tensor, Tensor]:
        members = choose_groups_reference(plan.block_bits, grid, 2)
        return members, union_counts(plan.block_bits, members)

    return share


def _token_tables() -> Callable[[], object]:
    import torch

    from bsa_kernels.block_sparse.lists import token_tables

    return partial(token_tables.__wrapped__, _grid(LARGE_GRID), tiled=False, pad_to=64, device=torch.device("cpu"))


def _by_key_tables() -> Callable[[], object]:
    from bsa_kernels.engines.by_key import prepare
    from bsa_kernels.plan import BlockPlan

    grid = _grid(SMALL_GRID, SMALL_BLOCK)
    mask = _scores(grid.num_blocks) > NormalDist().inv_cdf(1 - DENSITY)
    return partial(prepare, BlockPlan.from_mask(grid, grid, mask))


def _suite() -> Callable[[], object]:
    from bsa_bench.suite import load_suite

    load_suite("sparsity", device_kind="cuda")  # the vocabulary of all methods, once for a process
    return lambda: load_suite("sparsity", device_kind="cuda").cases()


def _results() -> Callable[[], Run]:
    from bsa_bench.store.reader import read_run

    return partial(read_run, REFERENCE_RUN)


def _derived_rows() -> Callable[[], object]:
    from bsa_bench.store.derive import derive

    results = _results()().latest()
    return partial(derive, results)


def _report_tables() -> Callable[[], list[str]]:
    from bsa_bench.report import tables
    from bsa_bench.report.findings import findings
    from bsa_bench.report.labels import Labels
    from bsa_bench.store.derive import derive

    run = _results()()
    rows = derive(run.latest())
    labels = Labels(row.result.case for row in rows)
    return lambda: [
        *findings(run, rows, labels),
        *tables.overview_table(rows, labels),
        *tables.phase_table(rows, labels),
        *tables.environment_table(run),
    ]


def _bootstrap() -> Callable[[], tuple[float, float]]:
    from bsa_bench.stats.processes import hierarchical_bootstrap

    draws = random.Random(0)
    processes = [[draws.lognormvariate(-3, 0.02) for _ in range(60)] for _ in range(12)]
    return partial(hierarchical_bootstrap, processes)


def _grid(tokens: tuple[int, int, int], block: tuple[int, int, int] = BLOCK) -> BlockGrid:
    from bsa_kernels.grid import BlockGrid

    return BlockGrid(tokens, block)


def _scores(num_blocks: int) -> Tensor:
    """[1, H, N, N] scores of pairs of blocks, N(0, 1)."""
    import torch

    shape = (1, NUM_HEADS, num_blocks, num_blocks)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


HOST_CASES: dict[str, HostCase] = {
    "plan-from-scores": HostCase(title="select KV blocks from scores, make the plan", make=_plan_from_scores),
    "block-lists": HostCase(title="turn a plan's bits into lists of KV blocks", make=_block_lists),
    "group-tables": HostCase(title="list the ways to group query blocks", make=_group_tables),
    "shared-lists": HostCase(title="choose the query blocks that share a list, count its blocks", make=_shared_lists),
    "token-tables": HostCase(title="find the tokens of each block", make=_token_tables),
    "by-key-tables": HostCase(title="list the query rows of each KV block", make=_by_key_tables),
    "suite": HostCase(title="load a suite and expand its cases", make=_suite),
    "results": HostCase(title="read a stored run", make=_results),
    "rows": HostCase(title="derive rows, baselines and speed-ups from results", make=_derived_rows),
    "report-tables": HostCase(title="write the findings and tables of a report", make=_report_tables),
    "bootstrap": HostCase(title="bootstrap the interval of 12 processes", make=_bootstrap),
}
"""By name; the names stay, so that a case is the same one at both sides of a comparison."""
