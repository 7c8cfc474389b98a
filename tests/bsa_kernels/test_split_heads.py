"""Heads in groups, each with its own operator: outputs, staged gradients and what is refused."""

import pytest
import torch
from kernel_helpers import DEVICE
from torch.nn.functional import scaled_dot_product_attention
from torch.testing import assert_close

from bsa_kernels import BlockGrid, full_plan
from bsa_kernels.engines import get_engine
from bsa_kernels.operator import HeadGroup, Operator, Stage, split_heads
from bsa_kernels.rules import CAUSAL, FULL

LENGTH, HEADS, DIM = 24, 5, 8


def tensors(*names, heads=HEADS):
    make = torch.Generator().manual_seed(0)
    return {name: torch.randn(2, heads, LENGTH, DIM, generator=make, dtype=torch.float64).to(DEVICE) for name in names}


def dense(rule=FULL, block=8):
    """Dense attention under a rule, by the engine gather, through the stages of a block method."""
    grid, gather = BlockGrid((1, 1, LENGTH), (1, 1, block)), get_engine("gather")

    def plan(q, k):
        made = full_plan(*q.shape[:2], grid, device=q.device, rule=rule)
        return made, gather.prepare(made, q)

    def attend(q, k, v, plan, prepared):
        return (gather.attend(grid.permute(q), grid.permute(k), grid.permute(v), plan, prepared, scale=0.4),)

    return Operator(
        (
            Stage("plan", ("q", "k"), ("plan", "prepared"), plan, differentiable=False),
            Stage("attend", ("q", "k", "v"), ("kept",), attend, constants=("plan", "prepared")),
            Stage("fill", ("kept",), ("o",), lambda kept, plan: (plan.fill_output(kept),), constants=("plan",)),
        )
    )


def gated():
    """Attention times a gate, with a fixed bias of its own that is no input of gradients."""
    return Operator(
        (
            Stage("gate", ("v", "gate"), ("gated",), lambda v, gate: (v * gate,)),
            Stage(
                "attend",
                ("q", "k", "gated"),
                ("o",),
                lambda q, k, v, bias: (scaled_dot_product_attention(q, k, v, attn_mask=bias @ bias.mT, scale=0.4),),
                constants=("bias",),
            ),
        )
    )


GROUPS = (
    HeadGroup("local", (3, 0), dense(CAUSAL)),
    HeadGroup("wide", (1,), dense(FULL, 5)),
    HeadGroup("gated", (2, 4), gated()),
)


def by_hand(x):
    """The same heads one after another with torch's own attention."""
    out = []
    for head in range(HEADS):
        q, k, v, gate, bias = (x[name][:, head : head + 1] for name in ("q", "k", "v", "gate", "bias"))
        if head in {2, 4}:
            out.append(scaled_dot_product_attention(q, k, v * gate, attn_mask=bias @ bias.mT, scale=0.4))
        else:
            out.append(scaled_dot_product_attention(q, k, v, is_causal=head != 1, scale=0.4))
    return torch.cat(out, 1)


def test_each_group_runs_its_heads_and_outputs_stand_in_the_order_of_heads():
    given = tensors("q", "k", "v", "gate", "bias")
    assert_close(split_heads(GROUPS).forward(given), by_hand(given))


def test_staged_gradients_are_those_of_autograd_and_stages_and_state_bear_the_groups_name():
    given = tensors("q", "k", "v", "gate", "bias")
    leaves = {name: given[name].clone().requires_grad_() for name in ("q", "k", "v", "gate")}
    out = by_hand({**given, **leaves})
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype).to(DEVICE)
    whole = torch.autograd.grad(out, list(leaves.values()), grad)
    marks = []
    state, staged = split_heads(GROUPS).run_staged(given, marks.append, grad)
    assert_close(state["o"], out)
    assert staged.keys() == leaves.keys()
    for name, right in zip(leaves, whole, strict=True):
        assert_close(staged[name], right)
    forward = [
        *("split", "plan[local]", "attend[local]", "fill[local]", "plan[wide]", "attend[wide]", "fill[wide]"),
        *("gate[gated]", "attend[gated]", "join"),
    ]
    assert marks[: len(forward)] == forward
    assert marks[len(forward) :] == [f"{name}_backward" for name in reversed(forward) if not name.startswith("plan")]
    assert state["plan[local]"].rule == CAUSAL
    assert state["plan[local]"].shape[:2] == (2, 2)
    assert state["o[wide]"].shape == (2, 1, LENGTH, DIM)


def test_heads_that_follow_each_other_are_views():
    groups = [HeadGroup("a", (0, 1, 2), dense()), HeadGroup("b", (3, 4), dense(CAUSAL))]
    given = tensors("q", "k", "v")
    state = split_heads(groups).run(given)
    assert state["q[b]"].data_ptr() == given["q"][:, 3:].data_ptr()


def test_a_shared_value_goes_whole_to_every_group():
    def scaled(factor):
        return Operator(
            (Stage("scale", ("v", "size"), ("o",), lambda v, size, power: (v * size**power * factor,), ("power",)),)
        )

    given = {**tensors("v", heads=2), "size": torch.tensor(3.0, dtype=torch.float64, device=DEVICE), "power": 2}
    groups = [HeadGroup("a", (1,), scaled(1)), HeadGroup("b", (0,), scaled(10))]
    operator = split_heads(groups, shared=("size", "power"))
    assert_close(operator.forward(given), given["v"] * torch.tensor([90.0, 9.0], device=DEVICE).view(1, 2, 1, 1))
    _, staged = operator.run_staged(given, lambda _: None, torch.ones_like(given["v"]))
    assert_close(staged["size"], (given["v"].sum((0, 2, 3)) * torch.tensor([60.0, 6.0], device=DEVICE)).sum())


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([], r"expected at least one, each with a name of its own, got the names \[\]"),
        ([("a", (0,)), ("a", (1,))], r"each with a name of its own, got the names \['a', 'a'\]"),
        ([("a", (0, 1)), ("b", (1,))], r"expected each head from 0 on once, .* got a: \(0, 1\), b: \(1,\)"),
        ([("a", (0,)), ("b", (2,))], "expected each head from 0 on once"),
        ([("a", (0, 1)), ("b", ())], "at least one in each group"),
    ],
)
def test_groups_that_do_not_have_each_head_once_are_refused(groups, message):
    with pytest.raises(ValueError, match=message):
        split_heads([HeadGroup(name, heads, dense()) for name, heads in groups])


def test_an_operator_without_an_output_is_refused():
    nothing = Operator((Stage("copy", ("q",), ("x",), lambda q: (q,)),))
    with pytest.raises(ValueError, match="expected an operator that makes 'o', got none in b"):
        split_heads([HeadGroup("a", (0,), dense()), HeadGroup("b", (1,), nothing)])


def test_a_tensor_with_another_number_of_heads_is_refused():
    given = {**tensors("q", "k"), **tensors("v", heads=4)}
    groups = [HeadGroup("a", (0, 1, 2), dense()), HeadGroup("b", (3, 4), dense())]
    with pytest.raises(ValueError, match=r"v: expected a tensor \[B, 5, ...\], got \[2, 4, 24, 8\]"):
        split_heads(groups).forward(given)
