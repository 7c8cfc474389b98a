"""The engine of this project's kernels for CPUs: C++ for any instruction set, compiled on first use, see `build`.

Forward and backward walk the block mask of a plan, read q, k and v where they are, in natural or tile-major order and
with any strides, and write the filled output. Sums are in fp32 for 16-bit formats. Results are the same bits for any
number of threads, of which a call starts as many as `torch.get_num_threads()` says.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bsa_kernels.block_engine import Order, Passes
from bsa_kernels.cpp.build import BuildError
from bsa_kernels.cpp.library import DTYPES, load
from bsa_kernels.engines.cpu import ops
from bsa_kernels.engines.cpu.ops import PlanTables
from bsa_kernels.plan import BlockPlan


@dataclass(frozen=True)
class CpuEngine:
    """The kernels, for tensors in one order. Attributes: see `BlockEngine`."""

    name: str = "cpu"
    layout: Order = "natural"
    fills: bool = True
    runs_triton: bool = False
    runs_cpp: bool = True
    gives_lse: bool = True

    def unsupported(self, device: torch.device, dtype: torch.dtype, head_dim: int, *, backward: bool) -> str | None:  # noqa: ARG002
        """See `BlockEngine`. Compiles the kernels where they are not in the cache."""
        if device.type != "cpu":
            return f"the kernels run on CPUs, not on {device.type}; move the tensors, or use the engine triton."
        if dtype not in DTYPES:
            known = ", ".join(str(known).removeprefix("torch.") for known in DTYPES)
            return f"the kernels take {known}, not {str(dtype).removeprefix('torch.')}; convert."
        try:
            load()
        except BuildError as error:
            return f"{str(error).removesuffix('.')}; or use the engine gather."
        return None

    def unsupported_plan(self, plan: BlockPlan) -> str | None:  # noqa: ARG002
        """Return None: every plan runs."""
        return None

    def prepare(self, plan: BlockPlan, like: Tensor) -> PlanTables:  # noqa: ARG002
        """Bring the plan into the operators' form."""
        return ops.make_tables(plan, self.layout)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        plan: BlockPlan,  # noqa: ARG002
        prepared: PlanTables,
        *,
        scale: float,
    ) -> Tensor:
        """Attend and fill: o like q."""
        return ops.attend(q, k, v, prepared, scale=scale)

    def attend_lse(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        plan: BlockPlan,  # noqa: ARG002
        prepared: PlanTables,
        *,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        """See `LseRunner`."""
        return ops.attend_lse(q, k, v, prepared, scale=scale)

    def executed_flop(
        self, plan: BlockPlan, head_dim: int, which: Passes, *, dtype: torch.dtype = torch.bfloat16
    ) -> int:
        """See `BlockEngine`: real keys, less tiles that the rule hides, by the vectors with a row that lists them.

        Two products forward, five backward; the two for dk and dv have the rows from the first that lists to the last,
        and a padded head dim.
        """
        passes = {"forward": (False,), "backward": (True,), "forward+backward": (False, True)}[which]
        return sum(ops.executed_flop(plan, head_dim, dtype, is_backward=is_backward) for is_backward in passes)


CPU = CpuEngine()
CPU_TILED = CpuEngine(layout="tiled")
