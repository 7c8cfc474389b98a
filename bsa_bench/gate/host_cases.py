"""What runs on the host and could get slow: named operations of a few milliseconds, each made ready before it is timed.

`HOST_CASES` holds them by name. Tier 2 of the gate times them at both sides; tests/benchmarks checks what they give,
and times them by hand.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal

import bsa_bench

if TYPE_CHECKING:
    from torch import Tensor

    from bsa_bench.result import PassName
    from bsa_bench.store.reader import Run
    from bsa_kernels.grid import BlockGrid
    from bsa_kernels.plan import BlockPlan

GRID, SMALL_GRID, LARGE_GRID = (16, 32, 32), (8, 16, 16), (32, 48, 48)
"""16,384, 2,048 and 73,728 tokens: what is slower gets less."""
DISPATCH_GRID = (8, 8, 16)
"""What is dispatched costs the same at any length; what torch computes meanwhile does not, so there is little of it."""
BLOCK, SMALL_BLOCK = (4, 4, 4), (1, 4, 4)
NUM_HEADS, DENSITY = 4, 0.1
REFERENCE_RUN = Path(bsa_bench.__file__).parents[1] / "results" / "reference" / "quick-amd-epyc-2-cores"
"""A checkout has it; elsewhere what reads it raises a StoreError when it is made."""


@dataclass(frozen=True, kw_only=True)
class HostCase:
    """An operation on the host.

    Args:
        title: what it does, for a table.
        package: whose code it times, the kernels' or the benchmark's own.
        make: makes everything that it needs; what it returns is the operation, which gives the same at each call.
    """

    title: str
    package: Literal["bsa_kernels", "bsa_bench"]
    make: Callable[[], Callable[[], object]]


def _dispatch(passes: PassName) -> Callable[[], object]:
    from bsa_bench.catalog import build_operator, make_case
    from bsa_bench.gate.count_host import record_launches
    from bsa_bench.gate.count_inputs import make_inputs
    from bsa_bench.inputs import random_like_output
    from bsa_bench.measure.passes import Subject, pass_call
    from bsa_bench.workload import Workload

    if os.environ.get("TRITON_INTERPRET"):
        raise RuntimeError("TRITON_INTERPRET: expected it unset, for an interpreted kernel makes no launch")
    workload = Workload(grid=DISPATCH_GRID, heads=1, head_dim=64, dtype="float16")
    # Whatever input it names, that of `count_inputs` is taken.
    case = make_case(suite="host", workload=workload, implementation="bsa@triton", passes=passes)
    tensors = make_inputs(workload)
    operator = build_operator(case, scale=float(workload.head_dim**-0.5))
    grad = random_like_output(workload, "cpu")
    call = pass_call(Subject(operator, tensors, tuple(tensors), grad), passes)

    def dispatch() -> object:
        with record_launches():
            return call()

    return dispatch


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
    from bsa_bench.report.verdicts import Verdicts
    from bsa_bench.store.derive import derive

    run = _results()()
    rows = derive(run.latest())
    labels = Labels(row.result.case for row in rows)
    return lambda: [
        *findings(run, rows, labels),
        *tables.overview_table(rows, labels, Verdicts(rows, run.environment.device_kind)),
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


def _kernels(title: str, make: Callable[[], Callable[[], object]]) -> HostCase:
    return HostCase(title=title, package="bsa_kernels", make=make)


def _bench(title: str, make: Callable[[], Callable[[], object]]) -> HostCase:
    return HostCase(title=title, package="bsa_bench", make=make)


HOST_CASES: dict[str, HostCase] = {
    "dispatch-forward": _kernels("all that a forward by Triton does but the launches", partial(_dispatch, "forward")),
    "dispatch-training": _kernels(
        "all that forward and backward by Triton do but the launches", partial(_dispatch, "forward+backward")
    ),
    "plan-from-scores": _kernels("select KV blocks from scores, make the plan", _plan_from_scores),
    "block-lists": _kernels("turn a plan's bits into lists of KV blocks", _block_lists),
    "group-tables": _kernels("list the ways to group query blocks", _group_tables),
    "shared-lists": _kernels("choose the query blocks that share a list, count its blocks", _shared_lists),
    "token-tables": _kernels("find the tokens of each block", _token_tables),
    "by-key-tables": _kernels("list the query rows of each KV block", _by_key_tables),
    "suite": _bench("load a suite and expand its cases", _suite),
    "results": _bench("read a stored run", _results),
    "rows": _bench("derive rows, baselines and speed-ups from results", _derived_rows),
    "report-tables": _bench("write the findings and tables of a report", _report_tables),
    "bootstrap": _bench("bootstrap the interval of 12 processes", _bootstrap),
}
"""By name; the names stay, so that a case is the same one at both sides of a comparison."""
