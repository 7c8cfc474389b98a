"""Engines of the gated delta rule: the recurrence itself, its chunked form in torch, and flash-linear-attention."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from bsa_bench.contract import DELTA_RULE, by_pass
from bsa_bench.engines.dense import interpreted_on_gpu
from bsa_bench.result import PassName
from bsa_kernels.methods import gated_delta_rule


class _DeltaRule:
    """The part that they share."""

    offers = frozenset({DELTA_RULE})
    expected_ops: tuple[str, ...] = ()

    def version(self) -> str | None:
        """Torch's version."""
        return f"torch {torch.__version__}"

    def unsupported(self, device: torch.device, dtype: torch.dtype, head_dim: int, *, backward: bool) -> str | None:  # noqa: ARG002
        """Return None: torch alone, on every device."""
        return None

    def untimed(self, device: torch.device) -> str | None:  # noqa: ARG002
        """Return None: its time means something wherever it runs."""
        return None


class Recurrence(_DeltaRule):
    """Token by token, as it is defined."""

    name = "recurrence"

    def delta_rule(self, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, *, scale: float) -> Tensor:
        """L steps of small products."""
        return gated_delta_rule.recurrence(q, k, v, g, beta, scale=scale)[0]

    def executed_flop(self, contract: str, state: Mapping[str, Any], which: PassName) -> float:  # noqa: ARG002
        """Of each token three products of the state [K, V] with a vector; twice that backward."""
        b, h, length, key_dim = state["q"].shape
        forward = 3.0 * 2 * b * h * length * key_dim * state["v"].shape[-1]
        return by_pass(forward, 2 * forward, which)


class Chunked(_DeltaRule):
    """In chunks of 64 tokens, by torch's batched products; what users get on a CPU."""

    name = "chunked"

    def delta_rule(self, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, *, scale: float) -> Tensor:
        """Linear in L."""
        return gated_delta_rule.chunked(q, k, v, g, beta, scale=scale)[0]

    def executed_flop(self, contract: str, state: Mapping[str, Any], which: PassName) -> float:  # noqa: ARG002
        """Products and triangular solves, the padding of the last chunk included."""
        b, h, length, key_dim = state["q"].shape
        sizes = {"batch": b, "heads": h, "tokens": length, "key_dim": key_dim, "value_dim": state["v"].shape[-1]}
        forward = gated_delta_rule.chunked_forward_flop(**sizes).total
        return by_pass(forward, gated_delta_rule.chunked_backward_flop(**sizes).total, which)


class Fla(_DeltaRule):
    """`chunk_gated_delta_rule` of flash-linear-attention."""

    name = "fla"

    def version(self) -> str | None:
        """The installed version."""
        try:
            return f"flash-linear-attention {version('flash-linear-attention')}"
        except PackageNotFoundError:
            return None

    def unsupported(self, device: torch.device, dtype: torch.dtype, head_dim: int, *, backward: bool) -> str | None:  # noqa: ARG002
        """Needs CUDA, the package, and half precision."""
        return gated_delta_rule.fla_unsupported(device, dtype, head_dim)

    def untimed(self, device: torch.device) -> str | None:
        """Its kernels are Triton's: interpreted, their time says nothing."""
        return interpreted_on_gpu(device)

    def delta_rule(self, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, *, scale: float) -> Tensor:
        """Its kernels."""
        return gated_delta_rule.fla(q, k, v, g, beta, scale=scale, output_final_state=False)[0]

    def executed_flop(self, contract: str, state: Mapping[str, Any], which: PassName) -> None:  # noqa: ARG002
        """Return None: what its kernels recompute is not known here."""
        return


RECURRENCE = Recurrence()
CHUNKED = Chunked()
FLA = Fla()
