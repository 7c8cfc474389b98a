"""Gather the kept KV blocks of a few query blocks at a time and call SDPA on them.

Query blocks whose lists have the same length form a batch, so that no key is padded; under an element rule those with a
block that it cuts form batches of their own, with a mask made for each. The backward gathers again and differentiates
the same SDPA call, so that memory stays linear in L. It trains on a CPU, and is the fastest sparse engine there; on a
GPU it is a portable check. Where query blocks hold few rows, attention goes KV block by KV block: see `by_key`.

Shape legend: `R` query blocks of a batch, `K` kept rows, `c` listed KV blocks, `M` slots a KV block, `D` head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from bsa_kernels.block_engine import Passes
from bsa_kernels.engines import by_key
from bsa_kernels.first_order import first_order
from bsa_kernels.plan import BlockPlan

# Gathered K and V of one batch: about what the L2 caches of two CPU cores hold together with the scores (AMD EPYC with
# 1 MiB L2 a core, 16,384 tokens, D=64, fp32, 2026-11-21: 4 MiB and 8 MiB equal, 1 MiB and 16 MiB 30-40 % slower).
_BATCH_BYTES_CPU = 6 << 20
_BATCH_BYTES_GPU = 256 << 20
# Query blocks of up to so many kept rows, with KV blocks at least so many times as large, go KV block by KV block (two
# busy cores of an AMD EPYC, 1,024 and 2,048 tokens, 2 heads, D=64, fp32, density 0.2, 2026-11-26, forward and backward:
# one row is 3 times as fast with 16 keys a block, 9 times with 64, 34 times with 512, and slower with 4 and 8; four
# rows 3 times with 64 keys and slower with 16, eight 3 times with 256 and slower with 32, 16 rows not faster).
_FEW_ROWS = 8
_KEYS_PER_ROW = 16


@dataclass(frozen=True)
class _Batch:
    """Query blocks with equally long lists: `rows` [R] in B*H*Nq, `blocks` [R * c] in B*H*Nk.

    `mask` [R, 1, 1, c*M] hides padding; [R, 1, K, c*M], where the rule cuts a block, what each row does not see.
    """

    rows: Tensor
    blocks: Tensor
    mask: Tensor | None
    is_cut: bool


class _Run(NamedTuple):
    """Query blocks of one list length in the order of a schedule; `is_cut`: the rule cuts a listed block of each."""

    first: int
    past_last: int
    length: int
    is_cut: bool


@dataclass(frozen=True)
class _Schedule:
    """Query blocks [B*H*Nq] ordered by list length, and the runs of equal ones."""

    order: Tensor
    runs: list[_Run]


def unsupported(device: torch.device, dtype: torch.dtype, head_dim: int, *, backward: bool) -> str | None:  # noqa: ARG001
    """Return None: gathering and SDPA run everywhere."""
    return None


def unsupported_plan(plan: BlockPlan) -> str | None:  # noqa: ARG001
    """Return None: every plan runs."""
    return None


def prepare(plan: BlockPlan) -> _Schedule | by_key.RowLists:
    """Order the query blocks by list length, or list the rows of each KV block where query blocks hold few.

    Reads the lengths back: synchronises on a GPU.
    """
    if _goes_by_key(plan):
        return by_key.prepare(plan)
    if plan.rule.is_full:
        counts, order = plan.kv_counts.flatten().sort(stable=True)
    else:
        is_cut = (plan.block_mask & plan.cut_blocks).any(-1)
        counts, order = (2 * plan.kv_counts + is_cut).flatten().sort(stable=True)
    lengths, repeats = (t.tolist() for t in torch.unique_consecutive(counts, return_counts=True))
    runs, first = [], 0
    for length, repeat in zip(lengths, repeats, strict=True):
        count, cut = (length, 0) if plan.rule.is_full else divmod(length, 2)
        runs.append(_Run(first, first + repeat, count, bool(cut)))
        first += repeat
    return _Schedule(order, runs)


def attend(
    q_tiles: Tensor, k_tiles: Tensor, v_tiles: Tensor, plan: BlockPlan, prepared: object, *, scale: float
) -> Tensor:
    """Compute the kept rows [B, H, Nq, K, D]; a row that sees nothing gives zeros."""
    if isinstance(prepared, by_key.RowLists):
        return by_key.attend(plan.gather_kept(q_tiles), k_tiles, v_tiles, plan, prepared, scale=scale)[0]
    assert isinstance(prepared, _Schedule)
    return _GatherAttention.apply(plan.gather_kept(q_tiles), k_tiles, v_tiles, plan, prepared, scale, False)[0]


def attend_lse(
    q_tiles: Tensor, k_tiles: Tensor, v_tiles: Tensor, plan: BlockPlan, prepared: object, *, scale: float
) -> tuple[Tensor, Tensor]:
    """Compute the kept rows and their log-sum-exp [B, H, Nq, K] in fp32 or fp64, -inf for a row that sees nothing.

    SDPA does not give it away, so that the logits are multiplied a second time, a batch of them in memory.
    """
    if isinstance(prepared, by_key.RowLists):
        return by_key.attend(plan.gather_kept(q_tiles), k_tiles, v_tiles, plan, prepared, scale=scale)
    assert isinstance(prepared, _Schedule)
    return _GatherAttention.apply(plan.gather_kept(q_tiles), k_tiles, v_tiles, plan, prepared, scale, True)


def log_sum_exp(q_tiles: Tensor, k_tiles: Tensor, plan: BlockPlan, prepared: object, *, scale: float) -> Tensor:
    """The log-sum-exp alone of `attend_lse`, for engines that cannot give theirs; no gradient flows through it."""
    if isinstance(prepared, by_key.RowLists):
        return by_key.log_sum_exp(plan.gather_kept(q_tiles), k_tiles, plan, prepared, scale=scale)
    assert isinstance(prepared, _Schedule)
    with torch.no_grad():
        rows, keys, _ = _as_blocks(plan.gather_kept(q_tiles), k_tiles, k_tiles, plan)
        lse = _empty_lse(rows)
        for batch in _batches(plan, prepared, keys):
            q, k, _ = _gather(batch, rows, keys, keys)
            lse.index_copy_(0, batch.rows, _log_sum_exp(q, k, batch.mask, scale).squeeze(1))
    return lse.view(plan.shape)


def executed_flop(plan: BlockPlan, head_dim: int, which: Passes) -> int:
    """FLOP of the matrix products over pairs: K rows by all slots of the listed blocks (synchronises).

    Two products forward; the backward runs SDPA's forward again, and its backward of five.
    """
    if _goes_by_key(plan):
        return by_key.executed_flop(plan, head_dim, which)
    pairs = plan.shape[3] * plan.kv_grid.block_size * int(plan.kv_counts.sum())
    return 2 * head_dim * pairs * {"forward": 2, "backward": 7, "forward+backward": 9}[which]


def _goes_by_key(plan: BlockPlan) -> bool:
    """Whether query blocks hold so few rows that copying keys for each of them is what takes the time."""
    kept = plan.shape[3]
    return kept <= _FEW_ROWS and _KEYS_PER_ROW * kept <= plan.kv_grid.block_size


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
        with_lse: bool,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(q, k, v)
        ctx.plan, ctx.schedule, ctx.scale = plan, schedule, scale
        # The log-sum-exp is computed again in the backward only where a gradient comes through it.
        ctx.set_materialize_grads(False)
        rows, keys, values = _as_blocks(q, k, v, plan)
        out = torch.zeros_like(rows) if schedule.runs[0].length == 0 else torch.empty_like(rows)
        lse = _empty_lse(rows) if with_lse else None
        for batch in _batches(plan, schedule, keys):
            tiles = _gather(batch, rows, keys, values)
            out.index_copy_(0, batch.rows, _attend(tiles, batch, scale).squeeze(1))
            if lse is not None:
                lse.index_copy_(0, batch.rows, _log_sum_exp(tiles[0], tiles[1], batch.mask, scale).squeeze(1))
        return out.view_as(q), None if lse is None else lse.view(plan.shape)

    @staticmethod
    @first_order
    def backward(  # type: ignore[no-untyped-def]
        ctx,  # noqa: ANN001
        grad: Tensor | None,
        grad_lse: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        plan: BlockPlan = ctx.plan
        rows, keys, values = _as_blocks(q, k, v, plan)
        # Many query blocks add to one KV block: sum in fp32 at least.
        wide = torch.promote_types(k.dtype, torch.float32)
        dq, dk, dv = torch.zeros_like(rows), torch.zeros_like(keys, dtype=wide), torch.zeros_like(values, dtype=wide)
        for batch in _batches(plan, ctx.schedule, keys):
            tiles = [t.requires_grad_() for t in _gather(batch, rows, keys, values)]
            made, grads = [], []
            with torch.enable_grad():
                if grad is not None:
                    made.append(_attend(tiles, batch, ctx.scale))
                    grads.append(grad.reshape(rows.shape).index_select(0, batch.rows).unsqueeze(1))
                if grad_lse is not None:
                    made.append(_log_sum_exp(tiles[0], tiles[1], batch.mask, ctx.scale))
                    grads.append(grad_lse.reshape(rows.shape[:2]).index_select(0, batch.rows).unsqueeze(1))
            one_q, one_k, one_v = torch.autograd.grad(made, tiles, grads, materialize_grads=True)
            dq.index_copy_(0, batch.rows, one_q.squeeze(1))
            dk.index_add_(0, batch.blocks, one_k.reshape(-1, *keys.shape[1:]).to(wide))
            dv.index_add_(0, batch.blocks, one_v.reshape(-1, *values.shape[1:]).to(wide))
        return dq.view_as(q), dk.view_as(k).to(k.dtype), dv.view_as(v).to(v.dtype), *(None,) * 4


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
    _, _, nq, kept = plan.shape
    nk, m = plan.num_kv_blocks, plan.kv_grid.block_size
    limit = _BATCH_BYTES_CPU if keys.device.type == "cpu" else _BATCH_BYTES_GPU
    block_bytes = 2 * keys[0].numel() * keys.element_size()
    # SDPA makes numbers of a bool mask.
    cut_bytes = block_bytes + kept * m * (1 + keys.element_size())
    indices = plan.kv_indices.reshape(-1, nk)
    slots = torch.arange(m, device=keys.device)
    real = None if plan.keys.is_even else slots < plan.kv_real_counts(keys.device).unsqueeze(-1)
    batches = []
    for run in schedule.runs:
        if run.length == 0:
            continue
        num_rows = max(1, limit // ((cut_bytes if run.is_cut else block_bytes) * run.length))
        for rows in schedule.order[run.first : run.past_last].split(num_rows):
            local = indices[rows, : run.length]
            mask = None if real is None else real[local.long()].view(len(rows), 1, 1, run.length * m)
            blocks = (local + (rows // nq * nk).unsqueeze(-1)).flatten().long()
            batches.append(_Batch(rows, blocks, _cut(mask, plan, rows, local) if run.is_cut else mask, run.is_cut))
    return batches


def _cut(mask: Tensor | None, plan: BlockPlan, rows: Tensor, blocks: Tensor) -> Tensor:
    """The mask [R, 1, K, c*M] of query blocks `rows` [R] and their lists `blocks` [R, c]: the rule, and `mask`."""
    queries = plan.kept_positions.flatten(0, 2)[rows].view(len(rows), 1, -1, 1)
    keys = plan.keys.positions(plan.device)[blocks.long()].view(len(rows), 1, 1, -1)
    sees = plan.rule.sees(queries, keys)
    if plan.prefix:
        sees |= (blocks >= plan.kv_grid.num_blocks).repeat_interleave(plan.kv_grid.block_size, 1)[:, None, None]
    return sees if mask is None else sees & mask


def _gather(batch: _Batch, rows: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q [R, 1, K, D]; k and v [R, 1, c*M, D]."""
    shape = (len(batch.rows), 1, -1, rows.shape[-1])
    return (
        rows.index_select(0, batch.rows).view(shape),
        keys.index_select(0, batch.blocks).view(shape),
        values.index_select(0, batch.blocks).view(shape),
    )


def _attend(tiles: Sequence[Tensor], batch: _Batch, scale: float) -> Tensor:
    """SDPA [R, 1, K, D]."""
    q, k, v = tiles
    if not batch.is_cut:
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=batch.mask, scale=scale)
    assert batch.mask is not None
    # What SDPA's kernels make of a row that sees nothing differs among them: it sees all, and is dropped.
    is_empty = ~batch.mask.any(-1, keepdim=True)
    out = functional.scaled_dot_product_attention(q, k, v, attn_mask=batch.mask | is_empty, scale=scale)
    return out.masked_fill(is_empty, 0)


def _empty_lse(rows: Tensor) -> Tensor:
    """[B*H*Nq, K] of -inf in fp32 or fp64."""
    return rows.new_full(rows.shape[:2], -torch.inf, dtype=torch.promote_types(rows.dtype, torch.float32))


def _log_sum_exp(q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """[R, 1, K] in fp32 or fp64."""
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = (q.to(wide) @ k.to(wide).transpose(-1, -2)) * scale
    if mask is None:
        return scores.logsumexp(-1)
    is_empty = ~mask.any(-1)
    lse = scores.masked_fill(~(mask | is_empty.unsqueeze(-1)), -torch.inf).logsumexp(-1)
    return lse.masked_fill(is_empty, -torch.inf)
