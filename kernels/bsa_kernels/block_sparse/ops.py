"""The attention kernels as operators that torch knows: `torch.compile` and `torch.export` trace them, autograd too.

An operator takes tensors, numbers and text only: of a plan its tensors, of `KernelTables` theirs and the code of the
layout. Nothing here does arithmetic: launch, save, launch, return.
"""
# The fakes of operators have the operators' arguments and need few of them.
# ruff: noqa: ARG001

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bsa_kernels.block_sparse.groups import group_count, group_tables
from bsa_kernels.block_sparse.lists import worst_case
from bsa_kernels.block_sparse.tables import KernelTables, Layout, Walk, walk_of
from bsa_kernels.plan import BlockPlan
from bsa_kernels.torch_operator import fake_of, gradient_of, torch_operator


def make_tables(plan: BlockPlan, code: str) -> KernelTables:
    """Bring a plan into the kernels' form, for the layout with this code."""
    kept_slots, fill, bits = (x.contiguous() for x in (plan.kept_slots, plan.fill, plan.block_bits))
    return KernelTables.of([*_make_walk(kept_slots, bits, code), fill, bits], code)


@torch_operator("make_tables")
def _make_walk(kept_slots: Tensor, block_bits: Tensor, code: str) -> list[Tensor]:
    layout = Layout.decode(code)
    kept = group_tables(layout.q_grid, layout.tiles.attend.group, block_bits.device).candidates
    return unaliased(walk_of(kept_slots, block_bits, layout), kept)


@fake_of(_make_walk)
def _(kept_slots: Tensor, block_bits: Tensor, code: str) -> list[Tensor]:
    layout = Layout.decode(code)
    heads, group = block_bits.shape[:2], layout.tiles.attend.group
    groups = group_count(layout.q_grid, group)
    capacity = worst_case(heads[0] * heads[1] * groups, layout.keys.num_blocks)

    def empty(*shape: int | torch.SymInt, dtype: torch.dtype = torch.int32) -> Tensor:
        return block_bits.new_empty(shape, dtype=dtype)

    walk = Walk(
        kept_tokens=empty(*kept_slots.shape),
        members=empty(*heads, groups, group),
        order=empty(*heads, groups),
        items=empty(torch.library.get_ctx().new_dynamic_size() if capacity is None else capacity),
        starts=empty(*heads, groups, dtype=torch.int64),
        num_full=empty(*heads, groups),
        counts=empty(*heads, groups),
    )
    return list(walk)


def unaliased(tensors: Sequence[Tensor], *kept: Tensor) -> list[Tensor]:
    """The tensors, of which no two are in one storage, and none in that of a `kept` one.

    What an operator returns may be written to by a compiler.
    """
    seen = {tensor.untyped_storage().data_ptr() for tensor in kept}
    found = []
    for tensor in tensors:
        place = tensor.untyped_storage().data_ptr()
        found.append(tensor.clone() if place in seen else tensor)
        seen.add(place)
    return found


@torch_operator("attend")
def _attend(
    q: Tensor, k: Tensor, v: Tensor, tensors: Sequence[Tensor], code: str, scale: float
) -> tuple[Tensor, Tensor]:
    tables = KernelTables.of(tensors, code)
    if tables.layout.tiles.attend.specialized:
        from bsa_kernels.block_sparse.gluon_attend import launch_specialized

        return launch_specialized(q, k, v, tables, scale=scale)
    from bsa_kernels.block_sparse.triton_attend import launch_attend

    return launch_attend(q, k, v, tables, scale=scale)


@fake_of(_attend)
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tensors: Sequence[Tensor],
    code: str,
    scale: float,
) -> tuple[Tensor, Tensor]:
    rows = KernelTables.of(tensors, code).kept_tokens
    return q.new_empty(q.shape), q.new_empty(rows.shape, dtype=torch.float32)


@torch_operator("attend_backward")
def _attend_backward(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    tensors: Sequence[Tensor],
    code: str,
    scale: float,
    dlse: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    from bsa_kernels.block_sparse.triton_gradients import launch_backward

    return launch_backward(do, q, k, v, o, lse, KernelTables.of(tensors, code), scale=scale, dlse=dlse)


@fake_of(_attend_backward)
def _(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    tensors: Sequence[Tensor],
    code: str,
    scale: float,
    dlse: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:  # type: ignore[no-untyped-def, type-arg]  # noqa: ANN001
    q, k, v, tensors, code, scale = inputs
    o, lse = output
    ctx.set_materialize_grads(False)  # most calls do not use the log-sum-exp
    ctx.save_for_backward(q, k, v, o, lse, *tensors)
    ctx.code, ctx.scale = code, scale


def _backward(ctx, do: Tensor | None, dlse: Tensor | None) -> tuple[object, ...]:  # type: ignore[no-untyped-def]  # noqa: ANN001
    q, k, v, o, lse, *tensors = ctx.saved_tensors
    do = torch.zeros_like(o) if do is None else do
    grads = _attend_backward(do, q, k, v, o, lse, tensors, ctx.code, ctx.scale, dlse)
    return *grads, [None] * len(tensors), None, None


gradient_of(_attend, _backward, _save)


def attend(q: Tensor, k: Tensor, v: Tensor, tables: KernelTables, *, scale: float) -> Tensor:
    """Attend by a plan's tables and fill pruned rows: o like q, differentiable in q, k and v. As `attend_lse`."""
    return _attend_both(q, k, v, tables, scale)[0]


def attend_lse(q: Tensor, k: Tensor, v: Tensor, tables: KernelTables, *, scale: float) -> tuple[Tensor, Tensor]:
    """Attend, fill pruned rows, and give the log-sum-exp of kept rows: natural, -inf where a row sees nothing.

    Args:
        q, k, v: in the layout of the tables, [B, H, L, D], any strides; a last dimension with gaps is copied.
        tables: of `make_tables`.
        scale: of the logits.

    Returns:
        o like q, and [B, H, Nq, K] fp32; both differentiable.
    """
    o, lse = _attend_both(q, k, v, tables, scale)
    return o, (lse * math.log(2)).masked_fill(lse == torch.inf, -torch.inf)


def _attend_both(q: Tensor, k: Tensor, v: Tensor, tables: KernelTables, scale: float) -> tuple[Tensor, Tensor]:
    """o, and the log-sum-exp of kept rows in base 2, inf where a row sees nothing."""
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    if scale <= 0:  # the kernels' running maximum is of products before the scale
        q, scale = (q * 0, 1.0) if scale == 0 else (-q, -scale)
    made: tuple[Tensor, Tensor] = _attend(q, k, v, tables.tensors, tables.code, scale)
    return made
