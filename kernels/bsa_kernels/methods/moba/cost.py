"""What MoBA's selection costs, and how many pairs it keeps: plain arithmetic, without torch.

A multiply-add is 2 FLOP; comparisons and the top-k are not counted. `N` chunks, `L` tokens, `D` head size.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bsa_kernels.expected import Expected

if TYPE_CHECKING:
    from bsa_kernels.plan import BlockPlan


def expected(*, tokens: int, chunk: int, topk: int, head_dim: int, causal: bool = True) -> Expected:
    """Predict one (batch, head); causal it is exact, for only a query's own chunk can be short.

    `density` is over L squared: causal dense attention has (1 + 1/L) / 2 of it.

    Raises:
        ValueError: an option is below one.
    """
    for name, value in (("tokens", tokens), ("chunk", chunk), ("topk", topk)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: expected an integer of at least 1, got {value!r}")
    chunks = math.ceil(tokens / chunk)
    pairs = 0.0
    for c in range(chunks):
        size = min(chunk, tokens - c * chunk)
        if causal:
            pairs += size * min(topk - 1, c) * chunk + size * (size + 1) / 2
        else:
            others = min(topk, chunks) - 1
            pairs += size * (size + (others * (tokens - size) / (chunks - 1) if others else 0))
    return Expected(
        pairs=pairs,
        density=pairs / tokens**2,
        selection_flop=_selection(tokens, chunks, head_dim),
        is_exact=causal or tokens % chunk == 0 or topk >= chunks or topk == 1,
    )


def selection_flop(plan: BlockPlan, head_dim: int) -> float:
    """FLOP of a forward's selection, over all batches and heads: mean keys and the scores of all, future chunks too."""
    b, h, tokens, _ = plan.shape
    return b * h * _selection(tokens, plan.kv_grid.num_blocks, head_dim)


def _selection(tokens: int, chunks: int, head_dim: int) -> int:
    return tokens * head_dim + 2 * tokens * chunks * head_dim
