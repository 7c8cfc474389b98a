"""The stages of a block method on a block engine: permute, select, plan, attend, fill or restore."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from bsa_kernels.block_engine import BlockRunner, UnsupportedPlanError, lse_runner
from bsa_kernels.grid import BlockGrid
from bsa_kernels.keys import KeySlots
from bsa_kernels.operator import Stage
from bsa_kernels.plan import BlockPlan


def block_stages(
    engine: BlockRunner,
    q_grid: BlockGrid,
    kv_grid: BlockGrid,
    select: Callable[..., Any],
    build: Callable[[Any], BlockPlan],
    *,
    scale: float,
    reads: tuple[str, ...] = ("q", "k"),
    out: str = "o",
    lse: str | None = None,
    prefix: int = 0,
    is_tiled: bool = False,
) -> tuple[Stage, ...]:
    """Wire a selection to an engine.

    The stages are `permute` (an engine that reads tile-major tensors), `select`, `plan`, `attend`, and `fill` (an
    engine that returns kept rows) or `restore` (one that fills tile-major tensors), and `fill_lse` where the
    log-sum-exp is asked for. They leave `plan` and `prepared` in the operator's state.

    Args:
        engine: what attends.
        q_grid, kv_grid: the blocks of queries and of keys.
        select: `select(*tensors, is_tiled=...)` chooses, without gradients. The tensors are those that `reads` names;
            `q`, `k` and `v` among them come in the order that the engine reads, and `is_tiled` says whether that is
            tile-major. Anything else comes as the state has it.
        build: makes the plan of what `select` returned.
        scale: of the logits.
        reads: the names of what `select` reads.
        out: the name of the output, [B, H, L, D] in natural order.
        lse: the name of the log-sum-exp of every token [B, H, L], in natural order always, see `BlockPlan.fill_lse`;
            None: it is not made.
        prefix: tokens of k and v that precede those of `kv_grid`, see `KeySlots`.
        is_tiled: q, k and v of the operator are tile-major already, and so is the output.

    Raises:
        ValueError: `is_tiled` with an engine that reads natural order, or `lse` with one that does not give it.
    """
    if is_tiled and engine.layout != "tiled":
        raise ValueError(f"is_tiled: expected an engine that reads tile-major tensors, got {engine.name!r}")
    reads_tiles = engine.layout == "tiled"
    permutes = reads_tiles and not is_tiled
    with_lse = None if lse is None else lse_runner(engine)
    tokens = ("q_tiles", "k_tiles", "v_tiles") if permutes else ("q", "k", "v")
    named = dict(zip(("q", "k", "v"), tokens, strict=True))

    keys = KeySlots(kv_grid, prefix)

    def permute(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return q_grid.permute(q), keys.tiles(k), keys.tiles(v)

    def plan(selection: Any, q: Tensor) -> tuple[BlockPlan, Any]:
        made = build(selection)
        if reason := engine.unsupported_plan(made):
            raise UnsupportedPlanError(f"engine {engine.name!r}: {reason}")
        return made, engine.prepare(made, q)

    def attend(q: Tensor, k: Tensor, v: Tensor, made: BlockPlan, prepared: Any) -> tuple[Tensor, ...]:
        if with_lse is None:
            return (engine.attend(q, k, v, made, prepared, scale=scale),)
        return with_lse.attend_lse(q, k, v, made, prepared, scale=scale)

    def fill(o_kept: Tensor, made: BlockPlan) -> tuple[Tensor]:
        o = made.fill_output(o_kept)
        return (q_grid.permute(o) if is_tiled else o,)

    attended = "o_kept" if not engine.fills else "o_tiles" if permutes else out
    middle = (
        Stage(
            "select",
            tuple(named.get(name, name) for name in reads),
            ("selection",),
            lambda *tensors: (select(*tensors, is_tiled=reads_tiles),),
            differentiable=False,
        ),
        Stage("plan", ("selection", tokens[0]), ("plan", "prepared"), plan, differentiable=False),
        Stage("attend", tokens, (attended,) if lse is None else (attended, "lse_kept"), attend, ("plan", "prepared")),
    )
    first = (Stage("permute", ("q", "k", "v"), tokens, permute),) if permutes else ()
    last: tuple[Stage, ...] = ()
    if not engine.fills:
        last = (Stage("fill", (attended,), (out,), fill, constants=("plan",)),)
    elif permutes:
        last = (Stage("restore", (attended,), (out,), lambda o: (q_grid.restore(o),)),)
    if lse is not None:
        fill_lse = Stage("fill_lse", ("lse_kept",), (lse,), lambda x, made: (made.fill_lse(x),), constants=("plan",))
        last = (*last, fill_lse)
    return *first, *middle, *last


def plan_stages(engine: BlockRunner, plan: BlockPlan, *, scale: float, lse: str | None = None) -> tuple[Stage, ...]:
    """The stages that attend by a plan made before; `select` is empty. Arguments and errors as `block_stages`."""
    return block_stages(
        engine,
        plan.q_grid,
        plan.kv_grid,
        lambda *, is_tiled: None,  # noqa: ARG005
        lambda _: plan,
        scale=scale,
        reads=(),
        lse=lse,
        prefix=plan.prefix,
    )
