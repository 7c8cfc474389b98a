"""JSON that NVIDIA's nvbench writes with `--json`, version 1 of its layout.

Of each state the time of isolated runs on the GPU: the median, of older files the mean; of CPU-only benchmarks theirs.
"""

from __future__ import annotations

from bsa_bench.errors import UsageError
from bsa_bench.imports.names import free_axes
from bsa_bench.imports.reading import Lenient, Readings, Source, read_json, read_model
from bsa_bench.imports.record import Statistic

TAGS: dict[str, Statistic] = {
    "nv/cold/time/gpu/median": "median",
    "nv/cold/time/gpu/mean": "mean",
    "nv/cpu_only/time/cpu/median": "median",
    "nv/cpu_only/time/cpu/mean": "mean",
}
"""The first of these that a state has is its latency, in seconds."""


class Value(Lenient):
    """A named value; numbers are text, for JSON would truncate 64-bit integers."""

    name: str
    value: str | int | float


class Summary(Lenient):
    """A figure of a state."""

    tag: str
    data: list[Value] | None = None


class State(Lenient):
    """A configuration of a benchmark on a device."""

    device: int | None = None
    axis_values: list[Value] | None = None
    summaries: list[Summary] | None = None
    is_skipped: bool = False


class Benchmark(Lenient):
    """A benchmark; `states` is null where none was run."""

    name: str
    states: list[State] | None = None


class Device(Lenient):
    """A GPU."""

    id: int
    name: str


class Document(Lenient):
    """The file."""

    devices: list[Device] | None = None
    benchmarks: list[Benchmark]


def recognises(source: Source) -> bool:
    """Whether the file is JSON that names the version of nvbench's layout."""
    return _version(source) is not None


def read(source: Source) -> Readings:
    """Read the latency of each state; states that were skipped, or have no time, are left out and counted.

    Raises:
        UsageError: the layout is another one.
    """
    document = read_model(Document, read_json(source), str(source.path))
    version = _version(source)
    if version != 1:
        raise UsageError(f"{source.path}: version {version} of nvbench's JSON, expected 1")
    devices = {each.id: each.name for each in document.devices or []}
    readings = Readings()
    for benchmark in document.benchmarks:
        for state in benchmark.states or []:
            if state.is_skipped:
                readings.left_out["skipped"] += 1
                continue
            summaries = {summary.tag: summary for summary in state.summaries or []}
            tag = next((tag for tag in TAGS if tag in summaries), None)
            if tag is None:
                readings.left_out["missing"] += 1
                continue
            values = {value.name: value.value for value in summaries[tag].data or []}
            readings.add(
                values.get("value"),
                "s",
                implementation=benchmark.name,
                axes=free_axes({value.name: value.value for value in state.axis_values or []}),
                metric="latency",
                statistic=TAGS[tag],
                device=None if state.device is None else devices.get(state.device),
            )
    return readings


def _version(source: Source) -> object | None:
    """Major version of the layout; None of a file that is not nvbench's."""
    found = source.document
    for key in ("meta", "version"):
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, dict) or "nvbench" not in found:
        return None
    layout = found.get("json")
    return layout.get("major") if isinstance(layout, dict) else None
