"""Merging streams: attention over several disjoint sets of keys, computed apart, made one softmax over all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def merge_streams(outs: Sequence[Tensor], lses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Merge outputs [..., D] by their log-sum-exps [...] (natural log) into those over all keys. Differentiable.

    A stream that saw nothing has log-sum-exp -inf and weighs nothing; a row that no stream saw anything for gives zero
    and -inf, and zero gradients. Weights are computed in the format of the log-sum-exps, the output is in that of the
    streams.

    Raises:
        ValueError: no stream, or outputs and log-sum-exps that do not belong together.
    """
    if not outs or len(outs) != len(lses):
        raise ValueError(f"outs, lses: expected one log-sum-exp for each stream, got {len(outs)} and {len(lses)}")
    shape = outs[0].shape
    for out, lse in zip(outs, lses, strict=True):
        if out.shape != shape or lse.shape != shape[:-1]:
            raise ValueError(
                f"outs, lses: expected {list(shape)} and {list(shape[:-1])} for every stream, got "
                f"{list(out.shape)} and {list(lse.shape)}"
            )
    sizes = torch.stack(tuple(lses))
    top = sizes.detach().amax(0)
    empty = top == -torch.inf
    top = top.masked_fill(empty, 0)
    weights = (sizes - top).exp()
    total = weights.sum(0).masked_fill(empty, 1)
    shares = (weights / total).unsqueeze(-1)
    merged = shares[0] * outs[0]
    for share, out in zip(shares[1:], outs[1:], strict=True):
        merged = merged + share * out
    return merged.to(outs[0].dtype), (top + total.log()).masked_fill(empty, -torch.inf)
