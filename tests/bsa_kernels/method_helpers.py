"""Running block methods in tests: the one place that knows how an engine is called, draws, and gradients by name."""

import torch

from bsa_kernels.engines import get_engine
from bsa_kernels.operator import Operator, Stage


def attention_stages(engine, q_grid, kv_grid, select, build, *, scale, reads=("q", "k"), out="o"):
    """Select from the state's `reads`, build the plan, attend and fill, on an engine of kept rows."""
    module = get_engine(engine)

    def plan(*values):
        made = build(select(*values))
        made.check()
        return made, module.prepare(made, values[0])

    def attend(q, k, v, made, prepared):
        tiles = q_grid.permute(q), kv_grid.permute(k), kv_grid.permute(v)
        return (made.fill_output(module.attend(*tiles, made, prepared, scale=scale)),)

    return (
        Stage("plan", (), ("plan", "prepared"), plan, constants=reads, differentiable=False),
        Stage("attend", ("q", "k", "v"), (out,), attend, constants=("plan", "prepared")),
    )


def draw(tokens, *names, batch=2, heads=2, dim=4, seed=0):
    """Normal fp64 tensors [B, H, L, D] by name."""
    make = torch.Generator().manual_seed(seed)
    return {name: torch.randn(batch, heads, tokens, dim, generator=make, dtype=torch.float64) for name in names}


def gradients(run, given):
    """What `run(tensors)` gives, and the gradients of all tensors under a fixed dO, by name."""
    leaves = {name: x.clone().requires_grad_() for name, x in given.items()}
    out = run(leaves)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=out.dtype)
    found = torch.autograd.grad(out, list(leaves.values()), grad)
    return {"o": out.detach(), **dict(zip(leaves, found, strict=True))}


def assert_same(operator: Operator, naive, given):
    """Assert that output and all gradients of an operator, whole and by stages, are those of a naive function."""
    want = gradients(lambda t: naive(**t), given)
    got = gradients(operator.forward, given)
    grad = torch.randn(want["o"].shape, generator=torch.Generator().manual_seed(9), dtype=want["o"].dtype)
    state, staged = operator.run_staged(given, lambda _: None, grad)
    assert got.keys() == want.keys() == {"o", *staged}
    for name, x in want.items():
        torch.testing.assert_close(got[name], x, msg=lambda text, name=name: f"{name}: {text}")
        torch.testing.assert_close(state["o"] if name == "o" else staged[name], x)


def softmax_rows(q, k, v, seen, scale):
    """One query [D] over the keys [.., D] whose numbers `seen` lists; from the definition."""
    keys = sorted(seen)
    weights = torch.stack([(q * k[j]).sum() * scale for j in keys]).softmax(0)
    return sum(weight * v[j] for weight, j in zip(weights, keys, strict=True))


def block_members(grid, block):
    """The tokens of each block, blocks and tokens in (t, h, w) order, by counting."""
    members = {}
    for t in range(grid[0]):
        for h in range(grid[1]):
            for w in range(grid[2]):
                where = (t // block[0], h // block[1], w // block[2])
                members.setdefault(where, []).append((t * grid[1] + h) * grid[2] + w)
    return [members[where] for where in sorted(members)]
