"""The attention kernels as operators that torch knows: `torch.compile` and `torch.export` trace them, autograd too.

An operator takes tensors and numbers only, so a plan's tables are passed flat. Nothing here does arithmetic: launch,
save, launch, return.
"""
# The fakes of operators have the operators' arguments and need few of them.
# ruff: noqa: ARG001

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from bsa_kernels.block_sparse.groups import group_count
from bsa_kernels.block_sparse.lists import worst_case
from bsa_kernels.block_sparse.tables import KernelTables, Layout, tables_of
from bsa_kernels.bsa.options import BsaOptions, Fill, KvRule, QueryRule
from bsa_kernels.bsa.queries import kept_rows
from bsa_kernels.bsa.stages import build_plan, grids, select_tokens


@torch.library.custom_op("bsa_kernels::make_tables", mutates_args=())
def make_tables(
    q: Tensor,
    k: Tensor,
    numbers: Sequence[int],
    query_keep: float,
    kv_density: float,
    query_rule: str,
    kv_rule: str,
    fill: str,
    scale: float,
) -> list[Tensor]:
    """Select query rows and KV blocks, and make the tables of the plan: `KernelTables.tensors`.

    Args:
        q, k: in the layout that `numbers` says.
        numbers: from `encode_shape` or `Layout.encode`.
        query_keep, kv_density, query_rule, kv_rule, fill: see `BsaOptions`.
        scale: of the logits.
    """
    options = _options(numbers, query_keep, kv_density, query_rule, kv_rule, fill)
    layout = _layout_of(options, numbers, q)
    plan = build_plan(select_tokens(q, k, options, scale=scale, is_tiled=layout.is_tiled), options)
    return _apart(tables_of(plan, layout.tiles, is_tiled=layout.is_tiled).tensors)


@make_tables.register_fake
def _(
    q: Tensor,
    k: Tensor,
    numbers: Sequence[int],
    query_keep: float,
    kv_density: float,
    query_rule: str,
    kv_rule: str,
    fill: str,
    scale: float,
) -> list[Tensor]:
    options = _options(numbers, query_keep, kv_density, query_rule, kv_rule, fill)
    layout = _layout_of(options, numbers, q)
    heads, num_q, num_kv = q.shape[:2], layout.q_grid.num_blocks, layout.kv_grid.num_blocks
    kept = kept_rows(layout.q_grid, options.query_rule, options.query_keep)
    group = layout.tiles.attend.group
    groups = group_count(layout.q_grid, group)
    capacity = worst_case(heads[0] * heads[1] * groups, num_kv)

    def empty(*shape: int | torch.SymInt, dtype: torch.dtype = torch.int32) -> Tensor:
        return q.new_empty(shape, dtype=dtype)

    return [
        empty(*heads, num_q, kept),
        empty(*heads, num_q, layout.q_grid.block_size),
        empty(*heads, groups, group),
        empty(*heads, groups),
        empty(torch.library.get_ctx().new_dynamic_size() if capacity is None else capacity),
        empty(*heads, groups, dtype=torch.int64),
        empty(*heads, groups),
        empty(*heads, groups),
        empty(*heads, num_q, -(-num_kv // 32)),
    ]


def _apart(tensors: list[Tensor]) -> list[Tensor]:
    """No two in one storage: what an operator returns may be written to by a compiler."""
    seen: set[int] = set()
    found = []
    for tensor in tensors:
        place = tensor.untyped_storage().data_ptr()
        found.append(tensor.clone() if place in seen else tensor)
        seen.add(place)
    return found


def _options(
    numbers: Sequence[int], query_keep: float, kv_density: float, query_rule: str, kv_rule: str, fill: str
) -> BsaOptions:
    at = tuple(numbers)
    return BsaOptions(
        grid=(at[0], at[1], at[2]),
        block=(at[6], at[7], at[8]),
        query_block=(at[3], at[4], at[5]),
        query_keep=query_keep,
        kv_density=kv_density,
        query_rule=cast("QueryRule", query_rule),
        kv_rule=cast("KvRule", kv_rule),
        fill=cast("Fill", fill),
    )


def _layout_of(options: BsaOptions, numbers: Sequence[int], q: Tensor) -> Layout:
    q_grid, _ = grids(options)
    return Layout.decode(numbers, q, kept_rows=kept_rows(q_grid, options.query_rule, options.query_keep))


def _tables(tensors: Sequence[Tensor], numbers: Sequence[int], q: Tensor) -> KernelTables:
    return KernelTables.of(tensors, Layout.decode(numbers, q, kept_rows=tensors[0].shape[-1]))


@torch.library.custom_op("bsa_kernels::attend", mutates_args=())
def _attend(
    q: Tensor, k: Tensor, v: Tensor, tensors: Sequence[Tensor], numbers: Sequence[int], scale: float
) -> tuple[Tensor, Tensor]:
    tables = _tables(tensors, numbers, q)
    if tables.layout.tiles.attend.specialized:
        from bsa_kernels.block_sparse.gluon_attend import launch_specialized

        return launch_specialized(q, k, v, tables, scale=scale)
    from bsa_kernels.block_sparse.triton_attend import launch_attend

    return launch_attend(q, k, v, tables, scale=scale)


@_attend.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tensors: Sequence[Tensor],
    numbers: Sequence[int],
    scale: float,
) -> tuple[Tensor, Tensor]:
    kept_tokens = tensors[0]
    return q.new_empty(q.shape), q.new_empty(kept_tokens.shape, dtype=torch.float32)


@torch.library.custom_op("bsa_kernels::attend_backward", mutates_args=())
def _attend_backward(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    tensors: Sequence[Tensor],
    numbers: Sequence[int],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    from bsa_kernels.block_sparse.triton_gradients import launch_backward

    return launch_backward(do, q, k, v, o, lse, _tables(tensors, numbers, q), scale=scale)


@_attend_backward.register_fake
def _(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    tensors: Sequence[Tensor],
    numbers: Sequence[int],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:  # type: ignore[no-untyped-def, type-arg]  # noqa: ANN001
    q, k, v, tensors, numbers, scale = inputs
    o, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(q, k, v, o, lse, *tensors)
    ctx.numbers, ctx.scale = numbers, scale


def _backward(ctx, do: Tensor, _: Tensor) -> tuple[object, ...]:  # type: ignore[no-untyped-def]  # noqa: ANN001
    q, k, v, o, lse, *tensors = ctx.saved_tensors
    grads = _attend_backward(do, q, k, v, o, lse, tensors, ctx.numbers, ctx.scale)
    return *grads, [None] * len(tensors), None, None


_attend.register_autograd(_backward, setup_context=_save)


def attend(
    q: Tensor, k: Tensor, v: Tensor, tensors: Sequence[Tensor], numbers: Sequence[int], *, scale: float
) -> Tensor:
    """Attend by a plan's tables and fill pruned rows: o like q, differentiable in q, k and v.

    Args:
        q, k, v: in the layout that `numbers` says, [B, H, L, D], any strides; a last dimension with gaps is copied.
        tensors: of `make_tables`, or `KernelTables.tensors`.
        numbers: those that they were made with.
        scale: of the logits.
    """
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    if scale <= 0:  # the kernels' running maximum is of products before the scale
        q, scale = (q * 0, 1.0) if scale == 0 else (-q, -scale)
    o, _ = _attend(q, k, v, tensors, numbers, scale)
    return o
