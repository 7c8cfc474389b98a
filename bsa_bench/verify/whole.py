"""The check of all rows where the oracle is asked for a sample: another engine's output, and what differs most from it.

The other engine is believed in nothing: the query blocks where the two differ most, and the largest differences between
calls of the engine itself, are added to the sample, and the oracle judges. What is left is bounded: outside of the
sample no number differs from the other engine's by more than is stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from bsa_bench.verify.calls import Calls
from bsa_kernels import BlockGrid
from bsa_kernels.operator import Operator

#: Query blocks that are added to the sample by each comparison.
NUM_SUSPECTS = 2


@dataclass(frozen=True)
class Witness:
    """Another operator of the same method: `name` is its engine's."""

    name: str
    operator: Operator


@dataclass(frozen=True)
class Suspects:
    """`blocks` differ most; `by_token` [L] is the largest difference of an output from the other engine's, at a token.

    None where there is no other engine.
    """

    blocks: Tensor
    by_token: Tensor | None


def find_suspects(
    calls: Calls, witness: Witness | None, tensors: Mapping[str, Tensor], grad: Tensor | None, grid: BlockGrid
) -> Suspects:
    """Where outputs, and the gradient of q by the whole dO, differ most from the other engine's and between calls."""
    outputs = list(calls.outputs.values())
    found = [_by_token(a, b) for a, b in pairwise(outputs)]
    by_token = None
    if witness is not None:
        leaves = {name: x.detach().requires_grad_(grad is not None and name == "q") for name, x in tensors.items()}
        with torch.set_grad_enabled(grad is not None):
            other = witness.operator.forward(leaves)
        by_token = torch.stack([_by_token(output, other.detach()) for output in outputs]).amax(0)
        found.append(by_token)
        if grad is not None and "q" in calls.gradients:
            (grad_q,) = torch.autograd.grad(other, leaves["q"], grad)
            found.append(_by_token(calls.gradients["q"], grad_q))
    block_of_token = grid.slot_of_token(tensors["q"].device) // grid.block_size
    blocks = [torch.zeros(0, dtype=torch.long)]
    for x in found:
        by_block = torch.zeros(grid.num_blocks, dtype=x.dtype, device=x.device)
        worst = by_block.scatter_reduce(0, block_of_token, x, "amax").topk(min(NUM_SUSPECTS, grid.num_blocks))
        blocks.append(worst.indices[worst.values > 0].cpu())
    return Suspects(torch.cat(blocks), by_token)


def _by_token(a: Tensor, b: Tensor) -> Tensor:
    """[L] largest difference of a token's numbers; infinite where one is NaN."""
    worst = torch.zeros(a.shape[2], device=a.device)
    for one, other in zip(a.flatten(0, 1), b.flatten(0, 1), strict=True):  # a head at a time: short of memory
        difference = (one.float() - other.float()).abs().amax(-1)
        worst = torch.maximum(worst, difference.nan_to_num(nan=torch.inf, posinf=torch.inf))
    return worst
