"""The engines `reference` and `gather`, which are torch code, inside `torch.compile` and `torch.export`."""

import pytest
import torch
from kernel_helpers import DEVICE

from bsa_kernels import block_sparse_attention, bsa_attention, make_bsa_plan, tile_permute
from bsa_kernels.engines.traced import TracedEngine
from bsa_kernels.methods.bsa.options import BsaOptions

GRID = (4, 4, 7)


def of_engine(engine, **options):
    """Attention with this engine as a function, on small tensors in natural order."""
    generator = torch.Generator().manual_seed(3)
    tensors = [torch.randn(1, 2, 112, 8, generator=generator, dtype=torch.float64).to(DEVICE) for _ in range(3)]
    options = {"grid": GRID, "block": (2, 4, 4), "kv_density": 0.3, "engine": engine, **options}
    return lambda q, k, v: bsa_attention(q, k, v, **options), [x.requires_grad_() for x in tensors]


def with_gradients(function, tensors):
    out = function(*tensors)
    out = out if isinstance(out, tuple) else (out,)
    loss = sum((x * torch.linspace(-1, 1, x.numel(), device=x.device).view(x.shape)).sum() for x in out)
    return [*(x.detach() for x in out), *torch.autograd.grad(loss, tensors)]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"fill": "zero"}, {"tiled": True}, {"layout": "blhd"}], ids=repr)
@pytest.mark.parametrize("engine", ["reference", "gather"])
def test_engines_of_torch_compile_whole_with_gradients(engine, options):
    function, tensors = of_engine(engine, **options)
    if options.get("tiled"):
        tensors = [tile_permute(x.detach(), grid=GRID, block=(2, 4, 4)).requires_grad_() for x in tensors]
    if options.get("layout"):
        tensors = [x.detach().transpose(1, 2).requires_grad_() for x in tensors]
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for found, expected in zip(with_gradients(compiled, tensors), with_gradients(function, tensors), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["reference", "gather"])
def test_engines_of_torch_compile_a_plan_with_its_log_sum_exp(engine):
    _, tensors = of_engine(engine)
    plan = make_bsa_plan(*tensors[:2], grid=GRID, block=(2, 4, 4), kv_density=0.3, fill="zero")

    def function(q, k, v):
        o, lse = block_sparse_attention(q, k, v, plan, engine=engine, return_lse=True)
        return o, lse.masked_fill(lse.isinf(), 0)

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for found, expected in zip(with_gradients(compiled, tensors), with_gradients(function, tensors), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["reference", "gather"])
def test_engines_of_torch_are_exported(engine):
    function, tensors = of_engine(engine)

    class Attention(torch.nn.Module):
        def forward(self, q, k, v):
            return function(q, k, v)

    tensors = [x.detach() for x in tensors]
    program = torch.export.export(Attention(), tuple(tensors))
    assert torch.equal(program.module()(*tensors), function(*tensors))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["reference", "gather"])
def test_the_operators_of_torch_engines_pass_torch_s_own_check(engine):
    q, k, v = of_engine(engine)[1]
    plan = make_bsa_plan(q, k, grid=GRID, block=(2, 4, 4), kv_density=0.3)
    code = TracedEngine(engine, "natural").prepare(plan, q)
    tables = (plan.kept_slots, plan.num_kept, plan.fill, plan.block_bits)
    for with_lse in (False, True):
        torch.library.opcheck(
            torch.ops.bsa_kernels.engine_attend.default, (q, k, v, *tables, code, engine, 0.3, with_lse)
        )
    detached = [x.detach() for x in (q, k, v)]
    grad_lse = torch.ones(plan.shape, dtype=q.dtype, device=q.device)
    for given in (None, grad_lse):
        torch.library.opcheck(
            torch.ops.bsa_kernels.engine_attend_backward.default,
            (torch.ones_like(detached[0]), given, *detached, *tables, code, engine, 0.3),
        )
    options = BsaOptions(grid=GRID, block=(2, 4, 4)).code
    torch.library.opcheck(torch.ops.bsa_kernels.bsa_select_torch.default, (*detached[:2], options, 0.3, False))


@pytest.mark.slow
def test_a_second_derivative_of_compiled_gather_raises():
    function, tensors = of_engine("gather")
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="eager")
    (dq,) = torch.autograd.grad(compiled(*tensors).square().sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        torch.autograd.grad(dq.sum(), tensors[1], allow_unused=True)
