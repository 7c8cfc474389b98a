"""Attention by other means than the engines': torch's dense SDPA, and softmax rows in natural token order."""

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel


def dense_attention(inputs, *, scale=None):
    """Output and gradients of torch's unfused SDPA in fp64, by name."""
    exact = inputs.to(torch.float64)
    with sdpa_kernel(SDPBackend.MATH):
        out = functional.scaled_dot_product_attention(exact.q, exact.k, exact.v, scale=scale)
        return _with_gradients(out, exact)


def natural_attention(inputs, plan, *, scale=None):
    """Output and gradients of a plan in fp64, by name, from its dense mask and its source map alone.

    A computed row is a softmax over the keys that its row of the mask lets through; a row without any is zero; every
    token copies the row of its source. No tiles, no lists; autograd does the rest.
    """
    exact = inputs.to(torch.float64)
    scale = exact.q.shape[-1] ** -0.5 if scale is None else scale
    masks, sources = plan.dense_mask(), plan.source_of_token()
    heads = []
    for b, h in torch.cartesian_prod(*(torch.arange(n) for n in exact.q.shape[:2])).tolist():
        mask, source = masks[b, h], sources[b, h]
        rows = mask.any(-1).nonzero().flatten()
        scores = scale * exact.q[b, h, rows] @ exact.k[b, h].T
        weights = torch.softmax(scores.masked_fill(~mask[rows], -torch.inf), dim=-1)
        computed = torch.zeros_like(exact.v[b, h]).index_copy(0, rows, weights @ exact.v[b, h])
        heads.append(torch.where((source >= 0).unsqueeze(-1), computed[source.clamp(min=0)], 0))
    return _with_gradients(torch.stack(heads).view_as(exact.q), exact)


def _with_gradients(out, inputs):
    gradients = torch.autograd.grad(out, (inputs.q, inputs.k, inputs.v), inputs.do)
    return dict(zip(("o", "dq", "dk", "dv"), (out.detach(), *gradients), strict=True))
