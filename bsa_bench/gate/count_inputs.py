"""Inputs of counted cases: the same numbers on every machine, so that a plan is the same plan.

The inputs of a run are made in fp32, whose last digit depends on the processor's vector width; rounded to 16 bits, a
few elements of a million come out otherwise, and with them a decision of the selection now and then. These are made in
double precision of integers' quotients, so that they round alike.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bsa_bench.workload import Workload

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

_WAVES = 16
_MAX_PERIODS = 3
_NOISE = 0.5


def make_inputs(workload: Workload) -> dict[str, Tensor]:
    """q, k and v [B, H, L, D] in the dtype of a workload, by the seed of its input alone.

    Tokens are features of smooth waves over the grid, q and k two similar projections of them with noise, so that
    neighbours are alike and blocks are not; v is noise.
    """
    import numpy as np
    import torch

    # Of all of numpy's generators the one whose stream is frozen.
    random = np.random.RandomState(workload.input.seed)
    batch, heads, length, width = workload.batch, workload.heads, workload.num_tokens, workload.head_dim

    def uniform(*shape: int) -> NDArray[np.float64]:
        return 2 * random.random_sample(shape) - 1

    axes = np.meshgrid(*(np.arange(side) / side for side in workload.token_grid), indexing="ij")
    place = np.stack(axes, -1).reshape(length, 3)
    periods = random.randint(-_MAX_PERIODS, _MAX_PERIODS + 1, (batch, 3, _WAVES))
    features = np.cos(2 * math.pi * (place @ periods + uniform(batch, 1, _WAVES)))[:, None]  # [B, 1, L, waves]
    by_q = uniform(heads, _WAVES, width)
    by_k = by_q + uniform(heads, _WAVES, width)
    made = {
        "q": features @ by_q + _NOISE * uniform(batch, heads, length, width),
        "k": features @ by_k + _NOISE * uniform(batch, heads, length, width),
        "v": uniform(batch, heads, length, width),
    }
    return {name: torch.from_numpy(x).to(getattr(torch, workload.dtype)) for name, x in made.items()}
