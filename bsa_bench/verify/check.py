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

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bsa_bench.operator import Operator
from bsa_bench.result import Correctness, ErrorFigures
from bsa_bench.verify.sample import MAX_SCORES, HeadRows, RowSample, head_rows, sample_rows
from bsa_kernels import BlockGrid, BlockPlan
from bsa_kernels.engines.reference import masked_attention

SLACK = 2.0
#: The extreme of many errors spreads wider than their mean: correct engines came to 0.5 of this budget (fp32 and fp64,
#: inputs scaled 1 to 16, CPU, 2026-11-21).
MAX_SLACK = 2.0
FLOOR_EPS = 4.0
ROUNDING = 0.5
SUM_LANES = 16
#: Stands for an error that is not finite, which a stored figure has to be.
_TOO_LARGE = 1e100
_GRADS = ("grad_q", "grad_k", "grad_v")


def verify(
    operator: Operator,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad: Tensor | None,
    *,
    grid: BlockGrid,
    scale: float,
    seed: int,
    max_scores: int = MAX_SCORES,
) -> tuple[Correctness, BlockPlan | None]:
    """Run the operator once (and its backward where `grad`, dO, is given) and compare it with the oracle.

    Args:
        q, k, v, grad: [B, H, L, D].
        grid: blocks of which whole ones are sampled where there is no plan.
        seed: of the sample of blocks.
        max_scores: see `sample_rows`.

    Returns:
        The verdict, and the plan that the operator made (None for dense attention).
    """
    before = [x.clone() for x in (q, k, v)]
    _poison(q)
    leaves = [x.detach().requires_grad_(grad is not None) for x in (q, k, v)]
    with torch.set_grad_enabled(grad is not None):
        state = operator.run(*leaves)
    plan: BlockPlan | None = state.get("plan")
    sample = sample_rows(plan.q_grid if plan is not None else grid, seed=seed, device=q.device, max_scores=max_scores)
    out = state["o"].detach()
    found: dict[str, Tensor] = {"output": out[:, :, sample.tokens]}
    masked_grad = None
    if grad is not None:
        masked_grad = torch.zeros_like(grad).index_copy_(2, sample.tokens, grad[:, :, sample.tokens])
        found.update(zip(_GRADS, torch.autograd.grad(state["o"], leaves, masked_grad), strict=True))
    with torch.no_grad():
        repeat_identical = torch.equal(operator.forward(q, k, v), out)
    unchanged = all(torch.equal(a, b) for a, b in zip(before, (q, k, v), strict=True))
    totals = _compare(found, before, masked_grad, plan, sample, scale)
    figures = {name: sums.figures() for name, sums in totals.error.items()}
    budget, max_abs_budget = _budgets(totals, q.dtype)
    correctness = Correctness(
        oracle="fp64 masked attention by head" if plan is not None else "fp64 dense attention by head",
        checked=figures,
        budget=budget,
        max_abs_budget=max_abs_budget,
        rows=len(sample.tokens),
        passed=True,
        dense=totals.dense.figures() if plan is not None else None,
        mass_kept=float(torch.cat(totals.mass).mean()) if plan is not None else None,
        inputs_unchanged=unchanged,
        repeat_identical=repeat_identical,
    )
    return judged(correctness, list(figures)), plan


def judged(correctness: Correctness, names: Collection[str]) -> Correctness:
    """The verdict on some of what was checked: passed or not, and why not; the rest is left out."""
    excess = {
        (name, what): (error, allowed)
        for name in names
        for what, error, allowed in (
            ("relative L2 error", correctness.checked[name].relative_l2, correctness.budget[name]),
            ("largest error", correctness.checked[name].max_abs, correctness.max_abs_budget[name]),
        )
        if not error <= allowed
    }
    reason = None if correctness.inputs_unchanged else "the operator changed its inputs"
    if excess:
        (name, what), (error, allowed) = max(excess.items(), key=lambda item: item[1][0] / item[1][1])
        found = f"{error:.3g}" if error < _TOO_LARGE else "not finite"
        reason = f"{name}: {what} {found}, above its budget {allowed:.3g}"
    return correctness.model_copy(
        update={
            "checked": {name: correctness.checked[name] for name in names},
            "budget": {name: correctness.budget[name] for name in names},
            "max_abs_budget": {name: correctness.max_abs_budget[name] for name in names},
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


def _compare(
    found: dict[str, Tensor],
    qkv: Sequence[Tensor],
    grad: Tensor | None,
    plan: BlockPlan | None,
    sample: RowSample,
    scale: float,
) -> _Totals:
    totals = _Totals({name: _Sums() for name in found}, {name: _Sums() for name in found})
    batch, heads = qkv[0].shape[:2]
    low = _plain_dtype(qkv[0].dtype)
    for b in range(batch):
        for h in range(heads):
            head = head_rows(plan, sample, b, h)
            q, k, v = (x[b, h] for x in qkv)
            grad_rows = None if grad is None else grad[b, h, sample.tokens]
            totals.most_keys = max(totals.most_keys, _most_keys(head, len(k)))
            truth = _oracle(q.double(), k.double(), v.double(), grad_rows, head, scale)
            plain = _oracle(q.to(low), k.to(low), v.to(low), grad_rows, head, scale)
            for name in found:
                totals.error[name].add(found[name][b, h], truth[name])
                if _is_sound(plain[name]):  # float16 scores may overflow; the budget is then the floor
                    totals.plain[name].add(plain[name], truth[name])
            if grad is not None:
                totals.largest_lse = max(totals.largest_lse, _largest_lse(q, k, head, scale))
            if plan is not None:
                _against_dense(totals, found["output"][b, h], q, k, v, head, sample, scale)
    return totals


def _budgets(totals: _Totals, dtype: torch.dtype) -> tuple[dict[str, float], dict[str, float]]:
    """What the relative L2 error and the largest error of each tensor may be."""
    eps = torch.finfo(dtype).eps
    sum_eps = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    shrink = eps / torch.finfo(_plain_dtype(dtype)).eps
    relative: dict[str, float] = {}
    largest: dict[str, float] = {}
    for name, plain in totals.plain.items():
        floor = ROUNDING * eps + FLOOR_EPS * sum_eps + sum_eps / 2 * totals.most_keys / SUM_LANES
        floor += sum_eps * totals.largest_lse if name in _GRADS else 0
        relative[name] = SLACK * shrink * plain.figures().relative_l2 + floor
        largest[name] = MAX_SLACK * (SLACK * shrink * plain.max_abs + floor * (totals.error[name].largest or 1.0))
    return relative, largest


def _plain_dtype(dtype: torch.dtype) -> torch.dtype:
    """The format of the plain computation: fp64's own would be the oracle itself, so fp32's error is scaled down."""
    return torch.float32 if dtype == torch.float64 else dtype


def _is_sound(x: Tensor) -> bool:
    """Whether all of `x` is finite and its square too."""
    return bool((x.abs() < _TOO_LARGE).all())


def _oracle(q: Tensor, k: Tensor, v: Tensor, grad: Tensor | None, head: HeadRows, scale: float) -> dict[str, Tensor]:
    """Output on the sampled tokens and gradients of the whole q, k, v [L, D] of one head, in the format of q."""
    leaves = [x.detach().requires_grad_(grad is not None) for x in (q, k, v)]
    with torch.set_grad_enabled(grad is not None):
        rows = masked_attention(leaves[0][head.rows], leaves[1], leaves[2], head.mask, scale=scale)
        out = rows[head.source.clamp(min=0)].masked_fill((head.source < 0).unsqueeze(-1), 0)
    result = {"output": out.detach()}
    if grad is not None:
        result.update(zip(_GRADS, torch.autograd.grad(out, leaves, grad.to(out.dtype)), strict=True))
    return result


def _most_keys(head: HeadRows, num_keys: int) -> int:
    """The most keys that a computed row sees."""
    return num_keys if head.mask is None else int(head.mask.sum(-1).max())


@torch.no_grad()
def _largest_lse(q: Tensor, k: Tensor, head: HeadRows, scale: float) -> float:
    """Largest |log-sum-exp| of the computed rows; rows that see nothing have none."""
    scores = (q[head.rows].double() @ k.double().T) * scale
    if head.mask is not None:
        scores = scores.masked_fill(~head.mask, -torch.inf)
    lse = scores.logsumexp(-1)
    return float(lse[lse.isfinite()].abs().max()) if bool(lse.isfinite().any()) else 0.0


@torch.no_grad()
def _against_dense(
    totals: _Totals, found: Tensor, q: Tensor, k: Tensor, v: Tensor, head: HeadRows, sample: RowSample, scale: float
) -> None:
    """Error of the sampled tokens against dense attention, and the dense mass that the computed rows kept."""
    q, k, v = q.double(), k.double(), v.double()
    totals.dense.add(found, masked_attention(q[sample.tokens], k, v, None, scale=scale))
    weights = ((q[head.rows] @ k.T) * scale).softmax(-1)
    assert head.mask is not None
    totals.mass.append((weights * head.mask).sum(-1))


def _poison(like: Tensor) -> None:
    """Fill memory of the output's size with NaN and free it, so that an element never written is likely NaN."""
    for buffer in [torch.empty_like(like) for _ in range(8)]:
        buffer.fill_(float("nan"))
