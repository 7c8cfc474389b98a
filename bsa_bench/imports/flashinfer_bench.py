"""Traces of flashinfer-bench: JSON lines, one for each solution and workload.

Of each trace that PASSED its mean latency. Heads and head dim are in the name of the definition; there is a length only
where the workload says that it holds one sequence.
"""

from __future__ import annotations

import json
import re
from typing import Any

from bsa_bench.errors import UsageError
from bsa_bench.imports.names import free_axes
from bsa_bench.imports.reading import Lenient, Readings, Source, read_model
from bsa_bench.imports.record import PublishedAxes

ATTENTION = re.compile(r"(?:^|_)(?:gqa|mha|mla|dsa|attention)(?:_|$)")


class Workload(Lenient):
    """Sizes of the variable axes."""

    axes: dict[str, int]
    uuid: str


class Performance(Lenient):
    """Of a solution that passed."""

    latency_ms: float | None = None


class Environment(Lenient):
    """Where it was measured."""

    hardware: str


class Evaluation(Lenient):
    """How a solution did."""

    status: str
    environment: Environment
    performance: Performance | None = None


class Trace(Lenient):
    """A line; without a solution it is a workload only."""

    definition: str
    workload: Workload
    solution: str | None = None
    evaluation: Evaluation | None = None


def recognises(source: Source) -> bool:
    """Whether the first line is a trace."""
    try:
        first = json.loads(source.first_line)
    except (ValueError, RecursionError):
        return False
    return isinstance(first, dict) and {"definition", "workload"} <= set(first)


def read(source: Source) -> Readings:
    """Read the latency of each trace of attention that PASSED; the others are left out and counted.

    Raises:
        UsageError: a line is not a trace.
    """
    readings = Readings()
    for number, line in enumerate(source.text.splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{source.path}, line {number}"
        try:
            document = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{where}: not a JSON document, or a truncated one: {error}") from error
        trace = read_model(Trace, document, where)
        if trace.solution is None or trace.evaluation is None:
            readings.left_out["workload only"] += 1
        elif not ATTENTION.search(trace.definition):
            readings.left_out["not attention"] += 1
        elif trace.evaluation.status != "PASSED":
            readings.left_out[trace.evaluation.status] += 1
        else:
            performance = trace.evaluation.performance
            readings.add(
                performance.latency_ms if performance else None,
                "ms",
                implementation=trace.solution,
                axes=_axes(trace),
                metric="latency",
                statistic="mean",
                device=trace.evaluation.environment.hardware,
            )
    return readings


def _axes(trace: Trace) -> PublishedAxes:
    """Ragged batches have a pointer more than sequences, so two pointers say that all tokens are of one."""
    axes = dict(trace.workload.axes)
    known: dict[str, Any] = {"passes": "forward"}
    for letter, name in (("h", "heads"), ("kv", "heads_kv"), ("d", "head_dim")):
        if found := re.search(rf"_{letter}([1-9][0-9]*)(?=_|$)", trace.definition):
            known[name] = int(found[1])
    if axes.get("len_indptr") == 2:
        known["batch"] = 1
        for total, name in (("total_q", "length"), ("total_kv", "length_kv")):
            if axes.get(total, 0) > 0:
                known[name] = axes.pop(total)
    if "_causal" in trace.definition:
        known["mask"] = "causal"
    return free_axes(axes, **known, other={"definition": trace.definition, "workload": trace.workload.uuid})
