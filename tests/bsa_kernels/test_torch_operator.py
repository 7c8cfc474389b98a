"""Operators of ours: what torch knows of them, and that calling them loads no compiler."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from bsa_kernels import BlockGrid, bsa_attention, grid
from bsa_kernels.engines.cpu import ops as cpu_ops
from bsa_kernels.torch_operator import torch_operator

SOURCES = Path(grid.__file__).parents[1]
EAGER = """
import sys
import torch
from bsa_kernels import bsa_attention
q, k, v = (torch.randn(1, 2, 128, 16, requires_grad=True) for _ in range(3))
bsa_attention(q, k, v, grid=(2, 8, 8), engine="{engine}").sum().backward()
assert all(x.grad.isfinite().all() for x in (q, k, v))
print([name for name in ("torch._dynamo", "torch._inductor") if name in sys.modules])
"""


@pytest.mark.parametrize("engine", ["cpu", "gather", "reference"])
def test_eager_calls_load_no_compiler(engine):
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(SOURCES)!r})" + EAGER.format(engine=engine)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_the_schema_is_that_of_the_annotations():
    schema = str(grid._permute._schema)
    assert schema == "bsa_kernels::permute(Tensor x, SymInt[] sides, bool to_tiles) -> Tensor"
    assert torch.Tag.pt2_compliant_tag in grid._permute.tags


def test_a_kernel_of_one_device_says_so_elsewhere():
    x = torch.empty(1, 1, 8, 4, device="meta")
    tables = [torch.empty(1, dtype=torch.int32, device="meta")] * 4
    o, _ = cpu_ops._attend(x, x, x, *tables, [1] * 16, 1.0)  # the fake
    assert o.shape == x.shape


def test_what_has_no_gradient_says_so_when_it_is_differentiated():
    q = torch.randn(1, 1, 64, 8, requires_grad=True)
    o = bsa_attention(q, q, q, grid=(4, 4, 4), engine="cpu")
    (dq,) = torch.autograd.grad(o.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match=r"cpu_attend_backward\.default was differentiated, and has no auto"):
        dq.sum().backward()


def test_a_linear_operator_is_differentiated_twice():
    x = torch.randn(1, 1, 8, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: grid._permute(x, [2, 2, 2, 2, 2, 1], True), x)


@torch_operator("test_results")
def results(x: Tensor, others: list[Tensor], how: str) -> tuple[Tensor, Tensor]:
    whole = x.clone()
    return {
        "apart": (whole, whole.clone()),
        "argument": (whole, x),
        "view of an argument": (whole, x[1:]),
        "in a list": (others[0].view(-1), whole),
        "each other": (whole, whole[1:]),
        "empty": (x.new_empty(0), x.new_empty(0)),
    }[how]


@pytest.mark.parametrize("how", ["apart", "empty"])
def test_results_with_memory_of_their_own_pass(how):
    x = torch.arange(3.0)
    for found in results(x, [x], how):
        assert torch.equal(found, x if how == "apart" else x[:0])


@pytest.mark.parametrize("how", ["argument", "view of an argument", "in a list", "each other"])
def test_a_result_that_shares_memory_is_an_error(how):
    with pytest.raises(RuntimeError, match="test_results returns a tensor that shares memory"):
        results(torch.arange(3.0), [torch.zeros(2, 2)], how)


@pytest.mark.slow
def test_no_compiler_traces_what_an_operator_runs_where_it_is_called_between_compiled_pieces():
    seen = []

    @torch_operator("test_doubled")
    def doubled(x: Tensor) -> Tensor:
        seen.append(torch.compiler.is_compiling())
        return x * 2

    @torch._dynamo.disable(recursive=False)  # what it calls is traced
    def between(x):
        return doubled(x)

    torch._dynamo.reset()
    x, counter = torch.arange(3.0), CompileCounter()
    assert torch.equal(torch.compile(lambda x: between(x + 1) + 1, backend=counter)(x), (x + 1) * 2 + 1)
    assert seen == [False]
    assert counter.op_count == 2


@pytest.mark.slow
def test_a_backward_inside_a_function_that_torch_compiles_in_pieces_gives_the_same():
    made = BlockGrid((3, 5, 4), (2, 4, 4))

    def function(x):
        (made.permute(x) ** 2).sum().backward()
        return x.grad * 1

    torch._dynamo.reset()
    x = torch.randn(1, 2, 60, 8)
    found = [each(x.clone().requires_grad_()) for each in (function, torch.compile(function, backend="aot_eager"))]
    assert torch.equal(*found)
    torch.testing.assert_close(found[0], 2 * x)
