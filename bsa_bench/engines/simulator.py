"""The engine of methods that simulate hardware: runs them, on any device, and is never timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from bsa_bench.contract import SIMULATION
from bsa_bench.result import PassName


class Simulator:
    """Torch, whatever the device."""

    name = "simulator"
    offers = frozenset({SIMULATION})
    expected_ops: tuple[str, ...] = ()

    def version(self) -> str:
        """Torch's version."""
        return f"torch {torch.__version__}"

    def unsupported(self, device: torch.device, dtype: torch.dtype, head_dim: int, *, backward: bool) -> str | None:  # noqa: ARG002
        """Simulations have no backward."""
        return "a simulation of hardware has no backward; run its forward." if backward else None

    def untimed(self, device: torch.device) -> str | None:  # noqa: ARG002
        """Never timed."""
        return "the time of a simulation says nothing of the hardware that it simulates."

    def simulate(self, function: Callable[..., Any], *tensors: Tensor, **options: Any) -> Any:
        """Run a simulation."""
        return function(*tensors, **options)

    def executed_flop(self, contract: str, state: Mapping[str, Any], which: PassName) -> None:  # noqa: ARG002
        """Return None: counters stand in its place."""
        return


SIMULATOR = Simulator()
