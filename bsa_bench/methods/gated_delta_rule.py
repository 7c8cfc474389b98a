"""The gated delta rule (Gated DeltaNet): a causal, linear-time memory in place of softmax attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bsa_bench.contract import DELTA_RULE, Cost, MethodWork, NoOptions, Reference, TensorSpec, by_pass
from bsa_bench.result import Claims, PassName
from bsa_bench.workload import Workload

if TYPE_CHECKING:
    from torch import Tensor

    from bsa_bench.contract import DeltaRuleEngine
    from bsa_bench.verify.sample import RowSample
    from bsa_kernels.operator import Operator


class GatedDeltaRule:
    """One stage, `mix`; queries and keys are normalised inside."""

    name = "gated-delta-rule"
    Options = NoOptions
    needs: tuple[str, ...] = (DELTA_RULE,)

    def claims(self, options: NoOptions) -> Claims:  # noqa: ARG002
        """Causal; no approximation of softmax attention."""
        return Claims(
            causal=True,
            approximates_dense=False,
            source="arXiv 2412.06464, as in InfiniteVL (arXiv 2512.08829); see docs/methods/gated-delta-rule.md",
        )

    def unsupported(self, workload: Workload, options: NoOptions) -> str | None:  # noqa: ARG002
        """Return None: defined on every workload."""
        return None

    def tensors(self, workload: Workload, options: NoOptions) -> dict[str, TensorSpec]:  # noqa: ARG002
        """The log-decay and the write strength, which a model makes of the layer's input."""
        return {"g": TensorSpec("BHL", "log-decay"), "beta": TensorSpec("BHL", "sigmoid")}

    def operator(self, workload: Workload, options: NoOptions, engine: DeltaRuleEngine, *, scale: float) -> Operator:  # noqa: ARG002
        """One stage."""
        from bsa_kernels.operator import Operator, Stage

        names = ("q", "k", "v", "g", "beta")
        return Operator((Stage("mix", names, ("o",), lambda *x: (engine.delta_rule(*x, scale=scale),)),))

    def reference(
        self,
        workload: Workload,  # noqa: ARG002
        options: NoOptions,  # noqa: ARG002
        tensors: Mapping[str, Tensor],
        state: Mapping[str, Any],  # noqa: ARG002
        rows: RowSample,
        head: tuple[int, int],  # noqa: ARG002
        *,
        scale: float,
    ) -> Reference:
        """The recurrence, token by token."""
        import torch

        from bsa_kernels.methods.gated_delta_rule import reference

        # The state is held in fp32 at least, by every implementation.
        out_dtype = tensors["v"].dtype
        wide = [
            x if x.dtype == torch.float64 else x.float() for x in (tensors[n] for n in ("q", "k", "v", "g", "beta"))
        ]
        out = reference(*wide, scale=scale, tokens=rows.tokens).to(out_dtype)
        return Reference(out, num_keys=len(tensors["k"]))

    def expected(self, workload: Workload, options: NoOptions) -> Cost:  # noqa: ARG002
        """The published chunked algorithm."""
        from bsa_kernels.methods.gated_delta_rule.flop import nominal_forward_flop

        return Cost(flop=float(nominal_forward_flop(**shape_of(workload))), is_selective=False)

    def work(self, workload: Workload, options: NoOptions, state: Mapping[str, Any], which: PassName) -> MethodWork:  # noqa: ARG002
        """The published chunked algorithm; there is no density."""
        from bsa_kernels.methods.gated_delta_rule.flop import nominal_backward_flop, nominal_forward_flop

        shape = shape_of(workload)
        forward, backward = nominal_forward_flop(**shape), nominal_backward_flop(**shape)
        return MethodWork(nominal_flop=by_pass(forward, backward, which))


def shape_of(workload: Workload) -> dict[str, int]:
    """The sizes of the rule on a workload; keys and values have the same head dim there."""
    return {
        "batch": workload.batch,
        "heads": workload.heads,
        "tokens": workload.num_tokens,
        "key_dim": workload.head_dim,
        "value_dim": workload.head_dim,
    }


GATED_DELTA_RULE = GatedDeltaRule()
