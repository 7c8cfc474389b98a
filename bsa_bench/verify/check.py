"""The comparison: operator against oracle, inside a budget that the number format itself sets.

The oracle is fp64 masked attention, head by head, on sampled rows. The gradient dO is zero outside the sampled tokens,
so that the gradients of q, k and v follow from the sampled rows alone and are compared *everywhere*: exact zeros
where nothing may arrive included.

The budget is not a constant: the same rows are computed by plain attention in the case's own format, and its error
against fp64, times `SLACK`, plus one rounding of the result and a few of fp32, is what an implementation may err: in
relative L2 over all heads, and in the largest single error, which a fault in one block of one head cannot hide from.
Source of the rule: FlashAttention's tests (no more than twice a plain PyTorch implementation's error). Two things cost
a fused kernel what they do not cost the plain one, whose products are blocked sums: a running fp32 sum over n keys,
kept in `SUM_LANES` lanes, rounds n / SUM_LANES times, always the same way where neighbours are alike (FlexAttention's
CPU kernel does that); and a backward that recomputes the weights from a log-sum-exp stored in fp32 errs by eps * |lse|
on a whole row.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bsa_bench.contract import Method, MethodOptions, Reference
from bsa_bench.result import Case, Correctness, ErrorFigures
from bsa_bench.verify.calls import Calls, run_calls
from bsa_bench.verify.oracle import causal_mask
from bsa_bench.verify.sample import MAX_SCORES, RowSample, sample_rows
from bsa_bench.verify.whole import Suspects, Witness, find_suspects
from bsa_kernels import BlockGrid, BlockPlan
from bsa_kernels.engines.reference import masked_attention
from bsa_kernels.operator import Operator

#: From the tensors of one head, what the operator decided, the rows to compute and (batch, head), its output.
Oracle = Callable[[Mapping[str, Tensor], Mapping[str, Any], RowSample, tuple[int, int]], Reference]

SLACK = 2.0
#: The extreme of many errors spreads wider than their mean: correct engines came to 0.5 of this budget (fp32 and fp64,
#: inputs scaled 1 to 16, CPU, 2026-11-21).
MAX_SLACK = 2.0
FLOOR_EPS = 4.0
#: Of the rows whose error against dense attention, and kept mass, are reported: the same in all runs, which are
#: compared by them. The rows that are judged are drawn anew each time.
FIGURES_SEED = 0
ROUNDING = 0.5
SUM_LANES = 16
#: Stands for an error that is not finite, which a stored figure has to be.
_TOO_LARGE = 1e100


def verify(
    operator: Operator,
    tensors: Mapping[str, Tensor],
    grad: Tensor | None,
    *,
    oracle: Oracle,
    grid: BlockGrid,
    scale: float,
    seed: int,
    trained: Collection[str] = ("q", "k", "v"),
    against_dense: bool = True,
    causal: bool = False,
    max_scores: int = MAX_SCORES,
    deterministic: bool = True,
    witness: Witness | None = None,
    with_ends: bool = True,
) -> tuple[Correctness, dict[str, Any]]:
    """Call the operator as it is timed, without gradients and (where `grad`, dO, is given) with them, and compare.

    An output without gradients is judged by the same rule as one with them: the worse of the two is the case's.

    Args:
        operator: what is verified.
        tensors: its inputs by name, q, k and v [B, H, L, D] among them.
        grad: dO [B, H, L, D].
        oracle: the method's definition; differentiable in the tensors that it is given.
        grid: blocks of which whole ones are sampled where the operator makes no plan.
        scale: of the logits.
        seed: of the sample of blocks.
        trained: the tensors whose gradients are compared.
        against_dense: whether the output is compared with dense attention's too; causal dense attention's if `causal`.
        max_scores: see `sample_rows`.
        deterministic: two calls have to give the same bits; else they may differ by what is allowed against the oracle.
        witness: another engine, asked for all rows where the oracle is for a sample.
        with_ends: see `sample_rows`.

    Returns:
        The verdict, and the state that the operator left.
    """
    before = {name: x.clone() for name, x in tensors.items()}
    q = tensors["q"]
    calls = run_calls(operator, tensors, grad, trained)
    state = calls.state
    plan = state.get("plan")
    oracle_name = "fp64 masked attention by head" if plan is not None else "fp64 definition by head"
    if not calls.is_comparable:
        return _refused(calls, oracle_name), state
    blocks = plan.q_grid if isinstance(plan, BlockPlan) else grid
    draw = partial(sample_rows, blocks, seed=seed, device=q.device, max_scores=max_scores, with_ends=with_ends)
    sample, suspects = draw(), None
    if len(sample.tokens) < q.shape[2]:
        suspects = find_suspects(calls, witness, before, grad, blocks)
        sample = draw(suspects=suspects.blocks)
    found = {call: out[:, :, sample.tokens] for call, out in calls.outputs.items()}
    masked_grad = None
    if grad is not None:
        masked_grad = torch.zeros_like(grad).index_copy_(2, sample.tokens, grad[:, :, sample.tokens])
        found |= {f"grad_{name}": x for name, x in calls.masked_gradients(masked_grad).items()}
    unchanged = all(torch.equal(x, tensors[name]) for name, x in before.items())
    comparison = _Comparison(found, before, masked_grad, state, sample, oracle)
    totals = comparison.run()
    mass: list[Tensor] = []
    if against_dense or totals.mass:
        always = sample_rows(blocks, seed=FIGURES_SEED, device=q.device, max_scores=max_scores, with_ends=False)
        outputs = {"output": next(iter(calls.outputs.values()))[:, :, always.tokens]}
        figured = _Comparison(outputs, before, None, state, always, oracle)
        mass = figured.mass_kept() if totals.mass else []
        if against_dense:
            figured.run_dense(totals.dense, scale, causal=causal)
    budget, max_abs_budget = _budgets(totals, q.dtype)
    figures = {name: sums.figures() for name, sums in totals.error.items()}
    for by_name in (budget, max_abs_budget):
        by_name["output"] = max(by_name.pop(call) for call in calls.outputs)
    of_calls = [figures.pop(call) for call in calls.outputs]
    figures = {"output": max(of_calls, key=lambda one: (one.relative_l2, one.max_abs))} | figures
    if not calls.repeat_identical and (deterministic or calls.repeat_error > max_abs_budget["output"]):
        calls.faults.setdefault("output", _unlike_itself(calls.repeat_error, deterministic=deterministic))
    correctness = Correctness(
        oracle=oracle_name,
        checked=figures,
        budget=budget,
        max_abs_budget=max_abs_budget,
        rows=len(sample.tokens),
        passed=True,
        dense=totals.dense.figures() if against_dense else None,
        mass_kept=float(torch.cat(mass).mean()) if mass else None,
        inputs_unchanged=unchanged,
        repeat_identical=calls.repeat_identical,
        faults=calls.faults,
        sample_seed=seed,
        witness=witness.name if witness and suspects else None,
        unseen_max_abs=_unseen(suspects, sample),
    )
    return judged(correctness, list(figures)), state


def _refused(calls: Calls, oracle: str) -> Correctness:
    """The verdict on what no oracle can be compared with."""
    return Correctness(
        oracle=oracle,
        checked={},
        budget={},
        rows=1,
        passed=False,
        faults=calls.faults,
        repeat_identical=calls.repeat_identical,
        reason="; ".join(f"{name}: {fault}" for name, fault in calls.faults.items()),
    )


def _unlike_itself(error: float, *, deterministic: bool) -> str:
    """Of an engine whose second call gave something else."""
    said = "and the engine does not declare `deterministic = False`" if deterministic else "above its budget"
    return f"a second call on the same inputs differs by {error:.3g}, {said}"


def _unseen(suspects: Suspects | None, sample: RowSample) -> float | None:
    """The largest difference from the other engine outside of the sample."""
    if suspects is None or suspects.by_token is None:
        return None
    rest = suspects.by_token.index_fill(0, sample.tokens, 0)
    return min(float(rest.max()), _TOO_LARGE)


def verify_case(
    case: Case,
    method: Method,
    operator: Operator,
    tensors: Mapping[str, Tensor],
    grad: Tensor | None,
    *,
    options: MethodOptions,
    scale: float,
    seed: int,
    max_scores: int = MAX_SCORES,
    deterministic: bool = True,
    witness: Witness | None = None,
    with_dense: bool = True,
    with_ends: bool = True,
) -> tuple[Correctness, dict[str, Any]]:
    """Verify a case's operator against its method's definition; arguments and result as `verify`.

    `with_dense`: with the method's error against dense attention, where it approximates that.
    """
    specs = method.tensors(case.workload, options)
    return verify(
        operator,
        tensors,
        grad,
        oracle=lambda one, state, rows, head: method.reference(
            case.workload, options, one, state, rows, head, scale=scale
        ),
        grid=BlockGrid(case.workload.token_grid, (4, 4, 4)),
        scale=scale,
        seed=seed,
        trained=[name for name in tensors if name not in specs or specs[name].trains],
        against_dense=with_dense and case.claims.approximates_dense and not case.claims.is_dense,
        causal=case.claims.causal,
        max_scores=max_scores,
        deterministic=deterministic,
        witness=witness,
        with_ends=with_ends,
    )


def judged(correctness: Correctness, names: Collection[str], *, slack: float = 1.0) -> Correctness:
    """The verdict on some of what was checked: passed or not, and why not; the rest is left out.

    `slack`: so many times their budgets are allowed, and are the budgets of the verdict.
    """
    if not correctness.checked:  # refused before an oracle was asked
        return correctness
    faults = {name: fault for name, fault in correctness.faults.items() if name in names}
    budget = {name: slack * correctness.budget[name] for name in names}
    max_abs_budget = {name: slack * correctness.max_abs_budget[name] for name in names}
    excess = {
        (name, what): (error, allowed)
        for name in names
        for what, error, allowed in (
            ("relative L2 error", correctness.checked[name].relative_l2, budget[name]),
            ("largest error", correctness.checked[name].max_abs, max_abs_budget[name]),
        )
        if not error <= allowed
    }
    reason = "; ".join(f"{name}: {fault}" for name, fault in faults.items()) or None
    if not correctness.inputs_unchanged:
        reason = "the operator changed its inputs"
    if excess:
        (name, what), (error, allowed) = max(excess.items(), key=lambda item: item[1][0] / item[1][1])
        found = f"{error:.3g}" if error < _TOO_LARGE else "not finite"
        reason = f"{name}: {what} {found}, above its budget {allowed:.3g}"
    return correctness.model_copy(
        update={
            "checked": {name: correctness.checked[name] for name in names},
            "budget": budget,
            "max_abs_budget": max_abs_budget,
            "faults": faults,
            "passed": reason is None,
            "reason": reason,
        }
    )


@dataclass
class _Sums:
    """Sums over heads from which the error figures of one tensor follow."""

    squared: float = 0.0
    norm: float = 0.0
    other: float = 0.0
    dot: float = 0.0
    max_abs: float = 0.0
    largest: float = 0.0

    def add(self, x: Tensor, reference: Tensor) -> None:
        """Add one head's tensor; a NaN or an infinity anywhere makes the error so large that no comparison passes."""
        x = x.double()
        self.largest = max(self.largest, float(reference.abs().max()))
        if not _is_sound(x):
            self.squared, self.max_abs = _TOO_LARGE**2, _TOO_LARGE
            return
        error = x - reference
        self.squared += float(error.square().sum())
        self.norm += float(reference.square().sum())
        self.other += float(x.square().sum())
        self.dot += float((x * reference).sum())
        self.max_abs = max(self.max_abs, float(error.abs().max()))

    def figures(self) -> ErrorFigures:
        """Relative L2 (absolute where the reference is zero), largest difference, cosine."""
        scale = self.norm**0.5 or 1.0
        lengths = (self.norm * self.other) ** 0.5
        return ErrorFigures(
            max_abs=self.max_abs, relative_l2=self.squared**0.5 / scale, cosine=self.dot / lengths if lengths else 1.0
        )


@dataclass
class _Totals:
    error: dict[str, _Sums] = field(default_factory=dict)
    plain: dict[str, _Sums] = field(default_factory=dict)
    dense: _Sums = field(default_factory=_Sums)
    mass: list[Tensor] = field(default_factory=list)
    largest_lse: float = 0.0
    most_keys: int = 0


@dataclass
class _Comparison:
    """What the operator gave on the sampled tokens, and what it is compared with, head by head."""

    found: dict[str, Tensor]
    tensors: dict[str, Tensor]
    grad: Tensor | None
    state: Mapping[str, Any]
    sample: RowSample
    oracle: Oracle

    def run(self) -> _Totals:
        """Sum the errors of what was found, and of the same by plain arithmetic in the tensors' own dtype."""
        totals = _Totals({name: _Sums() for name in self.found}, {name: _Sums() for name in self.found})
        low = _plain_dtype(self.tensors["q"].dtype)
        for head in self._heads():
            truth, facts = self._truth(head, torch.float64)
            plain, _ = self._truth(head, low)
            totals.most_keys = max(totals.most_keys, facts.num_keys)
            totals.largest_lse = max(totals.largest_lse, facts.largest_lse)
            if facts.mass_kept is not None:
                totals.mass.append(facts.mass_kept)
            for name, found in self.found.items():
                totals.error[name].add(found[head], truth[name])
                if _is_sound(plain[name]):  # float16 scores may overflow; the budget is then the floor
                    totals.plain[name].add(plain[name], truth[name])
        return totals

    @torch.no_grad()
    def mass_kept(self) -> list[Tensor]:
        """Of each head, the share of dense attention's mass that its rows keep."""
        found = (self._truth(head, torch.float64)[1].mass_kept for head in self._heads())
        return [mass for mass in found if mass is not None]

    @torch.no_grad()
    def run_dense(self, sums: _Sums, scale: float, *, causal: bool) -> None:
        """Add the error of the sampled tokens against dense attention."""
        tokens = self.sample.tokens
        mask = causal_mask(tokens, self.tensors["k"].shape[2]) if causal else None
        for head in self._heads():
            q, k, v = (self.tensors[name][head].double() for name in "qkv")
            sums.add(next(iter(self.found.values()))[head], masked_attention(q[tokens], k, v, mask, scale=scale))

    def _heads(self) -> list[tuple[int, int]]:
        batch, heads = self.tensors["q"].shape[:2]
        return [(b, h) for b in range(batch) for h in range(heads)]

    def _truth(self, head: tuple[int, int], dtype: torch.dtype) -> tuple[dict[str, Tensor], Reference]:
        """Output on the sampled tokens, and gradients of the whole tensors of one head, computed in `dtype`."""
        leaves = {
            name: x[head].to(dtype).detach().requires_grad_(f"grad_{name}" in self.found)
            for name, x in self.tensors.items()
        }
        with torch.set_grad_enabled(self.grad is not None):
            reference = self.oracle(leaves, self.state, self.sample, head)
        result = {name: reference.output.detach() for name in self.found if not name.startswith("grad_")}
        if self.grad is not None:
            wanted = {name: x for name, x in leaves.items() if x.requires_grad}
            grad_rows = self.grad[head][self.sample.tokens].to(reference.output.dtype)
            gradients = torch.autograd.grad(reference.output, list(wanted.values()), grad_rows)
            result |= {f"grad_{name}": gradient for name, gradient in zip(wanted, gradients, strict=True)}
        return result, reference


def _budgets(totals: _Totals, dtype: torch.dtype) -> tuple[dict[str, float], dict[str, float]]:
    """What the relative L2 error and the largest error of each tensor may be."""
    eps = torch.finfo(dtype).eps
    sum_eps = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    shrink = eps / torch.finfo(_plain_dtype(dtype)).eps
    relative: dict[str, float] = {}
    largest: dict[str, float] = {}
    for name, plain in totals.plain.items():
        floor = ROUNDING * eps + FLOOR_EPS * sum_eps + sum_eps / 2 * totals.most_keys / SUM_LANES
        floor += sum_eps * totals.largest_lse if name.startswith("grad_") else 0
        relative[name] = SLACK * shrink * plain.figures().relative_l2 + floor
        largest[name] = MAX_SLACK * (SLACK * shrink * plain.max_abs + floor * (totals.error[name].largest or 1.0))
    return relative, largest


def _plain_dtype(dtype: torch.dtype) -> torch.dtype:
    """The format of the plain computation: fp64's own would be the oracle itself, so fp32's error is scaled down."""
    return torch.float32 if dtype == torch.float64 else dtype


def _is_sound(x: Tensor) -> bool:
    """Whether all of `x` is finite and its square too."""
    return bool((x.abs() < _TOO_LARGE).all())
