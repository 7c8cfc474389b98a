"""Plans with element rules, prefixes and two grids: made at random, and computed from the definition token by token.

The oracle reads the tables that a test made the plan of, and blocks of tokens by plain loops; no list, mask or position
of the plan.
"""

from dataclasses import dataclass, replace

import torch
from kernel_helpers import DEVICE, hand_plan, max_error, random_mask
from naive_bsa import blocks_of
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask

from bsa_kernels import BlockGrid, BlockPlan
from bsa_kernels.engines import get_engine
from bsa_kernels.engines.reference import masked_attention
from bsa_kernels.rules import FULL


@dataclass(frozen=True)
class Made:
    """A plan, and the mask of the grid's blocks [B, H, Nq, Nk] that it was made of."""

    plan: BlockPlan
    mask: Tensor


@dataclass(frozen=True)
class Given:
    """q, k, v, and the gradients of o and of its log-sum-exp."""

    q: Tensor
    k: Tensor
    v: Tensor
    do: Tensor
    dlse: Tensor


def made_plan(
    q_grid, kv_grid, *, rule=FULL, prefix=0, density=0.5, keep=0.5, zero_fill=False, touched=False, seed=0, batch=1
):
    """Random lists, kept rows and fills; `touched`: only blocks that the rule touches are listed."""
    mask = random_mask(q_grid, kv_grid, density, seed=seed, batch=batch)
    if touched:
        mask &= rule.touches(q_grid, kv_grid, DEVICE)
    rows = hand_plan(q_grid, kv_grid, mask, keep=keep, zero_fill=zero_fill, seed=seed)
    plan = BlockPlan.from_mask(
        q_grid,
        kv_grid,
        mask,
        kept_slots=rows.kept_slots,
        fill=rows.fill,
        has_zero_fill=zero_fill,
        rule=rule,
        prefix=prefix,
    )
    if keep == 1 and q_grid.is_even:
        plan = replace(plan, keeps_every_row=True)
    plan.check()
    return Made(plan, mask)


def token_mask(made):
    """[B, H, Lq, P + Lk] bool: which key each computed row sees, and [B, H, Lq]: the source of each token, -1: zero."""
    plan, prefix = made.plan, made.plan.prefix
    b, h, nq, _ = plan.shape
    q_blocks, kv_blocks = (
        [list(tokens.values()) for tokens in blocks_of(g.grid, g.block)] for g in (plan.q_grid, plan.kv_grid)
    )
    sees = torch.zeros(b, h, plan.q_grid.num_tokens, prefix + plan.kv_grid.num_tokens, dtype=torch.bool)
    source = torch.full((b, h, plan.q_grid.num_tokens), -1)
    kept, fill, mask = plan.kept_slots.tolist(), plan.fill.tolist(), made.mask.tolist()
    for i, j, n in torch.cartesian_prod(*(torch.arange(x) for x in (b, h, nq))).tolist():
        rows = [q_blocks[n][slot] for slot in kept[i][j][n] if slot >= 0]
        for row in rows:
            sees[i, j, row, :prefix] = True
            for tokens, is_listed in zip(kv_blocks, mask[i][j][n], strict=True):
                for token in tokens if is_listed else ():
                    sees[i, j, row, prefix + token] = obeys(plan.rule, row, token)
        for slot, token in enumerate(q_blocks[n]):
            if fill[i][j][n][slot] >= 0:
                source[i, j, token] = rows[fill[i][j][n][slot]]
    return sees.to(DEVICE), source.to(DEVICE)


def obeys(rule, query, key):
    """The definition."""
    return (rule.before is None or query - rule.before <= key) and (rule.after is None or key <= query + rule.after)


def given(plan, head_dim=4, *, dtype=torch.float64, seed=0, scale=1.0):
    """Random inputs for a plan."""
    make = torch.Generator().manual_seed(seed)
    b, h = plan.shape[:2]
    num_q, num_k = plan.q_grid.num_tokens, plan.prefix + plan.kv_grid.num_tokens

    def draw(*shape):
        return torch.randn(b, h, *shape, generator=make, dtype=torch.float64).to(DEVICE, dtype)

    q, k, v = (draw(n, head_dim) * scale for n in (num_q, num_k, num_k))
    return Given(*(x.requires_grad_() for x in (q, k, v)), draw(num_q, head_dim), draw(num_q))


def oracle(made, x, *, scale=0.3):
    """Output and log-sum-exp in natural order, in fp64, a softmax over what each row of the mask lets through."""
    sees, source = token_mask(made)
    scores = (scale * x.q.double() @ x.k.double().mT).masked_fill(~sees, -torch.inf)
    empty = ~sees.any(-1)
    # A row of nothing sees everything for the softmax's sake, and is dropped.
    whole = torch.where(empty.unsqueeze(-1), 0, scores)
    out = (whole.softmax(-1) @ x.v.double()).masked_fill(empty.unsqueeze(-1), 0)
    lse = whole.logsumexp(-1).masked_fill(empty, -torch.inf)
    at = source.clamp(min=0)
    out = out.gather(2, at.unsqueeze(-1).expand(*at.shape, out.shape[-1]))
    return out.masked_fill((source < 0).unsqueeze(-1), 0), lse.gather(2, at).masked_fill(source < 0, -torch.inf)


def run_plan(name, plan, x, *, scale=0.3, lse=False):
    """Output of an engine in natural order; with `lse` also the log-sum-exp."""
    engine = get_engine(name)
    assert engine.unsupported_plan(plan) is None
    tokens = x.q, x.k, x.v
    if engine.layout == "tiled":
        tokens = plan.q_grid.permute(x.q), plan.kv_tiles(x.k), plan.kv_tiles(x.v)
    prepared = engine.prepare(plan, tokens[0])
    if lse:
        out, found = engine.attend_lse(*tokens, plan, prepared, scale=scale)
    else:
        out = engine.attend(*tokens, plan, prepared, scale=scale)
    assert engine.fills == (engine.layout == "natural")
    out = out if engine.fills else plan.fill_output(out)
    return (out, plan.fill_lse(found)) if lse else out


def run_flex_mask(plan, x, *, scale=0.3):
    """Output under the mask function of the plan's `BlockMask`, which must let all of its full blocks through."""
    flex = plan.to_flex()
    k, mk = flex.BLOCK_SIZE
    mask = create_mask(flex.mask_mod, *flex.shape, device=DEVICE)
    blocks = mask.unflatten(3, (-1, mk)).unflatten(2, (-1, k))  # [B, H, Nq, K, Nk, Mk]
    for b, h, n in torch.cartesian_prod(*(torch.arange(x) for x in plan.shape[:3])).tolist():
        full = flex.full_kv_indices[b, h, n, : flex.full_kv_num_blocks[b, h, n]]
        part = flex.kv_indices[b, h, n, : flex.kv_num_blocks[b, h, n]]
        assert blocks[b, h, n][:, full].all()
        assert torch.equal(torch.cat((full, part)).sort().values, plan.block_mask[b, h, n].nonzero().flatten())
    q = plan.gather_kept(plan.q_grid.permute(x.q)).flatten(2, 3)
    out = masked_attention(q, plan.kv_tiles(x.k), plan.kv_tiles(x.v), mask, scale=scale)
    return plan.fill_output(out.unflatten(2, plan.shape[2:]))


def assert_runs(name, made, x, *, tolerance=1e-9):
    """Check output, and the gradients where the engine trains, against the oracle."""
    trains = name != "flex" or DEVICE.type == "cuda"
    with torch.set_grad_enabled(trains):
        out = run_plan(name, made.plan, x)
    exact, _ = oracle(made, x)
    assert max_error(out, exact) < tolerance
    if trains:
        leaves = (x.q, x.k, x.v)
        for found, right in zip(
            torch.autograd.grad(out, leaves, x.do), torch.autograd.grad(exact, leaves, x.do), strict=True
        ):
            assert max_error(found, right) < tolerance


GRIDS = [
    # grid, query block, KV block
    (BlockGrid((3, 4, 5), (2, 2, 4)), BlockGrid((3, 4, 5), (2, 3, 2))),
    (BlockGrid((2, 4, 4), (1, 2, 4)), BlockGrid((2, 4, 4), (2, 2, 2))),
    (BlockGrid((2, 3, 5), (1, 1, 1)), BlockGrid((2, 3, 5), (2, 2, 2))),
    (BlockGrid((1, 1, 37), (1, 1, 8)), BlockGrid((1, 1, 37), (1, 1, 5))),
]
