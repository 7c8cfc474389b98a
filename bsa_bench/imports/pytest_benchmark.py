"""JSON that pytest-benchmark stores, also as `bsa-bench export --to pytest-benchmark` writes it.

Of each benchmark the median over rounds; of our own exports also TFLOP/s executed and the peak memory.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from bsa_bench.imports.names import free_axes
from bsa_bench.imports.reading import Lenient, Readings, Source, read_json, read_model


class Stats(Lenient):
    """Statistics over rounds, in seconds."""

    median: float | None = None


class Benchmark(Lenient):
    """A benchmark; `extra_info` is the author's own."""

    name: str
    params: dict[str, Any] | None = None
    extra_info: dict[str, Any] = Field(default_factory=dict)
    stats: Stats


class Document(Lenient):
    """The file."""

    machine_info: dict[str, Any]
    benchmarks: list[Benchmark]


def recognises(source: Source) -> bool:
    """Whether the file is JSON with benchmarks and the machine that they ran on."""
    return isinstance(source.document, dict) and {"machine_info", "benchmarks"} <= set(source.document)


def read(source: Source) -> Readings:
    """Read the figures of each benchmark.

    The device is what `extra_info` or `machine_info` names as `device`; the processor that the tool records by itself
    need not be what was measured.

    Raises:
        UsageError: the layout is another one.
    """
    document = read_model(Document, read_json(source), str(source.path))
    readings = Readings()
    for benchmark in document.benchmarks:
        extra, params = benchmark.extra_info, dict(benchmark.params or {})
        density = extra.get("density_realised")
        implementation = params.pop("implementation", None) or benchmark.name.partition("[")[0]
        device = extra.get("device") or document.machine_info.get("device")
        shared: dict[str, Any] = {
            "implementation": str(implementation),
            "axes": free_axes(params if density is None else params | {"density": density}),
            "device": device if isinstance(device, str) else None,
        }
        readings.add(benchmark.stats.median, "s", metric="latency", statistic="median", **shared)
        throughput = extra.get("executed_tflop_per_s")
        if isinstance(throughput, dict):
            readings.add(throughput.get("value"), "TFLOP/s", metric="throughput", statistic="median", **shared)
        if extra.get("peak_above_inputs_bytes") is not None:
            readings.add(extra["peak_above_inputs_bytes"], "B", metric="memory", statistic=None, **shared)
    return readings
