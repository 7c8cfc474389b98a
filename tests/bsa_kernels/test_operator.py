"""Stages of an operator: what a staged run gives is what autograd gives, whatever its graph looks like."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from bsa_kernels.operator import Operator, Stage

SHAPE = (1, 2, 24, 8)


def tensors(*names):
    make = torch.Generator().manual_seed(0)
    return {name: torch.randn(SHAPE, generator=make, dtype=torch.float64) for name in names}


def two_branches():
    """A coarse and a fine branch that both read q, k and v, and a gate: VSA's graph."""

    def coarse(q, k, v):
        rows = scaled_dot_product_attention(*(x.unflatten(2, (6, 4)).mean(3) for x in (q, k, v)))
        return (rows.repeat_interleave(4, 2),)

    return Operator(
        (
            Stage("coarse", ("q", "k", "v"), ("o_coarse",), coarse),
            Stage(
                "select",
                ("q", "k"),
                ("mask",),
                lambda q, k: ((q @ k.mT > 0) | torch.eye(24).bool(),),
                differentiable=False,
            ),
            Stage(
                "attend",
                ("q", "k", "v"),
                ("o_fine",),
                lambda q, k, v, mask: (scaled_dot_product_attention(q, k, v, attn_mask=mask),),
                constants=("mask",),
            ),
            Stage("combine", ("o_coarse", "o_fine", "gate"), ("o",), lambda c, f, gate: (c * gate + f,)),
        )
    )


def both_ways(operator, given):
    """Gradients by autograd over the whole, by stages, and the marks of the stages."""
    leaves = {name: x.clone().requires_grad_() for name, x in given.items()}
    out = operator.forward(leaves)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    whole = torch.autograd.grad(out, list(leaves.values()), grad, allow_unused=True)
    marks = []
    state, staged = operator.run_staged(given, marks.append, grad)
    torch.testing.assert_close(state["o"], out)
    return dict(zip(leaves, whole, strict=True)), staged, marks


def test_gradients_of_a_tensor_that_two_stages_read_are_summed():
    whole, staged, marks = both_ways(two_branches(), tensors("q", "k", "v", "gate"))
    assert staged.keys() == whole.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(staged[name], gradient)
    assert marks == [
        *("coarse", "select", "attend", "combine"),
        *("combine_backward", "attend_backward", "coarse_backward"),
    ]


def test_a_tensor_of_indices_is_a_constant():
    operator = Operator(
        (
            Stage("select", ("q",), ("index",), lambda q: (q.argsort(2),), differentiable=False),
            Stage("sort", ("q", "v"), ("o",), lambda q, v, at: (q * v.gather(2, at),), constants=("index",)),
        )
    )
    whole, staged, _ = both_ways(operator, tensors("q", "v"))
    for name, gradient in whole.items():
        torch.testing.assert_close(staged[name], gradient)


def test_a_float_constant_gets_no_gradient():
    operator = Operator(
        (
            Stage("scale", ("q",), ("size",), lambda q: (q.norm(),), differentiable=False),
            Stage("divide", ("q",), ("o",), lambda q, size: (q / size,), constants=("size",)),
        )
    )
    whole, staged, _ = both_ways(operator, tensors("q"))
    torch.testing.assert_close(staged["q"], whole["q"])


def test_a_tensor_that_nothing_reads_has_no_gradient():
    operator = Operator((Stage("copy", ("v",), ("o",), lambda v: (v * 2,)),))
    _, staged, _ = both_ways(operator, tensors("q", "v"))
    assert staged.keys() == {"v"}


def test_without_a_gradient_there_are_only_forward_marks():
    marks = []
    state, gradients = two_branches().run_staged(tensors("q", "k", "v", "gate"), marks.append)
    assert marks == ["coarse", "select", "attend", "combine"]
    assert gradients == {}
    assert not state["o"].requires_grad


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_an_error_names_its_stage(where):
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            raise RuntimeError("no such kernel")

    def fails(q):
        if where == "forward":
            raise RuntimeError("no such kernel")
        return (Broken.apply(q),)

    operator = Operator(
        (
            Stage("fine", ("q",), ("x",), lambda q: (q + 1,)),
            Stage("broken", ("x",), ("o",), fails),
        )
    )
    with pytest.raises(RuntimeError, match="no such kernel") as caught:
        operator.run_staged(tensors("q"), lambda _: None, torch.ones(SHAPE, dtype=torch.float64))
    assert caught.value.__notes__ == ["in stage broken" if where == "forward" else "in stage broken_backward"]
