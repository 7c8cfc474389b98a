"""Dense engines: PyTorch's SDPA with each backend pinned, flash-attn and xFormers.

Pinned means that the backend asked for runs or the call raises; the worker checks by the operators of a profiled call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from bsa_bench.contract import CAUSAL_DENSE, DENSE, by_pass
from bsa_bench.result import PassName

_HALF = (torch.float16, torch.bfloat16)


#: Matrix products over all pairs: scores and output forward; backward, these scores again and four gradients.
_FORWARD_PRODUCTS = 2
_BACKWARD_PRODUCTS = 5


class _DenseOnly:
    """The part that all engines without block plans share."""

    offers = frozenset({DENSE, CAUSAL_DENSE})
    expected_ops: tuple[str, ...] = ()
    backward_products = _BACKWARD_PRODUCTS
    #: Whether the pairs that a causal mask hides are computed all the same.
    computes_hidden = False

    def untimed(self, device: torch.device) -> str | None:  # noqa: ARG002
        """Return None: its time means something wherever it runs."""
        return None

    def executed_flop(self, contract: str, state: Mapping[str, Any], which: PassName) -> float:
        """Whole products over all pairs; over half of them where the mask is causal and its tiles are left out."""
        return dense_flop(
            state["q"],
            which,
            backward_products=self.backward_products,
            causal=contract == CAUSAL_DENSE and not self.computes_hidden,
        )


def dense_flop(q: Tensor, which: PassName, *, backward_products: int, causal: bool = False) -> float:
    """FLOP of a pass of dense attention over q [B, H, L, D]; causal: over the L (L + 1) / 2 pairs that are seen."""
    b, h, length, d = q.shape
    product = 2.0 * b * h * d * (length * (length + 1) // 2 if causal else length**2)
    return by_pass(_FORWARD_PRODUCTS * product, backward_products * product, which)


def interpreted_on_gpu(device: torch.device) -> str | None:
    """Why kernels that Triton interprets on a GPU are not timed, or None where it compiles them."""
    if device.type != "cuda":
        return None
    from triton import knobs

    if not knobs.runtime.interpret:
        return None
    return "TRITON_INTERPRET is set: Triton ran in its interpreter, which tells no speed; unset it to compile kernels."


@dataclass(frozen=True)
class Sdpa(_DenseOnly):
    """`torch.nn.functional.scaled_dot_product_attention` pinned to one backend."""

    name: str
    backend: SDPBackend
    expected_ops: tuple[str, ...]
    on_cpu: str | None = None
    backward_products: int = _BACKWARD_PRODUCTS
    computes_hidden: bool = False

    def version(self) -> str:
        """Torch's version; cuDNN's with it where that computes."""
        cudnn = torch.backends.cudnn.version() if self.backend == SDPBackend.CUDNN_ATTENTION else None
        return f"torch {torch.__version__}" + (f", cuDNN {cudnn}" if cudnn else "")

    def unsupported(self, device: torch.device, dtype: torch.dtype, head_dim: int, *, backward: bool) -> str | None:
        """Ask torch itself, by a call on a small tensor."""
        if device.type == "cpu" and self.on_cpu:
            return self.on_cpu
        q, k, v = (torch.zeros(1, 1, 128, head_dim, dtype=dtype, device=device, requires_grad=backward) for _ in "qkv")
        try:
            with torch.set_grad_enabled(backward):
                self.dense(q, k, v, scale=1.0)
        except RuntimeError as error:
            return (
                f"torch's {self.backend.name} backend refuses {dtype} with head size {head_dim} on {device.type}: "
                f"{str(error).splitlines()[0]} Try another dtype or engine."
            )
        return None

    def dense(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float, causal: bool = False) -> Tensor:
        """Run the pinned backend, or raise."""
        with sdpa_kernel(self.backend):
            return functional.scaled_dot_product_attention(q, k, v, scale=scale, is_causal=causal)


class FlashAttn(_DenseOnly):
    """Tri Dao's flash-attn package."""

    name = "flash-attn"

    def version(self) -> str | None:
        """The installed version."""
        return _installed("flash-attn")

    def unsupported(self, device: torch.device, dtype: torch.dtype, head_dim: int, *, backward: bool) -> str | None:  # noqa: ARG002
        """Needs CUDA, the package, half precision and a head size of at most 256."""
        if device.type != "cuda":
            return "flash-attn runs on NVIDIA GPUs only; use sdpa-flash here."
        if find_spec("flash_attn") is None:
            return "the package flash-attn is not installed; pip install bsa-bench[cuda]."
        if dtype not in _HALF:
            return f"flash-attn takes float16 and bfloat16, not {dtype}; set dtype=bfloat16."
        return f"flash-attn takes head sizes up to 256, not {head_dim}; use sdpa-math." if head_dim > 256 else None

    def dense(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float, causal: bool = False) -> Tensor:
        """`flash_attn_func` on [B, L, H, D] views."""
        from flash_attn import flash_attn_func

        views = (x.transpose(1, 2) for x in (q, k, v))
        out = flash_attn_func(*views, softmax_scale=scale, **({"causal": True} if causal else {}))
        return out.transpose(1, 2)


class XFormers(_DenseOnly):
    """xFormers' `memory_efficient_attention`, which picks its own kernel among those it has."""

    name = "xformers"

    def version(self) -> str | None:
        """The installed version."""
        return _installed("xformers")

    def unsupported(self, device: torch.device, dtype: torch.dtype, head_dim: int, *, backward: bool) -> str | None:
        """Needs CUDA and the package; what it refuses beyond that it says itself."""
        if device.type != "cuda":
            return "xFormers runs on NVIDIA GPUs only; use sdpa-flash here."
        if find_spec("xformers") is None:
            return "the package xformers is not installed; pip install bsa-bench[cuda]."
        if dtype == torch.float64:
            return "xFormers does not take float64; set dtype=bfloat16."
        q = torch.zeros(1, 128, 1, head_dim, dtype=dtype, device=device, requires_grad=backward)
        try:
            self.dense(q.transpose(1, 2), q.transpose(1, 2), q.transpose(1, 2), scale=1.0)
        except (NotImplementedError, ValueError, RuntimeError, ImportError) as error:
            return f"xFormers refuses {dtype} with head size {head_dim} here: {str(error).splitlines()[0]}"
        return None

    def dense(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float, causal: bool = False) -> Tensor:
        """`memory_efficient_attention` on [B, L, H, D] views."""
        from xformers import ops

        options = {"attn_bias": ops.LowerTriangularMask()} if causal else {}
        views = (x.transpose(1, 2) for x in (q, k, v))
        out = ops.memory_efficient_attention(*views, scale=scale, **options)
        return out.transpose(1, 2)


def _installed(package: str) -> str | None:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return None


# It keeps the weights, so that its backward multiplies nothing again, and it computes what a mask hides.
SDPA_MATH = Sdpa(
    "sdpa-math",
    SDPBackend.MATH,
    ("aten::_scaled_dot_product_attention_math",),
    backward_products=4,
    computes_hidden=True,
)
SDPA_FLASH = Sdpa(
    "sdpa-flash",
    SDPBackend.FLASH_ATTENTION,
    ("aten::_scaled_dot_product_flash_attention", "aten::_scaled_dot_product_flash_attention_for_cpu"),
)
SDPA_EFFICIENT = Sdpa(
    "sdpa-efficient",
    SDPBackend.EFFICIENT_ATTENTION,
    ("aten::_scaled_dot_product_efficient_attention",),
    on_cpu="torch has its memory-efficient SDPA backend on GPUs only; use sdpa-flash here.",
)
SDPA_CUDNN = Sdpa(
    "sdpa-cudnn",
    SDPBackend.CUDNN_ATTENTION,
    ("aten::_scaled_dot_product_cudnn_attention",),
    on_cpu="torch has its cuDNN SDPA backend on NVIDIA GPUs only; use sdpa-flash here.",
)
FLASH_ATTN = FlashAttn()
XFORMERS = XFormers()
