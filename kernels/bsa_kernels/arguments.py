"""What a caller may give the public operator: numbers as Python, numpy and torch have them, tensors that it can read.

Each function returns what the code behind it works with, or raises an error that names the argument, what was expected
and what was given. Those that run under a compiler's trace ask for nothing that it cannot follow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from operator import index
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from bsa_kernels.tracing import fixed_number

Layout = Literal["bhld", "blhd"]

_FORMATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def triple(name: str, value: Sequence[int]) -> tuple[int, int, int]:
    """Three integers of at least 1; a sequence, an array or a tensor of them."""
    try:
        # A compiler that traces may know them as symbols: each grid is a compilation of its own.
        numbers = tuple(0 if isinstance(v, bool) else index(v) for v in value)
    except TypeError:
        numbers = ()
    if len(numbers) != 3 or min(numbers) < 1:
        raise ValueError(f"{name}: expected three integers (t, h, w) of at least 1, got {value!r}")
    return numbers


def share(name: str, value: float) -> float:
    """A number above 0 and at most 1."""
    number = _number(name, value, "a share above 0 and at most 1")
    if not 0 < number <= 1:
        raise ValueError(f"{name}: expected a share above 0 and at most 1, got {value!r}")
    return number


def softmax_scale(q: Tensor, scale: float | None) -> float:
    """The factor of the logits, default 1/sqrt(D): a finite number that fp32 holds."""
    if scale is None:
        return 1 / math.sqrt(q.shape[-1])
    number = _number("scale", scale, "a finite number")
    if not abs(number) <= torch.finfo(torch.float32).max:  # so that NaN is none either
        raise ValueError(f"scale: expected a finite number, got {scale!r}")
    return number


def flag(name: str, value: bool) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return value


def natural(name: str, x: Tensor, layout: Layout) -> Tensor:
    """Check one of q, k and v, and view it as [B, H, L, D].

    Raises:
        TypeError: it is no tensor.
        ValueError: its dimensions, format, device or memory layout are none that attention is computed in, it bears
            a forward-mode tangent, or `layout` is none.
    """
    if layout not in ("bhld", "blhd"):
        raise ValueError(f"layout: expected 'bhld' or 'blhd', got {layout!r}")
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor [{_axes(layout)}], got {type(x).__name__}")
    if x.dim() != 4 or not x.is_floating_point():
        raise ValueError(f"{name}: expected a floating [{_axes(layout)}], got {x.dtype} {list(x.shape)}")
    if x.dtype not in _FORMATS:
        raise ValueError(f"{name}: expected float16, bfloat16, float32 or float64, got {x.dtype}; convert it")
    if x.layout is not torch.strided:
        raise ValueError(f"{name}: expected a dense tensor, got one of layout {x.layout}; use to_dense()")
    if x.device.type == "meta":
        raise ValueError(f"{name}: expected a tensor with data, got one on the device meta")
    if x.shape[-1] < 1:
        raise ValueError(f"{name}: expected a head size of at least 1, got {list(x.shape)}")
    if not torch.compiler.is_compiling() and unpack_dual(x).tangent is not None:
        raise ValueError(
            f"{name}: expected a tensor without a forward-mode tangent, for attention has a backward alone here"
        )
    return x.transpose(1, 2) if layout == "blhd" else x


def with_all_heads(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """k and v with as many heads as q: where they have fewer, each serves H / Hkv heads of q in a row.

    Gradients of a shared head are summed. As `enable_gqa` of torch's `scaled_dot_product_attention`, by copies.

    Raises:
        ValueError: q's heads are no multiple of theirs.
    """
    heads, of_keys = q.shape[1], k.shape[1]
    if of_keys == heads or k.shape[1] != v.shape[1]:
        return k, v
    if of_keys < 1 or heads % of_keys:
        raise ValueError(f"k: expected as many heads as q, {heads}, or a divisor of them, got {of_keys}")
    return k.repeat_interleave(heads // of_keys, 1), v.repeat_interleave(heads // of_keys, 1)


def _axes(layout: str) -> str:
    return "B, H, L, D" if layout == "bhld" else "B, L, H, D"


def _number(name: str, value: Any, expected: str) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return fixed_number(value)
    if isinstance(value, Tensor) and value.dim() == 0 and value.requires_grad:
        raise ValueError(f"{name}: expected {expected}, got a tensor that requires a gradient, which would get none")
    if (isinstance(value, Real) and not isinstance(value, bool)) or (
        isinstance(value, Tensor) and value.dim() == 0 and not value.is_complex()
    ):
        return float(value)
    raise ValueError(f"{name}: expected {expected}, got {value!r}")
