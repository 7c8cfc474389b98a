"""The contract: what a method and an engine tell the bench about themselves, and all that its core knows of either.

A **method** says what is attended: the tensors it reads, the operator it runs, the facts that reports print. An
**engine** says who computes it. A pair `method@engine` exists if the engine `offers` all that the method `needs`. Both
register in `bsa_bench.catalog`; third parties' through the entry-point groups `bsa_bench.methods` and
`bsa_bench.engines`.

Importing this, or a method, loads no torch: suites, predictions and `--dry-run` ask methods too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from pydantic import BaseModel, ConfigDict

from bsa_bench.result import PASSES, Claims, PassName

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from bsa_bench.verify.sample import RowSample
    from bsa_bench.workload import Workload
    from bsa_kernels import BlockPlan
    from bsa_kernels.operator import Operator

DENSE = "dense"
"""`dense(q, k, v, scale=)`: attention over all pairs."""
CAUSAL_DENSE = "causal-dense"
"""`dense(q, k, v, scale=, causal=True)`: over all pairs whose key is not later."""
BLOCKS = "blocks"
"""`prepare(plan, like)` and `attend(...)`: attention by a `BlockPlan`."""
ELEMENT_RULES = "element-rules"
"""Plans whose `rule` cuts single pairs of a listed block: causal, band."""
DELTA_RULE = "delta-rule"
"""`delta_rule(q, k, v, g, beta, scale=)`: the gated delta rule over a causal sequence."""
SIMULATION = "simulation"
"""`simulate(function, *tensors, **options)`: a count of what hardware would do; no latency means anything."""

PASS_FACTOR: dict[PassName, float] = {"forward": 1.0, "backward": 2.5, "forward+backward": 3.5}
"""FLOP of a pass over those of the forward, nominally: 2 matrix products forward, 5 backward with recomputation."""


class MethodOptions(BaseModel):
    """Base of a method's options: its own TOML table. Their dump is the case's options, and hashed with the method.

    `SHORT` gives the names that labels and case ids use; the options in it are named in every label, in its order, the
    others where they differ from their default.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    SHORT: ClassVar[dict[str, str]] = {}

    def label(self) -> str:
        """Name these options, two different ones differently: `d0.1-k0.5`, `d0.1-k0.5-fill=zero`."""
        parts = [f"{short}{_word(getattr(self, name))}" for name, short in self.SHORT.items()]
        for name, about in type(self).model_fields.items():
            value = getattr(self, name)
            if name not in self.SHORT and value != about.default:
                parts.append(f"{name}={_word(value)}")
        return "-".join(parts)


class NoOptions(MethodOptions):
    """Of a method that has none."""


def _word(value: object) -> str:
    if isinstance(value, tuple | list):
        return "x".join(map(_word, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


@dataclass(frozen=True)
class TensorSpec:
    """An input beside q, k and v.

    Args:
        axes: in the legend's letters, `BHLD` or `BHL`.
        draw: its distribution, seeded by its name: `normal`; `sigmoid` of it; `log-decay`, -0.1 exp(N(0, 1)).
        trains: whether a backward owes its gradient.
    """

    axes: Literal["BHLD", "BHL"]
    draw: Literal["normal", "sigmoid", "log-decay"] = "normal"
    trains: bool = True


@dataclass(frozen=True)
class Cost:
    """What a method is expected to cost, before anything runs; by arithmetic.

    Args:
        flop: of the forward, without the selection.
        selection_flop: of choosing what is attended.
        scores: numbers that the selection holds at once, B*H*Nq*Nk of block scores.
        listed_tokens: keys listed, summed over all query blocks: what gathering engines copy at most.
        padding: padded tokens over tokens.
        is_selective: whether tokens are permuted, gathered or filled besides.
        sparsity: 1 - the share of dense attention's pairs, as the options ask for it; None where only the run tells.
    """

    flop: float
    selection_flop: float = 0.0
    scores: float = 0.0
    listed_tokens: float = 0.0
    padding: float = 1.0
    is_selective: bool = True
    sparsity: float | None = None


@dataclass(frozen=True)
class MethodWork:
    """What a method did in one pass, from what its operator left behind.

    Args:
        nominal_flop: of the pass: products over the pairs that its definition asks for, all branches.
        own_flop: of the pass: what stages of its own execute, outside of the engine and of the selection.
        selection_flop: of the pass; 0 where the plan of the forward is used.
        density: share of the matching dense attention's work; None where that means nothing.
        sparsity: as in `Cost`.
        counters: what it counts besides, by name.
    """

    nominal_flop: float
    own_flop: float = 0.0
    selection_flop: float = 0.0
    density: float | None = None
    sparsity: float | None = None
    counters: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Reference:
    """A method's output by its definition.

    Args:
        output: [R, D] of one head at the sampled tokens, in the dtype of the tensors that it was computed from.
        num_keys: most keys that one row sums over, which bounds the rounding of a running sum.
        largest_lse: largest |log-sum-exp| of a row, to which the rounding of a recomputing backward is proportional.
        mass_kept: [R'] share of dense attention's mass that each computed row keeps; None where that means nothing.
    """

    output: Tensor
    num_keys: int
    largest_lse: float = 0.0
    mass_kept: Tensor | None = None


class Method(Protocol):
    """What is attended.

    Attributes:
        name: as in `method@engine`, and of its table in suites.
        Options: its options.
        needs: what an engine has to offer. The first is the contract by which the engine is called.
    """

    name: str
    Options: type[MethodOptions]
    needs: tuple[str, ...]

    def claims(self, options: Any) -> Claims:
        """The facts that reports print, and that decide what is compared with what."""

    def unsupported(self, workload: Workload, options: Any) -> str | None:
        """Why it is not defined on this workload, in a sentence with the remedy, or None."""

    def tensors(self, workload: Workload, options: Any) -> dict[str, TensorSpec]:
        """The inputs beside q, k and v, by name."""

    def operator(self, workload: Workload, options: Any, engine: Any, *, scale: float) -> Operator:
        """From q, k, v and `tensors` to `o`."""

    def reference(
        self,
        workload: Workload,
        options: Any,
        tensors: Mapping[str, Tensor],
        state: Mapping[str, Any],
        rows: RowSample,
        head: tuple[int, int],
        *,
        scale: float,
    ) -> Reference:
        """One head by its definition, written apart from every engine.

        Args:
            workload, options: of the case.
            tensors: of that head, [L, D] or [L], in any dtype; differentiable in them.
            state: what the operator left; only what it decided (its plan) may be read.
            rows: the tokens to compute.
            head: (batch, head), to read the state by.
            scale: of the logits.
        """

    def expected(self, workload: Workload, options: Any) -> Cost:
        """What it will cost."""

    def work(self, workload: Workload, options: Any, state: Mapping[str, Any], which: PassName) -> MethodWork:
        """What it did; may synchronise."""


class Engine(Protocol):
    """Who computes it.

    Attributes:
        name: as in `method@name`.
        offers: the contracts and features that it has, see the constants above.
        expected_ops: torch operators, or patterns of their names (`Torch-Compiled Region*`, of what `torch.compile`
            compiled), of which one must appear in a profiled call, or the backend fell back; empty
            where nothing can fall back.
        deterministic: need not be there. False: two calls may differ, by what an error against the oracle may be;
            without it they have to give the same bits.
    """

    @property
    def name(self) -> str: ...

    @property
    def offers(self) -> frozenset[str]: ...

    @property
    def expected_ops(self) -> tuple[str, ...]: ...

    def version(self) -> str | None:
        """The version of what really computes."""

    def unsupported(self, device: torch.device, dtype: torch.dtype, head_dim: int, *, backward: bool) -> str | None:
        """Why it cannot run that here, in a sentence with the remedy, or None."""

    def untimed(self, device: torch.device) -> str | None:
        """Why its time means nothing on a device where it runs, or None."""

    def executed_flop(self, contract: str, state: Mapping[str, Any], which: PassName) -> float | None:
        """FLOP that it executes in a pass, padding included; None where that is not known. May synchronise.

        Args:
            contract: by which it was called.
            state: the operator's: `q`, and `plan` for blocks.
            which: the pass.
        """


class DenseEngine(Engine, Protocol):
    """Offers `DENSE`, or `CAUSAL_DENSE` too."""

    def dense(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float, causal: bool = False) -> Tensor:
        """Dense attention [B, H, L, D] -> [B, H, L, D], differentiable."""


class BlockEngine(Engine, Protocol):
    """Offers `BLOCKS`.

    Attributes:
        layout: order of the q, k and v that `attend` reads: `natural`, or `tiled` as `BlockGrid.permute` leaves them.
        fills: whether `attend` returns the output of all tokens, in its layout; else that of kept rows
            [B, H, Nq, K, D], which the plan fills.
        runs_triton: it runs in Triton, so that a method may select in Triton too.
        gives_lse: it has `attend_lse`, see `bsa_kernels.block_engine.LseRunner`.
    """

    @property
    def layout(self) -> Literal["natural", "tiled"]: ...

    @property
    def fills(self) -> bool: ...

    @property
    def runs_triton(self) -> bool: ...

    @property
    def gives_lse(self) -> bool: ...

    def __hash__(self) -> int: ...

    def unsupported_plan(self, plan: BlockPlan) -> str | None:
        """Why it cannot run this plan, in a sentence with the remedy, or None."""

    def prepare(self, plan: BlockPlan, like: Tensor) -> Any:
        """Derive from a plan what it needs for tensors like `like`: masks, lists, schedules."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, prepared: Any, *, scale: float) -> Tensor:
        """Attention by the plan, differentiable in q, k and v."""


class DeltaRuleEngine(Engine, Protocol):
    """Offers `DELTA_RULE`."""

    def delta_rule(self, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, *, scale: float) -> Tensor:
        """The gated delta rule; q, k, v [B, H, L, D], g (log-decay) and beta [B, H, L] -> [B, H, L, D]."""


class SimulationEngine(Engine, Protocol):
    """Offers `SIMULATION`."""

    def simulate(self, function: Any, *tensors: Tensor, **options: Any) -> Any:
        """Run a simulation on tensors."""


def by_pass(forward: float, backward: float, which: PassName) -> float:
    """Of figures of the forward and of the backward, that of a pass."""
    return dict(zip(PASSES, (forward, backward, forward + backward), strict=True))[which]
