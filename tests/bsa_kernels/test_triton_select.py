"""The fused selection against its torch twins: in Triton's interpreter on a CPU, compiled on a GPU."""

import math
from statistics import NormalDist

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_helpers import DEVICE, poison_empty

from bsa_kernels.bits import pack_bits, unpack_bits
from bsa_kernels.grid import BlockGrid
from bsa_kernels.methods.bsa import queries, stages, triton_pool, triton_select
from bsa_kernels.methods.bsa.blocks import pool_kept, pool_real
from bsa_kernels.methods.bsa.options import BsaOptions

FP16, FP32 = torch.float16, torch.float32
EPS = 2.0**-23
BLOCK = (4, 4, 4)


def normal(*shape, dtype=FP32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device=DEVICE, dtype=dtype)


def tokens_of(grid, dtype=FP32, *, batch=1, heads=2, head_dim=16, seed=0):
    return normal(batch, heads, grid.num_tokens, head_dim, dtype=dtype, seed=seed)


def assert_selects_queries_like_the_twin(q, grid, *, query_keep=0.5, fill="nearest", tiled=False):
    """Compare all tables exactly, and the means within the roundings of a sum of M numbers; returns what was chosen."""
    tiles = q if tiled else grid.permute(q)
    expected = queries.select_queries(tiles, grid, query_keep=query_keep, rule="window", fill=fill)
    found = triton_pool.select_queries(q, grid, query_keep=query_keep, fill=fill, tiled=tiled)
    for name in ("kept_slots", "num_kept", "fill"):
        table = getattr(found, name)
        assert table.dtype == torch.int32
        assert torch.equal(table, getattr(expected, name).int()), name
    slot = found.kept_slots.long()
    first = torch.arange(grid.num_blocks, device=q.device).unsqueeze(-1) * grid.block_size
    table = first + torch.arange(grid.block_size, device=q.device) if tiled else grid.token_of_slot(q.device)
    token = table.expand(*slot.shape[:2], -1, -1).gather(-1, slot.clamp(min=0))
    assert torch.equal(found.kept_tokens, torch.where(slot >= 0, token, -1).int())
    mean = pool_kept(tiles.double(), expected.kept, expected.num_kept)
    bound = grid.block_size * EPS * float(q.abs().max())
    assert found.pooled_q.dtype == FP32
    assert float((found.pooled_q - mean).abs().max()) <= bound
    return found


def exact_decisions(pooled_q, pooled_k, *, scale, kv_density):
    """Decide in fp64 by two passes over the scores; True too where fp32 may decide either way.

    Returns:
        The decisions, and where a score is nearer to the threshold than the kernel's rounding. It multiplies centred
        keys exact to 22 bits and sums in fp32, takes the variance from second moments, whose error is relative to
        |q|^2 and their trace, and rounds the mean once.
    """
    q, k = pooled_q.double(), pooled_k.double()
    sign = (scale > 0) - (scale < 0)
    mean = k.mean(-2, keepdim=True)
    centred = k - mean
    scores = sign * q @ centred.transpose(-1, -2)
    spread = scores.square().mean(-1, keepdim=True).sqrt()
    quantile = NormalDist().inv_cdf(1 - kv_density)
    threshold = spread * quantile
    length = q.norm(dim=-1, keepdim=True)
    largest = centred.norm(dim=-1).amax(-1)[..., None, None]
    of_variance = 2**-20 * length.square() * centred.square().sum(-1).mean(-1)[..., None, None]
    of_spread = of_variance / (spread + of_variance.sqrt())
    bound = 2**-19 * length * largest + EPS * length * mean.norm(dim=-1, keepdim=True) + abs(quantile) * of_spread
    tolerance = 16 * EPS * length * k.norm(dim=-1).amax(-1)[..., None, None] * abs(sign)
    low, high = scores.aminmax(dim=-1, keepdim=True)
    mask = (scores >= threshold) | (high - low <= tolerance)
    mask = mask.scatter(-1, scores.argmax(-1, keepdim=True), True)
    # Which of two equally high blocks is the highest, rounding decides too.
    rivals = (high < threshold + bound) & (scores >= high - 2 * bound)
    near = ((scores - threshold).abs() <= bound) | (rivals & (rivals.sum(-1, keepdim=True) > 1))
    near |= (high - low - tolerance).abs() <= 2 * bound
    return mask, near


def assert_decides_exactly(pooled_q, pooled_k, *, scale=1.0, kv_density=0.3, max_near=0.02):
    bits = triton_select.select_block_bits(pooled_q, pooled_k, scale=scale, kv_density=kv_density)
    num_kv = pooled_k.shape[2]
    mask = unpack_bits(bits, num_kv)
    assert torch.equal(bits, pack_bits(mask))  # no bit past the last block
    expected, near = exact_decisions(pooled_q, pooled_k, scale=scale, kv_density=kv_density)
    assert ((mask == expected) | near).all()
    assert float(near.double().mean()) <= max_near
    assert mask.any(-1).all()
    return mask


@pytest.mark.parametrize("dtype", [FP16, FP32])
@pytest.mark.parametrize(
    ("grid", "block"),
    [
        ((5, 6, 7), BLOCK),
        ((4, 4, 8), BLOCK),
        ((2, 3, 3), BLOCK),
        ((1, 4, 5), BLOCK),
        ((4, 5, 9), (4, 4, 8)),
        ((3, 5, 9), (1, 4, 8)),
    ],
)
def test_queries_equal_the_twin(grid, block, dtype):
    grid = BlockGrid(grid, block)
    assert_selects_queries_like_the_twin(tokens_of(grid, dtype, heads=1), grid)


@pytest.mark.parametrize("dtype", [FP16, FP32])
@pytest.mark.parametrize("keep", [0.01, 0.25, 0.75, 0.97, 1])
def test_every_share_and_fill_equals_the_twin(keep, dtype):
    grid = BlockGrid((4, 5, 6), BLOCK)
    for fill in ("nearest", "zero"):
        assert_selects_queries_like_the_twin(tokens_of(grid, dtype, heads=1), grid, query_keep=keep, fill=fill)
    even = BlockGrid(BLOCK, BLOCK)
    assert_selects_queries_like_the_twin(tokens_of(even, dtype, heads=1), even, query_keep=keep)


@pytest.mark.parametrize("head_dim", [1, 24, 64, 80, 128])
def test_any_head_size_equals_the_twin(head_dim):
    grid = BlockGrid((4, 4, 5), BLOCK)
    q = tokens_of(grid, FP16, heads=1, head_dim=head_dim, seed=head_dim)
    if head_dim == 1:
        q = q.sign()  # all similarities are 1 or -1 then, also where they are divided in another order
    assert_selects_queries_like_the_twin(q, grid)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [FP16, FP32])
def test_tile_major_and_strided_queries_and_keys_are_read_where_they_lie(dtype):
    grid = BlockGrid((3, 4, 6), BLOCK)
    x = tokens_of(grid, dtype, batch=2, heads=2)
    natural = assert_selects_queries_like_the_twin(x, grid)
    strided = x.transpose(1, 2).contiguous().transpose(1, 2)
    wide = torch.cat([x, x], -1)[..., : x.shape[-1]]
    for same in (strided, wide):
        assert not same.is_contiguous()
        found = assert_selects_queries_like_the_twin(same, grid)
        assert torch.equal(found.pooled_q, natural.pooled_q)
        assert torch.equal(triton_pool.pool_keys(same, grid), triton_pool.pool_keys(x, grid))
    tiles = grid.permute(x)
    tiled = assert_selects_queries_like_the_twin(tiles, grid, tiled=True)
    assert torch.equal(tiled.pooled_q, natural.pooled_q)
    # What stands in the padding is nobody's business.
    is_padding = (grid.token_of_slot(DEVICE).flatten() < 0).unsqueeze(-1)
    dirty = tiles.masked_fill(is_padding, torch.nan)
    assert torch.equal(triton_pool.select_queries(dirty, grid, query_keep=0.5, tiled=True).fill, natural.fill)
    mean = pool_real(tiles.double(), grid)
    for pooled in (triton_pool.pool_keys(x, grid), triton_pool.pool_keys(dirty, grid, tiled=True)):
        assert float((pooled - mean).abs().max()) <= grid.block_size * EPS * float(x.abs().max())


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(
    grid=st.tuples(*[st.integers(1, 5)] * 3),
    keep=st.sampled_from([0.1, 0.25, 0.5, 0.75, 0.9]),
    fill=st.sampled_from(["nearest", "zero"]),
    dtype=st.sampled_from([FP16, FP32]),
    seed=st.integers(0, 1 << 16),
)
def test_ties_go_to_the_lowest_index(grid, keep, fill, dtype, seed):
    # Along an axis, of length a power of two or zero: similarities are exactly -1, 0 or 1, and most are ties.
    make = torch.Generator().manual_seed(seed)
    grid = BlockGrid(grid, BLOCK)
    shape = (1, 1, grid.num_tokens)
    length = 2.0 ** torch.randint(-2, 3, shape, generator=make) * torch.randint(-1, 2, shape, generator=make)
    q = torch.nn.functional.one_hot(torch.randint(3, shape, generator=make), 3) * length.unsqueeze(-1)
    assert_selects_queries_like_the_twin(q.to(DEVICE, dtype), grid, query_keep=keep, fill=fill)


@pytest.mark.parametrize("dtype", [FP16, FP32])
def test_equal_zero_and_repeated_rows_equal_the_twin(dtype):
    grid = BlockGrid((4, 4, 5), BLOCK)
    q = tokens_of(grid, dtype, heads=3)
    q[:, 0] = 0
    q[:, 1] = q[:, 1, :1]
    q[:, 2, 1::2] = q[:, 2, ::2]
    assert_selects_queries_like_the_twin(q, grid)


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1e-8, 1e8])
def test_the_size_of_the_inputs_changes_no_choice(factor):
    grid = BlockGrid((4, 4, 26), BLOCK)
    q, k = (tokens_of(grid, heads=1, seed=seed) for seed in (0, 1))
    options = BsaOptions(grid=grid.grid, kv_density=0.3)
    found = triton_select.select(q * factor, k * factor, options, scale=0.25)
    expected = triton_select.select(q, k, options, scale=0.25)
    assert torch.equal(found.queries.kept_tokens, expected.queries.kept_tokens)
    assert torch.equal(found.block_bits, expected.block_bits)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [FP16, FP32])
def test_tables_stay_valid_where_inputs_are_not_finite(dtype, value):
    grid = BlockGrid((4, 4, 5), BLOCK)
    q = tokens_of(grid, dtype)
    k = q.clone()
    q[:, 0, ::3] = value
    q[:, 1] = value
    selection = triton_select.select(q, k, BsaOptions(grid=grid.grid, kv_density=0.3), scale=1.0)
    plan = stages.BlockPlan(
        q_grid=grid,
        kv_grid=grid,
        kept_slots=selection.queries.kept_slots,
        num_kept=selection.queries.num_kept,
        fill=selection.queries.fill,
        block_bits=selection.block_bits,
    )
    plan.check()
    assert (plan.kv_counts >= 1).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_kv", "head_dim", "offset"),
    [(1, 16, 3.0), (5, 16, 0.0), (150, 24, 0.0), (150, 24, 3.0), (150, 24, 1000.0), (70, 128, 1000.0)],
)
def test_moments_of_the_keys_equal_two_passes_in_fp64(num_kv, head_dim, offset):
    direction = normal(head_dim, seed=9)
    k = normal(2, 2, num_kv, head_dim) * 2.0 ** torch.arange(2, device=DEVICE).view(2, 1, 1) + offset * direction
    mean, moments, largest = triton_select.key_moments(k)
    wide = k.double()
    exact = wide.mean(-2)
    centred = wide - exact.unsqueeze(-2)
    expected = centred.transpose(-1, -2) @ centred / num_kv
    variance, size = float(expected.diagonal(dim1=-2, dim2=-1).max()), float(exact.abs().max())
    assert float((mean - exact).abs().max()) <= EPS * (size + math.sqrt(variance))
    torch.testing.assert_close(largest.double(), wide.norm(dim=-1).amax(-1), rtol=4 * EPS, atol=0)
    # An offset adds nothing but the rounding of the mean, squared.
    bound = 2**-20 * variance + (EPS * size) ** 2
    assert float((moments - expected).abs().max()) <= bound


@pytest.mark.parametrize(
    ("scale", "density"), [(1.0, 1e-6), (-0.3, 1e-6), (-2.0, 0.05), (0.1, 0.3), (1.0, 0.5), (-1.0, 0.9), (3.0, 0.999)]
)
@pytest.mark.parametrize(("num_q", "num_kv", "head_dim"), [(3, 150, 16), (70, 33, 64), (65, 32, 20)])
def test_block_decisions_equal_two_passes_in_fp64(num_q, num_kv, head_dim, density, scale):
    q, k = normal(1, 2, num_q, head_dim), normal(1, 2, num_kv, head_dim, seed=1)
    mask = assert_decides_exactly(q, k + 0.5, scale=scale, kv_density=density)
    if density == 1e-6:
        assert (mask.sum(-1) == 1).all()


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(
    num_q=st.integers(1, 70),
    num_kv=st.integers(1, 100),
    density=st.floats(1e-5, 1, exclude_max=True),
    offset=st.sampled_from([0.0, 5.0]),
    seed=st.integers(0, 1 << 16),
)
def test_any_number_of_blocks_and_density_decides_exactly(num_q, num_kv, density, offset, seed):
    q, k = normal(1, 1, num_q, 16, seed=seed), normal(1, 1, num_kv, 16, seed=seed + 1)
    assert_decides_exactly(q, k + offset, kv_density=density, max_near=1)


def test_keys_whose_mean_is_far_larger_than_their_spread_are_told_apart():
    q = normal(1, 1, 20, 64)
    k = normal(1, 1, 90, 64, seed=1) * 0.02 + 10 * normal(64, seed=2)
    mask = assert_decides_exactly(q, k, kv_density=0.2)
    assert float(mask.double().mean()) == pytest.approx(0.2, abs=0.05)


def test_a_query_that_is_almost_orthogonal_to_what_the_keys_vary_in_is_decided_within_the_bound():
    # Its variance is a difference of large numbers in the quadratic form.
    q, k = normal(1, 1, 16, 32), normal(1, 1, 80, 32, seed=1)
    k[..., 0] *= 1000
    q[..., 0] *= 1e-6
    assert_decides_exactly(q, k, kv_density=0.2, max_near=1)


@pytest.mark.parametrize("num_kv", [1, 31, 32, 33, 64, 70])
def test_density_one_and_a_scale_of_zero_keep_every_block(num_kv):
    q, k = normal(1, 2, 3, 16), normal(1, 2, num_kv, 16)
    every = pack_bits(torch.ones(1, 2, 3, num_kv, dtype=torch.bool, device=DEVICE))
    for scale, density in ((1.0, 1), (0.0, 0.1)):
        assert torch.equal(triton_select.select_block_bits(q, k, scale=scale, kv_density=density), every)


def test_constant_rows_keep_all_and_their_neighbours_do_not():
    q, k = normal(1, 1, 70, 16), normal(1, 1, 45, 16, seed=1)
    k[..., 0] = 7
    rows = [0, 3, 63, 64, 69]
    q[:, :, rows] = 0
    q[:, :, rows[1:], 0] = 2.5  # 17.5 with every key; and a query of zeros
    mask = assert_decides_exactly(q, k, kv_density=0.1, max_near=0.1)
    is_constant = torch.zeros(70, dtype=torch.bool, device=DEVICE)
    is_constant[rows] = True
    assert torch.equal(mask.all(-1)[0, 0], is_constant)


def test_a_spread_of_sixteen_roundings_of_the_largest_product_is_still_constant():
    q = torch.zeros(1, 1, 2, 16, device=DEVICE)
    q[..., 0] = 1
    k = torch.zeros(1, 1, 40, 16, device=DEVICE)
    k[..., 0] = 1
    for roundings, num_kept in ((15, 40), (17, 1)):
        k[0, 0, 11, 0] = 1 + roundings * EPS
        mask = unpack_bits(triton_select.select_block_bits(q, k, scale=1.0, kv_density=0.01), 40)
        assert mask.sum(-1).tolist() == [[[num_kept] * 2]]
        assert mask[..., 11].all()


def test_equal_keys_whose_scores_cancel_keep_every_block():
    grid = BlockGrid((5, 6, 7), BLOCK)
    key = normal(64)
    q = tokens_of(grid, heads=1, head_dim=64)
    q -= (q @ key).unsqueeze(-1) * key / (key @ key)
    k = key.expand(1, 1, grid.num_tokens, 64).contiguous()
    selection = triton_select.select(q, k, BsaOptions(grid=grid.grid), scale=0.125)
    assert unpack_bits(selection.block_bits, grid.num_blocks).all()


def test_the_highest_block_is_kept_where_none_passes_and_the_lowest_index_wins_a_tie():
    q = torch.zeros(1, 1, 3, 16, device=DEVICE)
    q[..., 0] = 1
    k = torch.zeros(1, 1, 75, 16, device=DEVICE)
    k[0, 0, [37, 70], 0] = 1
    k[0, 0, 5, 0] = -30  # makes the deviation large
    mask = unpack_bits(triton_select.select_block_bits(q, k, scale=1.0, kv_density=0.001), 75)
    assert mask.nonzero()[:, 3].tolist() == [37] * 3
    mask = unpack_bits(triton_select.select_block_bits(q, k, scale=-1.0, kv_density=0.001), 75)
    assert mask.nonzero()[:, 3].tolist() == [5] * 3


@pytest.mark.parametrize("dtype", [FP16, FP32])
@pytest.mark.parametrize("query_block", [None, (4, 4, 8)])
def test_the_whole_selection_equals_the_stages_and_writes_every_number(query_block, dtype, monkeypatch):
    options = BsaOptions(grid=(5, 4, 7), query_block=query_block, kv_density=0.4)
    q_grid, kv_grid = stages.grids(options)
    q, k = (tokens_of(kv_grid, dtype, batch=2, heads=1, seed=seed) for seed in (0, 1))
    expected = stages.select(q_grid.permute(q), kv_grid.permute(k), options, scale=-0.25)
    poison_empty(monkeypatch)
    found = triton_select.select(q, k, options, scale=-0.25)
    for name in ("kept_slots", "num_kept", "fill"):
        assert torch.equal(getattr(found.queries, name), getattr(expected.queries, name).int())
    assert found.queries.kept_tokens.max() < q_grid.num_tokens
    assert found.queries.pooled_q.isfinite().all()
    _, near = exact_decisions(found.queries.pooled_q, found.pooled_k, scale=-0.25, kv_density=0.4)
    assert not near.any()
    assert torch.equal(unpack_bits(found.block_bits, kv_grid.num_blocks), expected.block_mask)


def test_two_runs_give_the_same_bits():
    q, k = normal(1, 2, 20, 32), normal(1, 2, 50, 32, seed=1)
    first, second = (triton_select.select_block_bits(q, k, scale=1.0, kv_density=0.2) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"query_rule": "block"}, "query_rule 'window', not 'block'"),
        ({"fill": "similar"}, "'nearest' and 'zero', not 'similar'"),
        ({"kv_rule": "topk"}, "kv_rule 'statistical', not 'topk'"),
        ({"block": (3, 4, 4)}, r"sides are powers of two, got block \(3, 4, 4\)"),
        ({"query_block": (8, 8, 8)}, r"16 to 128 tokens whose sides are powers of two, got query_block \(8, 8, 8\)"),
    ],
)
def test_what_is_unsupported_is_said(change, reason):
    options = BsaOptions(grid=(4, 4, 8), **change)
    x = normal(1, 1, 128, 16)
    with pytest.raises(ValueError, match=reason + ".*; use bsa_kernels.methods.bsa.stages.select"):
        triton_select.select(x, x, options, scale=1.0)


def test_wrong_inputs_are_named():
    grid = BlockGrid((4, 4, 8), BLOCK)
    with pytest.raises(ValueError, match=r"q: expected \[B, H, 128, D\] in natural order of .*got \[1, 1, 64, 16\]"):
        triton_pool.select_queries(normal(1, 1, 64, 16), grid, query_keep=0.5)
    with pytest.raises(ValueError, match=r"k: expected a contiguous last dimension.*call contiguous"):
        triton_pool.pool_keys(normal(1, 1, 16, 128).transpose(2, 3), grid)
    with pytest.raises(ValueError, match=r"q: expected float16, bfloat16 or float32 .*torch.float64"):
        triton_pool.select_queries(normal(1, 1, 128, 16, dtype=torch.float64), grid, query_keep=0.5)
    with pytest.raises(ValueError, match=r"fill: expected 'nearest' or 'zero', got 'flat'"):
        triton_pool.select_queries(normal(1, 1, 128, 16), grid, query_keep=0.5, fill="flat")
    with pytest.raises(ValueError, match=r"pooled_k: expected \[B, H, N, D\] in float32 .*got torch.float16"):
        triton_select.select_block_bits(normal(1, 1, 2, 16), normal(1, 1, 2, 16, dtype=FP16), scale=1.0, kv_density=0.5)


@pytest.mark.gpu
@pytest.mark.smoke
def test_bf16_at_a_real_size_equals_the_twin_but_for_roundings():
    options = BsaOptions(grid=(16, 28, 52), kv_density=0.1)
    grid = BlockGrid(options.grid, BLOCK)
    q, k = (tokens_of(grid, torch.bfloat16, heads=12, head_dim=128, seed=seed) for seed in (0, 1))
    found = triton_select.select(q, k, options, scale=128**-0.5)
    expected = stages.select(grid.permute(q), grid.permute(k), options)
    # Tensor cores sum in another order: of two similarities that differ by a rounding, either may rank first.
    assert float((found.queries.fill != expected.queries.fill).double().mean()) < 1e-4
    mask = unpack_bits(found.block_bits, grid.num_blocks)
    exact, near = exact_decisions(found.queries.pooled_q, found.pooled_k, scale=1.0, kv_density=0.1)
    assert ((mask == exact) | near).all()
    assert float(near.double().mean()) < 0.01
