"""The public operator: Bidirectional Sparse Attention for anybody's model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bsa_kernels.bsa import stages
from bsa_kernels.bsa.options import BsaOptions, Fill, KvRule, QueryRule
from bsa_kernels.engines import FUSED, auto_engine, get_engine, get_fused
from bsa_kernels.grid import BlockGrid
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
    tiled: bool = False,
) -> Tensor:
    """Attend bidirectionally sparse: few queries of each block, few KV blocks each, the rest filled by copies.

    Differentiable in q, k, v; the selection is constant in the backward. Gradients of pruned queries are zero, and so
    are those of keys and values that no query block chose.

    Args:
        q, k, v: [B, H, L, D] in natural (t, h, w) token order, one floating dtype, one device.
        engine: `auto` (`triton` on CUDA, `gather` elsewhere), `triton`, `gluon` (a forward for
            Hopper alone), `gather`, `flex`, or `reference`, the oracle.
            The engine asked for runs, or the call raises: nothing falls back.
        tiled: q, k, v and the result are tile-major [B, H, N*M, D], see `tile_permute`; padding is not read, and zero
            in the result.

    Under `torch.compile` and `torch.export` the engine `triton` is two opaque operators; under autocast q, k and v are
    converted first; `torch.use_deterministic_algorithms` makes its backward add in a fixed order.

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
    q, k, v = _autocast(q, k, v)
    name = _engine_for(q, k, v, engine)
    stages.check_qkv(q, k, v, options.grid, slots=_num_slots(options) if tiled else None)
    if name in FUSED:
        return _fused(q, k, v, options, scale=scale, tiled=tiled, engine=name)
    q_grid, kv_grid = stages.grids(options)
    if not tiled:
        q, k, v = q_grid.permute(q), kv_grid.permute(k), kv_grid.permute(v)
    plan = stages.build_plan(stages.select(q, k, options, scale=scale), options)
    o = _attend(stages.Tiles(q, k, v), plan, scale, name)
    return q_grid.permute(o) if tiled else o


def block_sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, *, scale: float | None = None, engine: str = "auto"
) -> Tensor:
    """Attend by a plan made before, or by hand. Arguments and errors as `bsa_attention`.

    Raises:
        ValueError: q, k, v do not fit the plan.
    """
    q, k, v = _autocast(q, k, v)
    name = _engine_for(q, k, v, engine)
    stages.check_qkv(q, k, v, plan.q_grid.grid)
    if plan.shape[:2] != q.shape[:2] or plan.device != q.device:
        raise ValueError(
            f"plan: expected (B, H) = {tuple(q.shape[:2])} on {q.device}, got {plan.shape[:2]} on {plan.device}"
        )
    if name in FUSED:
        fused = get_fused(name)
        tables = fused.prepare(plan, head_dim=q.shape[-1], dtype=q.dtype)
        return fused.attend_tokens(q, k, v, tables, scale=stages.default_scale(q, scale))
    tiles = stages.Tiles(plan.q_grid.permute(q), plan.kv_grid.permute(k), plan.kv_grid.permute(v))
    return _attend(tiles, plan, scale, name)


def tile_permute(x: Tensor, *, grid: Sequence[int], block: Sequence[int] = (4, 4, 4)) -> Tensor:
    """Bring [B, H, L, D] into tile-major order [B, H, N*M, D], for `bsa_attention(..., tiled=True)`. Differentiable.

    Blocks stand one after another, in each its real tokens first, zeros where the block does not divide the grid. Once
    for a model's forward, not once a call.

    Raises:
        ValueError: a wrong argument, or `x` has not T*H*W tokens.
    """
    return BlockGrid(_triple("grid", grid), _triple("block", block)).permute(x)


def tile_restore(x: Tensor, *, grid: Sequence[int], block: Sequence[int] = (4, 4, 4)) -> Tensor:
    """The inverse of `tile_permute`. Differentiable."""
    return BlockGrid(_triple("grid", grid), _triple("block", block)).restore(x)


def _engine_for(q: Tensor, k: Tensor, v: Tensor, engine: str) -> str:
    """The name of the engine that runs this, or ValueError with its reason."""
    name = auto_engine(q.device) if engine == "auto" else engine
    backward = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    reason = _unsupported(name, q.device, q.dtype, q.shape[-1], backward)
    if reason:
        raise ValueError(f"engine {name!r}: {reason}")
    return name


@torch.compiler.assume_constant_result
def _unsupported(name: str, device: torch.device, dtype: torch.dtype, head_dim: int, backward: bool) -> str | None:
    """What the engine says; asked once where a compiler traces, for the answer does not change."""
    return get_engine(name).unsupported(device, dtype, head_dim, backward=backward)


def _attend(tiles: stages.Tiles, plan: BlockPlan, scale: float | None, engine: str) -> Tensor:
    runner = get_engine(engine)
    factor = stages.default_scale(tiles.q, scale)
    return plan.fill_output(runner.attend(tiles.q, tiles.k, tiles.v, plan, runner.prepare(plan), scale=factor))


def _fused(
    q: Tensor, k: Tensor, v: Tensor, options: BsaOptions, *, scale: float | None, tiled: bool, engine: str
) -> Tensor:
    """Two operators: tables of a plan, and attention by them. Nothing else, so that a compiler sees through it."""
    from bsa_kernels.block_sparse import ops
    from bsa_kernels.block_sparse.tables import encode_shape

    q_grid, kv_grid = stages.grids(options)
    numbers = encode_shape(
        q_grid,
        kv_grid,
        is_tiled=tiled,
        fills=not (options.query_keep == 1 and q_grid.is_even),
        expected_list=math.ceil(options.kv_density * kv_grid.num_blocks),
    )
    if engine == "gluon":
        numbers += _gluon_tiles(options, q.shape[-1], q.dtype)
    factor = stages.default_scale(q, scale)
    choices = (options.query_keep, options.kv_density, options.query_rule, options.kv_rule, options.fill)
    tensors = ops.make_tables(q.detach(), k.detach(), numbers, *choices, factor)
    return ops.attend(q, k, v, tensors, numbers, scale=factor)


@torch.compiler.assume_constant_result
def _gluon_tiles(options: BsaOptions, head_dim: int, dtype: torch.dtype) -> list[int]:
    """The tiles of the engine gluon as integers; what `triton` runs is looked up by its operators."""
    from bsa_kernels.bsa.queries import kept_rows
    from bsa_kernels.engines.gluon import specialized_tiles

    q_grid, kv_grid = stages.grids(options)
    kept = kept_rows(q_grid, options.query_rule, options.query_keep)
    return specialized_tiles(kv_grid, kept_rows=kept, head_dim=head_dim, dtype=dtype).encode()


def _autocast(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Under autocast, q, k and v in its format, as torch's own attention has it."""
    kind = q.device.type
    if not torch.is_autocast_enabled(kind) or not q.is_floating_point() or q.dtype == torch.float64:
        return q, k, v
    dtype = torch.get_autocast_dtype(kind)
    return q.to(dtype), k.to(dtype), v.to(dtype)


def _num_slots(options: BsaOptions) -> int:
    """Slots of tile-major q, k and v.

    Raises:
        ValueError: query and KV blocks put tokens in different orders.
    """
    q_grid, kv_grid = stages.grids(options)
    if q_grid.block != kv_grid.block:
        raise ValueError(
            f"tiled: expected one block for queries and keys, got query_block {q_grid.block} and block {kv_grid.block}"
        )
    return q_grid.num_slots


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
