"""Correct predictions by what was measured in the same run, on the same device."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import fmean, median

from bsa_bench.result import Case, Result, Status
from bsa_bench.run.estimate import DeviceModel, predict


@dataclass
class Pace:
    """How long workers and calls really took over what was predicted; predictions are scaled by it.

    Workers are kept by engine: one that has not run yet gets the ratio of all others together, the first of all gets 1.
    Calls are kept by method and engine: one that has not run yet gets the geometric mean of its kind, dense or sparse,
    so that on a machine slower than its model the engines that have not run yet do not all seem to be the fastest.
    """

    predicted_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    observed_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    _log_ratios: defaultdict[tuple[bool, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    _measured_s: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, results: Iterable[Result], device: DeviceModel) -> Pace:
        """What the latencies of earlier results, those of a run to resume, say."""
        pace = cls()
        pace.observe_calls(results, device)
        return pace

    def observe(self, engine: str, *, predicted_s: float, observed_s: float) -> None:
        """Learn from a worker that ran to its end."""
        self.predicted_s[engine] += predicted_s
        self.observed_s[engine] += observed_s

    def observe_calls(self, results: Iterable[Result], device: DeviceModel) -> None:
        """Learn from the latencies of results; those without one say nothing."""
        for result in results:
            if result.status is Status.OK and result.timing:
                measured_s = median(result.timing.samples)
                if measured_s > 0:
                    self._measured_s[result.case_hash] = measured_s
                    ratio = measured_s / predict(result.case, device).call_s
                    self._log_ratios[_kind(result.case)].append(math.log(ratio))

    def scaled(self, engine: str, predicted_s: float) -> float:
        """Scale the prediction of a worker by what was learnt."""
        if engine in self.predicted_s:
            return predicted_s * self.observed_s[engine] / self.predicted_s[engine]
        if self.predicted_s:
            return predicted_s * math.fsum(self.observed_s.values()) / math.fsum(self.predicted_s.values())
        return predicted_s

    def call_s(self, case: Case, device: DeviceModel) -> float:
        """Say how long a call is known, or else expected, to take."""
        if case.case_hash in self._measured_s:
            return self._measured_s[case.case_hash]
        predicted_s = predict(case, device).call_s
        kind = _kind(case)
        if kind in self._log_ratios:
            return predicted_s * math.exp(median(self._log_ratios[kind]))
        alike = [median(logs) for other, logs in self._log_ratios.items() if other[0] == kind[0]]
        return predicted_s * math.exp(fmean(alike)) if alike else predicted_s


def _kind(case: Case) -> tuple[bool, str]:
    return case.claims.is_dense, f"{case.method}@{case.base_engine}"
