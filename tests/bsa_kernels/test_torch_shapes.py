"""`torch.compile` of a model whose resolution or number of frames changes."""

import pytest
import torch

from bsa_kernels import bsa_attention


def attend(q, k, v, grid):
    return bsa_attention(q, k, v, grid=grid)


@pytest.mark.slow
@pytest.mark.parametrize(("dynamic", "grids"), [(None, [(4, 8, 8), (4, 8, 12), (8, 8, 8)]), (True, [(4, 8, 8)])])
def test_each_grid_gives_the_eager_values(dynamic, grids):
    torch._dynamo.reset()
    compiled = torch.compile(attend, backend="eager", dynamic=dynamic)
    for t, h, w in grids:
        given = [torch.randn(1, 2, t * h * w, 32) for _ in range(3)]
        torch.testing.assert_close(compiled(*given, (t, h, w)), attend(*given, (t, h, w)), atol=1e-5, rtol=0)
