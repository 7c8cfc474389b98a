"""VMoBA's choice of (query, block) pairs: scores against mean keys, by a share of their sum or a number per query.

Source: arXiv 2506.23858 and the authors' code; decisions of this project, in `docs/methods/vmoba.md`: ties, samples of
a batch apart, scopes without spread, `tau=1`, and own blocks alone as a result like any other, where the authors' code
goes over to dense attention. No gradient, no synchronisation: how many pairs there are stays on the device.

Shape legend: `B` batch, `H` heads, `L` tokens, `N` blocks, `M` slots a block, `P` pairs of a scope, `D` head size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bsa_kernels.grid import BlockGrid
from bsa_kernels.methods.vmoba.cost import SCOPES, Scope, SelectMode, Triple
from bsa_kernels.plan import BlockPlan
from bsa_kernels.ranking import (
    block_means,
    block_of_token,
    mark_highest,
    mark_top,
    require_count,
    require_share,
    score_dtype,
)

# Scores of a scope that differ by no more carry no preference. Source: the authors' code has the same number.
_NO_SPREAD = 1e-6


def grids(grid: Triple, block: Triple) -> tuple[BlockGrid, BlockGrid]:
    """The query grid, a block a token, and the KV grid of the layer's block."""
    return BlockGrid(grid, (1, 1, 1)), BlockGrid(grid, block)


@torch.no_grad()
def score(q: Tensor, k: Tensor, kv_grid: BlockGrid, *, is_tiled: bool = False) -> Tensor:
    """Multiply each query with the mean key of each block: [B, H, L, D] twice -> [B, H, L, N], fp32 or fp64.

    Args:
        q: in natural order, which is the tile-major order of its grid too.
        k: in natural order, or [B, H, N*M, D] where `is_tiled`.
        kv_grid: the blocks.
        is_tiled: whether k is tile-major.
    """
    return q.to(score_dtype(q)) @ block_means(k, kv_grid, is_tiled=is_tiled).transpose(-1, -2)


@torch.no_grad()
def select(
    scores: Tensor,
    kv_grid: BlockGrid,
    *,
    mode: SelectMode = "threshold",
    scope: Scope = "head_global",
    tau: float = 0.25,
    topk: int | None = None,
) -> Tensor:
    """Decide which blocks each query sees: [B, H, L, N] bool, its own always; see `select_threshold`, `select_topk`.

    Raises:
        ValueError: names the option, what was expected and what was given.
    """
    own = block_of_token(kv_grid, scores.device)
    if mode == "threshold":
        return select_threshold(scores, own, scope=scope, tau=tau)
    if mode == "topk":
        if topk is None:
            raise ValueError("topk: expected an integer of at least 1 with mode='topk', got None")
        return select_topk(scores, own, topk=topk)
    raise ValueError(f"mode: expected threshold or topk, got {mode!r}")


@torch.no_grad()
def select_topk(scores: Tensor, own: Tensor, *, topk: int) -> Tensor:
    """Keep the `topk` highest blocks of each query, its own first and counted; ties to the lowest index.

    Args:
        scores: [B, H, L, N].
        own: [L] int64, each query's block.
        topk: how many, all where there are fewer.
    """
    index = own.view(1, 1, -1, 1).expand(*scores.shape[:3], 1)
    return mark_top(scores.scatter(-1, index, math.inf), require_count("topk", topk))


@torch.no_grad()
def select_threshold(scores: Tensor, own: Tensor, *, scope: Scope, tau: float) -> Tensor:
    """Keep the fewest (query, block) pairs of each scope whose scores sum up to the share `tau` of the scope's sum.

    Scores are first brought to [0, 1] by the scope's minimum and maximum. Pairs of a query and its own block are kept
    whatever they score, and count towards `tau`; of the others the highest are kept, ties to the lowest (head, query,
    block), up to and with the one that reaches the rest, hence one at least. `tau=1`, and a scope whose scores differ
    by no more than 1e-6, keep everything.

    No full sort: among P pairs the highest ceil(tau * P) always reach tau, so that only these are put in order.

    Args:
        scores: [B, H, L, N].
        own: [L] int64, each query's block.
        scope: what competes, within a sample: `head_global` all pairs of a head, `query_head` the blocks of a query,
            `block` the queries of all heads for a block, `overall` everything.
        tau: the share, above 0 and at most 1.
    """
    if scope not in SCOPES:
        raise ValueError(f"scope: expected one of {', '.join(SCOPES)}; got {scope!r}")
    _, h, tokens, n = scores.shape
    if require_share("tau", tau) == 1 or n == 1:
        return torch.ones_like(scores, dtype=torch.bool)
    is_own = torch.zeros_like(scores, dtype=torch.bool)
    is_own.scatter_(-1, own.view(1, 1, -1, 1).expand(*scores.shape[:3], 1), True)
    rows, own_rows = _to_rows(scores, scope), _to_rows(is_own, scope)

    low, high = rows.aminmax(dim=-1, keepdim=True)
    spread = high - low
    normal = (rows - low) / spread
    # Counts reach millions: sums in fp64, whatever the scores' format.
    needed = tau * normal.sum(-1, keepdim=True, dtype=torch.float64)
    needed -= normal.masked_fill(~own_rows, 0).sum(-1, keepdim=True, dtype=torch.float64)
    others = normal.masked_fill_(own_rows, -1)  # below all others, and never kept by rank
    # Of a block's pairs, how many are own is known to the device alone: all of them is an upper bound.
    num_others = {
        "head_global": tokens * (n - 1),
        "query_head": n - 1,
        "block": h * tokens,
        "overall": h * tokens * (n - 1),
    }[scope]
    limit = min(math.ceil(tau * num_others) + 1, num_others)
    ordered = others.topk(limit, dim=-1).values
    reached = ordered.clamp(min=0).cumsum(-1, dtype=torch.float64) >= needed
    count = ((~reached).sum(-1, keepdim=True, dtype=torch.int32) + 1).clamp(max=limit)
    kept = mark_highest(others, ordered.gather(-1, (count - 1).long()), count)
    return _from_rows(kept | own_rows | (spread <= _NO_SPREAD), scope, scores.shape)


def build_plan(mask: Tensor, q_grid: BlockGrid, kv_grid: BlockGrid) -> BlockPlan:
    """Make the plan of a mask [B, H, L, N]: a list of blocks for each query."""
    return BlockPlan.from_mask(q_grid, kv_grid, mask)


def _to_rows(x: Tensor, scope: Scope) -> Tensor:
    """Lay the pairs of a scope side by side: [B, H, L, N] -> [..., P]."""
    if scope == "block":
        return x.permute(0, 3, 1, 2).flatten(2)  # [B, N, H*L]
    return x.flatten({"head_global": 2, "query_head": 3, "overall": 1}[scope])


def _from_rows(rows: Tensor, scope: Scope, shape: torch.Size) -> Tensor:
    """The inverse of `_to_rows`."""
    b, h, tokens, n = shape
    if scope == "block":
        return rows.view(b, n, h, tokens).permute(0, 2, 3, 1)
    return rows.view(shape)
