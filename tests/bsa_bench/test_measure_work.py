import re
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bsa_bench.catalog import build_operator, load_engine, load_method, make_case, options_of
from bsa_bench.contract import PASS_FACTOR
from bsa_bench.measure import work as measure_work
from bsa_bench.measure.work import list_statistics
from bsa_bench.methods.bsa import BsaOptions
from bsa_bench.result import PASSES, Work
from bsa_bench.workload import Workload
from bsa_kernels.block_sparse.groups import choose_groups_reference

NOTHING = {"flops_nominal": 0, "flops_dense_equiv": 1, "flops_selection": 0}


def planned(grid, *, batch=1, heads=2, dtype="float32", **options):
    workload = Workload(grid=grid, heads=heads, head_dim=16, batch=batch, dtype=dtype)
    one = make_case(
        suite="s", workload=workload, implementation="bsa@gather", passes="forward", options=BsaOptions(**options)
    )
    generator = torch.Generator().manual_seed(1)
    shape = (batch, heads, workload.num_tokens, 16)
    tensors = {name: torch.randn(shape, generator=generator) for name in "qkv"}
    return one, build_operator(one, scale=0.25).run(tensors)


def work_of(one, state, which="forward", engine="gather"):
    of_pass = one.model_copy(update={"passes": which})
    return measure_work.work_of(of_pass, load_method(one.method), options_of(one), load_engine(engine), state)


@pytest.mark.slow
@given(
    grid=st.tuples(*[st.integers(1, 9)] * 3),
    density=st.floats(0.05, 1.0),
    keep=st.sampled_from([0.25, 0.5, 1.0]),
    query_block=st.sampled_from([None, (4, 4, 8), (2, 4, 4)]),
)
@settings(max_examples=25, deadline=None)
def test_pairs_and_densities_are_those_of_the_dense_mask(grid, density, keep, query_block):
    one, state = planned(grid, kv_density=density, query_keep=keep, query_block=query_block)
    work, plan = work_of(one, state), state["plan"]
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
    _, state = planned((8, 9, 12), kv_density=0.3)
    plan = state["plan"]
    shared = choose_groups_reference(plan.block_bits, plan.q_grid, size)
    work = Work(**NOTHING, **list_statistics(plan, SimpleNamespace(list_members=lambda *_: shared), state["q"]))
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
    _, state = planned((8, 8, 8), kv_density=0.3)
    plan, like = state["plan"], state["q"].half()
    engine = load_engine(f"triton{form}")
    members = engine.list_members(plan, like)
    assert torch.equal(members, choose_groups_reference(plan.block_bits, plan.q_grid, size))
    assert torch.equal(engine.work_members(plan, like), members)
    assert not hasattr(load_engine("gather"), "list_members")


@pytest.mark.parametrize(("keep", "size"), [(0.5, 4), (1.0, 2)])
def test_halves_of_a_specialised_program_multiply_the_unions_of_their_own_blocks(keep, size):
    _, state = planned((8, 9, 12), kv_density=0.3, query_keep=keep)
    plan, engine = state["plan"], load_engine("gluon")
    like = torch.empty(1, 2, 864, 64, dtype=torch.float16)
    lists, halves = engine.list_members(plan, like), engine.work_members(plan, like)
    assert lists.shape[-1] == size
    assert torch.equal(halves, lists.view(*lists.shape[:2], -1, size // 2))
    of_halves = Work(**NOTHING, **list_statistics(plan, engine, like))
    whole = Work(**NOTHING, **list_statistics(plan, SimpleNamespace(list_members=lambda *_: lists), like))
    assert of_halves.union_efficiency > whole.union_efficiency
    assert of_halves.list_mean == whole.list_mean


def test_blocks_that_the_specialised_forward_cannot_take_are_unsupported():
    _, state = planned((8, 9, 12), kv_density=0.3, block=(2, 4, 4))
    reason = load_engine("gluon").unsupported_plan(state["plan"])
    assert re.search(r"expected KV blocks of 64 tokens .*, got block \(2, 4, 4\); use", reason)


def test_a_plan_of_everything_is_dense_work():
    one, state = planned((4, 8, 8), kv_density=1.0, query_keep=1.0)
    work = work_of(one, state)
    assert work.density_realised == work.kv_density_realised == work.query_keep_realised == 1
    assert work.flops_nominal == work.flops_executed == work.flops_dense_equiv
    assert (work.row_imbalance, work.head_imbalance, work.num_dead_blocks) == (1, 1, 0)
    assert work.sparsity_nominal == 0


def test_where_the_block_divides_the_grid_the_density_is_kept_queries_times_kept_blocks():
    one, state = planned((8, 8, 8), kv_density=0.4)
    work = work_of(one, state)
    assert work.density_realised == pytest.approx(work.kv_density_realised * work.query_keep_realised)
    assert work.query_keep_realised == 0.5
    assert work.sparsity_nominal == pytest.approx(0.8)
    assert work.plan_digest == state["plan"].digest()


def test_padding_is_executed_and_not_nominal():
    one, state = planned((5, 7, 9), kv_density=1.0, query_keep=1.0)
    work = work_of(one, state)
    assert work.flops_nominal == work.flops_dense_equiv
    assert work.flops_executed == pytest.approx(work.flops_nominal * (8 * 8 * 12 / 315) ** 2)


def test_passes_scale_nominal_work_by_the_products_and_executed_work_by_the_engine():
    one, state = planned((4, 8, 8), kv_density=0.4)
    works = {which: work_of(one, state, which) for which in PASSES}
    forward = works["forward"]
    for which, factor in (("backward", 2.5), ("forward+backward", 3.5)):
        assert works[which].flops_nominal == pytest.approx(factor * forward.flops_nominal)
        assert works[which].flops_dense_equiv == pytest.approx(factor * forward.flops_dense_equiv)
    assert works["backward"].flops_executed == pytest.approx(3.5 * forward.flops_executed)
    assert works["forward+backward"].flops_executed == pytest.approx(4.5 * forward.flops_executed)


def test_a_backward_selects_nothing_and_a_forward_pays_for_similarity_pooling_and_scores():
    one, state = planned((4, 8, 8), kv_density=0.4)
    rows = 2 * 16 * 256  # heads, head size, tokens
    expected = 6 * rows + rows * 1.5 + 2 * 4 * 4 * (2 * 16 + 5)
    assert work_of(one, state).flops_selection == work_of(one, state, "forward+backward").flops_selection == expected
    assert work_of(one, state, "backward").flops_selection == 0
    every, state = planned((4, 8, 8), kv_density=0.4, query_keep=1.0)
    assert work_of(every, state).flops_selection == rows * 2 + 2 * 4 * 4 * (2 * 16 + 5)


@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("method", ["full", "full-causal"])
def test_dense_work_is_every_pair(method, which):
    workload = Workload(grid=(5, 7, 9), heads=3, head_dim=32, batch=2)
    one = make_case(suite="s", workload=workload, implementation=f"{method}@sdpa-flash", passes=which)
    work = work_of(one, {"q": torch.empty(2, 3, 315, 32)}, which, engine="sdpa-flash")
    pairs = 2 * 3 * (315**2 if method == "full" else 315 * 316 // 2)
    assert work.density_realised == 1
    assert work.ideal_speedup == 1
    assert work.flops_nominal == work.flops_dense_equiv == work.flops_executed == 4 * 32 * pairs * PASS_FACTOR[which]
    assert work.flops_selection == 0
    assert work.plan_digest is None


@pytest.mark.parametrize("name", ["sdpa-flash", "sdpa-efficient", "sdpa-cudnn", "flash-attn", "xformers"])
def test_a_dense_engine_executes_what_torch_counts_for_such_a_kernel(name):
    """torch.utils.flop_counter has formulas of its own for these kernels; flash-attn and xFormers run the same."""
    from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

    shape = (2, 3, 200, 32)
    state = {"q": torch.empty(shape)}
    engine = load_engine(name)
    forward, backward = (engine.executed_flop("dense", state, which) for which in PASSES[:2])
    assert forward == sdpa_flop_count(shape, shape, shape)
    assert backward == sdpa_backward_flop_count(shape, shape, shape, shape)
    assert engine.executed_flop("dense", state, "forward+backward") == forward + backward


@pytest.mark.parametrize("contract", ["dense", "causal-dense"])
def test_the_math_backend_executes_what_torch_counts(contract):
    from torch.utils.flop_counter import FlopCounterMode

    leaves = [torch.randn(1, 2, 48, 16, requires_grad=True) for _ in "qkv"]
    engine = load_engine("sdpa-math")
    with FlopCounterMode(display=False) as counter:
        out = engine.dense(*leaves, scale=0.25, causal=contract == "causal-dense")
    assert engine.executed_flop(contract, {"q": leaves[0]}, "forward") == counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert engine.executed_flop(contract, {"q": leaves[0]}, "backward") == counter.get_total_flops()


@pytest.mark.parametrize("which", PASSES)
def test_the_chunked_delta_rule_executes_its_matmuls_and_solves(which):
    from bsa_kernels.methods.gated_delta_rule import chunked_backward_flop, chunked_forward_flop

    sizes = {"batch": 1, "heads": 2, "tokens": 100, "key_dim": 16, "value_dim": 16}
    forward, backward = chunked_forward_flop(**sizes).total, chunked_backward_flop(**sizes).total
    expected = {"forward": forward, "backward": backward, "forward+backward": forward + backward}[which]
    x = torch.empty(1, 2, 100, 16)
    assert load_engine("chunked").executed_flop("delta-rule", {"q": x, "v": x}, which) == expected


def test_an_engine_that_does_not_know_its_work_leaves_it_out():
    workload = Workload(grid=(1, 1, 64), heads=1, head_dim=16)
    one = make_case(suite="s", workload=workload, implementation="gated-delta-rule@fla", passes="forward")
    x = torch.empty(1, 1, 64, 16)
    work = work_of(one, {"q": x, "v": x}, engine="fla")
    assert work.flops_executed is None
    assert work.flops_nominal > 0
    assert work.density_realised is None
    assert work.ideal_speedup is None
