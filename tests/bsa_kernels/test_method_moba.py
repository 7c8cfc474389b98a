"""MoBA against its definition written in loops, and the laws of its choice of chunks."""

import itertools
import math

import pytest
import torch
from method_helpers import assert_same, attention_stages, draw, softmax_rows
from torch.nn.functional import scaled_dot_product_attention

from bsa_kernels.methods import moba
from bsa_kernels.operator import Operator

SCALE = 0.8
# Even, a short last chunk, a last chunk of one token, one chunk.
SHAPES = [(12, 4), (13, 5), (13, 4), (5, 8)]


def operator(engine, tokens, chunk, *, topk, causal=True):
    q_grid, kv_grid = moba.grids(tokens, chunk)
    return Operator(
        attention_stages(
            engine,
            q_grid,
            kv_grid,
            lambda q, k: moba.select(moba.score(q, k, kv_grid), kv_grid, topk=topk, causal=causal),
            lambda mask: moba.build_plan(mask, q_grid, kv_grid, causal=causal),
            scale=SCALE,
        )
    )


def chunks_of(tokens, chunk):
    return [list(range(first, min(first + chunk, tokens))) for first in range(0, tokens, chunk)]


def naive_choice(q, k, chunk, topk, *, causal):
    """Chosen chunks beside its own, by (batch, head, query)."""
    chunks = chunks_of(q.shape[2], chunk)
    chosen = {}
    for at in itertools.product(*map(range, q.shape[:3])):
        own = at[2] // chunk
        scores = {c: float(q[at] @ k[at[:2]][members].mean(0)) for c, members in enumerate(chunks)}
        allowed = [c for c in scores if c != own and (c < own or not causal)]
        chosen[at] = sorted(allowed, key=lambda c, scores=scores: (-scores[c], c))[: topk - 1]
    return chosen


def own_and_history(at, chunk, tokens, chosen, *, causal):
    own = at[2] // chunk
    chunks = chunks_of(tokens, chunk)
    mine = [t for t in chunks[own] if t <= at[2] or not causal]
    return mine, [t for c in chosen[at] for t in chunks[c]]


def naive(chunk, chosen, q, k, v, *, causal):
    tokens = q.shape[2]
    rows = []
    for at in itertools.product(*map(range, q.shape[:3])):
        mine, history = own_and_history(at, chunk, tokens, chosen, causal=causal)
        rows.append(softmax_rows(q[at], k[at[:2]], v[at[:2]], mine + history, SCALE))
    return torch.stack(rows).view_as(q)


@pytest.mark.parametrize("engine", ["reference", "gather"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("tokens", "chunk"), SHAPES)
def test_output_and_gradients_are_those_of_the_definition(tokens, chunk, causal, engine):
    given = draw(tokens, "q", "k", "v")
    chosen = naive_choice(given["q"], given["k"], chunk, 2, causal=causal)
    assert_same(
        operator(engine, tokens, chunk, topk=2, causal=causal),
        lambda **t: naive(chunk, chosen, **t, causal=causal),
        given,
    )


@pytest.mark.parametrize("topk", [1, 2, 3, 9])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("tokens", "chunk"), [*SHAPES, (40, 5)])
def test_chosen_chunks_are_those_of_a_loop_and_the_own_one(tokens, chunk, causal, topk):
    given = draw(tokens, "q", "k", seed=topk)
    _, kv_grid = moba.grids(tokens, chunk)
    mask = moba.select(moba.score(**given, kv_grid=kv_grid), kv_grid, topk=topk, causal=causal)
    chosen = naive_choice(**given, chunk=chunk, topk=topk, causal=causal)
    for at, others in chosen.items():
        assert mask[at].nonzero().flatten().tolist() == sorted([at[2] // chunk, *others])


@pytest.mark.parametrize(("tokens", "chunk"), SHAPES)
def test_the_own_and_the_history_stream_merged_by_their_log_sum_exp_are_the_one_plan(tokens, chunk):
    given = draw(tokens, "q", "k", "v")
    q, k, v = given.values()
    chosen = naive_choice(q, k, chunk, 2, causal=True)
    out = operator("gather", tokens, chunk, topk=2).forward(given)
    for at in chosen:
        streams = []
        for seen in own_and_history(at, chunk, tokens, chosen, causal=True):
            if seen:
                scores = k[at[:2]][seen] @ q[at] * SCALE
                streams.append((scores.logsumexp(0), scores.softmax(0) @ v[at[:2]][seen]))
        both = torch.stack([lse for lse, _ in streams]).softmax(0)
        merged = sum(w * rows for w, (_, rows) in zip(both, streams, strict=True))
        torch.testing.assert_close(out[at], merged)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("tokens", "chunk"), SHAPES)
def test_all_chunks_are_dense_attention_causal_or_not(tokens, chunk, causal):
    given = draw(tokens, "q", "k", "v")
    out = operator("gather", tokens, chunk, topk=99, causal=causal).forward(given)
    dense = scaled_dot_product_attention(given["q"], given["k"], given["v"], scale=SCALE, is_causal=causal)
    torch.testing.assert_close(out, dense)


@pytest.mark.parametrize("causal", [True, False])
def test_the_own_chunk_is_chosen_however_low_it_scores(causal):
    _, kv_grid = moba.grids(12, 4)
    scores = torch.full((1, 1, 12, 3), 5.0)
    own = torch.arange(12) // 4
    scores.scatter_(-1, own.view(1, 1, 12, 1), -1e30)
    mask = moba.select(scores, kv_grid, topk=1, causal=causal)
    assert torch.equal(mask[0, 0], own.unsqueeze(-1) == torch.arange(3))


def test_the_own_chunk_counts_in_topk_and_ties_go_to_the_earliest():
    _, kv_grid = moba.grids(16, 4)
    picks = moba.select(torch.zeros(1, 1, 16, 4), kv_grid, topk=2)[0, 0]
    assert [row.nonzero().flatten().tolist() for row in picks[::4]] == [[0], [0, 1], [0, 2], [0, 3]]


def test_a_later_token_changes_no_earlier_output():
    given = draw(13, "q", "k", "v")
    run = operator("reference", 13, 4, topk=2)
    before = run.forward(given)
    for name in given:
        given[name][:, :, 9:] += 3
    torch.testing.assert_close(run.forward(given)[:, :, :9], before[:, :, :9])


def test_half_precision_is_scored_in_single():
    given = {name: x.bfloat16() for name, x in draw(13, "q", "k").items()}
    _, kv_grid = moba.grids(13, 4)
    scores = moba.score(**given, kv_grid=kv_grid)
    assert scores.dtype == torch.float32
    exact = moba.score(**{name: x.double() for name, x in given.items()}, kv_grid=kv_grid)
    torch.testing.assert_close(scores, exact.float())


@pytest.mark.parametrize(("tokens", "chunk"), SHAPES)
def test_scores_are_the_same_from_a_padded_sequence(tokens, chunk):
    _, kv_grid = moba.grids(tokens, chunk)
    given = draw(tokens, "q", "k")
    tiled = moba.score(given["q"], kv_grid.permute(given["k"]), kv_grid, is_tiled=True)
    torch.testing.assert_close(tiled, moba.score(**given, kv_grid=kv_grid))


@pytest.mark.parametrize("topk", [1, 2, 3, 9])
@pytest.mark.parametrize(("tokens", "chunk"), SHAPES)
def test_expected_pairs_are_exactly_those_of_a_causal_plan(tokens, chunk, topk):
    given = draw(tokens, "q", "k", "v", dim=6)
    plan = operator("gather", tokens, chunk, topk=topk).run(given)["plan"]
    expected = moba.expected(tokens=tokens, chunk=chunk, topk=topk, head_dim=6)
    chosen = naive_choice(given["q"], given["k"], chunk, topk, causal=True)
    pairs = sum(len(s) for at in chosen for s in own_and_history(at, chunk, tokens, chosen, causal=True))
    assert expected.is_exact
    assert expected.pairs * 4 == pairs == plan.num_pairs().sum()
    assert expected.density == expected.pairs / tokens**2
    chunks = math.ceil(tokens / chunk)
    assert expected.selection_flop * 4 == moba.selection_flop(plan, 6) == 4 * (tokens * 6 + 2 * tokens * chunks * 6)


def test_expected_pairs_without_causality_are_exact_where_chunks_are_equal():
    plan = operator("gather", 12, 4, topk=2, causal=False).run(draw(12, "q", "k", "v"))["plan"]
    expected = moba.expected(tokens=12, chunk=4, topk=2, head_dim=4, causal=False)
    assert expected.is_exact
    assert expected.pairs * 4 == plan.dense_mask().sum() == plan.num_pairs().sum()
    assert not moba.expected(tokens=13, chunk=4, topk=2, head_dim=4, causal=False).is_exact


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: moba.grids(8, 0), "chunk: expected an integer of at least 1, got 0"),
        (lambda: moba.select(torch.zeros(1, 1, 8, 2), moba.grids(8, 4)[1], topk=0), "topk: expected an integer"),
        (lambda: moba.expected(tokens=8, chunk=0, topk=1, head_dim=4), "chunk: expected an integer of at least 1"),
    ],
)
def test_a_bad_option_is_refused(call, text):
    with pytest.raises(ValueError, match=text):
        call()
