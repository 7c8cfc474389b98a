"""MoBA's choice of chunks: the highest scores against mean keys among a query's past, its own chunk always.

Source: arXiv 2502.13189 and the authors' code. Attention to the chosen chunks is one plan with a causal rule: chunks of
the past lie wholly before the query, so that the rule cuts only its own chunk. The authors compute the two as separate
streams and merge them by their log-sum-exp, which gives the same softmax. No gradient, no synchronisation.

Shape legend: `B` batch, `H` heads, `L` tokens, `N` chunks, `M` slots a chunk, `D` head size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bsa_kernels.grid import BlockGrid
from bsa_kernels.plan import BlockPlan
from bsa_kernels.ranking import block_means, block_of_token, mark_top, require_count, score_dtype
from bsa_kernels.rules import CAUSAL, FULL


def grids(tokens: int, chunk: int) -> tuple[BlockGrid, BlockGrid]:
    """The query grid, a block a token, and the KV grid of chunks, the last one short where they do not divide.

    The sequence is the tokens in natural order, whatever video they are of.

    Raises:
        ValueError: the chunk is below one.
    """
    sequence = (1, 1, tokens)
    return BlockGrid(sequence, (1, 1, 1)), BlockGrid(sequence, (1, 1, min(require_count("chunk", chunk), tokens)))


@torch.no_grad()
def score(q: Tensor, k: Tensor, kv_grid: BlockGrid, *, is_tiled: bool = False) -> Tensor:
    """Multiply each query with the mean key of each chunk: [B, H, L, D] twice -> [B, H, L, N], fp32 or fp64.

    Args:
        q: in natural order, which is the tile-major order of its grid too.
        k: in natural order, or [B, H, N*M, D] where `is_tiled`: the same with a padded tail.
        kv_grid: the chunks.
        is_tiled: whether k has the padded tail.
    """
    return q.to(score_dtype(q)) @ block_means(k, kv_grid, is_tiled=is_tiled).transpose(-1, -2)


@torch.no_grad()
def select(scores: Tensor, kv_grid: BlockGrid, *, topk: int, causal: bool = True) -> Tensor:
    """Keep the `topk` highest chunks of each query, its own first and counted: [B, H, L, N] bool.

    Ties go to the lowest index. Causal, later chunks are left out, and a query keeps all it may see where these are
    fewer; the last chunk, short or not, is thus seen by its own queries alone. Otherwise, the adaptation to attention
    in both directions, every chunk may be chosen, a short last one by the mean of its real keys.
    """
    own = block_of_token(kv_grid, scores.device).view(-1, 1)
    chunks = torch.arange(scores.shape[-1], device=scores.device)
    ranked = scores.masked_fill(chunks == own, math.inf)
    if not causal:
        return mark_top(ranked, require_count("topk", topk))
    is_future = chunks > own
    return mark_top(ranked.masked_fill(is_future, -math.inf), require_count("topk", topk)) & ~is_future


def build_plan(mask: Tensor, q_grid: BlockGrid, kv_grid: BlockGrid, *, causal: bool = True) -> BlockPlan:
    """Make the plan of a mask [B, H, L, N]: a list of chunks for each query, causal inside its own chunk."""
    return BlockPlan.from_mask(q_grid, kv_grid, mask, rule=CAUSAL if causal else FULL)
