"""The selection in C++, in one pass over q and k where they are: an operator that torch knows, without a gradient.

The rules are those of `stages.select`, its twin, with the same plans but for ties that rounding makes. On a CPU, for
every option, format and head size. Shape legend in `bsa_kernels.plan`.
"""
# The fakes of operators have the operators' arguments and need few of them.
# ruff: noqa: ARG001

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import get_args

import torch
from torch import Tensor

from bsa_kernels.cpp.library import DTYPES, Geometry, Tokens, geometry_tables, load
from bsa_kernels.grid import BlockGrid
from bsa_kernels.methods.bsa.fused import quantile
from bsa_kernels.methods.bsa.ops import empty_selection
from bsa_kernels.methods.bsa.options import MASS_FLOOR, MASS_TARGET, BsaOptions, Fill, QueryRule, kept_count
from bsa_kernels.methods.bsa.queries import group_kinds
from bsa_kernels.methods.bsa.stages import Selected, grids
from bsa_kernels.torch_operator import fake_of, torch_operator

#: Numbers of q and k for which a thread is started.
NUMBERS_A_THREAD = 1 << 16

_SIZES = (
    "dtype",
    "threads",
    "numbers_a_thread",
    "batch",
    "heads",
    "head_dim",
    "num_q_blocks",
    "q_block_size",
    "kept_rows",
    "num_kv_blocks",
    "kv_block_size",
    "num_groups",
    "group_size",
    "centre_size",
    "keeps_queries",
    "fill_rule",
    "kv_rule",
    "least",
)
_TABLES = (
    "kept_slots",
    "num_kept",
    "fill",
    "block_bits",
    "q_rows",
    "q_counts",
    "kv_rows",
    "kv_counts",
    "kinds",
    "members",
    "keep",
    "centres",
    "points",
)
_KV_RULES = ("everything", "statistical", "softmax_stat", "topk", "mass")


class SelectProblem(ctypes.Structure):
    """`SelectProblem` of select.cpp, field by field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _SIZES),
        ("scale", ctypes.c_double),
        ("threshold", ctypes.c_double),
        ("q", Tokens),
        ("k", Tokens),
        *((name, ctypes.c_void_p) for name in _TABLES),
    )


def select(q: Tensor, k: Tensor, options: BsaOptions, *, scale: float, is_tiled: bool) -> Selected:
    """Select as `stages.select_tokens` does in torch.

    Raises:
        MemoryError: there is too little for the pooled blocks.
    """
    return Selected(*_select(q, k, options.code, scale, is_tiled))


@torch_operator("bsa_select_cpp", device="cpu")
def _select(q: Tensor, k: Tensor, options: str, scale: float, is_tiled: bool) -> list[Tensor]:
    wanted = BsaOptions.decode(options)
    q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k))
    selected = empty_selection(q, wanted)
    load().select(_problem(q, k, selected, wanted, scale=scale, is_tiled=is_tiled))
    return list(selected)


@fake_of(_select)
def _(q: Tensor, k: Tensor, options: str, scale: float, is_tiled: bool) -> list[Tensor]:
    return list(empty_selection(q, BsaOptions.decode(options)))


def _problem(
    q: Tensor, k: Tensor, selected: Selected, options: BsaOptions, *, scale: float, is_tiled: bool
) -> SelectProblem:
    """The structure of a call; what it points to must outlive it."""
    q_grid, kv_grid = grids(options)
    geometry = geometry_tables(Geometry(q_grid, kv_grid, 0, None, None, "tiled" if is_tiled else "natural"))
    groups = _group_tables(q_grid, options.query_rule, options.query_keep)
    num_kv = kv_grid.num_blocks
    problem = SelectProblem(
        dtype=DTYPES[q.dtype],
        threads=torch.get_num_threads(),
        numbers_a_thread=NUMBERS_A_THREAD,
        batch=q.shape[0],
        heads=q.shape[1],
        head_dim=q.shape[3],
        num_q_blocks=q_grid.num_blocks,
        q_block_size=q_grid.block_size,
        kept_rows=selected.kept_slots.shape[3],
        num_kv_blocks=num_kv,
        kv_block_size=kv_grid.block_size,
        num_groups=groups["members"].shape[1],
        group_size=groups["members"].shape[2],
        centre_size=groups["centres"].shape[2],
        keeps_queries=options.query_keep == 1,
        fill_rule=get_args(Fill).index(options.fill),
        kv_rule=_KV_RULES.index("everything" if options.kv_density == 1 else options.kv_rule),
        least=MASS_FLOOR if options.kv_rule == "mass" else kept_count(num_kv, options.kv_density),
        scale=scale,
        threshold=_threshold(options),
        q=Tokens.of(q),
        k=Tokens.of(k),
    )
    counts = {"q_counts": q_grid.real_counts(q.device), "kv_counts": geometry["kv_counts"]}
    rows = {"q_rows": geometry["q_rows"], "kv_rows": geometry["kv_rows"]}
    for name, table in {**selected._asdict(), **counts, **rows, **groups}.items():
        assert table.is_contiguous()
        assert table.dtype == torch.int32
        setattr(problem, name, table.data_ptr())
    return problem


def _threshold(options: BsaOptions) -> float:
    """Deviations above the mean, or the sum of `mass`."""
    if options.kv_rule == "mass" or options.kv_density == 1:
        return MASS_TARGET
    return quantile(options.kv_density)


@lru_cache(maxsize=64)
def _group_tables(grid: BlockGrid, rule: QueryRule, keep: float) -> dict[str, Tensor]:
    """`GroupKinds` as int32, each point with its place in the flat order of the block."""
    kinds = group_kinds(grid, rule, keep)
    _, h, w = grid.block
    flat = (kinds.points * torch.tensor((h * w, w, 1))).sum(-1, keepdim=True)
    tables = {
        "kinds": kinds.of_block,
        "members": kinds.members,
        "keep": kinds.keep,
        "centres": kinds.centres,
        "points": torch.cat((kinds.points, flat), -1),
    }
    return {name: table.int().contiguous() for name, table in tables.items()}
