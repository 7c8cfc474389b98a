"""Compare a plan with the naive loops, table by table."""

import torch
from kernel_helpers import DEVICE
from naive_bsa import blocks_of, choose

from bsa_kernels import make_bsa_plan

DEFAULTS = {
    "block": (4, 4, 4),
    "query_block": None,
    "query_keep": 0.5,
    "kv_density": 0.3,
    "query_rule": "window",
    "kv_rule": "statistical",
    "fill": "nearest",
}


def random_qk(grid, *, head_dim=4, batch=1, heads=1, seed=0):
    """Gaussian float64 q and k."""
    make = torch.Generator().manual_seed(seed)
    shape = (batch, heads, grid[0] * grid[1] * grid[2], head_dim)
    return tuple(torch.randn(shape, generator=make, dtype=torch.float64).to(DEVICE) for _ in range(2))


def plan_for(q, k, **options):
    """The plan of `make_bsa_plan`, checked."""
    plan = make_bsa_plan(q, k, **{**DEFAULTS, **options})
    plan.check()
    return plan


def assert_selects_like_the_naive_loops(q, k, **options):
    """Kept tokens, the source of every token and the KV blocks of every query block are the same, for all heads."""
    options = {**DEFAULTS, **options}
    plan = plan_for(q, k, **options)
    options["query_block"] = options["query_block"] or options["block"]
    places = [list(tokens.values()) for tokens in blocks_of(options["grid"], options["query_block"])]
    source, mask = plan.source_of_token().tolist(), plan.block_mask.tolist()
    slots = plan.kept_slots.tolist()
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            expected = choose(q[b, h].tolist(), k[b, h].tolist(), **options)
            # Real tokens come first in a block, in order of place, so that slot s holds the s-th of them.
            kept = [[places[i][s] for s in row if s >= 0] for i, row in enumerate(slots[b][h])]
            assert kept == expected.kept
            assert [None if s < 0 else s for s in source[b][h]] == expected.source
            assert [{j for j, sees in enumerate(row) if sees} for row in mask[b][h]] == expected.kv_blocks
