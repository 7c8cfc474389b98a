"""BitStopper: an accelerator that reads keys one bit plane at a time. Simulated: verified and counted, never timed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, FiniteFloat

from bsa_bench.contract import SIMULATION, Cost, MethodOptions, MethodWork, Reference, TensorSpec
from bsa_bench.result import Claims, PassName
from bsa_bench.workload import Workload

if TYPE_CHECKING:
    from torch import Tensor

    from bsa_bench.contract import SimulationEngine
    from bsa_bench.verify.sample import RowSample
    from bsa_kernels.operator import Operator


class BitstopperOptions(MethodOptions):
    """Meanings in docs/methods/bitstopper.md."""

    SHORT: ClassVar[dict[str, str]] = {"bits": "int", "alpha": "alpha"}

    bits: Annotated[int, Field(ge=2, le=16)] = 12
    alpha: Annotated[FiniteFloat, Field(ge=0)] = 0.6
    radius: Annotated[FiniteFloat, Field(gt=0)] = 5.0
    mode: Literal["adaptive", "exact", "fixed"] = "adaptive"
    causal: bool = False


class Bitstopper:
    """One stage, `simulate`."""

    name = "bitstopper"
    Options = BitstopperOptions
    needs: tuple[str, ...] = (SIMULATION,)

    def claims(self, options: BitstopperOptions) -> Claims:
        """Inference only; of causal language models, so bidirectional use is an adaptation."""
        return Claims(
            trains=False,
            causal=options.causal,
            adapted=not options.causal,
            timed=False,
            source="arXiv 2512.06457, by secondary notes; see docs/methods/bitstopper.md",
        )

    def unsupported(self, workload: Workload, options: BitstopperOptions) -> str | None:  # noqa: ARG002
        """Return None: defined on every workload."""
        return None

    def tensors(self, workload: Workload, options: BitstopperOptions) -> dict[str, TensorSpec]:  # noqa: ARG002
        """Return none beside q, k and v."""
        return {}

    def operator(
        self,
        workload: Workload,  # noqa: ARG002
        options: BitstopperOptions,
        engine: SimulationEngine,
        *,
        scale: float,
    ) -> Operator:
        """One stage, which leaves its counters."""
        from bsa_kernels.methods.bitstopper import simulate
        from bsa_kernels.operator import Operator, Stage

        def run(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Any]:
            return engine.simulate(simulate, q, k, v, scale=scale, **options.model_dump())

        return Operator((Stage("simulate", ("q", "k", "v"), ("o", "counters"), run, differentiable=False),))

    def reference(
        self,
        workload: Workload,  # noqa: ARG002
        options: BitstopperOptions,
        tensors: Mapping[str, Tensor],
        state: Mapping[str, Any],
        rows: RowSample,
        head: tuple[int, int],  # noqa: ARG002
        *,
        scale: float,
    ) -> Reference:
        """Softmax over the keys whose exact integer score is near the best; the whole tensors share one step."""
        from bsa_kernels.methods.bitstopper import quantisation_step, reference

        out = reference(
            *(tensors[name] for name in "qkv"),
            scale=scale,
            tokens=rows.tokens,
            q_step=quantisation_step(state["q"], options.bits),
            k_step=quantisation_step(state["k"], options.bits),
            **options.model_dump(),
        )
        return Reference(out.to(tensors["v"].dtype), num_keys=len(tensors["k"]))

    def expected(self, workload: Workload, options: BitstopperOptions) -> Cost:
        """All pairs, as what the simulation itself computes."""
        flop = 4.0 * workload.head_dim * workload.dense_pairs(causal=options.causal)
        return Cost(flop=flop * options.bits / 2, is_selective=False)

    def work(
        self,
        workload: Workload,
        options: BitstopperOptions,  # noqa: ARG002
        state: Mapping[str, Any],
        which: PassName,  # noqa: ARG002
    ) -> MethodWork:
        """Its counters; the density is that of the survivors."""
        found = state["counters"]
        return MethodWork(
            nominal_flop=4.0 * workload.head_dim * found.num_survivors,
            density=found.survivor_share,
            counters=found.as_dict(),
        )


BITSTOPPER = Bitstopper()
