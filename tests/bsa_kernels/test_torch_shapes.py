"""`torch.compile` of a model whose resolution, frames, batch or heads change: the values, and how often it compiles."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from bsa_kernels import bsa_attention, make_bsa_plan, tile_permute, tile_restore

BLOCK = (2, 4, 4)
GRIDS = [(2, 4, 4), (2, 4, 6), (4, 4, 4)]
ENGINES = ["cpu", "gather", "reference"]


def attend(q, k, v, grid, engine):
    return bsa_attention(q, k, v, grid=grid, block=BLOCK, kv_density=0.5, engine=engine)


def attend_tiled(q, k, v, grid, engine):
    q, k, v = (tile_permute(x, grid=grid, block=BLOCK) for x in (q, k, v))
    o = bsa_attention(q, k, v, grid=grid, block=BLOCK, kv_density=0.5, engine=engine, tiled=True)
    return tile_restore(o, grid=grid, block=BLOCK)


def plan_and_attend(q, k, v, grid, engine):
    """The keys are changed by what is traced, as by RoPE, and the output is used."""
    return attend(q, k * 0.5, v, grid, engine) + q


def tensors(grid, *, batch=1, heads=2):
    t, h, w = grid
    generator = torch.Generator().manual_seed(t * h * w + batch + heads)
    shape = (batch, heads, t * h * w, 8)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3)]


def with_gradients(function, given, grid, engine):
    out = function(*given, grid, engine)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), given)]


def assert_alike(compiled, function, given, grid, engine):
    found, expected = (with_gradients(each, given, grid, engine) for each in (compiled, function))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def compile_counted(function, dynamic):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    return torch.compile(function, fullgraph=True, backend=counter, dynamic=dynamic), counter


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [None, True, False])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("function", [attend, attend_tiled, plan_and_attend], ids=lambda f: f.__name__)
def test_each_grid_is_compiled_once_and_gives_the_eager_values_and_gradients(function, engine, dynamic):
    compiled, counter = compile_counted(function, dynamic)
    counts = []
    for grid in [*GRIDS, *reversed(GRIDS)]:  # each a second time, known by then
        assert_alike(compiled, function, tensors(grid), grid, engine)
        counts.append(counter.frame_count)
    first = counts[0]  # torch calls a backend twice for the first frame where all is symbolic
    assert counts == [first, first + 1, first + 2, *[first + 2] * 3]


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("engine", ENGINES)
def test_batches_and_heads_change_too(engine, dynamic):
    compiled, counter = compile_counted(attend, dynamic)
    sizes = [{"batch": 1}, {"batch": 2}, {"batch": 3}, {"heads": 3}, {"batch": 2, "heads": 3}]
    counts = []
    for size in sizes * 2:
        assert_alike(compiled, attend, tensors(GRIDS[1], **size), GRIDS[1], engine)
        counts.append(counter.frame_count - (counts[0] if counts else 0))
    assert counts[1:] == [1, 2, 3, 4, *[4] * 5]


@pytest.mark.slow
def test_flex_runs_untraced_at_every_grid():
    torch._dynamo.reset()
    compiled = torch.compile(attend, backend="eager")
    for grid in GRIDS[:2]:
        given = [x.detach().float() for x in tensors(grid)]
        expected = attend(*given, grid, "reference")
        torch.testing.assert_close(compiled(*given, grid, "flex"), expected, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [None, True])
def test_plans_are_made_untraced_at_every_grid(dynamic):
    torch._dynamo.reset()

    def plan(q, k, grid):
        return make_bsa_plan(q, k, grid=grid, block=BLOCK)

    compiled = torch.compile(plan, backend="eager", dynamic=dynamic)
    for grid in GRIDS:
        q, k, _ = tensors(grid)
        assert compiled(q, k, grid).digest() == plan(q, k, grid).digest()


@pytest.mark.slow
def test_shares_and_scales_that_change_are_compiled_anew():
    torch._dynamo.reset()

    def function(q, k, v, share, scale):
        return bsa_attention(q, k, v, grid=GRIDS[0], block=BLOCK, kv_density=share, scale=scale, engine="cpu")

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    given = tensors(GRIDS[0])
    for share in (0.3, 0.6, 0.9, 0.3):
        for scale in (0.1, 0.4):
            torch.testing.assert_close(compiled(*given, share, scale), function(*given, share, scale))
