"""Inputs, hand-made plans and an error budget for the tests of all engines."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bsa_kernels import BlockGrid, BlockPlan, block_sparse_attention
from bsa_kernels.block_sparse.tile_table import Tile, Tiles
from bsa_kernels.engines import reference
from bsa_kernels.engines.triton import TritonEngine
from bsa_kernels.operator import Operator
from bsa_kernels.stages import plan_stages

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

# Engines that run every plan in every format on this device.
PORTABLE = ["reference", "gather", *(["cpu"] if DEVICE.type == "cpu" else [])]

# An engine may err this many times as much as plain torch with the same roundings (FlashAttention's rule has 2), and
# besides, where plain torch happens to be exact, by one rounding to the result's format and these many of an fp32 sum.
BUDGET_FACTOR = 2.5
BUDGET_SUM_ROUNDINGS = 4
BUDGET_ORDERS = 4


@dataclass(frozen=True)
class Inputs:
    """q, k, v and the gradient of the output, [B, H, L, D] in natural order; q, k, v are leaves that need gradients."""

    q: Tensor
    k: Tensor
    v: Tensor
    do: Tensor

    def to(self, dtype):
        """The same numbers in another format."""
        q, k, v, do = (x.detach().to(dtype) for x in (self.q, self.k, self.v, self.do))
        return Inputs(q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), do)


def qkv(grid, head_dim, dtype=torch.float32, *, scale=1.0, seed=0, batch=1, heads=2, device=DEVICE):
    """Gaussian inputs; q, k, v times `scale`."""
    make = torch.Generator().manual_seed(seed)
    length = grid[0] * grid[1] * grid[2]
    q, k, v, do = (torch.randn(batch, heads, length, head_dim, generator=make) for _ in range(4))
    q, k, v = (x * scale for x in (q, k, v))
    q, k, v, do = (x.to(device=device, dtype=dtype) for x in (q, k, v, do))
    return Inputs(q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), do)


def hand_plan(q_grid: BlockGrid, kv_grid: BlockGrid, block_mask, *, keep=0.5, zero_fill=False, seed=0) -> BlockPlan:
    """A plan with this mask [B, H, Nq, Nk], `keep` of the rows of each block at random, and random fills."""
    make = torch.Generator().manual_seed(seed)
    device = block_mask.device
    b, h, n = block_mask.shape[:3]
    m = q_grid.block_size
    real = torch.arange(m) < q_grid.real_counts(torch.device("cpu")).unsqueeze(-1)
    num_kept = (q_grid.real_counts(torch.device("cpu")) * keep).round().int().clamp(min=1).expand(b, h, n)
    draw = torch.rand(b, h, n, m, generator=make).masked_fill(~real, 2)
    rank = draw.argsort(-1).argsort(-1)
    kept = rank < num_kept.unsqueeze(-1)
    width = int(num_kept.max())
    kept_slots = torch.where(kept, torch.arange(m), m).sort(-1).values[..., :width]
    kept_slots = torch.where(kept_slots < m, kept_slots, -1)
    others = torch.randint(1 << 20, (b, h, n, m), generator=make) % num_kept.unsqueeze(-1)
    fill = torch.where(kept, kept.cumsum(-1) - 1, -1 if zero_fill else others).masked_fill(~real, -1)
    rows = {"kept_slots": kept_slots.to(device), "fill": fill.to(device), "has_zero_fill": zero_fill}
    plan = BlockPlan.from_mask(q_grid, kv_grid, block_mask, **rows)
    plan.check()
    return plan


def random_mask(q_grid, kv_grid, density, *, seed=0, batch=1, heads=2, device=DEVICE):
    """A block mask [B, H, Nq, Nk] with at least one block a row."""
    make = torch.Generator().manual_seed(seed)
    draw = torch.rand(batch, heads, q_grid.num_blocks, kv_grid.num_blocks, generator=make)
    return ((draw < density) | (draw == draw.amin(-1, keepdim=True))).to(device)


def run(engine, inputs, plan, *, scale=None, backward=True):
    """Output and gradients of an engine, by name: `o`, and with `backward` `dq`, `dk`, `dv`."""
    with torch.set_grad_enabled(backward):
        out = block_sparse_attention(*_qkv(inputs), plan, scale=scale, engine=engine)
    return _with_gradients(out, inputs, backward=backward)


def make_tiles(rows, *, keys=64, group=1, transposed=False, pack=1, backward="split") -> Tiles:
    """Tiles for blocks with up to `rows` kept rows, `group` of them a tile of the walk, `pack` a step of the backward.

    Blocks with more take several tiles each, if `group` and `pack` are 1.
    """

    def tile(count, **form):
        return Tile(count * rows, keys, num_warps=8 if count * rows >= 128 else 4, num_stages=2, **form)

    packed = tile(pack, pack=pack)
    return Tiles(
        tile(group, group=group, transposed=transposed), tile(group, group=group), packed, packed, backward=backward
    )


def triton_engine(tiles=None, *, is_tiled=False) -> TritonEngine:
    """The engine with these tiles in place of the table's; `is_tiled`: for tile-major tensors."""
    change = None if tiles is None else lambda *_: tiles
    return TritonEngine(layout="tiled" if is_tiled else "natural", change_tiles=change)


def prepare_tables(plan, *, head_dim, dtype, tiles=None, is_tiled=False):
    """What the engine prepares for q, k and v of this head size and format."""
    like = torch.empty(1, 1, 1, head_dim, dtype=dtype, device=plan.device)
    return triton_engine(tiles, is_tiled=is_tiled).prepare(plan, like)


def run_tiles(inputs, plan, tiles, *, scale=None, is_tiled=False):
    """What `run` gives, from the Triton kernels with these tiles; `is_tiled`: through tile-major copies."""
    scale = inputs.q.shape[-1] ** -0.5 if scale is None else scale
    operator = Operator(plan_stages(triton_engine(tiles, is_tiled=is_tiled), plan, scale=scale))
    out = operator.forward(dict(zip("qkv", _qkv(inputs), strict=True)))
    return _with_gradients(out, inputs, backward=True)


def error_budgets(inputs, plan, exact, *, scale=None, backward=True):
    """How far from `exact`, by name, an engine may be in the worst number.

    That is derived from what plain torch of the same format, with the roundings that any kernel must make, errs by in
    the worst of a few orders of summation.
    """
    dtype = inputs.q.dtype
    eps = torch.finfo(dtype).eps + BUDGET_SUM_ROUNDINGS * torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    budgets = dict.fromkeys(exact, 0.0)
    for results in plain(inputs, plan, scale=scale, backward=backward):
        for name, result in results.items():
            error = BUDGET_FACTOR * max_error(result, exact[name]) + eps * float(exact[name].detach().abs().max())
            budgets[name] = max(budgets[name], error)
    return budgets


def plain(inputs, plan, *, scale=None, backward=True):
    """What `run` gives, from plain torch, for each order of summation, which is one of the backward: `_PlainAttention`.

    The output is made once.
    """
    scale = inputs.q.shape[-1] ** -0.5 if scale is None else scale
    q = plan.gather_kept(plan.q_grid.permute(inputs.q)).flatten(2, 3)
    k, v = plan.kv_grid.permute(inputs.k), plan.kv_grid.permute(inputs.v)
    makes = (torch.Generator().manual_seed(seed) for seed in range(BUDGET_ORDERS))
    orders = [torch.randperm(q.shape[-1], generator=make).to(q.device) for make in makes]
    out = _PlainAttention.apply(q, k, v, reference.prepare(plan), scale, iter(orders))
    filled = plan.fill_output(out.unflatten(2, plan.shape[2:]))
    return [_with_gradients(filled, inputs, backward=True, keep=True) for _ in orders] if backward else [{"o": filled}]


class _PlainAttention(torch.autograd.Function):
    """Masked attention with the roundings of FlashAttention.

    Products of raw operands summed in fp32; the weights and their gradients rounded to the inputs' format before the
    next product; the weights of the backward remade from one log-sum-exp a row and from scores that are summed in
    another order of the head's numbers: each backward takes the next of `orders`.
    """

    @staticmethod
    def forward(ctx, q, k, v, mask, scale, orders):
        wide = torch.promote_types(q.dtype, torch.float32)
        scores = _PlainAttention.scores(q.to(wide), k.to(wide), mask, scale)
        top = scores.amax(-1, keepdim=True).clamp(min=torch.finfo(wide).min / 2)
        weights = (scores - top).exp()
        total = weights.sum(-1, keepdim=True)
        total = total.masked_fill(total == 0, 1)
        out = ((weights.to(q.dtype).to(wide) @ v.to(wide)) / total).to(q.dtype)
        ctx.save_for_backward(q, k, v, out, mask, top + total.log())
        ctx.scale, ctx.orders = scale, orders
        return out

    @staticmethod
    def backward(ctx, do):
        q, k, v, out, mask, lse = ctx.saved_tensors
        wide, order = lse.dtype, next(ctx.orders)
        q, k, v, do_wide = (x.to(wide) for x in (q, k, v, do))
        weights = (_PlainAttention.scores(q[..., order], k[..., order], mask, ctx.scale) - lse).exp()
        delta = (out.to(wide) * do_wide).sum(-1, keepdim=True)
        dscores = (weights * (do_wide @ v.transpose(-1, -2) - delta)).to(do.dtype).to(wide)
        dq, dk = dscores @ k * ctx.scale, dscores.transpose(-1, -2) @ q * ctx.scale
        dv = weights.to(do.dtype).to(wide).transpose(-1, -2) @ do_wide
        return *(x.to(do.dtype) for x in (dq, dk, dv)), None, None, None

    @staticmethod
    def scores(q, k, mask, scale):
        return ((q @ k.transpose(-1, -2)) * scale).masked_fill(~mask, -torch.inf)


def max_error(result, exact):
    """Largest absolute difference; NaN where there is one."""
    return float((result.detach().double() - exact.detach()).abs().max())


def assert_close_to_reference(engine, inputs, plan, *, scale=None, backward=True):
    """Check an engine's output and gradients against the reference in fp64, inside `error_budgets`; returns them."""
    exact = run("reference", inputs.to(torch.float64), plan, scale=scale, backward=backward)
    budgets = error_budgets(inputs, plan, exact, scale=scale, backward=backward)
    results = run(engine, inputs, plan, scale=scale, backward=backward)
    assert {result.dtype for result in results.values()} == {inputs.q.dtype}
    assert_inside(budgets, results, exact, engine)
    return results


def assert_tiles_close(inputs, plan, *choices, scale=None, is_tiled=False):
    """Check what the Triton kernels give with each of these tiles like an engine; returns the results."""
    exact = run("reference", inputs.to(torch.float64), plan, scale=scale)
    budgets = error_budgets(inputs, plan, exact, scale=scale)
    found = [run_tiles(inputs, plan, tiles, scale=scale, is_tiled=is_tiled) for tiles in choices]
    for tiles, results in zip(choices, found, strict=True):
        assert {result.dtype for result in results.values()} == {inputs.q.dtype}
        assert_inside(budgets, results, exact, tiles)
    return found


def assert_inside(budgets, results, exact, label):
    """Check that no number of `results` is farther from `exact` than its budget."""
    for name, result in results.items():
        error = max_error(result, exact[name])
        assert error <= budgets[name], f"{name} of {label}: error {error:.3g}, budget {budgets[name]:.3g}"


def poison_empty(monkeypatch):
    """Make `torch.empty` and `torch.empty_like` return NaN (or a large integer), so that unwritten numbers show."""
    for name in ("empty", "empty_like"):
        make = getattr(torch, name)

        def poisoned(*args, _make=make, **kwargs):
            out = _make(*args, **kwargs)
            # A compiler that traces asks for bools, too.
            large = True if out.dtype == torch.bool else None if out.is_floating_point() else torch.iinfo(out.dtype).max
            return out.fill_(torch.nan if large is None else large)

        monkeypatch.setattr(torch, name, poisoned)


def _qkv(inputs):
    return inputs.q, inputs.k, inputs.v


def _with_gradients(out, inputs, *, backward, keep=False):
    if not backward:
        return {"o": out.detach()}
    gradients = torch.autograd.grad(out, _qkv(inputs), inputs.do, retain_graph=keep)
    return {"o": out.detach(), **dict(zip(("dq", "dk", "dv"), gradients, strict=True))}
