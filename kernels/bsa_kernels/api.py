"""The public operator: Bidirectional Sparse Attention for anybody's model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bsa_kernels.bsa import stages
from bsa_kernels.bsa.options import BsaOptions, Fill, KvRule, QueryRule
from bsa_kernels.engines import auto_engine, get_engine
from bsa_kernels.plan import BlockPlan


def make_bsa_plan(
    q: Tensor,
    k: Tensor,
    *,
    grid: Sequence[int],
    block: Sequence[int] = (4, 4, 4),
    query_block: Sequence[int] | None = None,
    query_keep: float = 0.5,
    kv_density: float = 0.1,
    query_rule: QueryRule = "window",
    kv_rule: KvRule = "statistical",
    fill: Fill = "nearest",
    scale: float | None = None,
) -> BlockPlan:
    """Select query rows and KV blocks from content, as `bsa_attention` does. No gradient flows through it.

    Args:
        q, k: [B, H, L, D] as attention receives them (after qk-norm and RoPE), tokens in natural (t, h, w) order.
        grid: (T, H, W) with T*H*W = L. An axis that the block does not divide is padded; padding is never attended to.
        block: tokens of a KV block along (t, h, w).
        query_block: tokens of a query block, default `block`. Larger ones share one KV list among more rows.
        query_keep: share of the queries that are computed, above 0 and at most 1.
        kv_density: target share of KV blocks that a query block sees, above 0 and at most 1.
        query_rule: which queries are kept: `window`, `block`, `flat_half`, `central_mean` (see `select_queries`).
        kv_rule: which KV blocks are kept: `statistical`, `topk`, `mass`, `softmax_stat` (see `select_blocks`).
        fill: what a pruned query's output is: that of the `nearest` kept token of its window or block, of the most
            `similar`, of the nearest in `flat` order, or `zero`.
        scale: of the logits, default 1/sqrt(D).

    Raises:
        ValueError: names the argument, what was expected and what was given.

    Source: arXiv 2509.01085; what the paper leaves open is decided in `docs/method.md`.
    """
    options = _options(
        grid,
        block,
        query_block,
        query_keep=query_keep,
        kv_density=kv_density,
        query_rule=query_rule,
        kv_rule=kv_rule,
        fill=fill,
    )
    stages.check_qkv(q, k, k, options.grid)
    q_grid, kv_grid = stages.grids(options)
    with torch.no_grad():
        selection = stages.select(q_grid.permute(q), kv_grid.permute(k), options, scale=scale)
        return stages.build_plan(selection, options)


def bsa_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    grid: Sequence[int],
    block: Sequence[int] = (4, 4, 4),
    query_block: Sequence[int] | None = None,
    query_keep: float = 0.5,
    kv_density: float = 0.1,
    query_rule: QueryRule = "window",
    kv_rule: KvRule = "statistical",
    fill: Fill = "nearest",
    scale: float | None = None,
    engine: str = "auto",
) -> Tensor:
    """Attend bidirectionally sparse: few queries of each block, few KV blocks each, the rest filled by copies.

    Differentiable in q, k, v; the selection is constant in the backward. Gradients of pruned queries are zero, and so
    are those of keys and values that no query block chose.

    Args:
        q, k, v: [B, H, L, D] in natural (t, h, w) token order, one floating dtype, one device.
        engine: `auto` (`triton` on CUDA, `gather` elsewhere), `triton`, `gather`, `flex`, or `reference`, the oracle.
            The engine asked for runs, or the call raises: nothing falls back.

    The other arguments are those of `make_bsa_plan`.

    Returns:
        [B, H, L, D] in the inputs' dtype.

    Raises:
        ValueError: a wrong argument, or an engine that cannot run this here; the message says why.
    """
    options = _options(
        grid,
        block,
        query_block,
        query_keep=query_keep,
        kv_density=kv_density,
        query_rule=query_rule,
        kv_rule=kv_rule,
        fill=fill,
    )
    stages.check_qkv(q, k, v, options.grid)
    tiles = stages.permute(q, k, v, options)
    plan = stages.build_plan(stages.select(tiles.q, tiles.k, options, scale=scale), options)
    return _attend(tiles, plan, scale, engine)


def block_sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, *, scale: float | None = None, engine: str = "auto"
) -> Tensor:
    """Attend by a plan made before, or by hand. Arguments and errors as `bsa_attention`.

    Raises:
        ValueError: q, k, v do not fit the plan.
    """
    stages.check_qkv(q, k, v, plan.q_grid.grid)
    if plan.shape[:2] != q.shape[:2] or plan.device != q.device:
        raise ValueError(
            f"plan: expected (B, H) = {tuple(q.shape[:2])} on {q.device}, got {plan.shape[:2]} on {plan.device}"
        )
    tiles = stages.Tiles(plan.q_grid.permute(q), plan.kv_grid.permute(k), plan.kv_grid.permute(v))
    return _attend(tiles, plan, scale, engine)


def _attend(tiles: stages.Tiles, plan: BlockPlan, scale: float | None, engine: str) -> Tensor:
    q = tiles.q
    name = auto_engine(q.device) if engine == "auto" else engine
    runner = get_engine(name)
    backward = torch.is_grad_enabled() and any(x.requires_grad for x in (tiles.q, tiles.k, tiles.v))
    reason = runner.unsupported(q.device, q.dtype, q.shape[-1], backward=backward)
    if reason:
        raise ValueError(f"engine {name!r}: {reason}")
    factor = stages.default_scale(q, scale)
    o_kept = runner.attend(tiles.q, tiles.k, tiles.v, plan, runner.prepare(plan), scale=factor)
    return plan.fill_output(o_kept)


def _options(
    grid: Sequence[int],
    block: Sequence[int],
    query_block: Sequence[int] | None,
    *,
    query_keep: float,
    kv_density: float,
    query_rule: QueryRule,
    kv_rule: KvRule,
    fill: Fill,
) -> BsaOptions:
    t, h, w = _triple("grid", grid)
    return BsaOptions(
        grid=(t, h, w),
        block=_triple("block", block),
        query_block=None if query_block is None else _triple("query_block", query_block),
        query_keep=query_keep,
        kv_density=kv_density,
        query_rule=query_rule,
        kv_rule=kv_rule,
        fill=fill,
    )


def _triple(name: str, value: Sequence[int]) -> tuple[int, int, int]:
    if len(value) != 3 or any(isinstance(v, bool) or not isinstance(v, int) or v < 1 for v in value):
        raise ValueError(f"{name}: expected three integers (t, h, w) of at least 1, got {value!r}")
    return value[0], value[1], value[2]
