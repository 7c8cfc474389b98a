"""The gated delta rule: every form against a loop over tokens and rows written here, forward and gradients."""

import math
import sys
import types
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bsa_kernels.methods.gated_delta_rule import (
    chunked,
    chunked_backward_flop,
    chunked_forward_flop,
    fla,
    fla_unsupported,
    nominal_backward_flop,
    nominal_forward_flop,
    recurrence,
    reference,
)

SCALE = 0.35
NAMES = ("q", "k", "v", "g", "beta", "state")
# A form may err this many times as much as the naive loop in the same precision, and besides by these many roundings.
BUDGET_FACTOR = 2.5
BUDGET_ROUNDINGS = 4


@dataclass
class Case:
    """q, k [B, H, L, K], v [B, H, L, V], g, beta [B, H, L], state [B, H, K, V], and the gradients of o and state."""

    tensors: list[Tensor]
    do: Tensor
    d_state: Tensor

    def to(self, dtype):
        return Case([x.to(dtype) for x in self.tensors], self.do.to(dtype), self.d_state.to(dtype))


def case(length, *, key_dim=5, value_dim=3, batch=1, heads=2, decay=0.3, seed=0) -> Case:
    make = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(batch, heads, *shape, generator=make, dtype=torch.float64)

    q, k, v = draw(length, key_dim), draw(length, key_dim), draw(length, value_dim)
    g, beta = -decay * draw(length).abs(), draw(length).sigmoid()
    return Case([q, k, v, g, beta, draw(key_dim, value_dim)], draw(length, value_dim), draw(key_dim, value_dim))


def naive(q, k, v, g, beta, state, *, scale=SCALE, normalise=True):
    """One sequence at a time, one token at a time, the state transposed: S [V, K], as a product of matrices."""
    outs, states = [], []
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            s, rows = state[b, h].T, []
            for t in range(q.shape[2]):
                query, key = q[b, h, t], k[b, h, t]
                if normalise:
                    query = query / torch.sqrt(query @ query + 1e-6)
                    key = key / torch.sqrt(key @ key + 1e-6)
                forget = torch.eye(len(key), dtype=s.dtype) - beta[b, h, t] * torch.outer(key, key)
                s = torch.exp(g[b, h, t]) * (s @ forget) + beta[b, h, t] * torch.outer(v[b, h, t], key)
                rows.append(scale * (s @ query))
            outs.append(torch.stack(rows))
            states.append(s.T)
    shape = q.shape[:2]
    return torch.stack(outs).unflatten(0, shape), torch.stack(states).unflatten(0, shape)


def through(form, given: Case, **options):
    """o, the final state, and the gradients of all six inputs, by name."""
    leaves = [x.clone().requires_grad_() for x in given.tensors]
    if form is naive:
        o, state = naive(*leaves, **options)
    else:
        o, state = form(*leaves[:5], scale=SCALE, initial_state=leaves[5], **options)
    found = torch.autograd.grad([o, state], leaves, [given.do.to(o.dtype), given.d_state.to(state.dtype)])
    return {"o": o.detach(), "state": state.detach()} | {f"d{n}": x for n, x in zip(NAMES, found, strict=True)}


def reference_heads(q, k, v, g, beta, *, scale, initial_state=None, **options):
    """`reference` head by head, and no final state of its own: the recurrence's."""
    heads = [(b, h) for b in range(q.shape[0]) for h in range(q.shape[1])]
    rows = [
        reference(q[i], k[i], v[i], g[i], beta[i], scale=scale, initial_state=initial_state[i], **options)
        for i in heads
    ]
    o = torch.stack(rows).unflatten(0, q.shape[:2])
    return o, recurrence(q, k, v, g, beta, scale=scale, initial_state=initial_state, **options)[1]


FORMS = {"recurrence": recurrence, "chunked": chunked, "reference": reference_heads}


def same(got, want, rtol=1e-9):
    assert got.keys() == want.keys()
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=rtol, atol=rtol, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.slow
@pytest.mark.parametrize("length", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_equals_the_naive_loop_and_so_do_its_gradients(form, length):
    given = case(length, heads=1)
    same(through(FORMS[form], given), through(naive, given))


@pytest.mark.slow
@pytest.mark.parametrize(("key_dim", "value_dim"), [(7, 7), (3, 8), (8, 1)])
@pytest.mark.parametrize("normalise", [True, False])
def test_key_and_value_dims_may_differ_with_and_without_normalisation(key_dim, value_dim, normalise):
    given = case(37, key_dim=key_dim, value_dim=value_dim, batch=2)
    if not normalise:
        given.tensors[1] /= given.tensors[1].norm(dim=-1, keepdim=True)
    want = through(naive, given, normalise=normalise)
    for form in (recurrence, reference_heads):
        same(through(form, given, normalise=normalise), want)
    same(through(chunked, given, normalise=normalise, chunk=16), want)


@pytest.mark.parametrize("chunk", [1, 2, 7, 37, 100])
def test_the_chunk_size_changes_nothing(chunk):
    given = case(37)
    same(through(chunked, given, chunk=chunk), through(naive, given))


@pytest.mark.parametrize("decay", [0, 5, 100, 5000])
def test_no_decay_and_strong_decay_stay_finite_and_right(decay):
    given = case(70, decay=decay, heads=1)
    want = through(naive, given)
    assert all(x.isfinite().all() for x in want.values())
    for form in FORMS.values():
        same(through(form, given), want)


@pytest.mark.parametrize("beta", [0, 1])
def test_the_edges_of_beta_write_nothing_or_replace_all(beta):
    given = case(70, heads=1)
    given.tensors[4].fill_(beta)
    want = through(naive, given)
    for form in FORMS.values():
        same(through(form, given), want)
    if beta == 0:
        torch.testing.assert_close(
            chunked(*given.tensors[:5], scale=1, initial_state=given.tensors[5])[1],
            given.tensors[5] * given.tensors[3].sum(-1).exp()[..., None, None],
        )


def test_a_key_written_with_beta_one_recalls_its_value():
    q, k, v, g, _, _ = case(1, heads=1).tensors
    o, state = chunked(k, k, v, g, torch.ones_like(g), scale=1)
    torch.testing.assert_close(o, v, rtol=1e-5, atol=1e-5)
    again = chunked(q, k, v, g * 0, torch.ones_like(g), scale=1, initial_state=state)[1]
    torch.testing.assert_close(again, state, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cut", [1, 64, 77])
@pytest.mark.parametrize("form", ["recurrence", "chunked"])
def test_two_halves_with_the_state_carried_over_equal_the_whole(form, cut):
    *tensors, state = case(130).tensors
    run = FORMS[form]
    whole, last = run(*tensors, scale=SCALE, initial_state=state)
    first, middle = run(*(x[:, :, :cut] for x in tensors), scale=SCALE, initial_state=state)
    second, end = run(*(x[:, :, cut:] for x in tensors), scale=SCALE, initial_state=middle)
    torch.testing.assert_close(torch.cat([first, second], 2), whole)
    torch.testing.assert_close(end, last)


@pytest.mark.parametrize("form", ["recurrence", "chunked"])
def test_no_state_given_is_a_state_of_zeros(form):
    *tensors, state = case(20).tensors
    got = FORMS[form](*tensors, scale=SCALE)
    torch.testing.assert_close(got, FORMS[form](*tensors, scale=SCALE, initial_state=state * 0))


@pytest.mark.slow
def test_autograd_and_finite_differences_agree():
    given = case(9, key_dim=3, value_dim=2, heads=1)
    leaves = [x.requires_grad_() for x in given.tensors]
    one_head = [x[0, 0].detach().requires_grad_() for x in leaves]
    for chunk in (4, 64):
        assert torch.autograd.gradcheck(
            lambda *x, c=chunk: chunked(*x[:5], scale=1, initial_state=x[5], chunk=c), leaves
        )
    assert torch.autograd.gradcheck(lambda *x: recurrence(*x[:5], scale=1, initial_state=x[5]), leaves)
    assert torch.autograd.gradcheck(lambda *x: reference(*x[:5], scale=1, initial_state=x[5]), one_head)


def test_the_reference_returns_the_rows_asked_for_and_reads_nothing_later():
    given = case(300, heads=1, batch=1)
    head = [x[0, 0] for x in given.tensors]
    want, _ = naive(*given.tensors)
    tokens = torch.tensor([140, 3, 3, 129])
    for x in head[:5]:
        x[141:] = math.nan
    got = reference(*head[:5], scale=SCALE, tokens=tokens, initial_state=head[5])
    torch.testing.assert_close(got, want[0, 0, tokens])


def relative(got, want):
    return float((got.double() - want).norm() / want.norm())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_chunked_errs_no_more_than_the_naive_loop_in_the_same_precision(dtype):
    given = case(150, key_dim=24, value_dim=16, heads=1).to(dtype)
    want = through(naive, given.to(torch.float64))
    got = through(chunked, given)
    loop = through(naive, given.to(torch.float32))  # half inputs are accumulated in fp32
    assert got["o"].dtype == got["dq"].dtype == dtype
    assert got["state"].dtype == torch.float32
    for name, exact in want.items():
        budget = BUDGET_FACTOR * relative(loop[name].to(got[name].dtype), exact)
        assert relative(got[name], exact) <= budget + BUDGET_ROUNDINGS * torch.finfo(torch.float32).eps, name


def test_a_reset_costs_the_tokens_after_it_no_accuracy():
    given = case(64, heads=1, key_dim=16, decay=0.01).to(torch.float32)
    given.tensors[3][..., 5] = -3000.0
    want = through(naive, given.to(torch.float64))
    got, loop = through(chunked, given), through(naive, given)
    for name, exact in want.items():
        budget = BUDGET_FACTOR * relative(loop[name], exact) + BUDGET_ROUNDINGS * torch.finfo(torch.float32).eps
        assert relative(got[name], exact) <= budget, name


def test_what_autograd_keeps_grows_linearly():
    def kept(length):
        sizes = {}

        def pack(x):
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        leaves = [x.float().requires_grad_() for x in case(length, heads=1).tensors[:5]]
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            out = chunked(*leaves, scale=1)
        del out
        return sum(sizes.values())

    assert kept(4096) <= 2.1 * kept(2048)


@pytest.mark.parametrize("length", [1, 64, 65, 200])
@pytest.mark.parametrize("with_state", [True, False])
def test_the_flop_model_counts_what_torch_executes(length, with_state):
    given = case(length, key_dim=6, value_dim=10, batch=2, heads=3)
    leaves = [x.requires_grad_() for x in given.tensors]
    with FlopCounterMode(display=False) as forward:
        o, _ = chunked(*leaves[:5], scale=1, initial_state=leaves[5] if with_state else None)
    with FlopCounterMode(display=False) as backward:
        o.sum().backward()
    shape = {"batch": 2, "heads": 3, "tokens": length, "key_dim": 6, "value_dim": 10}
    assert forward.get_total_flops() == chunked_forward_flop(**shape).matmul
    assert backward.get_total_flops() == chunked_backward_flop(**shape, state_trains=with_state).matmul


def test_the_nominal_flop_are_the_published_figure():
    shape = {"batch": 1, "heads": 1, "key_dim": 128, "value_dim": 256}
    per_token = nominal_forward_flop(**shape, tokens=6400) / 6400
    assert per_token == pytest.approx(311_296 + 64**2 / 3)
    assert nominal_forward_flop(**shape, tokens=12800) == pytest.approx(2 * nominal_forward_flop(**shape, tokens=6400))
    assert 2 < nominal_backward_flop(**shape, tokens=6400) / nominal_forward_flop(**shape, tokens=6400) < 2.1
    solve = chunked_forward_flop(**shape, tokens=64).solve
    assert solve == 64 * 63 * (128 + 256)
    assert chunked_forward_flop(**shape, tokens=64).total == chunked_forward_flop(**shape, tokens=64).matmul + solve


def fake_fla(monkeypatch, seen):
    """A package `fla` whose operator checks the layout of release 0.6.0 and answers by the naive loop."""

    def chunk_gated_delta_rule(
        q,
        k,
        v,
        g,
        beta,
        scale=None,
        initial_state=None,
        output_final_state=False,
        use_qk_l2norm_in_kernel=False,
    ):
        batch, length, heads, key_dim = q.shape
        assert k.shape == q.shape
        assert v.shape[:3] == g.shape == beta.shape == (batch, length, heads)
        assert initial_state.shape == (batch, heads, key_dim, v.shape[-1])
        seen.update(norm=use_qk_l2norm_in_kernel, state=output_final_state, shape=tuple(q.shape))
        tensors = (x.transpose(1, 2) for x in (q, k, v, g, beta))
        o, state = naive(*tensors, initial_state, scale=scale, normalise=use_qk_l2norm_in_kernel)
        return o.transpose(1, 2), state if output_final_state else None

    for name in ("fla", "fla.ops", "fla.ops.gated_delta_rule"):
        module = types.ModuleType(name)
        module.__spec__ = types.SimpleNamespace(name=name)
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["fla.ops.gated_delta_rule"].chunk_gated_delta_rule = chunk_gated_delta_rule


@pytest.mark.parametrize("normalise", [True, False])
def test_fla_receives_its_layout_and_returns_ours(monkeypatch, normalise):
    seen = {}
    fake_fla(monkeypatch, seen)
    *tensors, state = case(7, batch=2, heads=3).tensors
    got = fla(*tensors, scale=SCALE, initial_state=state, normalise=normalise)
    want = recurrence(*tensors, scale=SCALE, initial_state=state, normalise=normalise)
    torch.testing.assert_close(got, want)
    assert seen == {"norm": normalise, "state": True, "shape": (2, 7, 3, 5)}
    assert fla(*tensors, scale=SCALE, initial_state=state, output_final_state=False)[1] is None


def test_fla_says_why_it_cannot_run(monkeypatch):
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.setattr("bsa_kernels.methods.gated_delta_rule.fla_adaptor.find_spec", lambda _: None)
    assert "not installed: pip install flash-linear-attention" in fla_unsupported(cuda, torch.bfloat16, 64)
    monkeypatch.setattr("bsa_kernels.methods.gated_delta_rule.fla_adaptor.find_spec", lambda name: name)
    assert "CUDA GPU, the device is cpu" in fla_unsupported(cpu, torch.bfloat16, 64)
    assert "not torch.float32" in fla_unsupported(cuda, torch.float32, 64)
    assert "at most 256, not 257" in fla_unsupported(cuda, torch.float16, 257)
    assert fla_unsupported(cuda, torch.bfloat16, 256) is None


@pytest.mark.gpu
def test_fla_errs_no_more_than_half_precision_must_on_a_gpu():
    why = fla_unsupported(torch.device("cuda"), torch.bfloat16, 64)
    if why:
        pytest.skip(why)
    given = case(200, key_dim=64, value_dim=64).to(torch.bfloat16)
    want, loop = through(recurrence, given.to(torch.float64)), through(naive, given)  # all of the loop in bf16
    given = Case([x.cuda() for x in given.tensors], given.do.cuda(), given.d_state.cuda())
    got = through(fla, given)
    for name, exact in want.items():
        assert relative(got[name].cpu(), exact) <= BUDGET_FACTOR * relative(loop[name], exact), name


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("k", (1, 2, 6, 5)),
        ("v", (1, 2, 5, 3)),
        ("g", (1, 2, 6, 1)),
        ("beta", (1, 1, 6)),
        ("initial_state", (1, 2, 3, 5)),
    ],
)
@pytest.mark.parametrize("form", [recurrence, chunked, fla])
def test_a_shape_that_does_not_fit_is_named(form, name, shape):
    given = dict(zip(("q", "k", "v", "g", "beta", "initial_state"), case(6).tensors, strict=True))
    given[name] = torch.zeros(shape) if name != "k" else torch.zeros(1, 2, 6, 4)
    expected = {"k": r"k: expected shape \[1, 2, 6, 5\], got \[1, 2, 6, 4\]"}.get(name, f"^{name}: expected shape")
    with pytest.raises(ValueError, match=expected):
        form(**given, scale=1)


def test_a_chunk_below_one_no_tokens_and_too_many_axes_are_refused():
    *tensors, _ = case(6).tensors
    with pytest.raises(ValueError, match="chunk: expected at least one token, got 0"):
        chunked(*tensors, scale=1, chunk=0)
    with pytest.raises(ValueError, match="with at least one token"):
        recurrence(*(x[:, :, :0] for x in tensors), scale=1)
    with pytest.raises(ValueError, match="q: expected one head"):
        reference(*tensors, scale=1)
