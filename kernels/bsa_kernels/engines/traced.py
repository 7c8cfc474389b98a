"""An engine of torch code to a compiler that traces: one operator for the selection, one for attention, one backward.

What `reference` and `gather` do depends on the contents of a plan, which no trace has. As operators they are
called when the compiled code runs. The backward attends again and differentiates that, as checkpointing would.
"""
# The fakes of operators have the operators' arguments and need few of them.
# ruff: noqa: ARG001

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bsa_kernels.block_engine import Order
from bsa_kernels.engines import get_engine
from bsa_kernels.grid import BlockGrid
from bsa_kernels.operator import Operator
from bsa_kernels.plan import BlockPlan
from bsa_kernels.rules import ElementRule
from bsa_kernels.stages import block_stages
from bsa_kernels.torch_operator import fake_of, gradient_of, torch_operator

# In place of a bound of the element rule that there is not: more than any position.
_UNBOUNDED = 1 << 40


@dataclass(frozen=True)
class TracedEngine:
    """A `BlockRunner` that fills, in natural order or tile-major as it is made for, by the engine of this name."""

    name: str
    layout: Order
    fills: bool = field(default=True, init=False)
    runs_triton: bool = field(default=False, init=False)
    gives_lse: bool = field(default=True, init=False)

    def unsupported_plan(self, plan: BlockPlan) -> str | None:  # noqa: ARG002
        """See `BlockRunner`; the engine itself is asked when it runs."""
        return None

    def prepare(self, plan: BlockPlan, like: Tensor) -> list[int]:  # noqa: ARG002
        """The integers of a plan: its grids, its rule, its prefix and the order of tokens."""
        bounds = [_UNBOUNDED if bound is None else bound for bound in (plan.rule.before, plan.rule.after)]
        grids = (plan.q_grid.grid, plan.q_grid.block, plan.kv_grid.grid, plan.kv_grid.block)
        return [*(side for triple in grids for side in triple), plan.prefix, *bounds, int(self.layout == "tiled")]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, prepared: Any, *, scale: float) -> Tensor:
        """See `BlockRunner`."""
        o: Tensor = self._attend(q, k, v, plan, prepared, scale, with_lse=False)[0]
        return o

    def attend_lse(
        self, q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, prepared: Any, *, scale: float
    ) -> tuple[Tensor, Tensor]:
        """See `LseRunner`."""
        return self._attend(q, k, v, plan, prepared, scale, with_lse=True)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, code: list[int], scale: float, *, with_lse: bool
    ) -> tuple[Tensor, Tensor]:
        tables = (plan.kept_slots, plan.num_kept, plan.fill, plan.block_bits)
        o, lse = _attend(q, k, v, *tables, code, self.name, scale, with_lse)
        return o, lse


def _operator(
    q: Tensor, tables: Sequence[Tensor], code: Sequence[int], engine: str, scale: float, *, with_lse: bool
) -> Operator:
    """The stages of the engine that attend by these tables, from and to tensors in the order that the code says."""
    a, b, c, d, e, f, g, h, i, j, k, m, prefix, before, after, is_tiled = code
    first, last = (None if bound == _UNBOUNDED else bound for bound in (before, after))
    q_grid, kv_grid = BlockGrid((a, b, c), (d, e, f)), BlockGrid((g, h, i), (j, k, m))
    kept_slots, num_kept, fill, block_bits = tables
    plan = BlockPlan(
        q_grid=q_grid,
        kv_grid=kv_grid,
        kept_slots=kept_slots,
        num_kept=num_kept,
        fill=fill,
        block_bits=block_bits,
        has_zero_fill=True,  # may be; the tables say where
        keeps_every_row=q_grid.is_even and kept_slots.shape[-1] == q_grid.block_size,
        rule=ElementRule(first, last),
        prefix=prefix,
    )
    return Operator(
        block_stages(
            get_engine(engine, tiled=bool(is_tiled)),
            q_grid,
            kv_grid,
            lambda *, is_tiled: None,  # noqa: ARG005
            lambda _: plan,
            scale=scale,
            reads=(),
            lse="lse" if with_lse else None,
            prefix=prefix,
            is_tiled=bool(is_tiled),
        )
    )


@torch_operator("engine_attend")
def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kept_slots: Tensor,
    num_kept: Tensor,
    fill: Tensor,
    block_bits: Tensor,
    code: Sequence[int],
    engine: str,
    scale: float,
    with_lse: bool,
) -> tuple[Tensor, Tensor]:
    """The filled output like q, and the log-sum-exp of kept rows, or nothing in its place."""
    operator = _operator(q, (kept_slots, num_kept, fill, block_bits), code, engine, scale, with_lse=with_lse)
    with torch.no_grad():
        state = operator.run({"q": q, "k": k, "v": v})
    return state["o"].contiguous(), state["lse_kept"] if with_lse else _no_lse(q)


@fake_of(_attend)
def _(q: Tensor, k: Tensor, v: Tensor, kept_slots: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    lse = q.new_empty(kept_slots.shape, dtype=_wide(q.dtype)) if others[-1] else _no_lse(q)
    return q.new_empty(q.shape), lse


@torch_operator("engine_attend_backward")
def _attend_backward(
    grad_o: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kept_slots: Tensor,
    num_kept: Tensor,
    fill: Tensor,
    block_bits: Tensor,
    code: Sequence[int],
    engine: str,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    with_lse = grad_lse is not None
    operator = _operator(q, (kept_slots, num_kept, fill, block_bits), code, engine, scale, with_lse=with_lse)
    # Under a dispatch mode, a counter of FLOP say, operators are called with autograd switched off for the thread.
    records = torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.AutogradFunctionality, False)  # noqa: SLF001
    with records, torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        state = operator.run(dict(zip("qkv", leaves, strict=True)))
        made, grads = [state["o"]], [grad_o]
        if grad_lse is not None:
            made.append(state["lse_kept"])
            grads.append(grad_lse)
        dq, dk, dv = torch.autograd.grad(made, leaves, grads, allow_unused=True, materialize_grads=True)
    return dq.contiguous(), dk.contiguous(), dv.contiguous()


@fake_of(_attend_backward)
def _(
    grad_o: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, code, engine, scale, with_lse = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)
    ctx.rest, ctx.with_lse, ctx.shape = (code, engine, scale), with_lse, output[0].shape


def _backward(ctx: Any, grad_o: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, *tables = ctx.saved_tensors
    grad_o = q.new_zeros(ctx.shape) if grad_o is None else grad_o
    grad_lse = grad_lse if ctx.with_lse else None
    grads = _attend_backward(grad_o, grad_lse, q, k, v, *tables, *ctx.rest)
    return *grads, *(None,) * 8


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _no_lse(q: Tensor) -> Tensor:
    return q.new_empty(0, dtype=_wide(q.dtype))


gradient_of(_attend, _backward, _save)
