"""VSA against its definition written in loops, and the laws of its choice of cubes."""

import math

import pytest
import torch
from method_helpers import assert_same, attention_stages, block_members, draw, softmax_rows
from torch.nn.functional import scaled_dot_product_attention

from bsa_kernels import BlockGrid
from bsa_kernels.methods import vsa
from bsa_kernels.operator import Operator

EVEN = ((2, 4, 4), (2, 2, 2))
RAGGED = ((3, 3, 5), (2, 2, 2))
SCALE = 0.7


def operator(engine, grid, **kept):
    return Operator(
        (
            vsa.coarse_stage(grid, scale=SCALE),
            *attention_stages(
                engine,
                grid,
                grid,
                lambda scores: vsa.select(scores, **kept),
                lambda mask: vsa.build_plan(mask, grid),
                scale=SCALE,
                reads=("scores",),
                out="o_fine",
            ),
            vsa.combine_stage(),
        )
    )


def naive(cubes, topk, q, k, v, gate):
    """The definition, query by query, differentiable."""
    out = torch.zeros_like(q)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            means = [[sum(x[b, h, t] for t in cube) / len(cube) for cube in cubes] for x in (q, k, v)]
            for i, cube in enumerate(cubes):
                scores = [(means[0][i] * mean).sum() * SCALE for mean in means[1]]
                best = sorted(range(len(cubes)), key=lambda j, scores=scores: (-scores[j].item(), j))[:topk]
                seen = [t for j in best for t in cubes[j]]
                coarse = softmax_rows(means[0][i], means[1], means[2], range(len(cubes)), SCALE)
                for t in cube:
                    fine = softmax_rows(q[b, h, t], k[b, h], v[b, h], seen, SCALE)
                    out = out.index_put(
                        (torch.tensor(b), torch.tensor(h), torch.tensor(t)), coarse * gate[b, h, t] + fine
                    )
    return out


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["reference", "gather"])
@pytest.mark.parametrize(("grid", "block"), [EVEN, RAGGED])
def test_output_and_gradients_are_those_of_the_definition(grid, block, engine):
    given = draw(math.prod(grid), "q", "k", "v", "gate", batch=1)
    cubes = block_members(grid, block)
    assert_same(operator(engine, BlockGrid(grid, block), topk=2), lambda **t: naive(cubes, 2, **t), given)


@pytest.mark.parametrize("kept", [{"topk": 99}, {"density": 1.0}])
@pytest.mark.parametrize(("grid", "block"), [EVEN, RAGGED])
def test_all_cubes_are_dense_attention_plus_the_gated_coarse_branch(grid, block, kept):
    given = draw(math.prod(grid), "q", "k", "v", "gate")
    state = operator("gather", BlockGrid(grid, block), **kept).run(given)
    dense = scaled_dot_product_attention(given["q"], given["k"], given["v"], scale=SCALE)
    torch.testing.assert_close(state["o_fine"], dense)
    torch.testing.assert_close(state["o"], dense + state["o_coarse"] * given["gate"])


def test_a_zero_gate_leaves_the_fine_branch():
    given = draw(45, "q", "k", "v")
    given["gate"] = torch.zeros_like(given["q"])
    state = operator("gather", BlockGrid(*RAGGED), topk=2).run(given)
    torch.testing.assert_close(state["o"], state["o_fine"])


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("topk", [1, 4, 7, 13])
def test_each_row_has_exactly_k_picks_and_ties_go_to_the_lowest_index(levels, topk):
    scores = torch.randint(levels, (2, 3, 13, 13), generator=torch.Generator().manual_seed(levels)).float()
    mask = vsa.select(scores, topk=topk)
    for row, picks in zip(scores.flatten(0, 2).tolist(), mask.flatten(0, 2), strict=True):
        best = sorted(range(13), key=lambda j, row=row: (-row[j], j))[:topk]
        assert picks.nonzero().flatten().tolist() == sorted(best)


@pytest.mark.parametrize(
    ("kept", "count"),
    [({"topk": 3}, 3), ({"topk": 50}, 10), ({"density": 0.25}, 3), ({"density": 0.24}, 2), ({"density": 0.01}, 1)],
)
def test_k_is_at_most_n_and_a_density_is_rounded_half_up(kept, count):
    assert vsa.kept_cubes(10, **kept) == count


@pytest.mark.parametrize(
    ("kept", "text"),
    [
        ({}, "topk, density: expected one of the two, got topk=None and density=None"),
        ({"topk": 1, "density": 0.5}, "expected one of the two"),
        ({"topk": 0}, "topk: expected an integer of at least 1, got 0"),
        ({"density": 1.5}, "density: expected a share above 0 and at most 1, got 1.5"),
        ({"density": math.nan}, "density: expected a share"),
    ],
)
def test_a_bad_number_of_cubes_is_refused(kept, text):
    with pytest.raises(ValueError, match=text):
        vsa.select(torch.zeros(1, 1, 4, 4), **kept)


@pytest.mark.parametrize(("grid", "block"), [EVEN, RAGGED, ((1, 3, 3), (4, 4, 4))])
def test_means_are_the_same_from_either_order_and_from_a_loop(grid, block):
    cut = BlockGrid(grid, block)
    x = draw(math.prod(grid), "x")["x"]
    loop = torch.stack([x[:, :, cube].mean(2) for cube in block_members(grid, block)], 2)
    torch.testing.assert_close(vsa.pool(x, cut), loop)
    torch.testing.assert_close(vsa.pool(cut.permute(x), cut, is_tiled=True), loop)


def test_rows_are_expanded_to_the_tokens_of_their_cube():
    grid, block = RAGGED
    cubes = block_members(grid, block)
    rows = draw(len(cubes), "x")["x"]
    tokens = vsa.expand(rows, BlockGrid(grid, block))
    for i, cube in enumerate(cubes):
        for t in cube:
            assert torch.equal(tokens[:, :, t], rows[:, :, i])


def test_half_precision_is_pooled_and_scored_in_single_and_the_output_keeps_its_format():
    x = draw(45, "q", "k", "v", "gate")
    half = {name: t.bfloat16() for name, t in x.items()}
    grid = BlockGrid(*RAGGED)
    pooled = vsa.pool(half["q"], grid)
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, vsa.pool(half["q"].double(), grid).float())
    state = operator("gather", grid, topk=2).run(half)
    assert state["scores"].dtype == torch.float32
    assert state["o"].dtype == torch.bfloat16


def test_no_gradient_passes_through_the_scores():
    given = {name: x.requires_grad_() for name, x in draw(45, "q", "k", "v", "gate").items()}
    assert not operator("gather", BlockGrid(*RAGGED), topk=2).run(given)["scores"].requires_grad


def test_expected_pairs_and_selection_flop_are_those_of_the_plan():
    grid = BlockGrid(*EVEN)
    state = operator("gather", grid, density=0.5).run(draw(32, "q", "k", "v", "gate", dim=6))
    expected = vsa.expected(grid=grid.grid, block=grid.block, head_dim=6, density=0.5)
    assert expected.is_exact
    assert expected.pairs * 4 == state["plan"].dense_mask().sum()
    assert expected.density == 0.5
    assert expected.selection_flop * 4 == vsa.selection_flop(state["plan"], 6) == 4 * (2 * 32 * 6 + 2 * 4 * 4 * 6)
    assert not vsa.expected(grid=(3, 3, 5), block=(2, 2, 2), head_dim=6, topk=2).is_exact


def test_flop_of_the_coarse_branch_are_counted_by_hand():
    counted = {which: vsa.coarse_flop(grid=(2, 4, 4), block=(2, 2, 2), head_dim=6, which=which) for which in PASSES}
    assert counted["forward"] == 32 * 6 + 2 * 4 * 4 * 6 + 2 * 32 * 6
    assert counted["backward"] == 4 * (2 * 4 * 4 * 6) + 6 * 32 * 6
    assert counted["forward+backward"] == counted["forward"] + counted["backward"]


PASSES = ("forward", "backward", "forward+backward")
