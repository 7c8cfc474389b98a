"""Predict FLOP, memory and seconds of a case before it runs: crude, in one table; `pace` corrects it by results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bsa_bench.catalog import expected_cost
from bsa_bench.contract import PASS_FACTOR
from bsa_bench.measure.control_groups import address_space_limit, memory_limits
from bsa_bench.measure.cpu_settings import usable_threads
from bsa_bench.result import Case, Ceiling, Environment
from bsa_bench.run.job import DeviceKind, Profile
from bsa_bench.workload import DTYPE_BYTES, DType

VERIFIED_SCORES: dict[DeviceKind, int] = {"cpu": 1 << 22, "cuda": 1 << 27}
"""Scores (rows x keys of one head) that are compared with the oracle; the rows are as many as that allows."""


@dataclass(frozen=True)
class EngineCost:
    """What an engine reaches and needs; judged by its algorithm, not measured.

    Args:
        cpu_rate, cuda_rate: the share of the device's dense rate that it reaches.
        scores_forward, scores_backward: how many fp32 matrices of all (query, key) scores, B*H*L*L, are alive at once.
        tensors_forward, tensors_backward: how many more tensors of the size of q, in fp32 where that is larger.
        compile_s: what the first call costs more.
        gathered: bytes of gathered blocks alive at once, at most; the engine works in pieces of this size.
        is_interpreted: on a CPU it runs in Triton's interpreter, for verification only.
    """

    cpu_rate: float
    cuda_rate: float
    scores_forward: int = 0
    scores_backward: int = 0
    tensors_forward: int = 1
    tensors_backward: int = 3
    compile_s: float = 0.0
    gathered: int = 0
    is_interpreted: bool = False


_OURS = EngineCost(0.001, 0.4, tensors_forward=2, tensors_backward=5, compile_s=10.0, is_interpreted=True)
ENGINE_COST: dict[str, EngineCost] = {
    "reference": EngineCost(0.3, 0.2, scores_forward=3, scores_backward=5),
    "sdpa-math": EngineCost(0.4, 0.2, scores_forward=3, scores_backward=5),
    "sdpa-flash": EngineCost(1.0, 0.8),
    "sdpa-efficient": EngineCost(0.7, 0.5),
    "sdpa-cudnn": EngineCost(1.0, 1.0),
    "flash-attn": EngineCost(1.0, 0.8),
    "xformers": EngineCost(0.7, 0.6),
    "flex": EngineCost(0.7, 0.6, tensors_forward=2, tensors_backward=5, compile_s=8.0),
    "gather": EngineCost(0.5, 0.2, tensors_forward=3, tensors_backward=6, gathered=256 << 20),
    # Compiled once on a machine, in about 10 s, and found again by all later processes.
    "cpu": EngineCost(0.9, 0.0001, tensors_forward=3, tensors_backward=8),
    "triton": _OURS,
    "triton-tiled": _OURS,
    "gluon": replace(_OURS, is_interpreted=False),
    # A step per token; chunks of tokens in batched products.
    "recurrence": EngineCost(0.002, 0.001, tensors_forward=2, tensors_backward=60),
    "chunked": EngineCost(0.3, 0.1, tensors_forward=8, tensors_backward=24),
    "fla": EngineCost(0.3, 0.4, tensors_forward=3, tensors_backward=8, compile_s=20.0),
    # A dozen passes over all scores in integers.
    "simulator": EngineCost(0.03, 0.03, tensors_forward=4),
}
_WITHOUT_TORCH_COMPILER = {
    "reference",
    "sdpa-math",
    "sdpa-flash",
    "sdpa-efficient",
    "sdpa-cudnn",
    "gather",
    "cpu",
    "triton",
    "triton-tiled",
    "gluon",
    "recurrence",
    "chunked",
    "simulator",
}
OTHER_ENGINE = EngineCost(0.5, 0.4, tensors_forward=2, tensors_backward=5, compile_s=10.0)
"""An engine of a third party."""

_DTYPE_RATE: dict[DeviceKind, dict[DType, float]] = {
    "cpu": {"float64": 0.5, "float32": 1.0, "bfloat16": 0.5, "float16": 0.25},
    "cuda": {"float64": 0.06, "float32": 0.06, "bfloat16": 1.0, "float16": 1.0},
}


@dataclass(frozen=True)
class ProfileCost:
    """What one pass is measured for, of each profile; `caches` is how many L2 states a GPU is timed in."""

    warmup_s: float
    sample_s: float
    min_samples: int
    caches: int


PROFILE_COST: dict[Profile, ProfileCost] = {
    "quick": ProfileCost(warmup_s=0.3, sample_s=0.5, min_samples=5, caches=1),
    "report": ProfileCost(warmup_s=3.0, sample_s=2.0, min_samples=5, caches=2),
}


_CHECK_CALLS = 3
"""What a check calls: twice without gradients and once with them, or as much of a pass with a backward."""

_IMPORTS_BYTES = 2 << 30
"""Of address space, that a worker has when it has imported torch and started two threads (torch 2.13 for CPUs)."""


@dataclass(frozen=True)
class DeviceModel:
    """The device as far as predictions need it.

    Args:
        flop_per_s: dense matmul rate that a good attention kernel reaches: fp32 on a CPU, bf16 on a GPU.
        bytes_per_s: memory bandwidth.
        memory_bytes: what a case may use.
        start_s: one worker's start: interpreter, imports, device context, inputs.
    """

    kind: DeviceKind
    flop_per_s: float
    bytes_per_s: float
    memory_bytes: int
    start_s: float = 2.5

    @classmethod
    def of(cls, environment: Environment, *, probe_s: float = 0.0, ceilings: Sequence[Ceiling] = ()) -> DeviceModel:
        """Model the device of an environment, which is this machine's: what is free of its memory is looked up now.

        Args:
            probe_s: how long the probe took; a worker takes more than half of that to start.
            ceilings: what the device delivered a moment ago; where that is less than the model's rates, it counts.
        """
        here = cls._of(environment)
        found = {ceiling.name: ceiling.value for ceiling in ceilings}
        product = "GEMM float32" if here.kind == "cpu" else "GEMM bfloat16"
        return replace(
            here,
            flop_per_s=min(here.flop_per_s, found.get(product, math.inf)),
            bytes_per_s=min(here.bytes_per_s, found.get("copy", math.inf)),
            start_s=max(here.start_s, 0.6 * probe_s),
        )

    @classmethod
    def _of(cls, environment: Environment) -> DeviceModel:
        if environment.device_kind == "cuda":
            memory_bytes = environment.device_details["memory_bytes"]
            assert isinstance(memory_bytes, int)
            return cls.cuda(name=environment.device_name, memory_bytes=memory_bytes)
        threads = environment.cpu["threads"]
        return cls.cpu(threads=threads if isinstance(threads, int) else None)

    @classmethod
    def cpu(cls, *, threads: int | None = None, memory_bytes: int | None = None) -> DeviceModel:
        """Model this machine's CPU: 80 GFLOP/s a core in fp32, 8 GB/s a core up to 40."""
        cores = threads or usable_threads()
        limit = memory_bytes if memory_bytes is not None else round(0.9 * available_memory_bytes())
        return cls("cpu", 80e9 * cores, min(8e9 * cores, 40e9), limit)

    @classmethod
    def cuda(cls, *, name: str, memory_bytes: int) -> DeviceModel:
        """Model a GPU by its name: about half of the datasheet's dense bf16 rate, and its bandwidth."""
        for known, tflop_per_s, tbyte_per_s in (
            ("B200", 1000, 7.0),
            ("H200", 500, 4.2),
            ("H100", 450, 2.8),
            ("A100", 180, 1.7),
        ):
            if known in name:
                return cls("cuda", tflop_per_s * 1e12, tbyte_per_s * 1e12, memory_bytes, start_s=10.0)
        return cls("cuda", 50e12, 0.5e12, memory_bytes, start_s=10.0)


@dataclass(frozen=True)
class Estimate:
    """A prediction for one case.

    Args:
        flop: of one call, selection included.
        bytes: peak of the process's tensors, inputs included.
        inputs_bytes: q, k, v and the output's gradient.
        call_s: one call.
        seconds: all calls that measure the case; what its group shares is in `group_start_s`.
    """

    flop: float
    bytes: int
    inputs_bytes: int
    call_s: float
    seconds: float


def predict(case: Case, device: DeviceModel, profile: Profile = "quick") -> Estimate:
    """Predict one case."""
    cost, spent = PROFILE_COST[profile], engine_cost(case)
    call_s = _call_s(case, device)
    caches = cost.caches if device.kind == "cuda" else 1
    phases_s = cost.min_samples * call_s if expected_cost(case).is_selective else 0.0
    measuring_s = max(cost.warmup_s, 2 * call_s) + caches * max(cost.sample_s, cost.min_samples * call_s) + 2 * call_s
    return Estimate(
        flop=_attend_flop(case) + _select_flop(case),
        bytes=_peak_bytes(case, spent),
        inputs_bytes=4 * case.workload.tensor_bytes,
        call_s=call_s,
        seconds=measuring_s + phases_s + _CHECK_CALLS * call_s if is_timed(case, device.kind) else call_s,
    )


def group_start_s(cases: Sequence[Case], device: DeviceModel) -> float:
    """Predict what the cases of a group share: the process's start, compilation and verification."""
    first = cases[0]
    w = first.workload
    factor = max(PASS_FACTOR[c.passes] for c in cases)
    rows = min(1.0, VERIFIED_SCORES[device.kind] / w.num_tokens**2)
    # The masked oracle and dense attention, in fp64 and unfused, on the sampled rows.
    oracle_s = 2 * w.dense_flop * rows * factor / (device.flop_per_s * _DTYPE_RATE[device.kind]["float64"] * 0.3)
    own_s = max(_call_s(c, device) for c in cases)
    compiled = engine_cost(first).compile_s * (2 if factor > 1 and device.kind == "cuda" else 1)
    # The rows are few again after each pass; on a sample of rows another engine is called too.
    checked_s = 1.25 * oracle_s + (_CHECK_CALLS if rows == 1.0 else 2 * _CHECK_CALLS) * own_s
    return device.start_s + compiled + checked_s


def group_seconds(cases: Sequence[Case], device: DeviceModel, profile: Profile = "quick") -> float:
    """Predict a whole worker process."""
    return group_start_s(cases, device) + math.fsum(predict(c, device, profile).seconds for c in cases)


def engine_cost(case: Case) -> EngineCost:
    """Look the engine of a case up in the table."""
    return ENGINE_COST.get(case.base_engine, OTHER_ENGINE)


def is_timed(case: Case, device_kind: DeviceKind) -> bool:
    """Whether a case ends with a latency there, rather than with a verification or with counters alone."""
    return case.claims.timed and not (device_kind == "cpu" and engine_cost(case).is_interpreted)


def assumed_rate(case: Case, device_kind: DeviceKind) -> float:
    """The share of the device's dense rate that the table gives the engine of a case."""
    cost = engine_cost(case)
    return cost.cpu_rate if device_kind == "cpu" else cost.cuda_rate


def is_interpreted(engine: str) -> bool:
    """Whether an engine, forms or not, runs in Triton's interpreter on a CPU."""
    return ENGINE_COST.get(engine.partition(":")[0], OTHER_ENGINE).is_interpreted


def loads_torch_compiler(engine: str) -> bool:
    """Whether the first call on an engine may load torch's compiler: flex, and what is neither torch's nor ours.

    Torch loads it with the first call of an operator that was made by `torch.library.custom_op`.
    """
    return engine.partition(":")[0] not in _WITHOUT_TORCH_COMPILER


def compiles_at_first_call(engine: str) -> bool:
    """Whether an engine of ours is known to compile for seconds in each process that uses it, on a CPU too."""
    cost = ENGINE_COST.get(engine.partition(":")[0])
    return cost is not None and cost.compile_s > 0 and not cost.is_interpreted


def available_memory_bytes() -> int:
    """Memory that a new process can have here: what the machine has free, or what a limit leaves.

    Limits are those of control groups, a container's or a batch job's, and of the address space (`ulimit -v`), of which
    a worker takes `_IMPORTS_BYTES` before it has a tensor.
    """
    import psutil

    free: int = psutil.virtual_memory().available
    free = min([free, *(limit.free_bytes for limit in memory_limits() or ())])
    address_space = address_space_limit()
    return free if address_space is None else min(free, max(address_space - _IMPORTS_BYTES, 0))


def _call_s(case: Case, device: DeviceModel) -> float:
    rate = device.flop_per_s * _DTYPE_RATE[device.kind][case.workload.dtype]
    attend_s = _attend_flop(case) / (rate * assumed_rate(case, device.kind))
    copies = 4 + (12 if expected_cost(case).is_selective else 0)  # permuted, gathered and filled besides
    traffic_s = copies * case.workload.tensor_bytes * PASS_FACTOR[case.passes] / device.bytes_per_s
    return attend_s + _select_flop(case) / (0.1 * rate) + traffic_s + 1e-3


def _attend_flop(case: Case) -> float:
    return expected_cost(case).flop * PASS_FACTOR[case.passes]


def _select_flop(case: Case) -> float:
    """Of choosing what is attended; backward uses the plan of forward."""
    return 0.0 if case.passes == "backward" else expected_cost(case).selection_flop


def _peak_bytes(case: Case, cost: EngineCost) -> int:
    w = case.workload
    heads = w.batch * w.heads
    backward = case.passes != "forward"
    wide = max(DTYPE_BYTES[w.dtype], 4)
    tensor_wide = w.tensor_bytes // DTYPE_BYTES[w.dtype] * wide
    scores = (cost.scores_backward if backward else cost.scores_forward) * heads * w.num_tokens**2 * wide
    copies = (cost.tensors_backward if backward else cost.tensors_forward) * tensor_wide
    inputs = (8 if backward else 4) * w.tensor_bytes  # q, k, v and o, or the gradient of o; then the gradients
    total = inputs + scores + copies + heads * w.num_tokens * 4  # the last: lse
    method = expected_cost(case)
    if method.is_selective:
        total += round(4 * w.tensor_bytes * method.padding)  # q, k, v, o in block order
        total += round(3 * 4 * method.scores)  # block scores, mask, index lists
        total += min(round(2 * method.listed_tokens * w.head_dim * wide), cost.gathered)
    return total
