"""Gather the kept KV blocks of a few query blocks at a time and call SDPA on them.

Query blocks whose lists have the same length form a batch, so that no key is padded. The backward gathers again and
differentiates the same SDPA call, so that memory stays linear in L. It trains on a CPU, and is the fastest sparse
engine there; on a GPU it is a portable check.

Shape legend: `R` query blocks of a batch, `K` kept rows, `c` listed KV blocks, `M` slots a KV block, `D` head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from bsa_kernels.plan import BlockPlan

# Gathered K and V of one batch: about what the L2 caches of two CPU cores hold together with the scores (AMD EPYC with
# 1 MiB L2 a core, 16,384 tokens, D=64, fp32, 2026-11-21: 4 MiB and 8 MiB equal, 1 MiB and 16 MiB 30-40 % slower).
_BATCH_BYTES_CPU = 6 << 20
_BATCH_BYTES_GPU = 256 << 20


@dataclass(frozen=True)
class _Batch:
    """Query blocks with equally long lists: `rows` [R] in B*H*Nq, `blocks` [R * c] in B*H*Nk, `mask` [R, 1, 1, c*M]."""

    rows: Tensor
    blocks: Tensor
    mask: Tensor | None


@dataclass(frozen=True)
class _Schedule:
    """Query blocks ordered by list length, `sizes` (first, past-last, length) of each run of equal length."""

    order: Tensor
    runs: list[tuple[int, int, int]]


def unsupported(device: torch.device, dtype: torch.dtype, head_dim: int, *, backward: bool) -> str | None:  # noqa: ARG001
    """Return None: gathering and SDPA run everywhere."""
    return None


def prepare(plan: BlockPlan) -> _Schedule:
    """Order the query blocks by list length (reads the lengths back: synchronises on a GPU)."""
    counts, order = plan.kv_counts.flatten().sort(stable=True)
    lengths, repeats = (t.tolist() for t in torch.unique_consecutive(counts, return_counts=True))
    runs, first = [], 0
    for length, repeat in zip(lengths, repeats, strict=True):
        runs.append((first, first + repeat, length))
        first += repeat
    return _Schedule(order, runs)


def attend(
    q_tiles: Tensor, k_tiles: Tensor, v_tiles: Tensor, plan: BlockPlan, prepared: object, *, scale: float
) -> Tensor:
    """Compute the kept rows [B, H, Nq, K, D]; a query block with an empty list gives zeros."""
    assert isinstance(prepared, _Schedule)
    return _GatherAttention.apply(plan.gather_kept(q_tiles), k_tiles, v_tiles, plan, prepared, scale)


def executed_flop(plan: BlockPlan, head_dim: int) -> int:
    """FLOP of the forward's matrix products: K rows by all slots of the listed blocks (synchronises)."""
    pairs = plan.shape[3] * plan.kv_grid.block_size * int(plan.kv_counts.sum())
    return 4 * head_dim * pairs


class _GatherAttention(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx,  # noqa: ANN001
        q: Tensor,
        k: Tensor,
        v: Tensor,
        plan: BlockPlan,
        schedule: _Schedule,
        scale: float,
    ) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.plan, ctx.schedule, ctx.scale = plan, schedule, scale
        rows, keys, values = _as_blocks(q, k, v, plan)
        out = torch.zeros_like(rows) if schedule.runs[0][2] == 0 else torch.empty_like(rows)
        for batch in _batches(plan, schedule, keys):
            tiles = _gather(batch, rows, keys, values)
            out.index_copy_(0, batch.rows, _sdpa(tiles, batch.mask, scale).squeeze(1))
        return out.view_as(q)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]  # noqa: ANN001
        q, k, v = ctx.saved_tensors
        plan: BlockPlan = ctx.plan
        rows, keys, values = _as_blocks(q, k, v, plan)
        grad_rows = grad.reshape(rows.shape)
        # Many query blocks add to one KV block: sum in fp32 at least.
        wide = torch.promote_types(k.dtype, torch.float32)
        dq, dk, dv = torch.zeros_like(rows), torch.zeros_like(keys, dtype=wide), torch.zeros_like(values, dtype=wide)
        for batch in _batches(plan, ctx.schedule, keys):
            tiles = [t.requires_grad_() for t in _gather(batch, rows, keys, values)]
            with torch.enable_grad():
                out = _sdpa(tiles, batch.mask, ctx.scale)
            one_q, one_k, one_v = torch.autograd.grad(out, tiles, grad_rows.index_select(0, batch.rows).unsqueeze(1))
            dq.index_copy_(0, batch.rows, one_q.squeeze(1))
            dk.index_add_(0, batch.blocks, one_k.reshape(-1, *keys.shape[1:]).to(wide))
            dv.index_add_(0, batch.blocks, one_v.reshape(-1, *values.shape[1:]).to(wide))
        return dq.view_as(q), dk.view_as(k).to(k.dtype), dv.view_as(v).to(v.dtype), None, None, None


def _as_blocks(q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan) -> tuple[Tensor, Tensor, Tensor]:
    """q [B*H*Nq, K, D]; k and v [B*H*Nk, M, D]."""
    m = plan.kv_grid.block_size
    return (
        q.reshape(-1, *q.shape[3:]),
        k.reshape(-1, m, k.shape[-1]),
        v.reshape(-1, m, v.shape[-1]),
    )


def _batches(plan: BlockPlan, schedule: _Schedule, keys: Tensor) -> list[_Batch]:
    """Cut each run of equal lengths into batches of bounded size."""
    _, _, nq, _ = plan.shape
    nk, m = plan.kv_grid.num_blocks, plan.kv_grid.block_size
    limit = _BATCH_BYTES_CPU if keys.device.type == "cpu" else _BATCH_BYTES_GPU
    block_bytes = 2 * keys[0].numel() * keys.element_size()
    indices = plan.kv_indices.reshape(-1, nk)
    slots = torch.arange(m, device=keys.device)
    real = None if plan.kv_grid.is_even else slots < plan.kv_grid.real_counts(keys.device).unsqueeze(-1)
    batches = []
    for first, last, length in schedule.runs:
        if length == 0:
            continue
        num_rows = max(1, limit // (block_bytes * length))
        for rows in schedule.order[first:last].split(num_rows):
            local = indices[rows, :length]
            mask = None if real is None else real[local.long()].view(len(rows), 1, 1, length * m)
            blocks = (local + (rows // nq * nk).unsqueeze(-1)).flatten().long()
            batches.append(_Batch(rows, blocks, mask))
    return batches


def _gather(batch: _Batch, rows: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q [R, 1, K, D]; k and v [R, 1, c*M, D]."""
    shape = (len(batch.rows), 1, -1, rows.shape[-1])
    return (
        rows.index_select(0, batch.rows).view(shape),
        keys.index_select(0, batch.blocks).view(shape),
        values.index_select(0, batch.blocks).view(shape),
    )


def _sdpa(tiles: Sequence[Tensor], mask: Tensor | None, scale: float) -> Tensor:
    q, k, v = tiles
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
