"""VMoBA against its definition written in loops, its blocks by layer, and the laws of its selection."""

import itertools
import math

import pytest
import torch
from method_helpers import assert_same, attention_stages, block_members, draw, softmax_rows
from torch.nn.functional import scaled_dot_product_attention

from bsa_kernels.methods import vmoba
from bsa_kernels.operator import Operator

SCALE = 0.6
GRID = (3, 2, 4)
# A short last temporal block, a spatial window, a block of three sides.
BLOCKS = [(2, 2, 4), (3, 1, 2), (1, 2, 2)]


def operator(engine, block, grid=GRID, **options):
    q_grid, kv_grid = vmoba.grids(grid, block)
    return Operator(
        attention_stages(
            engine,
            q_grid,
            kv_grid,
            lambda q, k: vmoba.select(vmoba.score(q, k, kv_grid), kv_grid, **options),
            lambda mask: vmoba.build_plan(mask, q_grid, kv_grid),
            scale=SCALE,
        )
    )


def naive_scores(members, q, k):
    """Scores by (batch, head, query, block), plain numbers."""
    b, h, tokens, _ = q.shape
    return {
        (i, j, t, n): float(q[i, j, t] @ k[i, j, block].mean(0))
        for i, j, t in itertools.product(range(b), range(h), range(tokens))
        for n, block in enumerate(members)
    }


def scope_of(scope, pair):
    i, j, t, n = pair
    return {"head_global": (i, j), "query_head": (i, j, t), "block": (i, n), "overall": (i,)}[scope]


def naive_threshold(members, scores, scope, tau):
    """Walk down the sorted pairs of each scope until the share of the sum is reached, by a pair that is kept too."""
    own = {t: n for n, block in enumerate(members) for t in block}
    kept = {pair for pair in scores if own[pair[2]] == pair[3]}
    for key in {scope_of(scope, pair) for pair in scores}:
        mine = {pair: s for pair, s in scores.items() if scope_of(scope, pair) == key}
        low, high = min(mine.values()), max(mine.values())
        share = {pair: (s - low) / (high - low) for pair, s in mine.items()}
        share = {pair: s / sum(share.values()) for pair, s in share.items()}
        left = tau - sum(s for pair, s in share.items() if pair in kept)
        for pair in sorted((p for p in mine if p not in kept), key=lambda p, share=share: (-share[p], p)):
            kept.add(pair)
            left -= share[pair]
            if left <= 0:
                break
    return kept


def naive_topk(members, scores, topk):
    own = {t: n for n, block in enumerate(members) for t in block}
    kept = set()
    for i, j, t in {pair[:3] for pair in scores}:
        others = [n for n in range(len(members)) if n != own[t]]
        best = sorted(others, key=lambda n, at=(i, j, t): (-scores[*at, n], n))[: topk - 1]
        kept |= {(i, j, t, n) for n in [own[t], *best]}
    return kept


def attend(members, kept, q, k, v):
    rows = [
        softmax_rows(
            q[at], k[at[:2]], v[at[:2]], [t for n, m in enumerate(members) if (*at, n) in kept for t in m], SCALE
        )
        for at in itertools.product(*map(range, q.shape[:3]))
    ]
    return torch.stack(rows).view_as(q)


def as_set(mask):
    return {tuple(pair) for pair in mask.nonzero().tolist()}


@pytest.mark.parametrize("engine", ["reference", "gather"])
@pytest.mark.parametrize(
    "options",
    [{"mode": "threshold", "scope": "head_global", "tau": 0.4}, {"mode": "topk", "topk": 2}],
    ids=["threshold", "topk"],
)
@pytest.mark.parametrize("block", BLOCKS)
def test_output_and_gradients_are_those_of_the_definition(block, options, engine):
    given = draw(math.prod(GRID), "q", "k", "v", batch=1)
    members = block_members(GRID, block)
    scores = naive_scores(members, given["q"], given["k"])
    if options["mode"] == "topk":
        kept = naive_topk(members, scores, 2)
    else:
        kept = naive_threshold(members, scores, "head_global", 0.4)
    assert_same(operator(engine, block, **options), lambda **t: attend(members, kept, **t), given)


@pytest.mark.parametrize("tau", [0.05, 0.25, 0.5, 0.8, 0.97])
@pytest.mark.parametrize("scope", vmoba.SCOPES)
@pytest.mark.parametrize("block", BLOCKS)
def test_threshold_keeps_the_fewest_pairs_of_each_scope(block, scope, tau):
    _, kv_grid = vmoba.grids(GRID, block)
    given = draw(math.prod(GRID), "q", "k", seed=int(100 * tau))
    members = block_members(GRID, block)
    mask = vmoba.select(vmoba.score(**given, kv_grid=kv_grid), kv_grid, scope=scope, tau=tau)
    assert as_set(mask) == naive_threshold(members, naive_scores(members, **given), scope, tau)


def test_a_sample_is_decided_without_its_companions_in_the_batch():
    _, kv_grid = vmoba.grids(GRID, BLOCKS[2])
    scores = vmoba.score(**draw(math.prod(GRID), "q", "k", batch=3), kv_grid=kv_grid)
    for scope in vmoba.SCOPES:
        whole = vmoba.select(scores, kv_grid, scope=scope)
        assert torch.equal(whole[1:2], vmoba.select(scores[1:2] * 50, kv_grid, scope=scope))


@pytest.mark.parametrize("options", [{"tau": 1}, *({"tau": 1.0, "scope": s} for s in vmoba.SCOPES), {"topk": 6}])
def test_tau_of_one_and_topk_of_all_blocks_are_dense_attention(options):
    mode = "topk" if "topk" in options else "threshold"
    given = draw(math.prod(GRID), "q", "k", "v")
    out = operator("gather", BLOCKS[2], mode=mode, **options).forward(given)
    torch.testing.assert_close(out, scaled_dot_product_attention(given["q"], given["k"], given["v"], scale=SCALE))


@pytest.mark.parametrize("scope", vmoba.SCOPES)
def test_a_larger_tau_keeps_all_that_a_smaller_one_keeps(scope):
    _, kv_grid = vmoba.grids((4, 4, 4), (2, 2, 2))
    scores = vmoba.score(**draw(64, "q", "k"), kv_grid=kv_grid)
    last = torch.zeros_like(scores, dtype=torch.bool)
    for tau in (0.01, 0.1, 0.25, 0.4, 0.6, 0.9, 0.99, 1):
        mask = vmoba.select(scores, kv_grid, scope=scope, tau=tau)
        assert (mask >= last).all()
        last = mask


def test_ties_at_the_cut_go_to_the_lowest_index():
    _, kv_grid = vmoba.grids((1, 1, 6), (1, 1, 1))
    scores = torch.tensor([[0.0, 1, 1, 1, 1, 1]] * 6).view(1, 1, 6, 6)
    # Each query's own aside, 1 of 5 equal shares is one block, 0.5 of them two and a half.
    mask = vmoba.select(scores, kv_grid, scope="query_head", tau=0.5)[0, 0]
    assert mask[1].nonzero().flatten().tolist() == [1, 2, 3]
    assert mask[0].nonzero().flatten().tolist() == [0, 1, 2, 3]
    topped = vmoba.select(scores, kv_grid, mode="topk", topk=3)[0, 0]
    assert topped[4].nonzero().flatten().tolist() == [1, 2, 4]


def test_own_block_counts_towards_tau_and_one_more_pair_is_always_kept():
    _, kv_grid = vmoba.grids((1, 1, 4), (1, 1, 1))
    scores = torch.eye(4).view(1, 1, 4, 4)
    assert vmoba.select(scores, kv_grid, tau=0.9).sum() == 4 + 1
    assert (vmoba.select(scores, kv_grid, scope="query_head", tau=0.9).sum(-1) == 2).all()


@pytest.mark.parametrize("scope", vmoba.SCOPES)
def test_scores_that_do_not_differ_keep_everything(scope):
    _, kv_grid = vmoba.grids((1, 2, 4), (1, 1, 2))
    assert vmoba.select(torch.full((1, 2, 8, 4), 3.0), kv_grid, scope=scope, tau=0.1).all()


def test_own_blocks_alone_are_a_result_and_not_dense_attention():
    given = draw(math.prod(GRID), "q", "k", "v", batch=1)
    members = block_members(GRID, BLOCKS[2])
    state = operator("gather", BLOCKS[2], mode="topk", topk=1).run(given)
    assert as_set(state["plan"].block_mask) == {
        (0, h, t, n) for h in range(2) for n, m in enumerate(members) for t in m
    }
    torch.testing.assert_close(state["o"], attend(members, as_set(state["plan"].block_mask), **given))


@pytest.mark.parametrize("block", BLOCKS)
def test_scores_are_the_same_from_tile_major_keys(block):
    _, kv_grid = vmoba.grids(GRID, block)
    given = draw(math.prod(GRID), "q", "k")
    natural = vmoba.score(**given, kv_grid=kv_grid)
    tiled = vmoba.score(given["q"], kv_grid.permute(given["k"]), kv_grid, is_tiled=True)
    torch.testing.assert_close(tiled, natural)


def test_half_precision_is_scored_in_single():
    given = {name: x.bfloat16() for name, x in draw(math.prod(GRID), "q", "k").items()}
    _, kv_grid = vmoba.grids(GRID, BLOCKS[0])
    scores = vmoba.score(**given, kv_grid=kv_grid)
    assert scores.dtype == torch.float32
    exact = vmoba.score(**{name: x.double() for name, x in given.items()}, kv_grid=kv_grid)
    torch.testing.assert_close(scores, exact.float())


def test_blocks_cycle_by_layer():
    sides = {"temporal_block": 3, "spatial_block": (5, 13), "block": (7, 5, 13)}
    cut = [vmoba.layer_block((21, 30, 52), layer, **sides) for layer in range(4)]
    assert cut == [(3, 30, 52), (21, 5, 13), (7, 5, 13), (3, 30, 52)]
    assert [vmoba.grids((21, 30, 52), block)[1].num_blocks for block in cut] == [7, 24, 72, 7]
    assert vmoba.layer_block((2, 30, 52), 0, **sides) == (2, 30, 52)


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (
            1,
            r"spatial_block: expected sides that divide the grid's 30x52: h one of 1, 2, 3, .*, 30; w one of 1, 2, 4",
        ),
        (1, r"26, 52; got \(4, 13\)"),
        (2, r"block: expected sides that divide the grid's 21x30x52: t one of 1, 3, 7, 21; .*got \(4, 5, 13\)"),
        (-1, "layer: expected an index of at least 0, got -1"),
        (0, "temporal_block: expected a number of frames of at least 1, got 0"),
    ],
)
def test_a_block_that_does_not_divide_the_grid_is_refused_with_what_does(layer, text):
    with pytest.raises(ValueError, match=text):
        vmoba.layer_block((21, 30, 52), layer, temporal_block=0, spatial_block=(4, 13), block=(4, 5, 13))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"tau": 0}, "tau: expected a share above 0 and at most 1, got 0"),
        ({"tau": 1.1}, "tau: expected a share"),
        ({"scope": "head"}, "scope: expected one of head_global, query_head, block, overall; got 'head'"),
        ({"mode": "top"}, "mode: expected threshold or topk, got 'top'"),
        ({"mode": "topk"}, "topk: expected an integer of at least 1 with mode='topk', got None"),
        ({"mode": "topk", "topk": 0}, "topk: expected an integer of at least 1, got 0"),
    ],
)
def test_a_bad_option_is_refused(options, text):
    _, kv_grid = vmoba.grids((1, 1, 2), (1, 1, 1))
    with pytest.raises(ValueError, match=text):
        vmoba.select(torch.zeros(1, 1, 2, 2), kv_grid, **options)


def test_expected_pairs_of_topk_and_selection_flop_are_those_of_the_plan():
    block = (1, 2, 2)
    plan = operator("gather", block, mode="topk", topk=2).run(draw(24, "q", "k", "v", dim=6))["plan"]
    expected = vmoba.expected(grid=GRID, block=block, head_dim=6, mode="topk", topk=2)
    assert expected.is_exact
    assert expected.pairs * 4 == plan.dense_mask().sum() == plan.num_pairs().sum()
    assert expected.selection_flop * 4 == vmoba.selection_flop(plan, 6, mode="topk") == 4 * (24 * 6 + 2 * 24 * 6 * 6)
    assert vmoba.selection_flop(plan, 6, mode="threshold") == 4 * (24 * 6 + 2 * 24 * 6 * 6 + 5 * 24 * 6)


@pytest.mark.parametrize("tau", [0.15, 0.25, 0.5])
@pytest.mark.parametrize("scope", vmoba.SCOPES)
def test_expected_density_of_a_threshold_is_near_what_normal_tensors_give(scope, tau):
    grid, block = (4, 8, 8), (2, 4, 4)
    _, kv_grid = vmoba.grids(grid, block)
    scores = vmoba.score(**draw(256, "q", "k", heads=3, dim=64), kv_grid=kv_grid)
    kept = vmoba.select(scores, kv_grid, scope=scope, tau=tau).double().mean()
    expected = vmoba.expected(grid=grid, block=block, head_dim=64, scope=scope, tau=tau, heads=3)
    assert not expected.is_exact
    assert expected.density == pytest.approx(float(kept), abs=0.07)
