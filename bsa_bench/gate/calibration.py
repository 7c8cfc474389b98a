"""What noise this machine makes: A/A pairs of its cases, and what follows for a gate on it."""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, NonNegativeInt, PositiveInt, ValidationError

from bsa_bench.errors import StoreError, UsageError
from bsa_bench.gate.judgement import PairSample, Problem, problem_of
from bsa_bench.gate.policy import Policy
from bsa_bench.gate.two_stage import PairBench, decide
from bsa_bench.gate.verdict import Tier, Verdict
from bsa_bench.result import Environment, Line
from bsa_bench.stats.pairs import detectable_effect, lockstep_log_ratio, pooled_sd, shared_sd
from bsa_bench.stats.processes import variation
from bsa_bench.store.whole_file import write_whole

FALSE_ALARM_TRIALS = 1000
_PAIR_COUNTS = (5, 8, 16)
_POWER = 0.9
"""Of the confirmation alone: the screen has to flag a slow-down too, and together they find it 8 times in 10."""


class CaseNoise(Line):
    """The noise of one case; shares, 0.02 is 2 %.

    Args:
        call_s: median seconds of a call.
        within: standard deviation over mean of a process's samples, the median over processes.
        between: the same of the processes' medians.
        pair_sd: standard deviation of the log ratio of a pair.
        bias: the median log ratio: of two equal sides it should be 0.
        drift: how much slower the last pair's processes were than the first's, from a straight line through all.
        clock_spread: largest over smallest clock, less 1; null where the platform does not tell.
        num_pairs: pairs that were measured.
    """

    case_id: str
    call_s: FiniteFloat
    within: FiniteFloat
    between: FiniteFloat
    pair_sd: FiniteFloat
    bias: FiniteFloat
    drift: FiniteFloat
    clock_spread: FiniteFloat | None = None
    num_pairs: PositiveInt


class Calibration(Line):
    """The limits file of one machine: what `bsa-bench noise` measured and what the gate may promise there.

    Args:
        environment: where; the gate uses the file of its own environment's hash.
        threads, suite: as measured.
        pair_sd, num_freedoms: of a pair's log ratio, pooled over the cases, and the degrees of freedom behind it.
        limit: below which a change counts as none here.
        detectable: by number of pairs, the smallest slow-down that is found at least 8 times in 10.
        false_alarm_rate: share of A/A trials, redrawn from these pairs, that the gate's own rule called SLOWER.
        num_trials: of those.
        may_gate: whether the gate can find a change of `max_detectable` here.
        left_out: cases that could not be measured, and why.
    """

    schema_version: Literal[1] = 1
    kind: Literal["noise"] = "noise"
    utc: str
    environment: Environment
    suite: str
    threads: PositiveInt
    pair_sd: Annotated[float, Field(ge=0)]
    num_freedoms: NonNegativeInt
    limit: Annotated[float, Field(gt=0)]
    detectable: Annotated[dict[PositiveInt, FiniteFloat], Field(min_length=1)]
    max_detectable: Annotated[float, Field(gt=0)]
    false_alarm_rate: Annotated[float, Field(ge=0, le=1)]
    num_trials: PositiveInt
    may_gate: bool
    cases: tuple[CaseNoise, ...]
    left_out: dict[str, str] = Field(default_factory=dict)
    wall_s: Annotated[float, Field(ge=0)]


def calibrate(
    names: Sequence[str],
    bench: PairBench,
    policy: Policy,
    *,
    num_pairs: int,
    environment: Environment,
    suite: str,
    threads: int,
    max_detectable: float,
    num_trials: int = FALSE_ALARM_TRIALS,
    seed: int = 0,
    tell: Callable[[str], None] = lambda _: None,
) -> Calibration:
    """Measure A/A pairs of cases and say what a gate by `policy` can promise on this machine.

    Args:
        names: the cases.
        bench: measures pairs of two equal sides.
        policy: the gate's.
        num_pairs: how many pairs; at least 2.
        max_detectable: the slow-down that a gate must be able to find, to be allowed to gate.
        num_trials: how many trials of the gate's rule are redrawn from the pairs.
        seed: of the orders and of the redrawn trials.
        tell: told what happens.

    Raises:
        UsageError: fewer than two pairs are asked for, or nothing could be measured.
    """
    if num_pairs < 2:
        raise UsageError(f"pairs: got {num_pairs}, expected at least 2, for a spread needs two")
    started, order = time.monotonic(), random.Random(seed)
    samples: dict[str, list[PairSample]] = {name: [] for name in names}
    left_out: dict[str, str] = {}
    for number in range(1, num_pairs + 1):
        pending = [name for name in names if name not in left_out]
        if not pending:
            break
        tell(f"pair {number} of {num_pairs}")
        order.shuffle(pending)
        for name, outcome in bench.measure(pending).items():
            problem = outcome if isinstance(outcome, Problem) else problem_of(outcome)
            if problem is not None:
                left_out[name] = problem.reason
            elif isinstance(outcome, PairSample):
                samples[name].append(outcome)
    measured = {name: found for name, found in samples.items() if len(found) > 1 and name not in left_out}
    if not measured:
        first = next(iter(left_out.values()), "there are no cases")
        raise UsageError(f"noise: nothing could be measured: {first}")
    log_ratios = {
        name: [lockstep_log_ratio(sample.base, sample.head) for sample in found] for name, found in measured.items()
    }
    pooled = shared_sd(list(log_ratios.values()))
    assert pooled is not None
    sd, num_freedoms = pooled
    calls = [median(median(sample.base) for sample in found) for found in measured.values()]
    limit = policy.limit_of(sd, max(calls))
    detectable = {
        count: math.expm1(
            detectable_effect(
                sd, count, limit=math.log1p(limit), significance=policy.significance_of_a_look, power=_POWER
            )
        )
        for count in _PAIR_COUNTS
    }
    return Calibration(
        utc=datetime.now(UTC).isoformat(timespec="seconds"),
        environment=environment,
        suite=suite,
        threads=threads,
        pair_sd=sd,
        num_freedoms=num_freedoms,
        limit=limit,
        detectable=detectable,
        max_detectable=max_detectable,
        false_alarm_rate=false_alarm_rate(list(log_ratios.values()), policy, num_trials=num_trials, seed=seed),
        num_trials=num_trials,
        may_gate=detectable[_PAIR_COUNTS[-1]] <= max_detectable,
        cases=tuple(_case_noise(name, found, log_ratios[name]) for name, found in measured.items()),
        left_out=left_out,
        wall_s=time.monotonic() - started,
    )


def false_alarm_rate(
    groups: Sequence[Sequence[float]], policy: Policy, *, num_trials: int = FALSE_ALARM_TRIALS, seed: int = 0
) -> float:
    """How often the gate calls a case SLOWER of which nothing has changed, with log ratios redrawn from A/A pairs.

    Args:
        groups: the log ratios of each case's pairs; each is turned at random, as base and head are alike.
        policy: the gate's.
    """
    seen, draws = [ratio for group in groups for ratio in group], random.Random(seed)
    alarms = 0
    for trial in range(num_trials):
        bench = _RedrawnBench(seen, draws)
        (check,) = decide(["case"], bench, policy, tier=2, seed=trial)
        alarms += check.verdict is Verdict.SLOWER
    return alarms / num_trials


class _RedrawnBench:
    """Pairs whose log ratios are drawn from those seen; a call takes a second, so that no absolute limit hides one."""

    def __init__(self, seen: Sequence[float], draws: random.Random) -> None:
        self._seen, self._draws = seen, draws

    def measure(self, names: Sequence[str]) -> Mapping[str, PairSample | Problem]:
        return {
            name: PairSample(base=[1.0], head=[math.exp(self._draws.choice(self._seen) * self._draws.choice((-1, 1)))])
            for name in names
        }

    def cost_s(self, names: Sequence[str]) -> float:  # noqa: ARG002  # of the protocol
        return 0.0


def calibration_path(folder: Path, environment: Environment, tier: Tier) -> Path:
    """Where the calibration of a machine is kept: `tier2-<environment>.json`."""
    return folder / f"tier{tier}-{environment.hash}.json"


def check_folder(folder: Path) -> None:
    """Make the folder of limits files, before anything is measured.

    Raises:
        StoreError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder}: {error.strerror or error}") from error
    if not os.access(folder, os.W_OK):
        raise StoreError(f"{folder}: expected a folder that can be written")


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write the limits file, whole or not at all.

    Raises:
        StoreError: it cannot be written.
    """
    check_folder(path.parent)
    write_whole(path, calibration.model_dump_json(indent=1) + "\n")


def read_calibration(path: Path) -> Calibration | None:
    """Read a limits file; None where there is none.

    Raises:
        UsageError: the file is none.
        StoreError: it cannot be read.
    """
    try:
        return Calibration.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: expected what `bsa-bench noise` wrote, got bytes that are no UTF-8") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(f"{path}: expected what `bsa-bench noise` wrote, got {where}: {first['msg']}") from error


def _case_noise(name: str, samples: Sequence[PairSample], log_ratios: Sequence[float]) -> CaseNoise:
    sides = [side for sample in samples for side in (sample.base, sample.head)]
    medians = [median(side) for side in sides]
    clocks = [c for sample in samples for c in (sample.base_clock_hz, sample.head_clock_hz) if c]
    spread = pooled_sd([log_ratios])
    assert spread is not None
    return CaseNoise(
        case_id=name,
        call_s=median(medians),
        within=median(variation(side) for side in sides),
        between=variation(medians),
        pair_sd=spread[0],
        bias=median(log_ratios),
        drift=_drift([(median(sample.base) + median(sample.head)) / 2 for sample in samples]),
        clock_spread=max(clocks) / min(clocks) - 1 if clocks else None,
        num_pairs=len(samples),
    )


def _drift(values: Sequence[float]) -> float:
    """From the first to the last, by a straight line through all logs."""
    from statistics import linear_regression

    slope = linear_regression(range(len(values)), [math.log(value) for value in values]).slope
    return math.expm1(slope * (len(values) - 1))
