"""Operators of ours: what torch knows of them, and that calling them loads no compiler."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bsa_kernels import bsa_attention, grid
from bsa_kernels.engines.cpu import ops as cpu_ops

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
