"""Every form of the attention kernels against the reference: in Triton's interpreter on a CPU, compiled on a GPU."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_helpers import (
    DEVICE,
    assert_inside,
    assert_tiles_close,
    error_budgets,
    hand_plan,
    make_tiles,
    poison_empty,
    prepare_tables,
    qkv,
    random_mask,
    run_tiles,
)
from torch.nn import functional

from bsa_kernels import BlockGrid, BlockPlan
from bsa_kernels.block_sparse import triton_attend
from bsa_kernels.block_sparse.ops import attend as attend_tables
from bsa_kernels.block_sparse.tile_table import padded
from bsa_kernels.block_sparse.triton_gradients import launch_pack_rows

FP16, FP32, FP64 = torch.float16, torch.float32, torch.float64
ONE = (4, 4, 4)
# Share of the rows of a block that are kept, and how tiles take them.
FORMS = {
    "plain": (1, {"rows": 64}),
    "plain 32": (0.5, {"rows": 32}),
    "transposed": (0.5, {"rows": 32, "transposed": True}),
    "pair": (0.5, {"rows": 32, "group": 2}),
    "quad": (0.5, {"rows": 32, "group": 4}),
    "pair of whole blocks": (1, {"rows": 64, "group": 2}),
}
# The two forms of the backward, each behind another forward.
TWO = pytest.mark.parametrize(("form", "backward"), [("pair", "split"), ("transposed", "fused")])
TABLES = ("kept_slots", "num_kept", "fill", "block_bits")


def tiles_of(form, backward="split", **options):
    """The fused backward takes two blocks a step."""
    return make_tiles(**FORMS[form][1], **{"backward": backward, "pack": 2 if backward == "fused" else 1, **options})


def plan_on(grid, block, mask=None, *, density=0.4, keep=0.5, heads=2, **more):
    made = BlockGrid(grid, block)
    return hand_plan(made, made, random_mask(made, made, density, heads=heads) if mask is None else mask, keep=keep)


def hard_plan(keep, heads=1):
    """Six blocks, three along t, two of them without padding; lists that are empty, of one block, and full of padding.

    KV block 2 is chosen by nobody, block 3 by all but query blocks 1 and 4, which see nothing, and 5, which sees
    itself.
    """
    grid = BlockGrid((9, 7, 4), ONE)
    mask = random_mask(grid, grid, 0.5, heads=heads)
    mask[..., 2] = False
    mask[..., 3] = True
    mask[:, :, [1, 4, 5]] = False
    mask[..., 5, 5] = True
    return hand_plan(grid, grid, mask, keep=keep)


def by_block(plan, result):
    """A result as {name: [B, H, N, M, D]}, padding zero."""
    return {name: plan.q_grid.permute(x).unflatten(2, (plan.q_grid.num_blocks, -1)) for name, x in result.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("keys", "dtype"), [(32, FP32), (64, FP16)])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_agrees_on_lists_of_all_kinds(form, keys, dtype, monkeypatch):
    plan = hard_plan(FORMS[form][0])
    inputs = qkv(plan.q_grid.grid, 16, dtype, heads=1)
    poison_empty(monkeypatch)
    (result,) = assert_tiles_close(inputs, plan, tiles_of(form, keys=keys))
    blocks = by_block(plan, result)
    for name in ("dk", "dv"):
        assert (blocks[name][:, :, 2] == 0).all()
        assert (blocks[name][:, :, 3, 0] != 0).all()
    for name in ("o", "dq"):
        assert (blocks[name][:, :, [1, 4]] == 0).all()
        assert (blocks[name][:, :, 5] != 0).any()


@pytest.mark.slow
@pytest.mark.parametrize("backward", ["split", "fused"])
@pytest.mark.parametrize(
    ("keep", "rows", "pack", "keys", "dtype"),
    [
        (1, 64, 1, 32, FP32),
        (1, 64, 2, 64, FP16),
        (0.5, 32, 1, 64, FP16),
        (0.5, 32, 2, 32, FP32),
        (1, 32, 1, 64, FP32),  # two tiles of rows a block
        (0.4, 16, 1, 32, FP16),  # the second of them not full
        (0.4, 32, 2, 64, FP32),  # nor the only one
    ],
)
def test_every_form_of_the_backward_agrees(keep, rows, pack, keys, dtype, backward, monkeypatch):
    plan = hard_plan(keep)
    inputs = qkv(plan.q_grid.grid, 16, dtype, heads=1)
    poison_empty(monkeypatch)
    assert_tiles_close(inputs, plan, make_tiles(rows, keys=keys, pack=pack, backward=backward))


@pytest.mark.slow
@TWO
@pytest.mark.parametrize("head_dim", [64, 80, 128])
def test_every_head_size_agrees(head_dim, form, backward):
    plan = plan_on((4, 4, 6), ONE, density=0.7, heads=1)
    assert_tiles_close(qkv((4, 4, 6), head_dim, FP16, heads=1), plan, tiles_of(form, backward))


@TWO
@pytest.mark.parametrize("dtype", [FP16, FP32])
@pytest.mark.parametrize("scale", [1, 4, 16])
def test_large_inputs_agree(scale, dtype, form, backward):
    plan = plan_on((5, 4, 4), ONE, density=0.8, heads=1)
    inputs = qkv((5, 4, 4), 64, dtype, scale=scale, seed=scale, heads=1)
    assert_tiles_close(inputs, plan, tiles_of(form, backward))


@pytest.mark.slow
@TWO
@pytest.mark.parametrize("scale", [-0.25, 0.0, 1.0])
def test_the_softmax_scale_is_the_callers(scale, form, backward):
    plan = plan_on((4, 4, 6), ONE, density=0.5, heads=1)
    (result,) = assert_tiles_close(qkv((4, 4, 6), 16, heads=1), plan, tiles_of(form, backward), scale=scale)
    assert (result["dq"] == 0).all() == (scale == 0)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["pair", "quad", "pair of whole blocks"])
def test_disjoint_equal_and_nested_lists_of_a_group_agree(form):
    grid = BlockGrid((8, 4, 12), ONE)  # 2 x 1 x 3 blocks: pairs (0, 3), (1, 4), (2, 5)
    mask = torch.zeros(1, 1, 6, 6, dtype=torch.bool, device=DEVICE)
    for row, listed in enumerate([[0, 2], [1, 3, 5], [4], [1, 3, 4], [1, 3, 5], [0, 4, 5]]):
        mask[..., row, listed] = True
    plan = hand_plan(grid, grid, mask, keep=FORMS[form][0])
    assert_tiles_close(qkv(grid.grid, 16, heads=1), plan, tiles_of(form))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["plain", "quad", "transposed"])
def test_equal_scores_give_the_mean_of_the_listed_values(form):
    plan = hard_plan(FORMS[form][0])
    inputs = qkv(plan.q_grid.grid, 16, heads=1)
    flat = replace(inputs, k=torch.ones_like(inputs.k, requires_grad=True))
    (result,) = assert_tiles_close(flat, plan, tiles_of(form))
    real = plan.kv_grid.real_counts(DEVICE)
    sums = plan.kv_grid.permute(flat.v.detach()).unflatten(2, (plan.kv_grid.num_blocks, -1)).sum(3)
    listed = plan.block_mask.float()
    mean = (listed @ sums) / (listed @ real.float()).clamp(min=1).unsqueeze(-1)  # [B, H, Nq, D]
    block = plan.q_grid.slot_of_token(DEVICE) // plan.q_grid.block_size
    torch.testing.assert_close(result["o"], mean[:, :, block], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("form", "backward"), [("plain", "fused"), ("pair of whole blocks", "split")])
@pytest.mark.parametrize("grid", [(8, 4, 4), (5, 6, 4)])
def test_all_rows_and_all_blocks_equal_dense_attention(grid, form, backward):
    made = BlockGrid(grid, ONE)
    mask = torch.ones(1, 1, made.num_blocks, made.num_blocks, dtype=torch.bool, device=DEVICE)
    plan = BlockPlan.from_mask(made, made, mask)
    inputs = qkv(grid, 16, FP16, heads=1)
    assert prepare_tables(plan, head_dim=16, dtype=FP16).layout.fills == (not made.is_even)
    exact = inputs.to(FP64)
    out = functional.scaled_dot_product_attention(exact.q, exact.k, exact.v)
    gradients = torch.autograd.grad(out, (exact.q, exact.k, exact.v), exact.do)
    dense = dict(zip(("o", "dq", "dk", "dv"), (out, *gradients), strict=True))
    assert_inside(error_budgets(inputs, plan, dense), run_tiles(inputs, plan, tiles_of(form, backward)), dense, form)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("grid", "block", "keep", "rows", "keys", "group", "backward", "has_full"),
    [
        ((4, 3, 6), (3, 3, 3), 0.5, 16, 32, 1, "fused", False),  # keys do not divide a block of 27
        ((4, 3, 6), (3, 3, 3), 0.5, 16, 16, 2, "split", False),
        ((8, 8, 9), (8, 8, 8), 0.25, 64, 64, 1, "split", True),  # 512 slots: tiles of rows, of keys, of fills
        ((4, 6, 16), (2, 3, 16), 0.25, 32, 32, 1, "fused", False),  # tiles of a block of 96 are no even steps apart
        ((4, 4, 16), (4, 2, 8), 0.5, 32, 16, 2, "fused", True),  # a tile is a plane of a block
        ((3, 4, 4), ONE, 0.5, 32, 64, 2, "split", False),  # the grid is smaller than a block
    ],
)
def test_blocks_of_other_shapes_agree(grid, block, keep, rows, keys, group, backward, has_full):
    plan = plan_on(grid, block, keep=keep, density=0.6, heads=1)
    tiles = make_tiles(rows, keys=keys, group=group, backward=backward)
    made = prepare_tables(plan, head_dim=16, dtype=FP16, tiles=tiles)
    assert made.layout.has_full == has_full
    assert bool(made.num_full.any()) == has_full
    assert_tiles_close(qkv(grid, 16, FP16, heads=1), plan, tiles)


@pytest.mark.slow
@pytest.mark.parametrize("group", [1, 2, 4])
def test_query_blocks_may_be_larger_than_kv_blocks(group):
    q_grid, kv_grid = BlockGrid((5, 4, 9), (4, 4, 8)), BlockGrid((5, 4, 9), ONE)
    plan = hand_plan(q_grid, kv_grid, random_mask(q_grid, kv_grid, 0.5, heads=1), keep=0.25)
    tiles = make_tiles(32, group=group, backward="fused" if group == 1 else "split")
    assert_tiles_close(qkv((5, 4, 9), 16, heads=1), plan, tiles)


@pytest.mark.slow
@TWO
def test_zero_fill_gives_zeros(form, backward, monkeypatch):
    grid = BlockGrid((4, 6, 5), ONE)
    plan = hand_plan(grid, grid, random_mask(grid, grid, 0.5), zero_fill=True)
    poison_empty(monkeypatch)
    (result,) = assert_tiles_close(qkv(grid.grid, 16), plan, tiles_of(form, backward))
    is_zero = plan.source_of_token() < 0
    assert (result["o"][is_zero] == 0).all()
    assert (result["o"][~is_zero] != 0).any(-1).all()


@pytest.mark.slow
@TWO
@pytest.mark.parametrize("grid", [(5, 4, 6), (8, 4, 4)])
def test_natural_and_tile_major_order_give_the_same_bits(grid, form, backward, monkeypatch):
    plan = plan_on(grid, ONE)
    inputs = qkv(grid, 16, FP16)
    poison_empty(monkeypatch)
    natural = run_tiles(inputs, plan, tiles_of(form, backward))
    for name, result in run_tiles(inputs, plan, tiles_of(form, backward), is_tiled=True).items():
        assert torch.equal(result, natural[name]), name


@pytest.mark.slow
@pytest.mark.parametrize(("form", "backward"), [("plain", "fused"), ("pair", "split")])
def test_tile_major_padding_is_not_read_and_gets_zeros(form, backward, monkeypatch):
    plan = plan_on((5, 4, 6), ONE, keep=FORMS[form][0], heads=1)
    grid, tiles = plan.q_grid, tiles_of(form, backward)
    inputs = qkv(grid.grid, 16, heads=1)
    padding = grid.token_of_slot(DEVICE).flatten() < 0
    poison_empty(monkeypatch)
    expected = run_tiles(inputs, plan, tiles)
    leaves = [grid.permute(x.detach()) for x in vars(inputs).values()]
    for x in leaves:
        x[:, :, padding] = torch.nan
    *qkv_tiles, do = (x.requires_grad_() for x in leaves)
    tables = prepare_tables(plan, head_dim=16, dtype=FP32, is_tiled=True, tiles=tiles)
    out = attend_tables(*qkv_tiles, tables, scale=0.25)
    for name, result in zip(expected, (out, *torch.autograd.grad(out, qkv_tiles, do)), strict=True):
        assert (result[:, :, padding] == 0).all(), name
        assert torch.equal(grid.restore(result), expected[name]), name


@pytest.mark.slow
@TWO
def test_inputs_and_gradients_may_have_any_strides(form, backward):
    plan = plan_on((5, 4, 6), ONE)
    inputs, tiles = qkv((5, 4, 6), 16, FP16), tiles_of(form, backward)
    q, k, v, do = (x.detach() for x in vars(inputs).values())
    padded_v = functional.pad(v, (8, 24)).transpose(0, 1).contiguous().transpose(0, 1)[..., 8:24]
    strided = replace(
        inputs,
        q=q.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_(),  # a view of [B, L, H, D]
        k=k.transpose(2, 3).contiguous().transpose(2, 3).requires_grad_(),
        v=padded_v.requires_grad_(),
        do=do.transpose(1, 2).contiguous().transpose(1, 2),
    )
    assert len({x.stride() for x in (strided.q, strided.k, strided.v)}) == 3
    expected = run_tiles(inputs, plan, tiles)
    for name, result in run_tiles(strided, plan, tiles).items():
        assert torch.equal(result, expected[name]), name


@pytest.mark.slow
def test_a_gradient_without_memory_of_its_own_is_taken():
    plan = plan_on((4, 4, 5), ONE)
    inputs = qkv((4, 4, 5), 16)
    ones = replace(inputs, do=torch.ones((), device=DEVICE).expand_as(inputs.q))
    assert ones.do.stride() == (0, 0, 0, 0)
    expected = run_tiles(replace(inputs, do=torch.ones_like(inputs.q)), plan, tiles_of("pair"))
    for name, result in run_tiles(ones, plan, tiles_of("pair")).items():
        assert torch.equal(result, expected[name]), name


@pytest.mark.slow
@TWO
def test_batches_and_heads_may_be_put_in_any_order(form, backward):
    grid = BlockGrid((5, 4, 4), ONE)
    plan = hand_plan(grid, grid, random_mask(grid, grid, 0.6, batch=2, heads=3))
    inputs = qkv(grid.grid, 16, FP16, batch=2, heads=3)
    order = torch.tensor([4, 2, 0, 5, 1, 3], device=DEVICE)

    def moved(x):
        return x.detach().flatten(0, 1)[order].unflatten(0, (3, 2))

    other = replace(inputs, **{name: moved(x).requires_grad_(x.requires_grad) for name, x in vars(inputs).items()})
    other_plan = replace(plan, **{name: moved(getattr(plan, name)) for name in TABLES})
    (expected,) = assert_tiles_close(inputs, plan, tiles_of(form, backward))
    for name, result in run_tiles(other, other_plan, tiles_of(form, backward)).items():
        assert torch.equal(result, moved(expected[name])), name


@pytest.mark.slow
def test_two_runs_of_the_split_form_give_the_same_bits():
    plan = plan_on((5, 4, 6), ONE)
    first, second = (run_tiles(qkv((5, 4, 6), 16, FP16), plan, tiles_of("pair", pack=2)) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["plain", "pair"])
def test_offsets_in_64_bits_give_the_same(form, monkeypatch):
    plan = plan_on((5, 4, 8), ONE, keep=FORMS[form][0], heads=1)
    inputs = qkv((5, 4, 8), 16, heads=1)
    expected = run_tiles(inputs, plan, tiles_of(form, keys=32))
    tables = prepare_tables(plan, head_dim=16, dtype=FP32, tiles=tiles_of(form, keys=32))
    assert triton_attend.kv_offsets(tables, inputs.k, inputs.v).dtype == torch.int32
    monkeypatch.setattr(torch, "iinfo", lambda _: SimpleNamespace(max=0))
    assert triton_attend.kv_offsets(tables, inputs.k, inputs.v).dtype == torch.int64
    for name, result in run_tiles(inputs, plan, tiles_of(form, keys=32)).items():
        assert torch.equal(result, expected[name]), name


@pytest.mark.parametrize(("wide", "other"), [("k", "v"), ("v", "k")])
def test_the_wider_of_k_and_v_decides_how_wide_offsets_are(wide, other):
    plan = plan_on((5, 4, 8), ONE)
    tables = prepare_tables(plan, head_dim=16, dtype=FP32)
    step = torch.iinfo(torch.int32).max // tables.layout.furthest_offset
    strides = {wide: step, other: 16}
    meta = {name: torch.empty_strided((1, 1, 2, 16), (0, 0, s, 1), device="meta") for name, s in strides.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(tables.layout), "kv_tables", lambda layout, _: SimpleNamespace(offsets=torch.zeros(1).int()))
        assert triton_attend.kv_offsets(tables, meta["k"], meta["v"]).dtype == torch.int32
        meta[wide] = torch.empty_strided((1, 1, 2, 16), (0, 0, step + 1, 1), device="meta")
        assert triton_attend.kv_offsets(tables, meta["k"], meta["v"]).dtype == torch.int64


@pytest.mark.parametrize("keep", [0.1, 0.5, 1])
def test_the_sum_of_a_block_s_gradients_is_preserved_by_its_kept_rows(keep, monkeypatch):
    plan = hard_plan(keep, heads=2)
    inputs = qkv(plan.q_grid.grid, 16)
    tables = prepare_tables(plan, head_dim=16, dtype=FP32)
    poison_empty(monkeypatch)
    rows = launch_pack_rows(inputs.q, inputs.v, inputs.do, tables)
    per_block = plan.q_grid.permute(inputs.do).unflatten(2, (*plan.shape[2:3], -1)).sum(3)
    torch.testing.assert_close(rows.do.sum(3), per_block, rtol=1e-5, atol=1e-5)
    is_row = plan.kept_slots >= 0
    kept = {name: plan.gather_kept(plan.q_grid.permute(x.detach())) for name, x in (("q", inputs.q), ("o", inputs.v))}
    assert torch.equal(rows.q[is_row], kept["q"][is_row])
    torch.testing.assert_close(rows.delta[is_row], (kept["o"] * rows.do).sum(-1)[is_row], rtol=1e-5, atol=1e-5)
    for x in (rows.q, rows.do, rows.delta):
        assert (x[~is_row] == 0).all()


@pytest.mark.slow
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.tuples(*[st.integers(1, 6)] * 3),
    st.sampled_from([ONE, (2, 4, 4), (3, 3, 3)]),
    st.sampled_from([0, 0.3, 0.7, 1]),
    st.sampled_from([0.3, 0.5, 1]),
    st.tuples(st.sampled_from([1, 2, 4]), st.booleans(), st.sampled_from([1, 2]), st.sampled_from(["split", "fused"])),
    st.integers(0, 1 << 16),
)
def test_any_grid_and_any_lists_agree(grid, block, density, keep, form, seed):
    made = BlockGrid(grid, block)
    draw = torch.rand(1, 1, made.num_blocks, made.num_blocks, generator=torch.Generator().manual_seed(seed))
    plan = hand_plan(made, made, (draw < density).to(DEVICE), keep=keep, seed=seed)
    group, transposed, pack, backward = form
    more = {"group": group, "transposed": transposed, "pack": pack, "backward": backward}
    tiles = make_tiles(padded(plan.shape[3]), keys=32, **more)
    assert_tiles_close(qkv(grid, 16, heads=1, seed=seed), plan, tiles)
