"""The Triton kernels under element rules, with prefixes and other grids of keys, in every form, against the definition.

The definition is `plan_oracle`'s: masks token by token, in fp64.
"""

import pytest
import torch
from kernel_helpers import DEVICE, make_tiles, max_error, prepare_tables, random_mask, triton_engine
from plan_oracle import given, made_plan, obeys, oracle

from bsa_kernels import CAUSAL, BlockGrid, ElementRule, block_sparse_attention, full_plan
from bsa_kernels.bits import pack_bits
from bsa_kernels.block_sparse.groups import choose_groups
from bsa_kernels.block_sparse.lists import make_lists, make_lists_reference
from bsa_kernels.operator import Operator
from bsa_kernels.stages import plan_stages

FORMS = {
    "plain": make_tiles(16, keys=16),
    "pair": make_tiles(16, keys=16, group=2),
    "quad": make_tiles(16, keys=16, group=4, transposed=True),
    "packed": make_tiles(16, keys=16, pack=2),
    "fused": make_tiles(16, keys=16, backward="fused"),
    "fused, packed quad": make_tiles(16, keys=16, group=4, pack=2, backward="fused"),
}
KINDS = {
    "causal": {"rule": CAUSAL},
    "band": {"rule": ElementRule.band(9, 3)},
    "empty rows": {"rule": ElementRule(after=-7), "zero_fill": True},
    "later keys with prefix": {"rule": ElementRule(before=2), "prefix": 3},
    "prefix": {"prefix": 17},
}
# Both are padded along an axis. Blocks of 16 keys are tiles of their own, so that covered ones are walked unmasked.
GRID, KEYS = BlockGrid((2, 4, 5), (1, 4, 3)), BlockGrid((2, 4, 5), (1, 4, 4))
TOLERANCE = 2e-5


def numbers(plan, head_dim=8):
    x = given(plan, head_dim)
    return [t.detach().float().requires_grad_() for t in (x.q, x.k, x.v)], x


def gradients(outputs, leaves, grads):
    pairs = [(o, g.to(o.dtype)) for o, g in zip(outputs, grads, strict=True)]
    return torch.autograd.grad([o for o, _ in pairs], leaves, [g for _, g in pairs])


def assert_right(made, tiles, *, is_tiled=False, lse=False):
    """Check output and gradients; with `lse` also of the log-sum-exp."""
    plan = made.plan
    leaves, x = numbers(plan)
    stages = plan_stages(triton_engine(tiles, is_tiled=is_tiled), plan, scale=0.3, lse="lse" if lse else None)
    state = Operator(stages).run(dict(zip("qkv", leaves, strict=True)))
    exact, exact_lse = oracle(made, x)
    assert max_error(state["o"], exact) < TOLERANCE
    found, right, grads = [state["o"]], [exact], [x.do]
    if lse:
        empty = exact_lse == -torch.inf
        assert torch.equal(state["lse"] == -torch.inf, empty)
        found.append(state["lse"].masked_fill(empty, 0))
        right.append(exact_lse.masked_fill(empty, 0))
        grads.append(x.dlse)
        assert max_error(found[1], right[1]) < TOLERANCE
    wanted = gradients(right, (x.q, x.k, x.v), grads)
    for one, other in zip(gradients(found, leaves, grads), wanted, strict=True):
        assert max_error(one, other) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("tiles", FORMS.values(), ids=FORMS)
def test_every_form_gives_the_output_and_gradients_of_the_definition(tiles, kind):
    assert_right(made_plan(GRID, KEYS, density=0.5, keep=0.5, **kind), tiles)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [KINDS["band"], KINDS["later keys with prefix"]], ids=["band", "prefix"])
@pytest.mark.parametrize("form", ["pair", "fused"])
def test_tile_major_tensors_have_the_positions_of_natural_order(form, kind):
    assert_right(made_plan(GRID, KEYS, density=0.5, keep=0.5, **kind), FORMS[form], is_tiled=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [KINDS["causal"], KINDS["empty rows"]], ids=["causal", "empty rows"])
@pytest.mark.parametrize("form", ["pair", "fused"])
def test_the_log_sum_exp_and_gradients_through_it_are_those_of_the_definition(form, kind):
    assert_right(made_plan(GRID, KEYS, density=0.5, keep=0.5, **kind), FORMS[form], lse=True)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["plain", "quad", "fused"])
@pytest.mark.parametrize(
    ("q_grid", "kv_grid"),
    [
        (BlockGrid((1, 2, 5), (1, 1, 1)), BlockGrid((1, 2, 5), (1, 2, 2))),
        (BlockGrid((1, 1, 37), (1, 1, 5)), BlockGrid((1, 1, 37), (1, 1, 16))),
    ],
    ids=["single queries", "a sequence"],
)
def test_query_blocks_below_a_tile_are_padded(form, q_grid, kv_grid):
    assert_right(made_plan(q_grid, kv_grid, rule=CAUSAL, keep=1, density=0.6), FORMS[form])


@pytest.mark.slow
def test_keys_of_another_grid_with_a_prefix_are_walked_forward_and_backward():
    other = BlockGrid((1, 5, 3), (1, 4, 4))
    for form in ("pair", "fused, packed quad"):
        assert_right(made_plan(GRID, other, prefix=17), FORMS[form])


def test_rows_that_see_nothing_give_zero_and_no_gradient():
    grid = BlockGrid((1, 1, 32), (1, 1, 16))
    plan = full_plan(1, 1, grid, device=DEVICE, rule=ElementRule(after=-20))
    (q, k, v), x = numbers(plan)
    out = block_sparse_attention(q, k, v, plan, engine="triton")
    assert torch.equal((out == 0).all(-1)[0, 0], torch.arange(32, device=DEVICE) < 20)
    dq, dk, dv = torch.autograd.grad(out, (q, k, v), x.do.float())
    assert (dq[0, 0, :20] == 0).all()
    assert (dq[0, 0, 20:] != 0).any(-1)[1:].all()  # the first sees one key, whose weight is 1 whatever the query
    for seen in (dk, dv):
        assert (seen[0, 0, 12:] == 0).all()
        assert (seen[0, 0, :11] != 0).any(-1).all()


@pytest.mark.parametrize("group", [1, 2, 4])
def test_blocks_that_the_rule_does_not_cut_are_walked_without_a_mask(group):
    grid = BlockGrid((2, 4, 16), (1, 2, 8))
    made = made_plan(grid, grid, rule=CAUSAL, keep=1, density=0.7)
    tables = prepare_tables(made.plan, head_dim=8, dtype=torch.float32, tiles=make_tiles(16, keys=16, group=group))
    blocks = [grid.token_of_slot(DEVICE)[i].tolist() for i in range(grid.num_blocks)]
    mask = made.mask.tolist()
    for i, j, r in torch.cartesian_prod(*(torch.arange(n) for n in tables.counts.shape)).tolist():
        members = [m for m in tables.members[i, j, r].tolist() if m >= 0]
        listed = [[k for k in range(grid.num_blocks) if mask[i][j][m][k]] for m in members]
        cut = {
            k
            for m, seen in zip(members, listed, strict=True)
            for k in seen
            if not all(obeys(CAUSAL, query, key) for query in blocks[m] for key in blocks[k])
        }
        union = {k for seen in listed for k in seen}
        start, count = int(tables.starts[i, j, r]), int(tables.counts[i, j, r])
        values = [item & ((1 << 28) - 1) for item in tables.items[start : start + count].tolist()]
        num_full = int(tables.num_full[i, j, r])
        assert values[:num_full] == [blocks[k][0] for k in sorted(union - cut)]
        assert values[num_full:] == sorted(cut)
    assert 0 < tables.num_full.sum() < tables.counts.sum()


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 4])
def test_lists_with_a_part_by_query_block_are_those_of_the_twin_in_torch(size):
    grid = BlockGrid((3, 5, 5), (1, 1, 1))
    bits = pack_bits(random_mask(grid, grid, 0.3, seed=size))
    members = choose_groups(bits, grid, size)
    full = random_mask(grid, grid, 0.7)[0, 0]
    origins = torch.arange(75, dtype=torch.int32, device=DEVICE) * 7
    found = make_lists(bits, members, origins, pack_bits(full))
    twin = make_lists_reference(bits, members, origins, pack_bits(full))
    for name in ("starts", "num_full", "counts"):
        assert torch.equal(getattr(found, name), getattr(twin, name))
    total = int(twin.counts.sum())
    assert torch.equal(found.items[:total], twin.items[:total])
