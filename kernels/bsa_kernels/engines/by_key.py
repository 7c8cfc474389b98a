"""Attention KV block by KV block: the kept rows that list a block gather there, and a row merges what it sees online.

Where query blocks hold few rows (one, with a list per query), gathering the keys of each copies nearly as many numbers
as it multiplies. Here the keys stay where they are: one product of all rows that list a block with its keys, whose
running maximum, sum and accumulator each row carries to the next block. The rows of a block are distinct, so that they
are read and written by index without atomics and the result does not vary. The backward makes the scores again, so that
memory stays linear in rows and keys, but for the lists: 8 bytes for each row and block listed.

Shape legend: `R` = B*H*Nq*K kept rows, `n` of them in a piece, `M` slots of a KV block, `m` real keys of one, `D` head
size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bsa_kernels.block_engine import Passes
from bsa_kernels.first_order import first_order
from bsa_kernels.plan import BlockPlan

# Scores of one piece.
_PIECE_BYTES_CPU = 1 << 20
_PIECE_BYTES_GPU = 64 << 20


@dataclass(frozen=True)
class RowLists:
    """Which kept rows list a KV block: `rows` [sum of counts] in R, list after list, and the length of each.

    There are `num_parts` lists a KV block of each batch element and head: one under the rule `FULL`; under another the
    rows that see all of the block, and those from which the rule may hide keys of it. For these, `query_at` [R] and
    `key_at` [Nk, M] hold positions.
    """

    rows: Tensor
    counts: list[int]
    num_parts: int
    query_at: Tensor
    key_at: Tensor


class _Piece(NamedTuple):
    """Rows [n] and the KV block that they list: its number in B*H*Nk, its real keys, the positions if it is cut."""

    rows: Tensor
    block: int
    num_real: int
    key_at: Tensor | None


def prepare(plan: BlockPlan) -> RowLists:
    """List the kept rows of each KV block (reads the lengths back: synchronises on a GPU)."""
    _, _, nq, kept = plan.shape
    entry = torch.arange(kept, device=plan.device)
    is_kept = (entry < plan.num_kept.unsqueeze(-1)).flatten(2)  # [B, H, Nq*K]
    mask = plan.block_mask
    parts = [mask] if plan.rule.is_full else [mask & ~plan.cut_blocks, mask & plan.cut_blocks]
    listed = torch.stack(parts, -1).permute(0, 1, 3, 4, 2).repeat_interleave(kept, -1)  # [B, H, Nk, parts, Nq*K]
    listed &= is_kept[:, :, None, None]
    flat = listed.flatten().nonzero().squeeze(1)
    width = nq * kept
    head = flat // (width * plan.num_kv_blocks * len(parts))
    return RowLists(
        rows=flat % width + head * width,
        counts=listed.sum(-1).flatten().tolist(),
        num_parts=len(parts),
        query_at=plan.kept_positions.flatten(),
        key_at=plan.keys.positions(plan.device),
    )


def attend(
    q: Tensor, k_tiles: Tensor, v_tiles: Tensor, plan: BlockPlan, lists: RowLists, *, scale: float
) -> tuple[Tensor, Tensor]:
    """The kept rows of q [B, H, Nq, K, D], and their log-sum-exp [B, H, Nq, K] in fp32 or fp64.

    A row that sees nothing gives zeros and -inf.
    """
    out, lse = _ByKey.apply(q, k_tiles, v_tiles, plan, lists, scale)
    return out, lse


def log_sum_exp(q: Tensor, k_tiles: Tensor, plan: BlockPlan, lists: RowLists, *, scale: float) -> Tensor:
    """The log-sum-exp alone of `attend`; no gradient flows through it."""
    with torch.no_grad():
        return _merge(q.reshape(-1, q.shape[-1]), _blocks(k_tiles, plan), None, plan, lists, scale)[1].view(plan.shape)


def executed_flop(plan: BlockPlan, head_dim: int, which: Passes) -> int:
    """FLOP of the matrix products: kept rows by the real keys of the blocks that they list (synchronises).

    Two products forward, five backward: the scores again, and the gradients of weights, q, k and v.
    """
    rows = (plan.block_mask * plan.num_kept.unsqueeze(-1)).sum((0, 1, 2))  # [Nk]
    pairs = int((rows * plan.kv_real_counts(plan.device)).sum())
    return 2 * head_dim * pairs * {"forward": 2, "backward": 5, "forward+backward": 7}[which]


class _ByKey(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx,  # noqa: ANN001
        q: Tensor,
        k: Tensor,
        v: Tensor,
        plan: BlockPlan,
        lists: RowLists,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        out, lse = _merge(q.reshape(-1, q.shape[-1]), _blocks(k, plan), _blocks(v, plan), plan, lists, scale)
        out, lse = out.to(q.dtype).view(*plan.shape, -1), lse.view(plan.shape)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.plan, ctx.lists, ctx.scale = plan, lists, scale
        return out, lse

    @staticmethod
    @first_order
    def backward(  # type: ignore[no-untyped-def]
        ctx,  # noqa: ANN001
        grad: Tensor,
        grad_lse: Tensor,
    ) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        plan: BlockPlan = ctx.plan
        rows, grads = q.reshape(-1, q.shape[-1]), grad.reshape(-1, v.shape[-1])
        keys, values = _blocks(k, plan), _blocks(v, plan)
        wide = lse.dtype
        # A score's gradient is its weight times (gradient of the weight - shift).
        is_empty = lse.flatten() == -torch.inf
        shift = (grads.to(wide) * out.view_as(grads).to(wide)).sum(-1) - grad_lse.flatten()
        shift = shift.masked_fill(is_empty, 0).unsqueeze(-1)
        lse = lse.flatten().masked_fill(is_empty, torch.inf).unsqueeze(-1)  # weights of exactly 0
        dq, dk, dv = (torch.zeros_like(x, dtype=wide) for x in (rows, keys, values))
        for piece in _pieces(plan, ctx.lists, wide):
            real = slice(piece.num_real)
            key, value = keys[piece.block, real].to(wide), values[piece.block, real].to(wide)
            query, one = _rows(rows, piece, wide).mul_(ctx.scale), _rows(grads, piece, wide)
            weights = _scores(query, key, plan, ctx.lists, piece).sub_(lse[piece.rows]).exp_()
            dv[piece.block, real] += weights.T @ one
            dscores = (one @ value.T).sub_(shift[piece.rows]).mul_(weights)
            dk[piece.block, real] += dscores.T @ query
            dq.index_copy_(0, piece.rows, _rows(dq, piece, wide).add_(dscores @ key))
        dq *= ctx.scale
        return *(d.to(x.dtype).view(x.shape) for d, x in ((dq, q), (dk, k), (dv, v))), *(None,) * 3


def _merge(
    rows: Tensor, keys: Tensor, values: Tensor | None, plan: BlockPlan, lists: RowLists, scale: float
) -> tuple[Tensor, Tensor]:
    """Output [R, D] (none without values [B*H*Nk, M, D]) and log-sum-exp [R] of rows [R, D] in fp32 or fp64."""
    wide = torch.promote_types(rows.dtype, torch.float32)
    top = rows.new_full((len(rows), 1), -torch.inf, dtype=wide)
    total = torch.zeros_like(top)
    sums = rows.new_zeros((len(rows), 0 if values is None else values.shape[-1]), dtype=wide)
    lowest = torch.finfo(wide).min
    for piece in _pieces(plan, lists, wide):
        real = slice(piece.num_real)
        query = _rows(rows, piece, wide).mul_(scale)
        weights = _scores(query, keys[piece.block, real].to(wide), plan, lists, piece)
        before = top[piece.rows]
        after = torch.maximum(before, weights.amax(-1, keepdim=True))
        # Finite where the row has seen nothing yet, so that its weights are 0 and not NaN.
        base = after.clamp(min=lowest)
        weights.sub_(base).exp_()
        carried = (before - base).exp_()
        top.index_copy_(0, piece.rows, after)
        total.index_copy_(0, piece.rows, (total[piece.rows] * carried).add_(weights.sum(-1, keepdim=True)))
        if values is not None:
            one = _rows(sums, piece, wide).mul_(carried).add_(weights @ values[piece.block, real].to(wide))
            sums.index_copy_(0, piece.rows, one)
    lse = (total.log() + top).squeeze(-1)
    return sums.div_(total.masked_fill_(total == 0, 1)), lse


def _scores(query: Tensor, key: Tensor, plan: BlockPlan, lists: RowLists, piece: _Piece) -> Tensor:
    """[n, m]: products of scaled rows [n, D] and keys [m, D], -inf where the rule hides the key."""
    scores = query @ key.T
    if piece.key_at is None:
        return scores
    sees = plan.rule.sees(lists.query_at[piece.rows].unsqueeze(1), piece.key_at)
    return scores.masked_fill_(sees.logical_not_(), -torch.inf)


def _pieces(plan: BlockPlan, lists: RowLists, wide: torch.dtype) -> Iterator[_Piece]:
    """Cut each list into pieces whose scores are bounded."""
    limit = _PIECE_BYTES_CPU if lists.rows.device.type == "cpu" else _PIECE_BYTES_GPU
    step = max(1, limit // (plan.kv_grid.block_size * wide.itemsize))
    num_real = plan.kv_real_counts(torch.device("cpu")).tolist()
    first = 0
    for number, count in enumerate(lists.counts):
        block, part = divmod(number, lists.num_parts)
        in_head = block % plan.num_kv_blocks
        real = num_real[in_head]
        key_at = lists.key_at[in_head, :real] if part else None
        for start in range(first, first + count, step):
            yield _Piece(lists.rows[start : min(start + step, first + count)], block, real, key_at)
        first += count


def _rows(x: Tensor, piece: _Piece, wide: torch.dtype) -> Tensor:
    """A copy of the piece's rows of x [R, D]: [n, D]."""
    return x.index_select(0, piece.rows).to(wide)


def _blocks(x: Tensor, plan: BlockPlan) -> Tensor:
    """k or v [B, H, Nk*M, D] as [B*H*Nk, M, D]."""
    return x.reshape(-1, plan.kv_grid.block_size, x.shape[-1])
