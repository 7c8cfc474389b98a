"""The operators under pytest-benchmark: checks by default, timed by `pytest tests/benchmarks --benchmark-enable`."""

import pytest
import torch
from torch.nn import functional

from bsa_kernels import block_sparse_attention, bsa_attention, make_bsa_plan

GRID = (8, 16, 32)
SHAPE = (1, 2, 8 * 16 * 32, 64)


@pytest.fixture(scope="module")
def qkv():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(SHAPE, generator=generator) for _ in "qkv"]


def test_dense_sdpa_forward(benchmark, qkv):
    out = benchmark(functional.scaled_dot_product_attention, *qkv)
    assert out.isfinite().all()


@pytest.mark.slow
def test_bsa_gather_forward_with_selection(benchmark, qkv):
    out = benchmark(bsa_attention, *qkv, grid=GRID, engine="gather")
    assert out.isfinite().all()


@pytest.mark.slow
def test_bsa_gather_forward_on_a_plan_made_before(benchmark, qkv):
    plan = make_bsa_plan(qkv[0], qkv[1], grid=GRID)
    out = benchmark(block_sparse_attention, *qkv, plan, engine="gather")
    assert torch.equal(out, bsa_attention(*qkv, grid=GRID, engine="gather"))


def test_selection(benchmark, qkv):
    plan = benchmark(make_bsa_plan, qkv[0], qkv[1], grid=GRID)
    plan.check()
