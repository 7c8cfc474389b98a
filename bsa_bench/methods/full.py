"""Dense attention: every query sees every key, or every earlier one. What all others are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bsa_bench.contract import CAUSAL_DENSE, DENSE, PASS_FACTOR, Cost, MethodWork, NoOptions, Reference, TensorSpec
from bsa_bench.result import Claims, PassName
from bsa_bench.workload import Workload

if TYPE_CHECKING:
    from torch import Tensor

    from bsa_bench.contract import DenseEngine
    from bsa_bench.verify.sample import RowSample
    from bsa_kernels.operator import Operator


class Full:
    """Dense attention, bidirectional or causal."""

    Options = NoOptions

    def __init__(self, name: str, *, causal: bool) -> None:
        self.name = name
        self.needs: tuple[str, ...] = (CAUSAL_DENSE,) if causal else (DENSE,)
        self._causal = causal

    def claims(self, options: NoOptions) -> Claims:  # noqa: ARG002
        """Dense."""
        return Claims(is_dense=True, causal=self._causal)

    def unsupported(self, workload: Workload, options: NoOptions) -> str | None:  # noqa: ARG002
        """Return None: defined on every workload."""
        return None

    def tensors(self, workload: Workload, options: NoOptions) -> dict[str, TensorSpec]:  # noqa: ARG002
        """Return none beside q, k and v."""
        return {}

    def operator(self, workload: Workload, options: NoOptions, engine: DenseEngine, *, scale: float) -> Operator:  # noqa: ARG002
        """One stage, `attend`."""
        from bsa_kernels.operator import Operator, Stage

        # Third parties' engines need not know of `causal` to be dense.
        extra = {"causal": True} if self._causal else {}
        return Operator(
            (Stage("attend", ("q", "k", "v"), ("o",), lambda q, k, v: (engine.dense(q, k, v, scale=scale, **extra),)),)
        )

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
        """Softmax attention over all keys, or all earlier ones."""
        from bsa_bench.verify.oracle import dense_reference

        return dense_reference(tensors, rows, scale=scale, causal=self._causal)

    def expected(self, workload: Workload, options: NoOptions) -> Cost:  # noqa: ARG002
        """All pairs."""
        flop = 4.0 * workload.head_dim * workload.dense_pairs(causal=self._causal)
        return Cost(flop=flop, is_selective=False, sparsity=0.0)

    def work(self, workload: Workload, options: NoOptions, state: Mapping[str, Any], which: PassName) -> MethodWork:  # noqa: ARG002
        """All pairs."""
        flop = self.expected(workload, options).flop * PASS_FACTOR[which]
        return MethodWork(nominal_flop=flop, density=1.0, sparsity=0.0)


FULL = Full("full", causal=False)
FULL_CAUSAL = Full("full-causal", causal=True)
