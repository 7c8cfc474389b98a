import pytest
import torch
from run_factory import case

from bsa_bench.catalog import build_operator, make_case
from bsa_bench.methods.bsa import BsaOptions
from bsa_bench.workload import Workload
from bsa_kernels.operator import Operator, Stage


def tensors(workload, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (workload.batch, workload.heads, workload.num_tokens, workload.head_dim)
    q, k, v, grad = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(4))
    return {"q": q, "k": k, "v": v}, grad


def bsa(grid=(5, 7, 9), engine="gather", **options):
    workload = Workload(grid=grid, heads=2, head_dim=8, batch=2, dtype="float64")
    return make_case(
        suite="s", workload=workload, implementation=f"bsa@{engine}", passes="forward", options=BsaOptions(**options)
    )


def staged(operator, given, grad):
    marks = []
    state, grads = operator.run_staged(given, marks.append, grad)
    return state, grads, marks


def whole_gradients(operator, given, grad):
    leaves = {name: x.clone().requires_grad_() for name, x in given.items()}
    out = operator.forward(leaves)
    return out.detach(), dict(zip(leaves, torch.autograd.grad(out, list(leaves.values()), grad), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"query_keep": 1.0}, {"fill": "zero"}, {"fill": "similar"}, {"query_block": (4, 4, 8)}, {"kv_density": 1.0}],
    ids=str,
)
def test_gradients_taken_stage_by_stage_equal_those_of_the_whole(options):
    one = bsa(**{"kv_density": 0.3} | options)
    operator = build_operator(one, scale=0.3)
    given, grad = tensors(one.workload)
    out, whole = whole_gradients(operator, given, grad)
    state, grads, _ = staged(operator, given, grad)
    torch.testing.assert_close(state["o"], out)
    assert grads.keys() == whole.keys()
    for name, expected in whole.items():
        torch.testing.assert_close(grads[name], expected)


def test_dense_attention_has_one_stage_and_its_gradients_are_those_of_autograd():
    one = case("full@sdpa-math")
    operator = build_operator(one, scale=0.2)
    given, grad = tensors(one.workload)
    _, whole = whole_gradients(operator, given, grad)
    _, grads, marks = staged(operator, given, grad)
    assert marks == ["attend", "attend_backward"]
    for name, expected in whole.items():
        torch.testing.assert_close(grads[name], expected)


def test_marks_come_in_the_order_of_the_work_and_selection_has_no_backward():
    one = bsa()
    operator = build_operator(one, scale=0.3)
    given, grad = tensors(one.workload)
    forward = ["permute", "select", "plan", "attend", "fill"]
    assert staged(operator, given, None)[2] == forward
    backward = ["fill_backward", "attend_backward", "permute_backward"]
    assert staged(operator, given, grad)[2] == [*forward, *backward]


def test_without_a_gradient_nothing_is_recorded_and_none_is_returned():
    one = bsa()
    given, _ = tensors(one.workload)
    state, grads, _ = staged(build_operator(one, scale=0.3), given, None)
    assert grads == {}
    assert not state["o"].requires_grad


def test_the_inputs_of_the_caller_do_not_come_to_need_gradients():
    one = bsa()
    given, grad = tensors(one.workload)
    before = {name: x.clone() for name, x in given.items()}
    staged(build_operator(one, scale=0.3), given, grad)
    assert not any(x.requires_grad for x in given.values())
    assert all(torch.equal(x, given[name]) for name, x in before.items())


def test_a_stage_that_is_not_differentiable_runs_without_a_graph():
    seen = []

    def select(q):
        seen.append((q * 2).requires_grad)
        return (q.argmax(),)

    operator = Operator(
        (
            Stage("select", ("q",), ("best",), select, differentiable=False),
            Stage("attend", ("q", "k", "v"), ("o",), lambda q, k, v, best: (q + k + v + best,), constants=("best",)),
        )
    )
    q, k, v = (torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in "qkv")
    grads = torch.autograd.grad(operator.forward({"q": q, "k": k, "v": v}).sum(), (q, k, v))
    assert seen == [False]
    assert all(torch.equal(g, torch.ones(3, dtype=torch.float64)) for g in grads)


def test_a_stage_must_write_the_outputs_it_names():
    stage = Stage("attend", ("q",), ("o", "lse"), lambda q: (q,))
    with pytest.raises(ValueError, match="shorter"):
        stage({"q": torch.zeros(1)})


def test_a_run_leaves_the_plan_it_made():
    one = bsa()
    given, _ = tensors(one.workload)
    plan = build_operator(one, scale=0.3).run(given)["plan"]
    plan.check()
    assert plan.q_grid.grid == (5, 7, 9)
