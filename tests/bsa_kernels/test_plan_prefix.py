"""Keys that are not the queries': other grids, and a dense prefix of text or context before the grid's keys."""

from dataclasses import replace

import pytest
import torch
from kernel_helpers import DEVICE, PORTABLE, max_error
from plan_oracle import GRIDS, assert_runs, given, made_plan, oracle, run_flex_mask, run_plan, token_mask

from bsa_kernels import BlockGrid, BlockPlan, full_plan
from bsa_kernels.keys import KeySlots
from bsa_kernels.rules import CAUSAL, FULL, ElementRule

CROSS = [
    # Text keys of a video's queries, a longer video's keys, one block of fewer keys than slots.
    (BlockGrid((3, 4, 5), (2, 2, 4)), BlockGrid((1, 1, 13), (1, 1, 4))),
    (BlockGrid((1, 4, 5), (1, 2, 2)), BlockGrid((4, 4, 5), (2, 2, 3))),
    (BlockGrid((2, 3, 3), (1, 1, 1)), BlockGrid((1, 1, 5), (1, 1, 8))),
]


@pytest.mark.parametrize("prefix", [0, 1, 7, 8, 9])
def test_tiles_hold_the_blocks_of_the_grid_and_then_those_of_the_prefix(prefix):
    grid = BlockGrid((3, 3, 3), (2, 2, 2))
    keys = KeySlots(grid, prefix)
    x = torch.arange(1.0, prefix + 28, device=DEVICE).view(1, 1, -1, 1).requires_grad_()
    tiles = keys.tiles(x)
    assert tiles.shape == (1, 1, keys.num_slots, 1)
    blocks = tiles.view(keys.num_blocks, 8)
    assert torch.equal(tiles[:, :, : grid.num_slots], grid.permute(x[:, :, prefix:]))
    tail = blocks[grid.num_blocks :].flatten().tolist()
    assert tail == [*range(1, prefix + 1), *[0] * (len(tail) - prefix)]
    assert keys.num_prefix_blocks == {0: 0, 1: 1, 7: 1, 8: 1, 9: 2}[prefix]
    assert keys.real_counts(DEVICE).tolist() == (blocks > 0).sum(1).tolist()
    assert torch.equal(tiles.flatten()[keys.slot_of_key(DEVICE)], x.flatten())
    assert torch.autograd.grad(tiles.sum(), x)[0].tolist() == torch.ones_like(x).tolist()
    assert not keys.is_even
    assert KeySlots(BlockGrid((2, 2, 2), (2, 2, 2)), prefix).is_even == (prefix % 8 == 0)


@pytest.mark.parametrize("shape", [(1, 1, 27, 2), (1, 27 + 3, 2)])
def test_tiles_refuse_another_number_of_keys(shape):
    with pytest.raises(ValueError, match=r"expected \[B, H, 30, D\] for 3 tokens of a prefix and grid \(3, 3, 3\)"):
        KeySlots(BlockGrid((3, 3, 3), (2, 2, 2)), 3).tiles(torch.zeros(shape))


@pytest.mark.parametrize("prefix", [-1, 2.0, True])
def test_a_wrong_prefix_is_refused(prefix):
    grid = BlockGrid((1, 1, 4), (1, 1, 2))
    with pytest.raises(ValueError, match="prefix: expected a number of tokens of at least 0, got"):
        full_plan(1, 1, grid, device=DEVICE, prefix=prefix)


@pytest.mark.parametrize("prefix", [0, 3, 8, 33])
@pytest.mark.parametrize("rule", [FULL, CAUSAL, ElementRule.band(4, 2)])
@pytest.mark.parametrize(("q_grid", "kv_grid"), GRIDS)
def test_the_dense_mask_shows_the_prefix_first_and_to_every_computed_row(q_grid, kv_grid, rule, prefix):
    made = made_plan(q_grid, kv_grid, rule=rule, prefix=prefix, density=0.3)
    sees, _ = token_mask(made)
    assert torch.equal(made.plan.dense_mask(), sees)
    computed = made.plan.source_of_token() == torch.arange(q_grid.num_tokens, device=DEVICE)
    assert torch.equal(sees[..., :prefix], computed.unsqueeze(-1).expand(*computed.shape, prefix))


@pytest.mark.parametrize("prefix", [3, 8, 33])
@pytest.mark.parametrize("rule", [FULL, CAUSAL, ElementRule.band(4, 2)])
@pytest.mark.parametrize(("q_grid", "kv_grid"), GRIDS)
@pytest.mark.parametrize("engine", PORTABLE)
def test_output_and_gradients_with_a_prefix_are_those_of_the_definition(engine, q_grid, kv_grid, rule, prefix):
    made = made_plan(q_grid, kv_grid, rule=rule, prefix=prefix, density=0.3, zero_fill=prefix == 8)
    assert_runs(engine, made, given(made.plan))


@pytest.mark.parametrize("prefix", [0, 5])
@pytest.mark.parametrize("keep", [0.5, 1])
@pytest.mark.parametrize(("q_grid", "kv_grid"), CROSS)
@pytest.mark.parametrize("engine", PORTABLE)
def test_output_and_gradients_of_cross_lengths_are_those_of_the_definition(engine, q_grid, kv_grid, keep, prefix):
    made = made_plan(q_grid, kv_grid, prefix=prefix, keep=keep, batch=2)
    assert torch.equal(made.plan.dense_mask(), token_mask(made)[0])
    assert torch.equal(made.plan.num_pairs(), token_mask(made)[0].sum((2, 3)))
    assert_runs(engine, made, given(made.plan))


@pytest.mark.parametrize("prefix", [0, 5])
@pytest.mark.parametrize(("q_grid", "kv_grid"), [*GRIDS, *CROSS])
def test_the_block_mask_of_flex_with_a_prefix_or_cross_lengths_is_the_definition(q_grid, kv_grid, prefix):
    made = made_plan(q_grid, kv_grid, prefix=prefix)
    x = given(made.plan)
    assert max_error(run_flex_mask(made.plan, x), oracle(made, x)[0]) < 1e-9


@pytest.mark.slow
def test_flex_of_cross_lengths_is_the_definition():
    made = made_plan(*CROSS[0])
    assert_runs("flex", made, given(made.plan, 32, dtype=torch.float32), tolerance=1e-5)


@pytest.mark.skipif(DEVICE.type == "cuda", reason="only torch's CPU kernel is wrong")
@pytest.mark.parametrize("head_dim", [8, 16])
def test_flex_refuses_what_torch_compiles_wrong_on_cpus(head_dim):
    made = made_plan(BlockGrid((1, 1, 30), (1, 1, 4)), BlockGrid((1, 1, 30), (1, 1, 8)))
    with pytest.raises(ValueError, match=rf"a wrong kernel on CPUs for KV blocks of 8 tokens and head size {head_dim}"):
        run_plan("flex", made.plan, given(made.plan, head_dim, dtype=torch.float32))


@pytest.mark.parametrize("engine", PORTABLE)
def test_a_query_block_that_lists_nothing_sees_the_prefix_alone(engine):
    grid = BlockGrid((1, 1, 12), (1, 1, 4))
    plan = BlockPlan.from_mask(grid, grid, torch.zeros(1, 1, 3, 3, dtype=torch.bool, device=DEVICE), prefix=3)
    plan.check()
    assert plan.num_pairs().tolist() == [[36]]
    x = given(plan)
    dense = torch.nn.functional.scaled_dot_product_attention(x.q, x.k[:, :, :3], x.v[:, :, :3], scale=0.3)
    torch.testing.assert_close(run_plan(engine, plan, x), dense)


def test_lists_and_inverse_lists_hold_the_prefix_behind_the_grid():
    grid = BlockGrid((1, 1, 12), (1, 1, 4))
    plan = BlockPlan.from_mask(grid, grid, torch.eye(3, dtype=torch.bool, device=DEVICE).view(1, 1, 3, 3), prefix=6)
    assert plan.num_kv_blocks == 5
    assert plan.kv_real_counts(DEVICE).tolist() == [4, 4, 4, 4, 2]
    assert plan.kv_counts.tolist() == [[[3, 3, 3]]]
    assert plan.kv_indices[0, 0, :, :3].tolist() == [[0, 3, 4], [1, 3, 4], [2, 3, 4]]
    counts, indices = plan.inverse
    assert counts.tolist() == [[[1, 1, 1, 3, 3]]]
    assert indices[0, 0, 3].tolist() == [0, 1, 2]


def test_check_finds_a_query_block_that_does_not_see_the_prefix():
    grid = BlockGrid((1, 1, 12), (1, 1, 4))
    plan = full_plan(1, 1, grid, device=DEVICE, prefix=6)
    plan.check()
    with pytest.raises(ValueError, match=r"plan.block_bits: expected every query block to see .* the prefix"):
        replace(plan, block_bits=plan.block_bits & ~(1 << 3)).check()


def test_only_a_plan_without_rule_and_prefix_on_one_grid_is_plain():
    grid, other = BlockGrid((1, 1, 12), (1, 1, 4)), BlockGrid((1, 1, 8), (1, 1, 4))
    assert full_plan(1, 1, grid, device=DEVICE).is_plain
    assert full_plan(1, 1, grid, device=DEVICE, kv_grid=BlockGrid((1, 1, 12), (1, 1, 3))).is_plain
    assert not full_plan(1, 1, grid, device=DEVICE, rule=CAUSAL).is_plain
    assert not full_plan(1, 1, grid, device=DEVICE, prefix=1).is_plain
    assert not full_plan(1, 1, grid, device=DEVICE, kv_grid=other).is_plain
