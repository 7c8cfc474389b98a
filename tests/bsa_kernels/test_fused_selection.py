"""The host part of the fused selection: what it supports, the sizes of its tables, and what it costs."""

import math
from statistics import NormalDist

import pytest
import torch

from bsa_kernels.grid import BlockGrid
from bsa_kernels.methods.bsa import fused, queries
from bsa_kernels.methods.bsa.options import BsaOptions


def test_rules_that_do_not_matter_are_supported():
    everything = BsaOptions(grid=(4, 4, 8), query_keep=1, kv_density=1, query_rule="block", fill="flat", kv_rule="topk")
    assert fused.unsupported(everything, head_dim=64, dtype=torch.bfloat16) is None
    assert "up to 256, got 300" in fused.unsupported(everything, head_dim=300, dtype=torch.float16)
    assert "not float64" in fused.unsupported(everything, head_dim=64, dtype=torch.float64)


@pytest.mark.parametrize("keep", [0.01, 0.3, 0.5, 0.9, 1])
@pytest.mark.parametrize("grid", [(1, 1, 1), (2, 3, 5), (5, 7, 9), (8, 8, 8)])
def test_the_width_of_the_tables_is_the_twins(grid, keep):
    for block in ((4, 4, 4), (4, 4, 8), (1, 8, 4)):
        blocks = BlockGrid(grid, block)
        tiles = torch.ones(1, 1, blocks.num_slots, 1)
        expected = queries.select_queries(tiles, blocks, query_keep=keep, rule="window", fill="zero")
        assert fused.kept_rows(blocks, keep) == expected.kept_slots.shape[-1]


def test_the_quantile_is_that_of_the_twin_and_exists_for_the_smallest_density():
    for density in (0.001, 0.1, 0.5, 0.93):
        assert fused.quantile(density) == pytest.approx(NormalDist().inv_cdf(1 - density), abs=1e-14)
    assert 8 < fused.quantile(1e-20) < math.inf


# Executed 450 TFLOP/s of the forward, an H200's measured copy bandwidth and L2 bandwidth, half its measured rate of
# matrix products, and a generous launch in a CUDA graph or a busy stream: the figures that the target is stated in.
FORWARD, HBM, L2, TENSOR, LAUNCH_S = 450e12, 4.3e12, 6.65e12, 394e12, 3e-6


@pytest.mark.parametrize(
    ("grid", "sparsity", "share"), [((16, 28, 52), 0.93, 0.15), ((40, 48, 80), 0.95, 0.05)], ids=["23K", "153K"]
)
def test_a_selection_costs_a_small_share_of_the_forward(grid, sparsity, share):
    tokens, heads, head_dim = math.prod(grid), 12, 128
    costs = fused.selection_cost(BsaOptions(grid=grid), batch=1, heads=heads, head_dim=head_dim)
    assert len(costs) == 3
    forward_s = 4 * tokens**2 * head_dim * heads * (1 - sparsity) / FORWARD
    selection_s = sum(
        LAUNCH_S + max((cost.bytes_read + cost.bytes_written) / HBM, cost.bytes_loaded / L2, cost.flop / TENSOR)
        for cost in costs
    )
    assert selection_s < share * forward_s


def test_the_cost_counts_each_tensor_once():
    options = BsaOptions(grid=(4, 8, 16), kv_density=0.1)
    pool, moments, bits = fused.selection_cost(options, batch=2, heads=3, head_dim=64)
    blocks, bh = 8, 6
    pooled, square = 4 * bh * blocks * 64, 4 * bh * 64 * 64
    assert pool.bytes_read == 2 * 2 * bh * 512 * 64
    assert pool.bytes_written == 4 * bh * blocks * (32 + 32 + 64 + 1) + 2 * pooled
    assert (moments.bytes_read, bits.bytes_read) == (pooled, 2 * pooled + square)
    assert bits.bytes_written == 4 * bh * blocks
    assert [cost.programs for cost in (pool, moments, bits)] == [2 * bh * blocks, 4 * bh, bh]
    assert len(fused.selection_cost(BsaOptions(grid=(4, 8, 16), kv_density=1), batch=1, heads=1, head_dim=64)) == 1
