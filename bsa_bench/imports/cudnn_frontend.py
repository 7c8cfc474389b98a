"""CSV of cudnn-frontend's `benchmark/sdpa_benchmark_training`, of 2026-02 (wide) and of 2026-04 (long).

Long: one row a pass, with `time_ms` and `tflops`. Wide: one row for `both` passes, with columns for each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bsa_bench.errors import UsageError
from bsa_bench.imports.names import dtype_name
from bsa_bench.imports.reading import Readings, Source, read_csv, whole_number
from bsa_bench.imports.record import Metric, PublishedAxes
from bsa_bench.result import PassName

REQUIRED = (
    "backend",
    "data_type",
    "attn_mask",
    "batch_size",
    "q_seqlen",
    "kv_seqlen",
    "num_q_heads",
    "num_kv_heads",
    "head_dim_qk",
    "head_dim_vo",
    "profile_pass",
    "success",
)
OPTIONAL = (
    "config_name",
    "model_name",
    "deterministic_bwd",
    "max_diff",
    "num_iterations",
    "sliding_window_size",
    "error_message",
    "gpu_name",
    "cudnn_version",
    "cudnn_backend_version",
)
LONG = ("time_ms", "tflops")
WIDE = ("fwd_time_ms", "bwd_time_ms", "fwd_tflops", "bwd_tflops")
PASSES: dict[str, tuple[PassName, ...]] = {
    "fwd": ("forward",),
    "bwd": ("backward",),
    "both": ("forward", "backward"),
}


def recognises(source: Source) -> bool:
    """Whether the header is one of an attention benchmark of cudnn-frontend."""
    return {"backend", "q_seqlen", "profile_pass"} <= set(source.first_line.split(","))


def read(source: Source) -> Readings:
    """Read a latency and a throughput of each row and pass; rows that did not succeed are left out and counted.

    Raises:
        UsageError: a column is missing or unknown, or a row cannot be read.
    """
    header, rows = read_csv(source, ",")
    is_long = _check(source, header)
    readings = Readings()
    for number, cells in rows:
        where = f"{source.path}, line {number}"
        if len(cells) != len(header):
            raise UsageError(f"{where}: {len(cells)} cells, expected {len(header)}; truncated?")
        row = dict(zip(header, cells, strict=True))
        passes = PASSES.get(row["profile_pass"])
        if passes is None or (is_long and len(passes) > 1):
            expected = "fwd or bwd" if is_long else "fwd, bwd or both"
            raise UsageError(f"{where}: profile_pass: got {row['profile_pass']!r}, expected {expected}")
        for each in passes:
            prefix = "" if is_long else {"forward": "fwd_", "backward": "bwd_"}[each]
            figures: tuple[tuple[str, str, Metric], ...] = (
                (row[f"{prefix}time_ms"], "ms", "latency"),
                (row[f"{prefix}tflops"], "TFLOP/s", "throughput"),
            )
            if row["success"] != "True":
                readings.left_out["failed"] += len(figures)
                continue
            shared: dict[str, Any] = {
                "implementation": row["backend"],
                "axes": _axes(row, each, where),
                "device": row.get("gpu_name"),
                "statistic": "median",
            }
            for cell, unit, metric in figures:
                readings.add(cell, unit, metric=metric, **shared)
    return readings


def _check(source: Source, header: list[str]) -> bool:
    """Whether the layout is the long one."""
    is_long = bool(set(LONG) & set(header))
    needed = {*REQUIRED, *(LONG if is_long else WIDE)}
    missing = sorted(needed - set(header))
    if missing:
        raise UsageError(
            f"{source.path}: columns {', '.join(missing)} are missing, expected the CSV of cudnn-frontend's "
            "benchmark/sdpa_benchmark_training"
        )
    unknown = [name for name in header if name not in needed and name not in OPTIONAL]
    if unknown or len(set(header)) < len(header):
        what = f"unknown columns {', '.join(unknown)}" if unknown else "a column stands twice"
        raise UsageError(
            f"{source.path}: {what}; rows may differ in them, so none is passed over, expected only "
            f"{', '.join([*REQUIRED, *(LONG if is_long else WIDE), *OPTIONAL])}"
        )
    return is_long


def _axes(row: Mapping[str, str], passes: PassName, where: str) -> PublishedAxes:
    def size(name: str) -> int:
        return whole_number(row[name], f"{where}: {name}")

    length, length_kv, head_dim, head_dim_v = (
        size(name) for name in ("q_seqlen", "kv_seqlen", "head_dim_qk", "head_dim_vo")
    )
    other = {
        "model": row.get("model_name", ""),
        "head_dim_v": str(head_dim_v) if head_dim_v != head_dim else "",
        "sliding_window": row.get("sliding_window_size", "").removesuffix(".000"),
        "deterministic": row.get("deterministic_bwd", "") if passes == "backward" else "",
        "cudnn": row.get("cudnn_backend_version", "").removesuffix(".000"),
    }
    return PublishedAxes(
        length=length,
        length_kv=length_kv,
        batch=size("batch_size"),
        heads=size("num_q_heads"),
        heads_kv=size("num_kv_heads"),
        head_dim=head_dim,
        dtype=dtype_name(row["data_type"]),
        passes=passes,
        mask=_mask(row, is_square=length == length_kv),
        other={name: text for name, text in other.items() if text and text not in {"False", "0"}},
    )


def _mask(row: Mapping[str, str], *, is_square: bool) -> str:
    """A causal mask of as many queries as keys is the same from either corner."""
    if row.get("sliding_window_size", "") not in {"", "0"}:
        return "sliding window"
    if row["attn_mask"] == "no_mask":
        return "none"
    return "causal" if is_square and row["attn_mask"] in {"top_left", "bottom_right"} else row["attn_mask"] or "unnamed"
