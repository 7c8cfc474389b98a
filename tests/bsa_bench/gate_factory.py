"""A scripted machine for tests of the gate: it has true effects, noise and defects, and no clock but its own."""

import math
from dataclasses import dataclass, field

import numpy as np

from bsa_bench.gate.two_stage import PairSample, Policy, Problem, decide
from bsa_bench.gate.verdict import TierResult, Verdict, exit_code

# No policy of a test depends on the length of a call, but for those of the absolute limit.
CALL_S = 0.05


@dataclass
class Scripted:
    """How one case behaves.

    Args:
        effect: true change of the head, relative.
        within, between: standard deviations of log times, of the calls of a process and of processes.
        heavy_tails: processes have t distributed biases of the same standard deviation, 3 degrees of freedom.
        slow_modes: of base and head, how much slower a process of the slow mode is.
        slow_share: how many processes are in the slow mode; a tuple says it process by process, and repeats.
        head_clock: of the head, relative to the base's; None where nobody can tell the clocks.
        head_memory_bytes: the peak, that of the base is 1 GiB; None where nobody can tell.
        sample: given the number of the case's pair (from 0) and the sample, what is measured in its place.
    """

    effect: float = 0.0
    within: float = 0.005
    between: float = 0.01
    heavy_tails: bool = False
    slow_modes: tuple[float, float] = (0.0, 0.0)
    slow_share: float | tuple[bool, ...] = 0.5
    head_clock: float | None = None
    head_memory_bytes: int | None = None
    call_s: float = CALL_S
    sample: object = None


@dataclass
class ScriptedBench:
    """Implements PairBench. Processes have biases of their own, samples are taken in turn, drift moves both sides.

    Args:
        cases: by name.
        drift: relative change of the machine's speed over `drift_pairs` pairs, and on in the same way after them.
        num_samples: of each side and pair.
        visits: the names of each pair, in the order of the visit.
    """

    cases: dict[str, Scripted]
    seed: int = 0
    drift: float = 0.0
    drift_pairs: int = 11
    num_samples: int = 7
    visit_s: float = 1.0
    visits: list[list[str]] = field(default_factory=list)

    def __post_init__(self):
        self.draws = np.random.default_rng(self.seed)

    def measure(self, names):
        self.visits.append(list(names))
        number, turns = len(names), self.num_samples
        scripts = [self.cases[name] for name in names]
        shape = (number, 2)
        times = np.log([[script.call_s] * 2 for script in scripts])
        times[:, 1] += np.log1p([script.effect for script in scripts])
        is_heavy = np.array([[script.heavy_tails] for script in scripts])
        biases = np.where(is_heavy, self.draws.standard_t(3, shape) / math.sqrt(3), self.draws.standard_normal(shape))
        times += np.array([[script.between] for script in scripts]) * biases
        for place, (name, script) in enumerate(zip(names, scripts, strict=True)):
            if any(script.slow_modes):
                times[place] += np.log1p(script.slow_modes) * self._slow(name, script)
        within = np.array([script.within for script in scripts])[:, None, None]
        samples = times[:, :, None] + within * self.draws.standard_normal((*shape, turns))
        # Calls of the two sides alternate, case after case.
        moments = (np.arange(number)[:, None, None] + (np.arange(turns) + np.array([[0], [0.5]])) / turns) / number
        progress = (len(self.visits) - 1 + moments) / self.drift_pairs
        samples = np.exp(samples + np.log1p(self.drift) * progress).tolist()
        return {
            name: self._measured(name, script, *sides)
            for name, script, sides in zip(names, scripts, samples, strict=True)
        }

    def cost_s(self, names):
        """A second for the pair, and as much as `visit_s` for each case."""
        return 1.0 + self.visit_s * len(names) if self.visits else 0.0

    def time_left(self, total_s):
        """What of a time is left after the pairs so far."""
        return lambda: total_s - sum(1.0 + self.visit_s * len(names) for names in self.visits)

    def num_pairs(self, name):
        """How many pairs have visited a case."""
        return sum(name in names for names in self.visits)

    def _slow(self, name, script):
        if isinstance(script.slow_share, tuple):
            return np.full(2, script.slow_share[(self.num_pairs(name) - 1) % len(script.slow_share)])
        return self.draws.random(2) < script.slow_share

    def _measured(self, name, script, base, head):
        sample = PairSample(
            base=base,
            head=head,
            base_clock_hz=None if script.head_clock is None else 1.5e9,
            head_clock_hz=None if script.head_clock is None else 1.5e9 * script.head_clock,
            base_peak_bytes=None if script.head_memory_bytes is None else 1 << 30,
            head_peak_bytes=script.head_memory_bytes,
        )
        return script.sample(self.num_pairs(name) - 1, sample) if script.sample else sample


def always(outcome):
    """A script's `sample`: this problem, or this sample, in every pair."""
    return lambda number, sample: outcome


def in_pairs(numbers, outcome):
    """A script's `sample`: this problem in some pairs; `outcome` may be a function of the sample."""
    return lambda number, sample: (outcome(sample) if callable(outcome) else outcome) if number in numbers else sample


OUT_OF_MEMORY_ON_HEAD = Problem(Verdict.FAILED, "head came to OOM, the base did not")
OUT_OF_MEMORY_ON_BOTH = Problem(Verdict.NOT_MEASURED, "base came to OOM, and so does head")
OUT_OF_MEMORY_ON_BASE = Problem(Verdict.NOT_MEASURED, "base came to OOM")
WRONG = Problem(Verdict.WRONG, "head: outside the error budget")


def gate(cases, *, policy=None, controls=(), seed=0, bench=None, tier=3, **options):
    """Decide scripted cases; returns the checks by name and the bench."""
    bench = bench or ScriptedBench(dict(cases), seed=seed)
    names = [name for name in cases if name not in controls]
    checks = decide(names, bench, policy or Policy(), tier=tier, controls=controls, seed=seed, **options)
    return {check.name: check for check in checks}, bench


def code(checks, **options):
    """The exit code of checks that are all there is."""
    return exit_code([TierResult(tier=3, checks=tuple(checks.values()))], **options)


def one(script, **options):
    """The verdict of a lone case beside two steady ones that tell the noise, and the exit code."""
    steady = Scripted(between=min(script.between, 0.01))
    checks, _ = gate({"case": script, "steady-a": steady, "steady-b": steady}, **options)
    return checks["case"], code({"case": checks["case"]})


def after(pairs):
    """Time for so many pairs, and no sooner said to be short."""
    left = iter([math.inf] * pairs)
    return lambda: next(left, 0.0)
