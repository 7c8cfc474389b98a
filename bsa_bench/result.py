"""The result schema: what one line of `results/<run>/results.jsonl` holds.

A run is append-only JSON lines: one `run` line for each time the run was started or resumed (the environment), then one
`result` line for each case, the moment it is known. Seconds, bytes and FLOP throughout. What was not measured is null
and `reason` says why: never 0, -1 or infinity.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from statistics import median
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, JsonValue, NonNegativeInt, PositiveInt, model_validator

from bsa_bench.workload import Workload, short_digest

SCHEMA_VERSION = 2
IDENTITY_VERSION = 1
"""Of `Case.case_hash`; raised only where a case of the same words means another measurement."""
IMPLEMENTATION = r"[a-z0-9-]+@[a-z0-9-]+(:[a-z0-9-]+(\+[a-z0-9-]+)*)?"
"""`method@engine`, or `method@engine:form+form`."""
PassName = Literal["forward", "backward", "forward+backward"]
PASSES: tuple[PassName, ...] = ("forward", "backward", "forward+backward")
TimerName = Literal["host", "event", "device-span", "graph"]
TimerChoice = Literal["auto", "host", "event", "device-span", "graph"]
CacheName = Literal["cold", "warm"]
CacheChoice = Literal["cold", "warm", "both"]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
VOLATILE = frozenset({"load_average", "steal_share"})
"""What `Environment.cpu` records and its hash leaves out: it differs from one minute to the next."""
CHECKED_ABOVE_S, CHECKED_WITHIN = 100e-6, 0.03
"""Two timers of a call that takes longer than this are expected to agree within this share."""


class Line(BaseModel):
    """Base of all that is stored: unknown keys are refused when written, kept out when read by an older tool."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Status(StrEnum):
    """How a case ended. Every status but NOT_MEASURED is final: resume does not try it again."""

    OK = "OK"
    WRONG = "WRONG"
    IMPLAUSIBLE = "IMPLAUSIBLE"
    OOM = "OOM"
    SKIPPED_OOM = "SKIPPED_OOM"
    UNSUPPORTED = "UNSUPPORTED"
    VERIFIED_ONLY = "VERIFIED_ONLY"
    COUNTED = "COUNTED"
    FELL_BACK = "FELL_BACK"
    TIMEOUT = "TIMEOUT"
    CRASHED = "CRASHED"
    NOT_MEASURED = "NOT_MEASURED"

    @property
    def is_final(self) -> bool:
        """Whether `--resume` leaves the case alone."""
        return self is not Status.NOT_MEASURED

    @property
    def is_success(self) -> bool:
        """Whether all that can be learnt from the case here was learnt, and was correct."""
        return self in {Status.OK, Status.VERIFIED_ONLY, Status.COUNTED}

    @property
    def is_failure(self) -> bool:
        """Whether the case was expected to run here and did not."""
        return self in {Status.IMPLAUSIBLE, Status.OOM, Status.TIMEOUT, Status.CRASHED, Status.FELL_BACK}

    @property
    def meaning(self) -> str:
        """One sentence for the report's legend."""
        return STATUS_MEANING[self]


STATUS_MEANING: dict[Status, str] = {
    Status.OK: "measured, and correct within its budget",
    Status.WRONG: "the output or a gradient is outside its error budget; never timed",
    Status.IMPLAUSIBLE: "its time cannot be true; it has none",
    Status.OOM: "ran out of memory while running",
    Status.SKIPPED_OOM: "not started: the predicted memory does not fit",
    Status.UNSUPPORTED: "this implementation cannot run this case here",
    Status.VERIFIED_ONLY: "checked against the oracle by Triton's interpreter, which says nothing of speed",
    Status.COUNTED: "verified; it simulates hardware, so its counters are stored and it has no latency",
    Status.FELL_BACK: "the backend asked for was not the one that ran",
    Status.TIMEOUT: "ended by the time limit of a case",
    Status.CRASHED: "the worker process died or raised",
    Status.NOT_MEASURED: "not reached: interrupted or out of budget; --resume goes on",
}

WORST_FIRST = (
    Status.WRONG,
    Status.IMPLAUSIBLE,
    Status.FELL_BACK,
    Status.CRASHED,
    Status.TIMEOUT,
    Status.OOM,
    Status.SKIPPED_OOM,
    Status.UNSUPPORTED,
    Status.VERIFIED_ONLY,
    Status.COUNTED,
    Status.OK,
    Status.NOT_MEASURED,
)
"""Of the statuses of a case's processes the first of these is the case's own: one that was not reached says nothing of
the others, and no process that was right makes up for one that was wrong."""


def worst_status(statuses: Iterable[Status]) -> Status | None:
    """The status of a case by those of its processes; null where it has none."""
    return min(statuses, key=WORST_FIRST.index, default=None)


def missing_processes(known: Mapping[int, Status], num_processes: int) -> list[int]:
    """Which processes of a case are yet to be measured, by the statuses of those that were.

    None as soon as one of them ended otherwise than OK: another process would not mend that.
    """
    if any(status.is_final and status is not Status.OK for status in known.values()):
        return []
    return [index for index in range(num_processes) if not known.get(index, Status.NOT_MEASURED).is_final]


class PaperClaim(Line):
    """A figure from a paper, shown beside the measured one and never mixed with it.

    `standing`: P the paper itself, N second-hand notes that quote its tables, D our own derivation.
    """

    speedup: Annotated[FiniteFloat, Field(gt=0)]
    standing: Literal["P", "N", "P/N", "D"]
    source: str


class Claims(Line):
    """What a method says of itself: facts that reports print, and that decide what is compared with what.

    Args:
        is_dense: it is dense attention, so that others are compared with it.
        trains: it has a backward.
        causal: a query sees no later key; then it is compared with causal dense attention.
        adapted: run otherwise than its authors do, a causal method bidirectionally, say.
        approximates_dense: its output is meant to be dense attention's; else no error against that is shown.
        timed: its time means something; else it is verified and counted.
        source: where its facts come from.
    """

    is_dense: bool = False
    trains: bool = True
    causal: bool = False
    adapted: bool = False
    approximates_dense: bool = True
    timed: bool = True
    source: str | None = None


class Case(Line):
    """One thing to measure: workload x implementation x pass.

    `options` are the method's own, and `label` its own short name of them, empty where it has none; `claims` are what
    it says of itself. Whoever reads a stored case needs nothing of the method besides.
    """

    suite: str
    workload: Workload
    implementation: Annotated[str, Field(pattern=f"^{IMPLEMENTATION}$")]
    passes: PassName
    options: dict[str, JsonValue] = {}
    label: str = ""
    claims: Claims = Claims()
    variant: str | None = None
    paper: PaperClaim | None = None

    def __hash__(self) -> int:
        return hash((self.case_hash, self.suite, self.variant))

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
        return short_digest([self.workload.model_dump(mode="json"), self.implementation, self.options or None])

    @property
    def case_hash(self) -> str:
        """Digest of what is measured, whatever suite asked for it: the resume key."""
        return short_digest([IDENTITY_VERSION, self.group, self.passes])

    @property
    def case_id(self) -> str:
        """A readable name, of two measurements never the same.

        `bsa@gather/61x512x512px-16x32x32/cpu-2x64-2x64-float32/video:bikes/d0.1-k0.5/forward`
        """
        return "/".join([self.implementation, *self.workload.slugs, *([self.label] if self.label else []), self.passes])


class CrossCheck(Line):
    """The median of a few samples by another timer, in the same cache state; null with a reason where it had none."""

    timer: TimerName
    median_s: NonNegative | None = None
    num_samples: NonNegativeInt = 0
    reason: str | None = None


class Timing(Line):
    """Latencies of the whole operator in seconds, raw and in order.

    Args:
        timer: `host` (perf_counter around a synchronised call), `event` (a pair of CUDA events behind a kernel that
            holds the queue), `device-span` (from the operator's first kernel start to its last kernel end, by the
            profiler) or `graph` (a pair of events around the replay of a CUDA graph).
        cache: `cold` (L2 evicted by a write of twice its queried size before each sample) or `warm` (nothing done).
        warm: samples in the warm state too, where both states were asked for; `cache` is then `cold`.
        host_s: median seconds until a call had enqueued its work and returned; null where the timer cannot tell.
        host_gaps: whether, in most samples, the device began before the host had enqueued the whole call, so that
            waiting for the host can be in the time; null where the timer cannot tell.
        first_call_s: the first call of the pass in its process, what it compiles included; apart from the samples. The
            pass `backward` has only its own part of it, not that of the forward it runs on.
        phases: samples of each phase in order, in a pass of its own with a time stamp between phases: permute, select,
            plan, attend, fill, and their backward counterparts `fill_backward`, `attend_backward`, `permute_backward`.
        attend_only, attend_select: the sums of those phases that the name says, sample by sample.
    """

    timer: TimerName
    cache: CacheName
    first_call_s: NonNegative
    warmup_s: NonNegative
    settled: bool
    samples: Annotated[list[NonNegative], Field(min_length=1)]
    phases: dict[str, list[NonNegative]] = {}
    attend_only: list[NonNegative] | None = None
    attend_select: list[NonNegative] | None = None
    warm: Annotated[list[NonNegative], Field(min_length=1)] | None = None
    host_s: NonNegative | None = None
    host_gaps: bool | None = None
    cross_check: CrossCheck | None = None

    @property
    def timer_disagreement(self) -> float | None:
        """How far the other timer's median is from this one's, as a share; null where it is not compared.

        Short calls are not: the fixed cost of events is a large part of them.
        """
        own, check = median(self.samples), self.cross_check
        if check is None or check.median_s is None or own <= CHECKED_ABOVE_S:
            return None
        return check.median_s / own - 1

    @property
    def timers_disagree(self) -> bool:
        """Whether the two timers are so far apart that one of them measures something else."""
        return abs(self.timer_disagreement or 0.0) > CHECKED_WITHIN


QUOTA = "cpu_quota"
"""The cause in `DeviceState.throttle_ns` that is not the device's: the quota of a control group, a container's say."""


class DeviceState(Line):
    """What the device did while it was timed; null where the platform does not tell.

    `throttle_ns` is by cause how long it was held back; `cpu_quota` how long the quota of a control group kept the
    processes from running.

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


class Energy(Line):
    """Energy of a call, from a counter of the device read before and after a loop of calls.

    Args:
        joules_per_call: the counter's growth over the number of calls; null with a reason where there is no counter.
        above_idle_joules_per_call: the same without what the device took at rest (`idle_w`) in that time.
        num_calls, seconds: of the loop.
        how: which counter, and what else draws on it.
    """

    joules_per_call: NonNegative | None = None
    above_idle_joules_per_call: FiniteFloat | None = None
    idle_w: NonNegative | None = None
    num_calls: NonNegativeInt = 0
    seconds: NonNegative | None = None
    how: str
    reason: str | None = None


class Ceiling(Line):
    """What the device delivered of one resource at the start of the run: `GEMM float32`, `copy`.

    `unit` is `FLOP/s` or `B/s`; `detail` says how it was measured.
    """

    name: str
    value: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    unit: Literal["FLOP/s", "B/s"]
    detail: str


class Work(Line):
    """Work counts of the pass. `nominal`: the pairs that the method asks for. `executed`: what was really multiplied.

    `flops_dense_equiv` is of the dense attention that the case is compared with, causal for causal methods.
    `sparsity_nominal` is what was asked for; `density_realised` what it came to: the method's work over dense
    attention's, null where that means nothing (a recurrence). `ideal_speedup` is 1 / density_realised. Of block plans,
    `list_length_*` are of a query block's own KV blocks; `list_mean` and `list_max` of the lists that the engine walks,
    which groups of query blocks may share; `union_efficiency` is the share of these groups' work that their members
    asked for: 1 where nothing is shared. `counters` are the method's own.
    """

    flops_executed: NonNegative | None = None
    flops_nominal: NonNegative
    flops_dense_equiv: NonNegative
    flops_selection: NonNegative
    sparsity_nominal: NonNegative | None = None
    density_realised: Annotated[float, Field(gt=0)] | None = None
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
    counters: dict[str, FiniteFloat] = {}

    @property
    def ideal_speedup(self) -> float | None:
        """What the density alone would give over dense attention."""
        return 1.0 / self.density_realised if self.density_realised else None


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
        faults: what needs no oracle to be wrong, by what is checked.
        sample_seed: of the query blocks that were drawn; null in files of before it was recorded.
        witness: the engine whose output all rows were compared with, where the oracle was asked for a sample.
        unseen_max_abs: the largest difference from it outside of the sample: no fault there is larger, but by as much
            as that engine is wrong itself.
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
    faults: dict[str, str] = {}
    sample_seed: NonNegativeInt | None = None
    witness: str | None = None
    unseen_max_abs: NonNegative | None = None

    def excess(self) -> str | None:
        """What is against passing: an error above its budget, a fault, changed inputs; None where nothing is."""
        for name, figures in self.checked.items():
            if name in self.budget and not figures.relative_l2 <= self.budget[name]:
                return f"{name} has a relative L2 error of {figures.relative_l2:.3g}, above {self.budget[name]:.3g}"
            if name in self.max_abs_budget and not figures.max_abs <= self.max_abs_budget[name]:
                return f"{name} has an error of {figures.max_abs:.3g}, above {self.max_abs_budget[name]:.3g}"
        if self.faults:
            return "; ".join(f"{name}: {fault}" for name, fault in self.faults.items())
        return None if self.inputs_unchanged else "the operator changed its inputs"


class Footage(Line):
    """What became of a clip.

    Args:
        num_pictures: how many were decoded; played forward and backward where `num_needed` are more.
        source, crop, size: (height, width) of a picture as players show it, of its centre that was taken, and of what
            that was scaled to.
        turned: what the file's mark asked for to show it upright, empty where there was none.
        is_still: all pictures are the same.
    """

    num_pictures: PositiveInt
    num_needed: PositiveInt
    source: tuple[PositiveInt, PositiveInt]
    crop: tuple[PositiveInt, PositiveInt]
    size: tuple[PositiveInt, PositiveInt]
    turned: str = ""
    is_still: bool = False

    @property
    def share_cut(self) -> float:
        """How much of each picture was cut away."""
        return 1 - self.crop[0] * self.crop[1] / (self.source[0] * self.source[1])

    @property
    def enlargement(self) -> float:
        """How many times longer than in the file a side became."""
        return max(self.size[0] / self.crop[0], self.size[1] / self.crop[1])

    @property
    def caveats(self) -> list[str]:
        """What was measured that is hardly the film that was asked for."""
        found = []
        if self.num_needed > 1 and self.num_pictures == 1:
            found.append(f"a still picture: 1 frame was decoded where {self.num_needed} are asked for")
        elif self.num_needed > 1 and self.is_still:
            found.append(f"a still picture: its {self.num_pictures} frames are all the same")
        if self.share_cut > 0.5:
            found.append(
                f"cropped: {100 * self.share_cut:.0f}% of each picture was cut away for the proportions asked for"
            )
        if self.enlargement > 1:
            found.append(f"enlarged {self.enlargement:.2f} times, so that neighbours are alike by interpolation")
        return found


class InputFacts(Line):
    """What q, k and v were made of: in words, and for a clip in figures."""

    description: str
    footage: Footage | None = None


class Result(Line):
    """What became of one case in one process. One that contradicts itself is refused.

    A case that is measured in several processes has a result of each, which `process_index` counts from 0.
    """

    schema_version: Literal[2] = 2
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
    input: InputFacts | None = None
    backend: str | None = None
    engine_version: str | None = None
    timing: Timing | None = None
    state: DeviceState | None = None
    memory: Memory | None = None
    energy: Energy | None = None
    work: Work | None = None
    correctness: Correctness | None = None
    wall_s: NonNegative | None = None
    traceback: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.status is Status.OK and self.timing is None:
            raise ValueError("status OK: expected a timing, got none")
        if self.status is not Status.OK and self.timing is not None:
            raise ValueError(f"status {self.status}: expected no timing, for only what is OK has one")
        if self.correctness is not None and self.correctness.passed == (self.status is Status.WRONG):
            verdict = "passed" if self.correctness.passed else "failed"
            raise ValueError(f"status {self.status}: contradicts its verification, which {verdict}")
        return self


class Environment(Line):
    """Where a run was made. `hash` names what makes timings comparable; results point at it.

    The entries of `cpu` in `VOLATILE` are recorded and not hashed.
    """

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
    """The start (or a resumption) of a run.

    `num_cases` were asked for, each in `num_processes` processes; `seed` is of the order in which they ran, null where
    that was the order given. `timer` and `cache` are what was asked for; null: the device's usual. `ceilings` were
    measured before the first case. `suite_sha256` is of the suite's file, `files` of each input file, by its path.
    """

    schema_version: Literal[2] = 2
    kind: Literal["run"] = "run"
    run_id: str
    utc: str
    suite: str
    suite_title: str
    suite_sha256: str | None = None
    files: dict[str, str] = {}
    profile: str
    command: list[str]
    environment: Environment
    num_cases: NonNegativeInt
    num_processes: PositiveInt = 1
    seed: NonNegativeInt | None = None
    timer: TimerName | None = None
    cache: CacheChoice | None = None
    ceilings: list[Ceiling] = []
    unavailable: dict[str, str] = {}
