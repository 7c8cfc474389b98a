"""The stages of the operator, one function each, so that a model runs them in a row and a benchmark one by one.

permute -> select -> plan -> attend (an engine) -> fill. Shape legend in `bsa_kernels.plan`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bsa_kernels.bits import pack_bits
from bsa_kernels.bsa.blocks import pool_kept, pool_real, score_blocks, select_blocks
from bsa_kernels.bsa.fused import FusedSelection, unsupported
from bsa_kernels.bsa.options import BsaOptions
from bsa_kernels.bsa.queries import QuerySelection, select_queries
from bsa_kernels.grid import BlockGrid
from bsa_kernels.plan import BlockPlan


@dataclass(frozen=True)
class Tiles:
    """Tile-major tensors: `q` in the slots of the query grid, `k` and `v` in those of the KV grid."""

    q: Tensor
    k: Tensor
    v: Tensor


@dataclass(frozen=True)
class Selection:
    """What was selected, before it is turned into a plan: the queries, and `block_mask` [B, H, Nq, Nk] bool."""

    queries: QuerySelection
    block_mask: Tensor


def grids(options: BsaOptions) -> tuple[BlockGrid, BlockGrid]:
    """The query grid and the KV grid."""
    kv = BlockGrid(options.grid, options.block)
    return (BlockGrid(options.grid, options.query_block) if options.query_block else kv), kv


def permute(q: Tensor, k: Tensor, v: Tensor, options: BsaOptions) -> Tiles:
    """Bring q, k, v [B, H, L, D] into tile-major order. Differentiable."""
    q_grid, kv_grid = grids(options)
    return Tiles(q_grid.permute(q), kv_grid.permute(k), kv_grid.permute(v))


@torch.no_grad()
def select(q_tiles: Tensor, k_tiles: Tensor, options: BsaOptions, *, scale: float | None = None) -> Selection:
    """Select query rows and KV blocks from tile-major q and k; no gradient, no synchronisation."""
    q_grid, kv_grid = grids(options)
    queries = select_queries(q_tiles, q_grid, query_keep=options.query_keep, rule=options.query_rule, fill=options.fill)
    pooled_q = pool_kept(q_tiles, queries.kept, queries.num_kept)
    pooled_k = pool_real(k_tiles, kv_grid)
    scores, magnitude = score_blocks(pooled_q, pooled_k, scale=default_scale(q_tiles, scale))
    return Selection(
        queries, select_blocks(scores, kv_density=options.kv_density, rule=options.kv_rule, magnitude=magnitude)
    )


@torch.no_grad()
def select_tokens(
    q: Tensor, k: Tensor, options: BsaOptions, *, scale: float, is_tiled: bool = False
) -> Selection | FusedSelection:
    """Select from q and k where they are, in natural order or tile-major: by kernels where they have the options.

    The kernels are those of `triton_select`; the other options are worked out in torch, from tile-major copies. Which
    of the two runs depends on the options, the head size and the format alone; see `fused.unsupported`.
    """
    if unsupported(options, head_dim=q.shape[-1], dtype=q.dtype) is None:
        from bsa_kernels.bsa import triton_select

        q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k))
        return triton_select.select(q, k, options, scale=scale, tiled=is_tiled)
    q_grid, kv_grid = grids(options)
    if not is_tiled:
        q, k = q_grid.permute(q), kv_grid.permute(k)
    return select(q, k, options, scale=scale)


def build_plan(selection: Selection | FusedSelection, options: BsaOptions) -> BlockPlan:
    """Turn a selection into a plan."""
    q_grid, kv_grid = grids(options)
    return BlockPlan(
        q_grid=q_grid,
        kv_grid=kv_grid,
        kept_slots=selection.queries.kept_slots,
        num_kept=selection.queries.num_kept,
        fill=selection.queries.fill,
        block_bits=selection.block_bits if isinstance(selection, FusedSelection) else pack_bits(selection.block_mask),
        has_zero_fill=options.fill == "zero" and options.query_keep < 1,
        # On an even grid all blocks keep the same number.
        keeps_every_row=q_grid.is_even and selection.queries.kept_slots.shape[-1] == q_grid.block_size,
    )


def default_scale(q: Tensor, scale: float | None) -> float:
    """The softmax scale: what is given, or 1/sqrt(D)."""
    return 1 / math.sqrt(q.shape[-1]) if scale is None else scale


def check_qkv(q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int, int], *, slots: int | None = None) -> None:
    """Check that q, k, v are one [B, H, L, D] with L = T*H*W, or `slots` tile-major, one floating dtype, one device.

    Raises:
        ValueError: names the tensor, what was expected and what was given.
    """
    if q.dim() != 4 or not q.is_floating_point():
        raise ValueError(f"q: expected a floating [B, H, L, D], got {q.dtype} {list(q.shape)}")
    if slots is not None and q.shape[2] != slots:
        raise ValueError(f"q: expected {slots} tile-major slots of grid {tuple(grid)}, got {q.shape[2]}")
    if slots is None and (len(grid) != 3 or q.shape[2] != math.prod(grid)):
        raise ValueError(f"q: expected L = T*H*W of grid {tuple(grid)}, got L = {q.shape[2]} in {list(q.shape)}")
    for name, x in (("k", k), ("v", v)):
        if (x.shape, x.dtype, x.device) != (q.shape, q.dtype, q.device):
            raise ValueError(
                f"{name}: expected q's {list(q.shape)} {q.dtype} on {q.device}, got {list(x.shape)} {x.dtype} on "
                f"{x.device}"
            )
