"""The public operator: Bidirectional Sparse Attention for anybody's model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal, overload

import torch
from torch import Tensor

from bsa_kernels import arguments
from bsa_kernels.arguments import Layout
from bsa_kernels.block_engine import BlockRunner
from bsa_kernels.engines import auto_engine, get_engine
from bsa_kernels.grid import BlockGrid
from bsa_kernels.methods.bsa import stages
from bsa_kernels.methods.bsa.options import BsaOptions, Fill, KvRule, QueryRule
from bsa_kernels.methods.bsa.pipeline import bsa_operator
from bsa_kernels.operator import Operator
from bsa_kernels.plan import BlockPlan
from bsa_kernels.stages import plan_stages
from bsa_kernels.tracing import ask_once, untraced, with_fixed_sizes


@untraced
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
    layout: Layout = "bhld",
) -> BlockPlan:
    """Select query rows and KV blocks from content, as `bsa_attention` does. No gradient flows through it.

    Args:
        q, k: [B, H, L, D] as attention receives them (after qk-norm and RoPE), tokens in natural (t, h, w) order; k may
            have fewer heads, as many as divide q's, each for as many heads of q.
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
        layout: of q and k: `bhld`, or `blhd` for [B, L, H, D].

    Raises:
        ValueError, TypeError: names the argument, what was expected and what was given.

    Source: arXiv 2509.01085; what the paper leaves open is decided in `docs/methods/bsa.md`.
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
    q, k = arguments.natural("q", q, layout), arguments.natural("k", k, layout)
    with torch.no_grad():
        k, _ = arguments.with_all_heads(q, k, k)
        stages.check_qkv(q, k, k, options.grid)
        scale = arguments.softmax_scale(q, scale)
        if _has_heads(q):
            selected = _select(q, k, options, scale)
        else:  # the tables of one head have the shapes that none has
            of_one = _select(q.new_zeros(1, 1, *q.shape[2:]), k.new_zeros(1, 1, *k.shape[2:]), options, scale)
            selected = stages.Selected(*(x.new_empty(*q.shape[:2], *x.shape[2:]) for x in of_one))
        return stages.build_plan(selected, options).trusted()


def _select(q: Tensor, k: Tensor, options: BsaOptions, scale: float) -> stages.Selected:
    q_grid, kv_grid = stages.grids(options)
    tiles = q_grid.permute(q), kv_grid.permute(k)
    return stages.select_tokens(*tiles, options, scale=scale, is_tiled=True, in_triton=False)


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
    layout: Layout = "bhld",
) -> Tensor:
    """Attend bidirectionally sparse: few queries of each block, few KV blocks each, the rest filled by copies.

    Differentiable in q, k, v; the selection is constant in the backward. Gradients of pruned queries are zero, and so
    are those of keys and values that no query block chose.

    Args:
        q, k, v: [B, H, L, D] in natural (t, h, w) token order, one floating dtype, one device. k and v may have fewer
            heads, as many as divide q's (GQA); they are then copied, once for each head of q that shares them.
        engine: `auto` (`triton` on CUDA; `cpu` on a CPU, or `gather` with a warning where there is no C++ compiler;
            see `explain_engine`), `triton`, `gluon` (a forward for Hopper alone), `cpu`, `gather`, `flex`, or
            `reference`, the oracle. The engine asked for runs, or the call raises: nothing falls back.
        tiled: q, k, v and the result are tile-major [B, H, N*M, D], see `tile_permute`; padding is not read, and zero
            in the result.
        layout: of q, k, v and the result: `bhld`, or `blhd` for [B, L, H, D], which is a view and costs nothing.

    Gradients are of first order, and in reverse mode: a second derivative and a forward-mode tangent raise.

    Under `torch.compile` and `torch.export` the engine `triton` is three opaque operators, others two, compiled once
    for each grid and batch; the backward of `gather` attends again first there. `flex` alone is not traced, and runs as
    it does without. Under autocast q, k and v are
    converted first; `torch.use_deterministic_algorithms` makes the backward of `triton` add in a fixed order, which
    that of `cpu` always does.

    The other arguments are those of `make_bsa_plan`.

    Returns:
        [B, H, L, D] in the inputs' dtype.

    Raises:
        ValueError, TypeError: a wrong argument, or an engine that cannot run this here; the message says why.
    """
    if torch.compiler.is_compiling() and engine == "flex":
        return _attend_untraced(
            q,
            k,
            v,
            grid=grid,
            block=block,
            query_block=query_block,
            query_keep=query_keep,
            kv_density=kv_density,
            query_rule=query_rule,
            kv_rule=kv_rule,
            fill=fill,
            scale=scale,
            engine=engine,
            tiled=tiled,
            layout=layout,
        )
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
    slots = _num_slots(options) if arguments.flag("tiled", tiled) else None
    q, k, v = _readable(q, k, v, layout)
    stages.check_qkv(q, k, v, options.grid, slots=slots)
    scale = arguments.softmax_scale(q, scale)
    runner = _runner(_engine_for(q, k, v, engine), tiled=tiled)
    make = bsa_operator if torch.compiler.is_compiling() else _kept_operator
    operator = make(options, runner, scale=scale, is_tiled=tiled)
    o = operator.forward({"q": q, "k": k, "v": v}) if _has_heads(q) else q + k + v
    return o.transpose(1, 2) if layout == "blhd" else o


_attend_untraced = untraced(bsa_attention)


@overload
def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: BlockPlan,
    *,
    scale: float | None = None,
    engine: str = "auto",
    return_lse: Literal[False] = False,
    layout: Layout = "bhld",
) -> Tensor: ...


@overload
def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: BlockPlan,
    *,
    scale: float | None = None,
    engine: str = "auto",
    return_lse: Literal[True],
    layout: Layout = "bhld",
) -> tuple[Tensor, Tensor]: ...


def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: BlockPlan,
    *,
    scale: float | None = None,
    engine: str = "auto",
    return_lse: bool = False,
    layout: Layout = "bhld",
) -> Tensor | tuple[Tensor, Tensor]:
    """Attend by a plan made before, or by hand. Arguments and errors as `bsa_attention`, but for those named here.

    Args:
        q: [B, H, Lq, D] in natural order of the plan's grid of queries.
        k, v: [B, H, P + Lk, D]: the plan's prefix, then the tokens of its grid of keys in natural order.
        plan: what attends to what, for these B and H on this device. One made by hand is checked on its first use
            (`BlockPlan.check`, which synchronises).
        return_lse: also return the log-sum-exp of each token's logits [B, H, Lq], fp32 (fp64 for fp64 inputs), by
            which `merge_streams` joins attention over other keys; -inf for a token that sees nothing or is filled by
            zero. Differentiable.
        layout: of q, k, v and the output, as for `bsa_attention`; the log-sum-exp is [B, H, Lq] in both.

    Raises:
        ValueError, TypeError: q, k, v do not fit the plan, or the engine does not run it, or gives no log-sum-exp.
    """
    if torch.compiler.is_compiling() and engine == "flex":
        return _attend_plan_untraced(q, k, v, plan, scale=scale, engine=engine, return_lse=return_lse, layout=layout)
    if not isinstance(plan, BlockPlan):
        raise TypeError(
            f"plan: expected a BlockPlan, of make_bsa_plan or BlockPlan.from_mask, got {type(plan).__name__}"
        )
    q, k, v = _readable(q, k, v, layout)
    stages.check_qkv(q, k, v, plan.q_grid.grid, num_keys=None if plan.is_plain else plan.keys.num_keys)
    scale = arguments.softmax_scale(q, scale)
    name = _engine_for(q, k, v, engine)
    if plan.shape[:2] != q.shape[:2] or plan.device != q.device:
        raise ValueError(
            f"plan: expected (B, H) = {tuple(q.shape[:2])} on {q.device}, got {plan.shape[:2]} on {plan.device}"
        )
    if not torch.compiler.is_compiling():
        plan.check_once()
    lse = "lse" if arguments.flag("return_lse", return_lse) else None
    operator = Operator(plan_stages(_runner(name), plan, scale=scale, lse=lse))
    if _has_heads(q):
        state = operator.run({"q": q, "k": k, "v": v})
    else:
        none = q + (k.sum(2, keepdim=True) + v.sum(2, keepdim=True))
        state = {"o": none, "lse": none.sum(-1, dtype=torch.promote_types(q.dtype, torch.float32))}
    o = state["o"].transpose(1, 2) if layout == "blhd" else state["o"]
    return (o, state["lse"]) if return_lse else o


_attend_plan_untraced: Callable[..., Tensor | tuple[Tensor, Tensor]] = untraced(block_sparse_attention)


def tile_permute(x: Tensor, *, grid: Sequence[int], block: Sequence[int] = (4, 4, 4)) -> Tensor:
    """Bring [B, H, L, D] into tile-major order [B, H, N*M, D], for `bsa_attention(..., tiled=True)`. Differentiable.

    Blocks stand one after another, in each its real tokens first, zeros where the block does not divide the grid. Once
    for a model's forward, not once a call.

    Raises:
        ValueError: a wrong argument, or `x` has not T*H*W tokens.
    """
    return BlockGrid(arguments.triple("grid", grid), arguments.triple("block", block)).permute(*with_fixed_sizes(x))


def tile_restore(x: Tensor, *, grid: Sequence[int], block: Sequence[int] = (4, 4, 4)) -> Tensor:
    """The inverse of `tile_permute`. Differentiable."""
    return BlockGrid(arguments.triple("grid", grid), arguments.triple("block", block)).restore(*with_fixed_sizes(x))


def _runner(name: str, *, tiled: bool = False) -> BlockRunner:
    """The engine; to a compiler that traces one whose stages are operators."""
    if torch.compiler.is_compiling() and not _is_traced(name):
        from bsa_kernels.engines.traced import TracedEngine

        return TracedEngine(name, "tiled" if tiled else "natural")
    return get_engine(name, tiled=tiled)


@ask_once
def _is_traced(name: str) -> bool:
    """Whether a compiler traces an engine whole: those whose stages are operators."""
    return name == "cpu" or get_engine(name).runs_triton


def _engine_for(q: Tensor, k: Tensor, v: Tensor, engine: str) -> str:
    """The name of the engine that runs this, or ValueError with its reason."""
    name = auto_engine(q.device) if engine == "auto" else engine
    backward = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    reason = _unsupported(name, q.device, q.dtype, q.shape[-1], backward)
    if reason:
        raise ValueError(f"engine {name!r}: {reason}")
    return name


@ask_once
def _unsupported(name: str, device: torch.device, dtype: torch.dtype, head_dim: int, backward: bool) -> str | None:
    """What the engine says; asked once where a compiler traces, for the answer does not change."""
    return get_engine(name).unsupported(device, dtype, head_dim, backward=backward)


@lru_cache(maxsize=64)
def _kept_operator(options: BsaOptions, engine: BlockRunner, *, scale: float, is_tiled: bool) -> Operator:
    """`bsa_operator`, made once for each layer of a model; a compiler traces its making instead."""
    return bsa_operator(options, engine, scale=scale, is_tiled=is_tiled)


def _readable(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v as the stages take them: checked one by one, in natural order, in one format, with q's heads."""
    q, k, v = (arguments.natural(name, x, layout) for name, x in (("q", q), ("k", k), ("v", v)))
    q, k, v = _autocast(*with_fixed_sizes(q, k, v))
    return q, *arguments.with_all_heads(q, k, v)


def _has_heads(q: Tensor) -> bool:
    """Whether there is a batch and a head; without, nothing is computed and gradients are empty too."""
    return q.shape[0] > 0 and q.shape[1] > 0


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
    return BsaOptions(
        grid=arguments.triple("grid", grid),
        block=arguments.triple("block", block),
        query_block=None if query_block is None else arguments.triple("query_block", query_block),
        query_keep=arguments.share("query_keep", query_keep),
        kv_density=arguments.share("kv_density", kv_density),
        query_rule=query_rule,
        kv_rule=kv_rule,
        fill=fill,
    )
