"""CSV that tritonbench writes with `--csv` or `--output`: `;` between cells, `provider-metric` as columns.

The first column is the shape. Device, dtype and pass are not in the file.
"""

from __future__ import annotations

import re
from typing import Any

from bsa_bench.errors import UsageError
from bsa_bench.imports.names import MASK_WORDS, letters
from bsa_bench.imports.reading import Readings, Source, clean, read_csv, whole_number
from bsa_bench.imports.record import Metric, PublishedAxes

#: Shapes of tritonbench's attention operators: the first header, and the field of each number under it; "" is unused.
SHAPES: dict[str, tuple[str, ...]] = {
    "SeqLen": ("length",),
    "(Batch, Heads, SeqLen, Dhead)": ("batch", "heads", "length", "head_dim"),
    "(Batch, Heads, SeqLen, SeqLen_KV, Dhead)": ("batch", "heads", "length", "length_kv", "head_dim"),
    "(B, Hq, M, Hkv, N, D) | Mask Type": ("batch", "heads", "length", "heads_kv", "length_kv", "head_dim"),
    "(Batch, SeqLenQ, SeqLenKV, MaxLenKV, HeadQ, HeadKV, HeadD)": (
        "batch",
        "length",
        "length_kv",
        "",
        "heads",
        "heads_kv",
        "head_dim",
    ),
}
METRICS: dict[str, tuple[Metric, str]] = {
    "latency": ("latency", "ms"),
    "tflops": ("throughput", "TFLOP/s"),
    "gpu_peak_mem": ("memory", "GB"),
}
#: Metrics of tritonbench that are no latency, throughput or memory of the operator.
PASSED_OVER = frozenset(
    {
        "accuracy",
        "all_configs",
        "att_trace",
        "best_config",
        "compile_time",
        "compile_time_by_stage",
        "compile_trace",
        "cpu_peak_mem",
        "cuda_time",
        "error_msg",
        "flops",
        "gbps",
        "hw_roofline",
        "kernel_source_hash",
        "kineto_trace",
        "mem_footprint_compression_ratio",
        "ncu_rep",
        "ncu_rep_ir",
        "nsys_gpu_speedup",
        "nsys_rep",
        "speedup",
        "walltime",
    }
)


def recognises(source: Source) -> bool:
    """Whether the header is one of tritonbench: cells with `;` between, the last a provider and a metric."""
    cells = source.first_line.split(";")
    return len(cells) > 1 and "-" in cells[-1]


def read(source: Source) -> Readings:
    """Read the cells of each row but that of averages; a cell of a failed provider is left out and counted.

    Raises:
        UsageError: the shape is none of an attention operator, a metric is unknown, or a row cannot be read.
    """
    header, rows = read_csv(source, ";")
    fields = next((names for shape, names in SHAPES.items() if letters(shape) == letters(header[0])), None)
    if fields is None:
        raise UsageError(
            f"{source.path}: first column {header[0]!r}, expected the shape of an attention operator of tritonbench: "
            f"{'; '.join(SHAPES)}"
        )
    columns = [_column(source, name) for name in header[1:]]
    readings = Readings()
    for number, cells in rows:
        where = f"{source.path}, line {number}"
        if cells[0] in {"average", "hashes"}:
            continue
        if len(cells) != len(header):
            raise UsageError(f"{where}: {len(cells)} cells, expected {len(header)}; truncated?")
        axes = _axes(cells[0], fields, where)
        for column, cell in zip(columns, cells[1:], strict=True):
            if column:
                provider, metric, unit = column
                readings.add(
                    cell,
                    unit,
                    implementation=provider,
                    axes=axes,
                    metric=metric,
                    statistic=None if metric == "memory" else "median",
                )
    return readings


def _column(source: Source, name: str) -> tuple[str, Metric, str] | None:
    """Provider, metric and unit of a column; None of one that holds something else."""
    provider, _, metric = name.rpartition("-")
    if metric in METRICS and provider:
        return provider, *METRICS[metric]
    if metric in PASSED_OVER:
        return None
    raise UsageError(
        f"{source.path}: unknown column {name!r}, expected PROVIDER-METRIC with one of {', '.join(METRICS)} "
        f"(or, passed over, {', '.join(sorted(PASSED_OVER))})"
    )


def _axes(cell: str, fields: tuple[str, ...], where: str) -> PublishedAxes:
    shape, _, mask = cell.partition("|")
    numbers = re.findall(r"[0-9]+", shape)
    if len(numbers) != len(fields):
        raise UsageError(f"{where}: shape {cell.strip()!r}, expected {len(fields)} numbers")
    sizes: dict[str, Any] = {
        name: whole_number(text, where) for name, text in zip(fields, numbers, strict=True) if name
    }
    word = clean(mask)
    return PublishedAxes(**sizes, mask=MASK_WORDS.get(letters(word), word) or None)
