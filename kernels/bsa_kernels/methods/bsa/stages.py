"""The selection of BSA, and the plan that is built of it. Shape legend in `bsa_kernels.plan`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bsa_kernels.bits import pack_bits
from bsa_kernels.grid import BlockGrid
from bsa_kernels.methods.bsa.blocks import pool_kept, pool_real, score_blocks, select_blocks
from bsa_kernels.methods.bsa.fused import unsupported
from bsa_kernels.methods.bsa.options import BsaOptions
from bsa_kernels.methods.bsa.queries import QuerySelection, select_queries
from bsa_kernels.plan import BlockPlan
from bsa_kernels.rules import FULL


@dataclass(frozen=True)
class Selection:
    """What was selected, before it is turned into a plan: the queries, and `block_mask` [B, H, Nq, Nk] bool."""

    queries: QuerySelection
    block_mask: Tensor


class Selected(NamedTuple):
    """What a selection leaves for the plan: the tables of that name in `BlockPlan`."""

    kept_slots: Tensor
    num_kept: Tensor
    fill: Tensor
    block_bits: Tensor


def grids(options: BsaOptions) -> tuple[BlockGrid, BlockGrid]:
    """The query grid and the KV grid."""
    kv = BlockGrid(options.grid, options.block)
    return (BlockGrid(options.grid, options.query_block) if options.query_block else kv), kv


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
    q: Tensor, k: Tensor, options: BsaOptions, *, scale: float, is_tiled: bool = False, in_triton: bool = True
) -> Selected:
    """Select from q and k where they are, in natural order or tile-major.

    Args:
        q, k: [B, H, L, D], tile-major [B, H, N*M, D] if `is_tiled`.
        options: what is selected.
        scale: of the logits.
        is_tiled: the order of q and k.
        in_triton: by the kernels of `triton_select` where they have the options, which depends on these, the head size
            and the format alone, see `fused.unsupported`; otherwise, and without it, in torch from tile-major copies.
    """
    q_grid, kv_grid = grids(options)
    if in_triton and unsupported(options, head_dim=q.shape[-1], dtype=q.dtype) is None:
        from bsa_kernels.methods.bsa import triton_select

        q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k))
        fused = triton_select.select(q, k, options, scale=scale, tiled=is_tiled)
        queries, bits = fused.queries, fused.block_bits
        return Selected(queries.kept_slots, queries.num_kept, queries.fill, bits)
    if not is_tiled:
        q, k = q_grid.permute(q), kv_grid.permute(k)
    found = select(q, k, options, scale=scale)
    tables = found.queries.kept_slots, found.queries.num_kept, found.queries.fill
    return Selected(*tables, pack_bits(found.block_mask))


def build_plan(selected: Selected, options: BsaOptions) -> BlockPlan:
    """Turn a selection into a plan."""
    q_grid, kv_grid = grids(options)
    return BlockPlan(
        q_grid=q_grid,
        kv_grid=kv_grid,
        kept_slots=selected.kept_slots,
        num_kept=selected.num_kept,
        fill=selected.fill,
        block_bits=selected.block_bits,
        has_zero_fill=options.fill == "zero" and options.query_keep < 1,
        rule=FULL,  # named, for a compiler cannot wrap a default that is an object
        # On an even grid all blocks keep the same number.
        keeps_every_row=q_grid.is_even and selected.kept_slots.shape[-1] == q_grid.block_size,
    )


def default_scale(q: Tensor, scale: float | None) -> float:
    """The softmax scale: what is given, or 1/sqrt(D)."""
    return 1 / math.sqrt(q.shape[-1]) if scale is None else scale


def check_qkv(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: tuple[int, int, int],
    *,
    slots: int | None = None,
    num_keys: int | None = None,
) -> None:
    """Check that q, k, v are one [B, H, L, D] with L = T*H*W, or `slots` tile-major, one floating dtype, one device.

    With `num_keys`, k and v have so many tokens instead of q's.

    Raises:
        ValueError: names the tensor, what was expected and what was given.
    """
    if q.dim() != 4 or not q.is_floating_point():
        raise ValueError(f"q: expected a floating [B, H, L, D], got {q.dtype} {list(q.shape)}")
    if slots is not None and q.shape[2] != slots:
        raise ValueError(f"q: expected {slots} tile-major slots of grid {tuple(grid)}, got {q.shape[2]}")
    if slots is None and (len(grid) != 3 or q.shape[2] != math.prod(grid)):
        raise ValueError(f"q: expected L = T*H*W of grid {tuple(grid)}, got L = {q.shape[2]} in {list(q.shape)}")
    shape, whose = q.shape, "q's"
    if num_keys is not None:
        shape, whose = torch.Size((*q.shape[:2], num_keys, q.shape[3])), f"the plan's {num_keys} keys,"
    for name, x in (("k", k), ("v", v)):
        if (x.shape, x.dtype, x.device) != (shape, q.dtype, q.device):
            raise ValueError(
                f"{name}: expected {whose} {list(shape)} {q.dtype} on {q.device}, got {list(x.shape)} {x.dtype} on "
                f"{x.device}"
            )
