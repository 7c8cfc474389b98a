"""The result schema: what one line of `results/<run>/results.jsonl` holds.

A run is append-only JSON lines: one `run` line for each time the run was started or resumed (the environment), then one
`result` line for each case, the moment it is known. Seconds, bytes and FLOP throughout. What was not measured is null
and `reason` says why: never 0, -1 or infinity.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, PositiveInt

from bsa_bench.workload import Triple, Workload, short_digest

SCHEMA_VERSION = 1
IMPLEMENTATION = r"[a-z0-9-]+@[a-z0-9-]+(:[a-z0-9-]+(\+[a-z0-9-]+)*)?"
"""`method@engine`, or `method@engine:form+form`."""
PassName = Literal["forward", "backward", "forward+backward"]
PASSES: tuple[PassName, ...] = ("forward", "backward", "forward+backward")
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Line(BaseModel):
    """Base of all that is stored: unknown keys are refused when written, kept out when read by an older tool."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Status(StrEnum):
    """How a case ended. Every status but NOT_MEASURED is final: resume does not try it again."""

    OK = "OK"
    WRONG = "WRONG"
    OOM = "OOM"
    SKIPPED_OOM = "SKIPPED_OOM"
    UNSUPPORTED = "UNSUPPORTED"
    VERIFIED_ONLY = "VERIFIED_ONLY"
    FELL_BACK = "FELL_BACK"
    TIMEOUT = "TIMEOUT"
    CRASHED = "CRASHED"
    NOT_MEASURED = "NOT_MEASURED"

    @property
    def is_final(self) -> bool:
        """Whether `--resume` leaves the case alone."""
        return self is not Status.NOT_MEASURED

    @property
    def is_failure(self) -> bool:
        """Whether the case was expected to run here and did not."""
        return self in {Status.OOM, Status.TIMEOUT, Status.CRASHED, Status.FELL_BACK}

    @property
    def meaning(self) -> str:
        """One sentence for the report's legend."""
        return STATUS_MEANING[self]


STATUS_MEANING: dict[Status, str] = {
    Status.OK: "measured, and correct within its budget",
    Status.WRONG: "the output or a gradient is outside its error budget; never timed",
    Status.OOM: "ran out of memory while running",
    Status.SKIPPED_OOM: "not started: the predicted memory does not fit",
    Status.UNSUPPORTED: "this implementation cannot run this case here",
    Status.VERIFIED_ONLY: "checked against the oracle by Triton's interpreter, which says nothing of speed",
    Status.FELL_BACK: "the backend asked for was not the one that ran",
    Status.TIMEOUT: "ended by the time limit of a case",
    Status.CRASHED: "the worker process died or raised",
    Status.NOT_MEASURED: "not reached: interrupted or out of budget; --resume goes on",
}


class PaperClaim(Line):
    """A figure from a paper, shown beside the measured one and never mixed with it.

    `standing`: P the paper itself, N second-hand notes that quote its tables, D our own derivation.
    """

    speedup: Annotated[float, Field(gt=0)]
    standing: Literal["P", "N", "P/N", "D"]
    source: str


class BsaOptions(Line):
    """The options of the method `bsa`; meanings in `bsa_kernels.bsa_attention`."""

    block: Triple = (4, 4, 4)
    query_block: Triple | None = None
    query_keep: Annotated[float, Field(gt=0, le=1)] = 0.5
    kv_density: Annotated[float, Field(gt=0, le=1)] = 0.1
    query_rule: Literal["window", "block", "flat_half", "central_mean"] = "window"
    kv_rule: Literal["statistical", "topk", "mass", "softmax_stat"] = "statistical"
    fill: Literal["nearest", "similar", "flat", "zero"] = "nearest"


class Case(Line):
    """One thing to measure: workload x implementation x pass. `options` is null for `full`."""

    suite: str
    workload: Workload
    implementation: Annotated[str, Field(pattern=f"^{IMPLEMENTATION}$")]
    passes: PassName
    options: BsaOptions | None = None
    variant: str | None = None
    paper: PaperClaim | None = None

    @property
    def method(self) -> str:
        """What is attended."""
        return self.implementation.partition("@")[0]

    @property
    def engine(self) -> str:
        """Who computes it, with its forms if it has some: `triton:quad`."""
        return self.implementation.partition("@")[2]

    @property
    def base_engine(self) -> str:
        """The engine without its forms."""
        return self.engine.partition(":")[0]

    @property
    def group(self) -> str:
        """Digest of all but the pass: cases of one group share a worker process, inputs and verification."""
        return short_digest([self.workload.model_dump(mode="json"), self.implementation, self._options()])

    @property
    def case_hash(self) -> str:
        """Digest of what is measured, whatever suite asked for it: the resume key."""
        return short_digest([SCHEMA_VERSION, self.group, self.passes])

    @property
    def case_id(self) -> str:
        """A readable slug: `bsa@gather/16x32x32/2x64-float32/video:bikes/d0.1-k0.5/forward`."""
        w = self.workload
        method = f"d{self.options.kv_density:g}-k{self.options.query_keep:g}/" if self.options else ""
        shape = f"b{w.batch}-" * (w.batch != 1) + f"{w.heads}x{w.head_dim}-{w.dtype}"
        grid = "x".join(map(str, w.token_grid))
        return f"{self.implementation}/{grid}/{shape}/{w.input.label}/{method}{self.passes}"

    def _options(self) -> dict[str, object] | None:
        return self.options.model_dump(mode="json") if self.options else None


class Timing(Line):
    """Latencies of the whole operator in seconds, raw and in order.

    Args:
        timer: `host` (perf_counter around a synchronised call) or `event` (a pair of CUDA events).
        cache: `cold` (L2 flushed by its queried size before each sample) or `warm` (nothing done).
        first_call_s: the first call of the pass in its process, what it compiles included; apart from the samples. The
            pass `backward` has only its own part of it, not that of the forward it runs on.
        phases: samples of each phase in order, in a pass of its own with a time stamp between phases: permute, select,
            plan, attend, fill, and their backward counterparts `fill_backward`, `attend_backward`, `permute_backward`.
        attend_only, attend_select: the sums of those phases that the name says, sample by sample.
    """

    timer: Literal["host", "event"]
    cache: Literal["cold", "warm"]
    first_call_s: NonNegative
    warmup_s: NonNegative
    settled: bool
    samples: Annotated[list[NonNegative], Field(min_length=1)]
    phases: dict[str, list[NonNegative]] = {}
    attend_only: list[NonNegative] | None = None
    attend_select: list[NonNegative] | None = None


class DeviceState(Line):
    """What the device did while it was timed; null where the platform does not tell.

    `other_cpu_share` is the share of the machine's processor time that others than the worker took meanwhile, what a
    virtual machine's host stole included: above a few percent, CPU times are not the operator's own.
    """

    sm_clock_hz: list[FiniteFloat] | None = None
    memory_clock_hz: list[FiniteFloat] | None = None
    power_w: list[FiniteFloat] | None = None
    temperature_c: list[FiniteFloat] | None = None
    throttle_ns: dict[str, NonNegativeInt] | None = None
    load_average: FiniteFloat | None = None
    other_cpu_share: Annotated[float, Field(ge=0, le=1)] | None = None
    reason: str | None = None


class Memory(Line):
    """Peak bytes above the inputs, in an untimed pass of its own."""

    peak_above_inputs_bytes: NonNegativeInt | None = None
    peak_bytes: NonNegativeInt | None = None
    inputs_bytes: NonNegativeInt
    predicted_bytes: NonNegativeInt | None = None
    how: str
    reason: str | None = None


class Work(Line):
    """Work counts of the pass. `nominal`: unmasked pairs. `executed`: what the engine's tiles compute.

    `sparsity_nominal` is what was asked for, 1 - query_keep * kv_density; `density_realised` comes from the plan in
    use: pairs computed / all pairs. `ideal_speedup` is 1 / density_realised. `list_length_*` are of a query block's own
    KV blocks; `list_mean` and `list_max` of the lists that the engine walks, which groups of query blocks may share;
    `union_efficiency` is the share of these groups' work that their members asked for: 1 where nothing is shared.
    """

    flops_executed: NonNegative | None = None
    flops_nominal: NonNegative
    flops_dense_equiv: NonNegative
    flops_selection: NonNegative
    sparsity_nominal: NonNegative
    density_realised: Annotated[float, Field(gt=0, le=1)]
    kv_density_realised: Annotated[float, Field(gt=0, le=1)] | None = None
    query_keep_realised: Annotated[float, Field(gt=0, le=1)] | None = None
    row_imbalance: NonNegative | None = None
    head_imbalance: NonNegative | None = None
    list_length_min: NonNegativeInt | None = None
    list_length_mean: NonNegative | None = None
    list_length_max: NonNegativeInt | None = None
    union_efficiency: Annotated[float, Field(gt=0, le=1)] | None = None
    list_mean: NonNegative | None = None
    list_max: NonNegativeInt | None = None
    num_dead_blocks: NonNegativeInt | None = None
    plan_digest: str | None = None

    @property
    def ideal_speedup(self) -> float:
        """What the density alone would give over dense attention."""
        return 1.0 / self.density_realised


class ErrorFigures(Line):
    """One tensor against its reference. `relative_l2` is ||x - ref|| / ||ref||."""

    max_abs: NonNegative
    relative_l2: NonNegative
    cosine: FiniteFloat


class Correctness(Line):
    """Against the masked oracle (a kernel's error) and against dense attention (the method's error).

    Args:
        checked: which outputs: `output` and, for passes with a backward, `grad_q`, `grad_k`, `grad_v`.
        budget: the relative L2 error allowed to each, derived from what the number format itself costs.
        max_abs_budget: the largest error allowed to each, by the same rule.
        rows: how many query rows of each head were compared (all, or those of random query blocks).
        dense: the output against dense attention on the same rows.
        mass_kept: mean share of the dense attention mass of a computed query row that its plan kept.
    """

    oracle: str
    checked: dict[str, ErrorFigures]
    budget: dict[str, NonNegative]
    max_abs_budget: dict[str, NonNegative] = {}
    rows: PositiveInt
    passed: bool
    dense: ErrorFigures | None = None
    mass_kept: Annotated[float, Field(ge=0, le=1 + 1e-5)] | None = None
    inputs_unchanged: bool = True
    repeat_identical: bool | None = None
    reason: str | None = None


class Result(Line):
    """What became of one case."""

    schema_version: Literal[1] = 1
    kind: Literal["result"] = "result"
    run_id: str
    seq: NonNegativeInt
    utc: str
    case: Case
    case_id: str
    case_hash: str
    env_hash: str
    process_index: NonNegativeInt = 0
    status: Status
    reason: str | None = None
    backend: str | None = None
    engine_version: str | None = None
    timing: Timing | None = None
    state: DeviceState | None = None
    memory: Memory | None = None
    work: Work | None = None
    correctness: Correctness | None = None
    wall_s: NonNegative | None = None
    traceback: str | None = None


class Environment(Line):
    """Where a run was made. `hash` names what makes timings comparable; results point at it."""

    hash: str
    device_kind: Literal["cpu", "cuda"]
    device_name: str
    device_details: dict[str, str | int | float | bool | None]
    cpu: dict[str, str | int | float | None]
    os: str
    python: str
    packages: dict[str, str | None]
    variables: dict[str, str]
    git_commit: str | None
    git_dirty: bool | None


class RunLine(Line):
    """The start (or a resumption) of a run."""

    schema_version: Literal[1] = 1
    kind: Literal["run"] = "run"
    run_id: str
    utc: str
    suite: str
    suite_title: str
    profile: str
    command: list[str]
    environment: Environment
    num_cases: NonNegativeInt
    unavailable: dict[str, str] = {}
