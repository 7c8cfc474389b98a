import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bsa_bench.catalog import build_operator, load_engine
from bsa_bench.errors import UnsupportedError
from bsa_bench.measure.work import PASS_FACTOR, dense_work, executed_factor, plan_work
from bsa_bench.result import PASSES, BsaOptions, Case
from bsa_bench.workload import Workload
from bsa_kernels.block_sparse.groups import choose_groups_reference


def planned(grid, *, batch=1, heads=2, dtype="float32", **options):
    workload = Workload(grid=grid, heads=heads, head_dim=16, batch=batch, dtype=dtype)
    one = Case(
        suite="s", workload=workload, implementation="bsa@gather", passes="forward", options=BsaOptions(**options)
    )
    generator = torch.Generator().manual_seed(1)
    shape = (batch, heads, workload.num_tokens, 16)
    q, k, v = (torch.randn(shape, generator=generator) for _ in "qkv")
    return one, build_operator(one, scale=0.25).run(q, k, v)["plan"]


def work_of(one, plan, which="forward", engine="gather"):
    executed = load_engine(engine).executed_flop(plan, one.workload.head_dim)
    return plan_work(one.workload, plan, one.options, which, executed_forward=executed, backward_factor=3.5)


@given(
    grid=st.tuples(*[st.integers(1, 9)] * 3),
    density=st.floats(0.05, 1.0),
    keep=st.sampled_from([0.25, 0.5, 1.0]),
    query_block=st.sampled_from([None, (4, 4, 8), (2, 4, 4)]),
)
@settings(max_examples=25, deadline=None)
def test_pairs_and_densities_are_those_of_the_dense_mask(grid, density, keep, query_block):
    one, plan = planned(grid, kv_density=density, query_keep=keep, query_block=query_block)
    work = work_of(one, plan)
    mask = plan.dense_mask()
    pairs = int(mask.sum())
    assert work.flops_nominal == 4 * 16 * pairs
    assert work.density_realised == pytest.approx(pairs / mask.numel())
    assert work.query_keep_realised == pytest.approx(float(mask.any(-1).double().mean()))
    assert work.flops_executed >= work.flops_nominal
    assert work.flops_dense_equiv == one.workload.dense_flop
    assert work.num_dead_blocks == int((~plan.block_mask.any(2)).sum())
    assert work.list_length_min <= work.list_length_mean <= work.list_length_max
    assert work.row_imbalance >= 1
    assert work.head_imbalance >= 1


@pytest.mark.parametrize("size", [1, 2, 4])
def test_union_efficiency_is_what_members_asked_for_over_what_their_groups_walk(size):
    one, plan = planned((8, 9, 12), kv_density=0.3)
    shared = choose_groups_reference(plan.block_bits, plan.q_grid, size)
    work = plan_work(
        one.workload, plan, one.options, "forward", executed_forward=1.0, backward_factor=3.5, list_members=shared
    )
    mask = plan.block_mask[0].bool()
    asked = walked = 0
    lengths = []
    for head, members in zip(mask, shared[0].tolist(), strict=True):
        for group in members:
            rows = head[[m for m in group if m >= 0]]
            lengths.append(int(rows.any(0).sum()))
            asked, walked = asked + int(rows.sum()), walked + len(rows) * lengths[-1]
    assert work.union_efficiency == pytest.approx(asked / walked)
    assert (work.union_efficiency == 1) == (size == 1)
    assert (work.list_mean, work.list_max) == (pytest.approx(sum(lengths) / len(lengths)), max(lengths))
    if size == 1:
        assert (work.list_mean, work.list_max) == (pytest.approx(work.list_length_mean), work.list_length_max)


@pytest.mark.parametrize(("form", "size"), [("", 2), (":quad", 4), (":m32", 1)])
def test_our_engine_says_how_many_query_blocks_share_a_list(form, size):
    _, plan = planned((8, 8, 8), kv_density=0.3)
    engine = load_engine(f"triton{form}")
    members = engine.list_members(plan, 64, torch.float16)
    assert torch.equal(members, choose_groups_reference(plan.block_bits, plan.q_grid, size))
    assert torch.equal(engine.work_members(plan, 64, torch.float16), members)
    executed = engine.executed_flop(plan, 64)
    assert executed > 4 * 64 * float(plan.num_kept.sum()) * 64 * 8 * 0.1
    assert not hasattr(load_engine("gather"), "list_members")


@pytest.mark.parametrize(("keep", "size"), [(0.5, 4), (1.0, 2)])
def test_halves_of_a_specialised_program_multiply_the_unions_of_their_own_blocks(keep, size):
    one, plan = planned((8, 9, 12), kv_density=0.3, query_keep=keep)
    engine = load_engine("gluon")
    lists, halves = (f(plan, 64, torch.float16) for f in (engine.list_members, engine.work_members))
    assert lists.shape[-1] == size
    assert torch.equal(halves, lists.view(*lists.shape[:2], -1, size // 2))
    unions = [
        mask[[m for m in half if m >= 0]].any(0).sum()
        for mask, of_head in zip(plan.block_mask[0], halves[0].tolist(), strict=True)
        for half in of_head
    ]
    executed = engine.executed_flop(plan, 64)
    assert executed == 4 * 64 * 64 * 64 * int(sum(unions))
    whole = plan_work(
        one.workload, plan, one.options, "forward", executed_forward=executed, backward_factor=3.5, list_members=lists
    )
    of_halves = plan_work(
        *(one.workload, plan, one.options, "forward"),
        executed_forward=executed,
        backward_factor=3.5,
        list_members=lists,
        work_members=halves,
    )
    assert of_halves.union_efficiency > whole.union_efficiency
    assert of_halves.list_mean == whole.list_mean


def test_blocks_that_the_specialised_forward_cannot_take_are_unsupported():
    _, plan = planned((8, 9, 12), kv_density=0.3, block=(2, 4, 4))
    with pytest.raises(UnsupportedError, match=r"expected KV blocks of 64 tokens .*, got block \(2, 4, 4\); use"):
        load_engine("gluon").executed_flop(plan, 64)


def test_a_plan_of_everything_is_dense_work():
    one, plan = planned((4, 8, 8), kv_density=1.0, query_keep=1.0)
    work = work_of(one, plan)
    assert work.density_realised == work.kv_density_realised == work.query_keep_realised == 1
    assert work.flops_nominal == work.flops_executed == work.flops_dense_equiv
    assert (work.row_imbalance, work.head_imbalance, work.num_dead_blocks) == (1, 1, 0)
    assert work.sparsity_nominal == 0


def test_where_the_block_divides_the_grid_the_density_is_kept_queries_times_kept_blocks():
    one, plan = planned((8, 8, 8), kv_density=0.4)
    work = work_of(one, plan)
    assert work.density_realised == pytest.approx(work.kv_density_realised * work.query_keep_realised)
    assert work.query_keep_realised == 0.5
    assert work.sparsity_nominal == pytest.approx(0.8)
    assert work.plan_digest == plan.digest()


def test_padding_is_executed_and_not_nominal():
    one, plan = planned((5, 7, 9), kv_density=1.0, query_keep=1.0)
    work = work_of(one, plan)
    assert work.flops_nominal == work.flops_dense_equiv
    assert work.flops_executed == pytest.approx(work.flops_nominal * (8 * 8 * 12 / 315) ** 2)


def test_passes_scale_nominal_work_by_the_products_and_executed_work_by_the_engine():
    one, plan = planned((4, 8, 8), kv_density=0.4)
    works = {which: work_of(one, plan, which) for which in PASSES}
    forward = works["forward"]
    for which, factor in (("backward", 2.5), ("forward+backward", 3.5)):
        assert works[which].flops_nominal == pytest.approx(factor * forward.flops_nominal)
        assert works[which].flops_dense_equiv == pytest.approx(factor * forward.flops_dense_equiv)
    assert works["backward"].flops_executed == pytest.approx(3.5 * forward.flops_executed)
    assert works["forward+backward"].flops_executed == pytest.approx(4.5 * forward.flops_executed)
    assert PASS_FACTOR["forward+backward"] == PASS_FACTOR["forward"] + PASS_FACTOR["backward"]
    assert executed_factor("forward", 99.0) == 1


def test_a_backward_selects_nothing_and_a_forward_pays_for_similarity_pooling_and_scores():
    one, plan = planned((4, 8, 8), kv_density=0.4)
    rows = 2 * 16 * 256  # heads, head size, tokens
    expected = 6 * rows + rows * 1.5 + 2 * 4 * 4 * (2 * 16 + 5)
    assert work_of(one, plan).flops_selection == work_of(one, plan, "forward+backward").flops_selection == expected
    assert work_of(one, plan, "backward").flops_selection == 0
    every, plan = planned((4, 8, 8), kv_density=0.4, query_keep=1.0)
    assert work_of(every, plan).flops_selection == rows * 2 + 2 * 4 * 4 * (2 * 16 + 5)


@pytest.mark.parametrize("which", PASSES)
def test_dense_work_is_every_pair(which):
    workload = Workload(grid=(5, 7, 9), heads=3, head_dim=32, batch=2)
    work = dense_work(workload, which, backward_factor=2.0)
    assert work.density_realised == 1
    assert work.ideal_speedup == 1
    assert work.flops_nominal == work.flops_dense_equiv == 4 * 2 * 3 * 32 * 315**2 * PASS_FACTOR[which]
    assert work.flops_executed == workload.dense_flop * {"forward": 1, "backward": 2, "forward+backward": 3}[which]
    assert work.flops_selection == 0
    assert work.plan_digest is None
