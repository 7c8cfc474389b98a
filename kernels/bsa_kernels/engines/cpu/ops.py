"""Attention by the compiled library as operators that torch knows, with autograd: they compile, export and checkpoint.

An operator takes tensors and numbers only: of a plan its tables, of its grids and rule the integers of `Geometry`. The
gradients have no gradients of their own: torch says so where a double backward is asked for.
"""
# The fakes of operators have the operators' arguments and need few of them.
# ruff: noqa: ARG001

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bsa_kernels.block_engine import Order
from bsa_kernels.cpp.library import Geometry, load, make_problem
from bsa_kernels.plan import BlockPlan
from bsa_kernels.torch_operator import fake_of, gradient_of, torch_operator


class PlanTables(NamedTuple):
    """A plan as the operators take it: contiguous tables, and the integers of its `Geometry`."""

    kept_slots: Tensor
    num_kept: Tensor
    fill: Tensor
    block_bits: Tensor
    code: list[int]


def make_tables(plan: BlockPlan, layout: Order) -> PlanTables:
    """Bring a plan into the operators' form."""
    geometry = Geometry(plan.q_grid, plan.kv_grid, plan.prefix, plan.rule.before, plan.rule.after, layout)
    return PlanTables(
        plan.kept_slots.contiguous(),
        plan.num_kept.contiguous(),
        plan.fill.contiguous(),
        plan.block_bits.contiguous(),
        geometry.encode(),
    )


def attend(q: Tensor, k: Tensor, v: Tensor, tables: PlanTables, *, scale: float) -> Tensor:
    """Attend by a plan's tables and fill pruned rows: o like q. As `attend_lse`."""
    o: Tensor = _attend(q, k, v, *tables, scale)[0]
    return o


def attend_lse(q: Tensor, k: Tensor, v: Tensor, tables: PlanTables, *, scale: float) -> tuple[Tensor, Tensor]:
    """Attend, fill pruned rows, and give the log-sum-exp of kept rows: natural, -inf where a row sees nothing.

    Args:
        q, k, v: [B, H, L, D] in the order of the tables, any strides; a last dimension with gaps is copied.
        tables: of `make_tables`.
        scale: of the logits.

    Returns:
        o like q, contiguous, and [B, H, Nq, K] fp32, or fp64 for fp64 inputs; both differentiable.
    """
    o, lse = _attend(q, k, v, *tables, scale)
    return o, (lse * math.log(2)).masked_fill(lse == torch.inf, -torch.inf)


def executed_flop(plan: BlockPlan, head_dim: int, dtype: torch.dtype, *, is_backward: bool) -> int:
    """FLOP of the products over pairs that a pass multiplies, by the library's own walk over the plan."""
    tables = make_tables(plan, "natural")
    like = torch.empty(*plan.shape[:2], 0, head_dim, dtype=dtype)
    problem = make_problem({"q": like, "k": like, "v": like}, _named(tables), Geometry.decode(tables.code), 1.0)
    return load().flop(problem, is_backward=is_backward)


def _named(tables: PlanTables) -> dict[str, Tensor | None]:
    names = ("kept_slots", "num_kept", "fill", "block_bits")
    return dict(zip(names, tables[:4], strict=True))


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The format of sums."""
    return torch.promote_types(dtype, torch.float32)


def _dense_rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


@torch_operator("cpu_attend", device="cpu")
def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kept_slots: Tensor,
    num_kept: Tensor,
    fill: Tensor,
    block_bits: Tensor,
    code: Sequence[int],
    scale: float,
) -> tuple[Tensor, Tensor]:
    q, k, v = (_dense_rows(x) for x in (q, k, v))
    o, lse = torch.empty(q.shape, dtype=q.dtype), torch.empty(kept_slots.shape, dtype=_wide(q.dtype))
    tables = {"kept_slots": kept_slots, "num_kept": num_kept, "fill": fill, "block_bits": block_bits, "lse": lse}
    load().forward(make_problem({"q": q, "k": k, "v": v, "o": o}, tables, Geometry.decode(code), scale))
    return o, lse


@fake_of(_attend)
def _(q: Tensor, k: Tensor, v: Tensor, kept_slots: Tensor, *others: object) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(kept_slots.shape, dtype=_wide(q.dtype))


@torch_operator("cpu_attend_backward", device="cpu")
def _attend_backward(
    grad_o: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    kept_slots: Tensor,
    num_kept: Tensor,
    fill: Tensor,
    block_bits: Tensor,
    code: Sequence[int],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = {name: _dense_rows(x) for name, x in (("q", q), ("k", k), ("v", v), ("o", o), ("grad_o", grad_o))}
    grads = {f"grad_{name}": torch.empty(x.shape, dtype=x.dtype) for name, x in (("q", q), ("k", k), ("v", v))}
    tables = {
        "kept_slots": kept_slots,
        "num_kept": num_kept,
        "fill": fill,
        "block_bits": block_bits,
        "lse": lse,
        "grad_lse": None if grad_lse is None else grad_lse.contiguous(),
    }
    load().backward(make_problem({**inputs, **grads}, tables, Geometry.decode(code), scale))
    return grads["grad_q"], grads["grad_k"], grads["grad_v"]


@fake_of(_attend_backward)
def _(
    grad_o: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, *others: object
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:  # type: ignore[no-untyped-def, type-arg]  # noqa: ANN001
    *tensors, code, scale = inputs
    q, k, v, *tables = tensors
    ctx.set_materialize_grads(False)  # most calls do not use the log-sum-exp
    ctx.save_for_backward(q, k, v, *output, *tables)
    ctx.code, ctx.scale = code, scale


def _backward(ctx, grad_o: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]  # noqa: ANN001
    q, k, v, o, *rest = ctx.saved_tensors
    grad_o = torch.zeros_like(o) if grad_o is None else grad_o
    grads = _attend_backward(grad_o, grad_lse, q, k, v, o, *rest, ctx.code, ctx.scale)
    return *grads, *(None,) * 6


gradient_of(_attend, _backward, _save)
