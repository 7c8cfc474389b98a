"""Every method on the engines that run here: verified, staged, counted; and what it says of itself before it runs."""

from dataclasses import replace

import pytest
import torch

from bsa_bench import catalog
from bsa_bench.inputs import draw_tensors, make_qkv, random_like_output
from bsa_bench.measure.work import work_of
from bsa_bench.verify import judged, verify_case
from bsa_bench.workload import InputSpec, Workload
from bsa_kernels.operator import Operator

OPTIONS = {
    "bsa": {"kv_density": 0.3},
    "vsa": {"kv_density": 0.3},
    "vmoba": {"block": [4, 4, 4], "select": "topk", "topk": 2},
    "moba": {"chunk": 32, "topk": 2},
    "sliding-tile": {"tile_window": [1, 2, 2]},
    "swa": {"window": 50},
}
BLOCK_METHODS = [*OPTIONS]
PAIRS = [
    *(f"{method}@gather" for method in BLOCK_METHODS),
    *(f"{method}@triton" for method in ("bsa", "vsa", "sliding-tile")),
    *("vsa@triton-tiled", "full@gather", "full-causal@gather", "full-causal@sdpa-flash", "full-causal@sdpa-math"),
    *("gated-delta-rule@chunked", "gated-delta-rule@recurrence"),
]


def case_of(implementation, *, grid=(4, 8, 8), dtype="float32", options=None):
    workload = Workload(grid=grid, heads=2, head_dim=16, dtype=dtype, input=InputSpec(kind="gaussian"))
    options = OPTIONS.get(implementation.partition("@")[0]) if options is None else options
    return catalog.make_case(
        suite="s", workload=workload, implementation=implementation, passes="forward+backward", options=options
    )


def subject(one, *, backward=True):
    method, options = catalog.load_method(one.method), catalog.options_of(one)
    tensors = make_qkv(one.workload, device="cpu").tensors
    tensors |= draw_tensors(one.workload, method.tensors(one.workload, options), device="cpu")
    grad = random_like_output(one.workload, "cpu") if backward else None
    return method, options, tensors, grad


def check(one, operator=None, *, backward=True):
    method, options, tensors, grad = subject(one, backward=backward)
    operator = operator or catalog.build_operator(one, scale=0.25)
    return verify_case(one, method, operator, tensors, grad, options=options, scale=0.25, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", PAIRS)
def test_every_method_is_verified_forward_and_backward(implementation):
    one = case_of(implementation)
    found, state = check(one)
    assert found.passed, found.reason
    trained = {"q", "k", "v"} | catalog.load_method(one.method).tensors(one.workload, catalog.options_of(one)).keys()
    assert found.checked.keys() == {"output", *(f"grad_{name}" for name in trained)}
    assert (found.dense is None) == (one.claims.is_dense or not one.claims.approximates_dense)
    assert (found.mass_kept is None) == ("plan" not in state)


@pytest.mark.parametrize("method", ["vsa", "sliding-tile", "moba", "swa", "gated-delta-rule"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_methods_are_verified_on_ragged_grids_in_other_dtypes(method, dtype):
    engine = "chunked" if method == "gated-delta-rule" else "gather"
    found, _ = check(case_of(f"{method}@{engine}", grid=(5, 7, 6), dtype=dtype))
    assert found.passed, found.reason


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("scope", ["head_global", "query_head", "block", "overall"])
def test_vmoba_is_verified_in_each_layer_and_scope(layer, scope):
    options = {"layer": layer, "temporal_block": 3, "spatial_block": [4, 4], "block": [2, 4, 4], "scope": scope}
    found, _ = check(case_of("vmoba@gather", options=options))
    assert found.passed, found.reason


@pytest.mark.parametrize("method", ["moba", "swa"])
def test_adapted_methods_are_bidirectional_and_say_so(method):
    one = case_of(f"{method}@gather", options={**OPTIONS[method], "causal": False})
    assert (one.claims.causal, one.claims.adapted) == (False, True)
    assert check(one)[0].passed


def test_a_simulation_is_verified_and_counted():
    one = case_of("bitstopper@simulator")
    found, state = check(one, backward=False)
    assert found.passed, found.reason
    engine = catalog.load_engine("simulator")
    work = work_of(one.model_copy(update={"passes": "forward"}), *subject(one)[:2], engine, state)
    assert work.flops_executed is None
    assert 1 <= work.counters["mean_planes"] <= 12
    assert work.density_realised == work.counters["survivor_share"]
    assert not one.claims.timed
    assert not one.claims.trains


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["vsa@gather", "moba@gather", "gated-delta-rule@chunked", "vsa@triton"])
def test_gradients_taken_stage_by_stage_equal_those_of_the_whole(implementation):
    dtype = "float32" if implementation.endswith("triton") else "float64"
    one = case_of(implementation, dtype=dtype)
    _, _, tensors, grad = subject(one)
    operator = catalog.build_operator(one, scale=0.25)
    leaves = {name: x.clone().requires_grad_() for name, x in tensors.items()}
    whole = torch.autograd.grad(operator.forward(leaves), list(leaves.values()), grad)
    _, staged = operator.run_staged(tensors, lambda _: None, grad)
    assert staged.keys() == leaves.keys()
    for name, expected in zip(leaves, whole, strict=True):
        torch.testing.assert_close(staged[name], expected)


@pytest.mark.parametrize(
    ("implementation", "stage", "change", "blamed"),
    [
        ("vsa@gather", "coarse", lambda rows, scores: (rows * 1.01, scores), "output"),
        ("vsa@gather", "combine", lambda o: (o - 0.01,), "output"),
        ("gated-delta-rule@chunked", "mix", lambda o: (o * 1.001,), "output"),
        ("moba@gather", "attend", lambda o: (o.roll(1, 2),), "output"),
        ("bitstopper@simulator", "simulate", lambda o, counters: (o * 1.0001, counters), "output"),
    ],
)
def test_a_wrong_stage_is_found(implementation, stage, change, blamed):
    one = case_of(implementation)
    operator = catalog.build_operator(one, scale=0.25)
    spoiled = Operator(
        tuple(
            replace(each, run=lambda *x, run=each.run: change(*run(*x))) if each.name == stage else each
            for each in operator.stages
        )
    )
    found, _ = check(one, spoiled, backward=False)
    assert not found.passed
    assert found.reason.startswith(f"{blamed}: ")


def test_a_wrong_gradient_of_a_gate_is_found_and_named():
    one = case_of("vsa@gather")
    operator = catalog.build_operator(one, scale=0.25)

    class Half(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad / 2

    *stages, combine = operator.stages
    spoiled = replace(combine, run=lambda rows, fine, gate: combine.run(rows, fine, Half.apply(gate)))
    found, _ = check(one, Operator((*stages, spoiled)))
    assert found.reason.startswith("grad_gate: ")
    assert judged(found, ["output", "grad_q", "grad_k", "grad_v"]).passed


@pytest.mark.parametrize("grid", [(4, 8, 8), (5, 8, 12)])
@pytest.mark.parametrize("method", BLOCK_METHODS)
def test_stored_facts_are_those_of_the_mask(method, grid):
    """Density, sparsity and nominal FLOP by the token mask of the plan; what was expected, where it is exact."""
    options = {**OPTIONS[method], "block": [1, 4, 4]} if method == "vmoba" else OPTIONS[method]
    one = case_of(f"{method}@gather", grid=grid, options=options)
    loaded, made, tensors, _ = subject(one)
    with torch.no_grad():
        state = catalog.build_operator(one, scale=0.25).run(tensors)
    forward = one.model_copy(update={"passes": "forward"})
    work = work_of(forward, loaded, made, catalog.load_engine("gather"), state)
    pairs = int(state["plan"].dense_mask().sum())
    length = one.workload.num_tokens
    dense = 2 * (length * (length + 1) // 2 if one.claims.causal else length**2)
    cubes = state["plan"].q_grid.num_blocks
    coarse = {"vsa": 2 * 16 * (3 * length + 2 * cubes**2)}.get(method, 0)
    assert work.flops_dense_equiv == 4 * 16 * dense
    assert work.flops_nominal == 4 * 16 * pairs + coarse
    assert work.density_realised == pytest.approx((4 * 16 * pairs + coarse) / work.flops_dense_equiv)
    expected = catalog.expected_cost(one)
    if method != "bsa" and all(n % 4 == 0 for n in grid):
        assert expected.sparsity == pytest.approx(1 - pairs / dense)
        assert work.sparsity_nominal == expected.sparsity


def test_what_a_method_expects_of_the_selection_is_what_it_counts():
    for implementation in ("bsa@gather", "vsa@gather", "vmoba@gather", "moba@gather", "sliding-tile@gather"):
        one = case_of(implementation)
        method, options, tensors, _ = subject(one)
        state = catalog.build_operator(one, scale=0.25).run(tensors)
        assert method.work(one.workload, options, state, "forward").selection_flop == pytest.approx(
            catalog.expected_cost(one).selection_flop
        )
        assert method.work(one.workload, options, state, "backward").selection_flop == 0


def test_blocks_that_do_not_divide_the_grid_are_refused_before_anything_runs():
    one = case_of("vmoba@gather", grid=(4, 6, 8))
    reason = catalog.unsupported_case(one)
    assert reason.startswith("vmoba.block: expected sides that divide the grid's 4x6x8: ")


def test_a_method_without_a_backward_says_so():
    assert catalog.unsupported_case(case_of("bitstopper@simulator")) == "bitstopper has no backward; run its forward."


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("vsa", {"topk": 2, "kv_density": 0.1}, "vsa: expected topk or kv_density, got both: 2 and 0.1"),
        ("vsa", {"topkk": 2}, "vsa.topkk: "),
        ("moba", {"chunk": 0}, "moba.chunk: Input should be greater than 0, got 0"),
        ("vmoba", {"kv_density": 0.1}, "vmoba: kv_density: goes with select = 'topk', got select = 'threshold'"),
        ("vmoba", {"select": "topk"}, "vmoba: select = 'topk': expected topk or kv_density with it, got none"),
    ],
)
def test_wrong_options_name_the_method_and_what_was_expected(method, options, message):
    with pytest.raises(catalog.UsageError) as caught:
        catalog.check_options(method, options)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("density", [0.05, 0.25, 0.6, 1.0])
@pytest.mark.parametrize("method", ["swa", "moba"])
def test_the_density_of_a_causal_method_is_a_share_of_causal_attention(method, density):
    workload = Workload(grid=(8, 16, 16), heads=1, head_dim=16)
    options = {"kv_density": density} | ({"chunk": 64} if method == "moba" else {})
    one = catalog.make_case(
        suite="s", workload=workload, implementation=f"{method}@gather", passes="forward", options=options
    )
    assert catalog.expected_cost(one).sparsity == pytest.approx(1 - density, abs=0.03)


def test_labels_of_different_options_differ_and_name_what_differs():
    labels = {
        case_of("bsa@gather", options=options).label
        for options in ({}, {"query_block": [2, 4, 4]}, {"fill": "zero"}, {"kv_density": 0.2}, {"query_keep": 1.0})
    }
    assert labels == {"d0.1-k0.5", "d0.1-k0.5-query_block=2x4x4", "d0.1-k0.5-fill=zero", "d0.2-k0.5", "d0.1-k1.0"}
    assert case_of("moba@gather").case_id.endswith("/gaussian/chunk=32-topk=2/forward+backward")
