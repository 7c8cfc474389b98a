from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bsa_bench.catalog import build_operator, load_method, make_case, options_of
from bsa_bench.inputs import draw_tensors, make_qkv, random_like_output
from bsa_bench.methods.bsa import BsaOptions
from bsa_bench.verify import Witness, judged, verify_case
from bsa_bench.verify.sample import head_rows, sample_rows
from bsa_bench.workload import InputSpec, Workload
from bsa_kernels import BlockGrid
from bsa_kernels.operator import Operator, Stage

GRID = (5, 7, 9)
BLOCK = (4, 4, 4)
SCALE = 32**-0.5
CPU = torch.device("cpu")
OPTIONS = BsaOptions(kv_density=0.4)
DTYPES = ["float32", "bfloat16", "float16", "float64"]


def case_of(
    implementation="bsa@gather", grid=GRID, dtype="float32", kind="gaussian", heads=2, batch=1, options=OPTIONS
):
    workload = Workload(grid=grid, heads=heads, head_dim=32, batch=batch, dtype=dtype, input=InputSpec(kind=kind))
    options = options if implementation.startswith("bsa") else None
    return make_case(suite="s", workload=workload, implementation=implementation, passes="forward", options=options)


def check(one=None, operator=None, *, backward=True, seed=0, **more):
    """Verify an operator (the case's own, if none is given) on the case's inputs."""
    one = one or case_of()
    grad = random_like_output(one.workload, "cpu") if backward else None
    operator = operator or build_operator(one, scale=SCALE)
    return verified(one, operator, tensors_of(one), grad, seed=seed, **more)[0]


def tensors_of(one):
    """q, k, v and what the case's method reads besides."""
    specs = load_method(one.method).tensors(one.workload, options_of(one))
    return make_qkv(one.workload, device="cpu").tensors | draw_tensors(one.workload, specs, device="cpu")


def verified(one, operator, tensors, grad, *, seed=0, **more):
    method, options = load_method(one.method), options_of(one)
    return verify_case(one, method, operator, tensors, grad, options=options, scale=SCALE, seed=seed, **more)


def with_stage(one, name, wrap):
    """The case's operator with one stage's function wrapped: `wrap(run)(*inputs)`."""
    operator = build_operator(one, scale=SCALE)
    return Operator(
        tuple(replace(stage, run=wrap(stage.run)) if stage.name == name else stage for stage in operator.stages)
    )


def after(change):
    """A wrapper that changes the one output of a stage."""
    return lambda run: lambda *inputs: (change(*run(*inputs)),)


class ScaleGradient(torch.autograd.Function):
    """The identity, with a wrong gradient."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.factor, None


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("implementation", ["full@sdpa-math", "full@sdpa-flash", "full@gather", "bsa@gather"])
@pytest.mark.parametrize("max_scores", [1 << 24, 1 << 14], ids=["all rows", "a sample"])
def test_a_correct_operator_passes_forward_and_backward(implementation, dtype, max_scores):
    found = check(case_of(implementation, dtype=dtype), max_scores=max_scores)
    assert found.passed, found.reason
    assert found.reason is None
    assert found.checked.keys() == found.budget.keys() == {"output", "grad_q", "grad_k", "grad_v"}
    assert found.inputs_unchanged
    assert found.repeat_identical
    assert (found.rows == 315) == (max_scores == 1 << 24)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("factor", [4, 16])
def test_a_correct_operator_passes_at_the_size_of_real_activations(dtype, factor):
    one = case_of(dtype=dtype, grid=(8, 8, 8), kind="smooth")
    tensors = tensors_of(one)
    scaled = tensors | {name: factor * tensors[name] for name in "qk"}
    found, _ = verified(one, build_operator(one, scale=SCALE), scaled, random_like_output(one.workload, "cpu"))
    assert found.passed, found.reason


@pytest.mark.parametrize(
    "fields",
    [{"fill": "zero"}, {"fill": "similar"}, {"query_block": (4, 4, 8)}, {"kv_rule": "topk"}, {"query_keep": 1.0}],
    ids=str,
)
def test_every_option_of_the_method_is_understood_by_the_oracle(fields):
    found = check(case_of(options=BsaOptions(**{"kv_density": 0.4} | fields)))
    assert found.passed, found.reason


def test_a_batch_is_checked_element_by_element():
    assert check(case_of(batch=2, grid=(4, 4, 4))).passed


def one_head_wrong(out):
    out = out.clone()
    out[:, 1] *= 1.001
    return out


def one_row_wrong(out):
    out = out.clone()
    out[:, 0, 17] *= -1
    return out


def leave_rows_unwritten(out):
    bad = torch.empty_like(out)
    bad[:, :, 5:] = out[:, :, 5:]
    return bad


def one_nan(out):
    out = out.clone()
    out[0, 1, 300, 3] = float("nan")
    return out


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(
    "break_it",
    [
        one_head_wrong,
        one_row_wrong,
        leave_rows_unwritten,
        one_nan,
        lambda out: out * float("inf"),
        lambda out: out * 1e30,
        lambda out: out + 1e-4,
        lambda out: out.flip(2),
        lambda out: out.roll(1, dims=1),
        lambda out: out * 0,
    ],
    ids=["one head", "one row", "unwritten", "nan", "inf", "huge", "offset", "order", "heads swapped", "zero"],
)
@pytest.mark.parametrize("implementation", ["full@sdpa-math", "bsa@gather"])
def test_a_wrong_output_fails_and_is_named(implementation, break_it, backward):
    one = case_of(implementation)
    found = check(one, with_stage(one, "attend" if one.claims.is_dense else "fill", after(break_it)), backward=backward)
    assert not found.passed
    assert found.reason
    assert not judged(found, ["output"]).passed
    assert judged(found, ["output"]).reason.startswith("output: ")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("break_it", [one_row_wrong, leave_rows_unwritten, one_nan, lambda out: out.flip(2)])
def test_a_wrong_output_fails_in_half_precision_too(dtype, break_it):
    one = case_of(dtype=dtype, grid=(8, 8, 8), heads=3)
    assert check(one).passed
    assert not check(one, with_stage(one, "fill", after(break_it))).passed


def test_what_is_not_finite_is_said_to_be():
    one = case_of()
    reason = check(one, with_stage(one, "fill", after(one_nan)), backward=False).reason
    assert reason.startswith("output: ")
    assert "not finite, above its budget" in reason


def test_a_nan_fails_even_where_the_plain_computation_overflows_its_format():
    one = case_of("full@sdpa-math", dtype="float16")
    tensors = tensors_of(one)
    tensors |= {name: tensors[name] * 200 for name in "qk"}  # scores far above 65504
    right = Operator((Stage("attend", ("q", "k", "v"), ("o",), lambda q, k, v: (dense(q, k, v).half(),)),))
    assert verified(one, right, tensors, None)[0].passed
    broken = Operator((Stage("attend", ("q", "k", "v"), ("o",), lambda q, k, v: (one_nan(dense(q, k, v).half()),)),))
    assert not verified(one, broken, tensors, None)[0].passed


def dense(q, k, v, scale=SCALE):
    q, k, v = (x.double() for x in (q, k, v))
    return ((q @ k.mT) * scale).softmax(-1) @ v


@pytest.mark.parametrize("implementation", ["full@sdpa-math", "bsa@gather"])
def test_a_scale_that_is_one_percent_off_fails(implementation):
    one = case_of(implementation)
    found = check(one, build_operator(one, scale=1.01 * SCALE))
    assert not found.passed


def test_a_dropped_key_value_block_of_one_query_block_of_one_head_fails():
    one = case_of(heads=3)

    def drop(run):
        def attend(q, k, v, plan, prepared):
            mask = plan.block_mask.clone()
            block = int(plan.kv_counts[0, 2].argmax())
            mask[0, 2, block, plan.kv_indices[0, 2, block, 0]] = False  # the first block of its list
            short = replace(plan, block_bits=pack_bits(mask))
            return run(q, k, v, short, gather.prepare(short))

        return attend

    from bsa_kernels.bits import pack_bits
    from bsa_kernels.engines import gather

    assert not check(one, with_stage(one, "attend", drop)).passed


@pytest.mark.parametrize(
    "change",
    [
        lambda fill: fill.flip(-1),  # transposed inside the block
        lambda fill: fill.roll(1, dims=2),  # another block's
        torch.zeros_like,
    ],
    ids=["transposed", "next block", "first row"],
)
def test_a_wrong_fill_fails(change):
    one = case_of(grid=(8, 8, 8))

    def wrong(run):
        return lambda o_kept, plan: run(o_kept, replace(plan, fill=change(plan.fill)))

    found = check(one, with_stage(one, "fill", wrong))
    assert not judged(found, ["output"]).passed


@pytest.mark.parametrize("name", ["q", "k", "v"])
@pytest.mark.parametrize("factor", [0.0, -1.0, 1.001])
@pytest.mark.parametrize("implementation", ["full@sdpa-math", "bsa@gather"])
def test_a_wrong_gradient_of_one_input_fails_and_does_not_blame_the_forward(implementation, name, factor):
    one = case_of(implementation)
    place = "qkv".index(name)

    def wrong(run):
        def attend(*inputs):
            inputs = list(inputs)
            inputs[place] = ScaleGradient.apply(inputs[place], factor)
            return run(*inputs)

        return attend

    found = check(one, with_stage(one, "attend", wrong))
    assert not found.passed
    assert found.reason.startswith(f"grad_{name}: ")
    assert judged(found, ["output"]).passed
    assert judged(found, ["output"]).reason is None
    for other in {"q", "k", "v"} - {name}:
        assert judged(found, [f"grad_{other}"]).passed


def test_a_gradient_where_none_may_arrive_fails():
    """The query of a pruned row must get an exact zero."""
    one = case_of()

    def leak(run):
        return lambda q, k, v, plan, prepared: (run(q, k, v, plan, prepared)[0] + 1e-3 * (q - q.detach()).sum(),)

    found = check(one, with_stage(one, "attend", leak))
    assert judged(found, ["output"]).passed
    assert not judged(found, ["grad_q"]).passed


def test_an_operator_that_changes_its_inputs_fails_though_its_output_is_right():
    def spoil(q, k, v):
        out = dense(q, k, v).float()
        k.mul_(2)
        return (out,)

    operator = Operator((Stage("attend", ("q", "k", "v"), ("o",), spoil),))
    found = check(case_of("full@sdpa-math"), operator, backward=False)
    assert not found.passed
    assert not found.inputs_unchanged
    assert found.reason == "the operator changed its inputs"


def noisy_operator(size):
    """Dense attention that adds another number on each call."""
    noise = iter([0.0, size, 2 * size])

    def vary(q, k, v):
        return (dense(q, k, v).float() + next(noise),)

    return Operator((Stage("attend", ("q", "k", "v"), ("o",), vary),))


def test_an_operator_whose_second_call_differs_fails_unless_its_engine_declares_it():
    found = check(case_of("full@sdpa-math"), noisy_operator(1e-7), backward=False)
    assert not found.passed
    assert found.repeat_identical is False
    assert found.reason.startswith("output: a second call on the same inputs differs by ")
    found = check(case_of("full@sdpa-math"), noisy_operator(1e-7), backward=False, deterministic=False)
    assert found.passed
    assert found.repeat_identical is False


def test_a_declared_difference_between_calls_is_held_against_the_budget():
    found = check(case_of("full@sdpa-math"), noisy_operator(1e-3), backward=False, deterministic=False)
    assert not found.passed
    assert "differs by 0.001, above its budget" in found.reason


def test_fp64_computed_in_fp32_fails():
    def narrow(run):
        return lambda q, k, v: (run(q.float(), k.float(), v.float())[0].double(),)

    one = case_of("full@sdpa-math", dtype="float64")
    assert not check(one, with_stage(one, "attend", narrow), backward=False).passed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "least", "most"), [("float64", 1e-16, 1e-14), ("float32", 1e-7, 1e-5), ("bfloat16", 1e-3, 0.1)]
)
def test_the_budget_is_of_the_order_of_the_formats_own_rounding(dtype, least, most):
    found = check(case_of(dtype=dtype))
    for name, budget in found.budget.items():
        assert least < budget < most, name


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_sample_sees_an_error_in_its_blocks_and_with_another_engine_everywhere(seed):
    one = case_of(grid=(8, 8, 16))
    grid = BlockGrid((8, 8, 16), BLOCK)
    max_scores = 4 * 64 * 1024
    sampled = sample_rows(grid, seed=seed, device=CPU, max_scores=max_scores)
    assert len(sampled.blocks) == 4
    inside = int(sampled.tokens[70])
    outside = next(t for t in range(1024) if t not in sampled.tokens.tolist())
    witness = Witness("gather", build_operator(one, scale=SCALE))

    def spoil(token, witness=None):
        def change(out):
            out = out.clone()
            out[:, 1, token] += 0.01
            return out

        operator = with_stage(one, "fill", after(change))
        return check(one, operator, seed=seed, max_scores=max_scores, witness=witness)

    assert not spoil(inside).passed
    assert spoil(outside).passed  # nobody but the oracle looks, and it is asked for the sample alone
    found = spoil(outside, witness)
    assert not found.passed
    assert found.witness == "gather"
    assert found.unseen_max_abs < 1e-6


def test_another_engine_that_is_wrong_condemns_nobody():
    one = case_of(grid=(8, 8, 16))
    wrong = Witness("other", with_stage(one, "fill", after(one_head_wrong)))
    found = check(one, max_scores=4 * 64 * 1024, witness=wrong)
    assert found.passed, found.reason
    assert found.unseen_max_abs > 1e-4  # which says how far the two are apart where the oracle did not look


def test_figures_that_methods_are_compared_by_are_of_the_same_rows_whatever_is_judged():
    one = case_of(grid=(8, 8, 8), kind="smooth")
    first, second = (check(one, seed=seed, max_scores=2 * 64 * 512) for seed in (1, 2))
    assert first.sample_seed != second.sample_seed
    assert (first.dense, first.mass_kept) == (second.dense, second.mass_kept)
    assert first.checked != second.checked


@pytest.mark.parametrize("implementation", ["full@sdpa-flash", "bsa@gather"])
def test_a_sampled_check_agrees_with_the_full_one(implementation):
    one = case_of(implementation, grid=(8, 8, 8), kind="smooth")
    full, sampled = check(one), check(one, max_scores=4 * 64 * 512)
    assert full.passed
    assert sampled.passed
    assert full.rows == 512
    assert 256 <= sampled.rows < 512
    for name in full.checked:
        assert sampled.checked[name].relative_l2 < 10 * full.budget[name]
        assert 0.1 < sampled.budget[name] / full.budget[name] < 10
    if one.options:
        assert sampled.mass_kept == pytest.approx(full.mass_kept, abs=0.2)
        assert sampled.dense.relative_l2 == pytest.approx(full.dense.relative_l2, rel=0.5)


def test_at_density_one_and_every_query_the_plan_is_dense_attention():
    found = check(case_of(options=BsaOptions(kv_density=1.0, query_keep=1.0)))
    assert found.passed
    assert found.mass_kept == pytest.approx(1.0, abs=1e-9)
    assert found.dense.relative_l2 < 1e-6


def test_the_kept_mass_and_the_error_against_dense_are_those_of_the_definition():
    one = case_of()
    qkv = make_qkv(one.workload, device="cpu")
    operator = build_operator(one, scale=SCALE)
    found, state = verified(one, operator, qkv.tensors, None)
    mask = state["plan"].dense_mask()
    weights = ((qkv.q.double() @ qkv.k.double().mT) * SCALE).softmax(-1)
    assert found.mass_kept == pytest.approx(float((weights * mask).sum(-1)[mask.any(-1)].mean()), rel=1e-9)
    truth = weights @ qkv.v.double()
    error = operator.forward(qkv.tensors).double() - truth
    assert found.dense.relative_l2 == pytest.approx(float(error.norm() / truth.norm()), rel=1e-9)
    assert found.dense.max_abs == pytest.approx(float(error.abs().max()), rel=1e-9)
    assert found.dense.relative_l2 > 0.1


def test_dense_attention_has_no_mass_and_no_error_against_itself():
    found = check(case_of("full@sdpa-math"), backward=False)
    assert found.mass_kept is None
    assert found.dense is None
    assert found.oracle == "fp64 definition by head"
    assert found.checked.keys() == {"output"}


@given(
    grid=st.tuples(*[st.integers(1, 9)] * 3),
    seed=st.integers(0, 1000),
    max_scores=st.integers(1, 1 << 18),
)
@settings(max_examples=30, deadline=None)
def test_a_sample_is_whole_blocks_without_repetition_the_first_and_the_last_among_them(grid, seed, max_scores):
    blocks = BlockGrid(grid, BLOCK)
    sample = sample_rows(blocks, seed=seed, device=CPU, max_scores=max_scores)
    tokens = sample.tokens.tolist()
    assert {0, blocks.num_blocks - 1} <= set(sample.blocks.tolist())
    assert len(set(tokens)) == len(tokens)
    of_block = set((blocks.slot_of_token(CPU) // blocks.block_size)[sample.tokens].tolist())
    assert of_block == set(sample.blocks.tolist())
    assert len(tokens) == int(blocks.real_counts(CPU)[sample.blocks].sum())
    fits = len(tokens) * blocks.num_tokens <= max_scores
    assert fits or len(sample.blocks) <= 3


def test_samples_of_other_seeds_are_other_blocks():
    grid = BlockGrid((16, 16, 16), BLOCK)
    chosen = [tuple(sample_rows(grid, seed=s, device=CPU, max_scores=1 << 20).blocks.tolist()) for s in range(3)]
    assert len(set(chosen)) == 3


def test_the_rows_of_a_head_are_those_of_the_plans_dense_tables():
    one = case_of(options=BsaOptions(kv_density=0.3, fill="zero"))
    qkv = make_qkv(one.workload, device="cpu")
    plan = build_operator(one, scale=SCALE).run(qkv.tensors)["plan"]
    sample = sample_rows(plan.q_grid, seed=3, device=CPU, max_scores=4 * 64 * 315)
    rows = head_rows(plan, sample, 0, 1)
    mask = plan.dense_mask()[0, 1]
    assert torch.equal(rows.mask, mask[rows.rows])
    taken = torch.where(rows.source >= 0, rows.rows[rows.source.clamp(min=0)], -1)
    assert torch.equal(taken, plan.source_of_token()[0, 1, sample.tokens])


def test_slack_widens_the_budgets_of_a_verdict_and_excuses_no_fault():
    found = check(case_of())
    names = list(found.checked)
    tight = found.model_copy(update={"budget": found.budget | {"output": found.checked["output"].relative_l2 / 3}})
    assert not judged(tight, names, slack=2.9).passed
    passed = judged(tight, names, slack=3.1)
    assert passed.passed
    assert passed.excess() is None  # so that it is stored and read as passed
    assert judged(passed, ["output"]).passed  # and may be judged by the pass
    assert not judged(found.model_copy(update={"inputs_unchanged": False}), names, slack=1e9).passed
    assert not judged(found.model_copy(update={"faults": {"output": "of another shape"}}), names, slack=1e9).passed
