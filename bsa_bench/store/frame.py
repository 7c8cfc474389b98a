"""A run as one flat table: a row for each case, documented columns; and its export."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bsa_bench.catalog import METHODS, load_method
from bsa_bench.errors import StoreError, UsageError
from bsa_bench.store.derive import Row, derive
from bsa_bench.store.reader import read_run

if TYPE_CHECKING:
    import pandas as pd

ExportFormat = Literal["csv", "parquet"]

PHASES = (
    "permute",
    "select",
    "plan",
    "attend",
    "fill",
    "restore",
    "restore_backward",
    "fill_backward",
    "attend_backward",
    "permute_backward",
)
OPTION = "option_"


def _option_columns() -> dict[str, tuple[str, str]]:
    """A column for each option of the methods that come with the bench; numbers where it holds nothing else."""
    found: dict[str, list[bool]] = {}
    owners: dict[str, list[str]] = {}
    for method in METHODS:
        for name, about in load_method(method).Options.model_fields.items():
            words = set(re.findall(r"\w+", str(about.annotation).replace("Annotated", "")))
            found.setdefault(name, []).append(bool(words & {"int", "float"}) and not words & {"tuple", "str", "bool"})
            owners.setdefault(name, []).append(method)
    return {
        f"{OPTION}{name}": ("float64" if all(found[name]) else "object", f"option of {', '.join(owners[name])}")
        for name in sorted(found)
    }


# Name -> (dtype, meaning). Missing values are NaN, <NA> or None, never 0.
COLUMNS: dict[str, tuple[str, str]] = {
    "run_id": ("object", "the run"),
    "seq": ("Int64", "order of execution in the run"),
    "utc": ("object", "when the case ended"),
    "suite": ("object", "the suite that asked for the case"),
    "case_id": ("object", "readable name of the case"),
    "case_hash": ("object", "digest of what is measured; the resume key"),
    "env_hash": ("object", "digest of the environment; timings compare only within one"),
    "model": ("object", "model preset, if any"),
    "tokens": ("Int64", "length of the attention"),
    "grid": ("object", "tokens along time x height x width"),
    "frames": ("Int64", "video frames; missing where the length was given otherwise"),
    "height": ("Int64", "video height in pixels"),
    "width": ("Int64", "video width in pixels"),
    "batch": ("Int64", "batch"),
    "heads": ("Int64", "attention heads"),
    "head_dim": ("Int64", "elements a head"),
    "dtype": ("object", "number format of q, k, v"),
    "input": ("object", "where q, k, v come from"),
    "workload_digest": ("object", "digest of the whole workload, its input included"),
    "implementation": ("object", "method@engine"),
    "method": ("object", "what is attended"),
    "engine": ("object", "who computes it"),
    "variant": ("object", "the suite's name for this set of options, if any"),
    "pass": ("object", "forward, backward or forward+backward"),
    "options": ("object", "the method's options as JSON"),
    **_option_columns(),
    "is_dense": ("boolean", "dense attention, which the others are compared with"),
    "is_causal": ("boolean", "a query sees no later key; compared with causal dense attention"),
    "is_adapted": ("boolean", "run otherwise than its authors do"),
    "status": ("object", "how the case ended"),
    "reason": ("object", "why, in a sentence, where it is not OK"),
    "is_correct": ("boolean", "measured, and proved within its error budget"),
    "backend": ("object", "the backend that ran"),
    "engine_version": ("object", "version of the engine"),
    "timer": ("object", "host or event"),
    "cache": ("object", "cold or warm L2"),
    "num_samples": ("Int64", "latency samples of the whole operator"),
    "median_s": ("float64", "median latency of the whole operator"),
    "low_s": ("float64", "lower end of the median's interval"),
    "high_s": ("float64", "upper end of the median's interval"),
    "interval_level": ("float64", "coverage that the interval reaches"),
    "q1_s": ("float64", "first quartile"),
    "q3_s": ("float64", "third quartile"),
    "p95_s": ("float64", "95th percentile"),
    "min_s": ("float64", "fastest sample"),
    "variation": ("float64", "standard deviation / mean"),
    "samples": ("object", "all samples in seconds, in order (a list; JSON text in a CSV)"),
    "first_call_s": ("float64", "the first call, compilation included"),
    "warmup_s": ("float64", "time spent warming up"),
    "settled": ("boolean", "whether the warm-up settled before its cap"),
    "attend_only_s": ("float64", "median of the attend phase"),
    "attend_select_s": ("float64", "median of attend + select"),
    **{f"phase_{name}_s": ("float64", f"median of the {name} phase") for name in PHASES},
    "peak_above_inputs_bytes": ("Int64", "peak memory above the inputs"),
    "peak_bytes": ("Int64", "absolute peak memory"),
    "inputs_bytes": ("Int64", "bytes of the inputs"),
    "predicted_bytes": ("Int64", "peak memory predicted before the start"),
    "flops_executed": ("float64", "FLOP of the matrix products as executed, padding included"),
    "flops_nominal": ("float64", "FLOP of the unmasked pairs"),
    "flops_dense_equiv": ("float64", "FLOP of the dense attention that it is compared with"),
    "flops_selection": ("float64", "FLOP of the selection"),
    "executed_flop_per_s": ("float64", "flops_executed / median_s"),
    "sparsity_nominal": ("float64", "sparsity asked for"),
    "density_realised": ("float64", "the work of the method over that of dense attention"),
    "kv_density_realised": ("float64", "key/value density of the plan in use"),
    "query_keep_realised": ("float64", "share of queries computed"),
    "row_imbalance": ("float64", "longest list / mean list"),
    "head_imbalance": ("float64", "busiest head / mean head"),
    "union_efficiency": ("float64", "share of the work of groups that share lists that their members asked for"),
    "list_mean": ("float64", "mean KV blocks of the lists that the engine walks, shared by groups or not"),
    "list_max": ("Int64", "the longest of them"),
    "num_dead_blocks": ("Int64", "key/value blocks that no query block chose"),
    "plan_digest": ("object", "digest of the plan in use"),
    "counters": ("object", "what the method counts besides, as JSON"),
    "error_relative_l2": ("float64", "error against the masked oracle, of the output nearest to its budget"),
    "error_budget": ("float64", "what that error may be"),
    "dense_error_relative_l2": ("float64", "error of the output against dense attention"),
    "dense_error_cosine": ("float64", "cosine similarity of the output to dense attention"),
    "mass_kept": ("float64", "share of the dense attention mass that the plan kept"),
    "rows_checked": ("Int64", "query rows of each head that were compared"),
    "dense_baseline": ("object", "fastest correct dense implementation of the same workload and pass"),
    "speedup_over_dense": ("float64", "of the whole operator over dense_baseline"),
    "speedup_low": ("float64", "from the far ends of both intervals"),
    "speedup_high": ("float64", "from the far ends of both intervals"),
    "speedup_attend_only": ("float64", "of the attend phase over dense_baseline"),
    "speedup_attend_select": ("float64", "of attend + select over dense_baseline"),
    "ideal_speedup": ("float64", "1 / density_realised"),
    "achieved_share": ("float64", "speedup_over_dense / ideal_speedup"),
    "paper_speedup": ("float64", "a paper's figure for this row; not measured here"),
    "paper_standing": ("object", "P the paper, N second-hand notes, D our derivation"),
    "wall_s": ("float64", "time that the case took in all"),
}


def load_frame(path: str | Path) -> pd.DataFrame:
    """Load a run as a flat table; `COLUMNS` names each column's dtype and meaning.

    One row per case, in the order of execution. What `COLUMNS` does not know, a phase or an option of a third party's
    method, becomes a column after the others.

    Raises:
        StoreError: as `read_run`.
    """
    import pandas as pd

    rows = [_flatten(row) for row in derive(read_run(path).latest())]
    extra = sorted({name for row in rows for name in row} - set(COLUMNS))
    dtypes = {name: dtype for name, (dtype, _) in COLUMNS.items()}
    dtypes |= {name: "object" if name.startswith(OPTION) else "float64" for name in extra}
    columns = {name: pd.Series([row.get(name) for row in rows], dtype=dtype) for name, dtype in dtypes.items()}
    return pd.DataFrame(columns)


def export(path: str | Path, *, to: ExportFormat, out: str | Path) -> Path:
    """Write the flat table of the run at `path` to the file `out`; return it.

    Raises:
        UsageError: an unknown format.
        StoreError: as `read_run`, or `out` cannot be written.
    """
    if to not in {"csv", "parquet"}:
        raise UsageError(f"export format: got {to!r}, expected csv or parquet")
    frame = load_frame(path)
    target = Path(out)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if to == "csv":
            frame["samples"] = [json.dumps(s) if s is not None else None for s in frame["samples"]]
            frame.to_csv(target, index=False)
        else:
            frame.to_parquet(target, index=False)
    except OSError as error:
        raise StoreError(f"{target}: cannot be written: {error.strerror or error}") from error
    return target


def _flatten(row: Row) -> dict[str, object]:
    r = row.result
    case, workload = r.case, r.case.workload
    whole, dense, worst, speedup = row.whole, row.dense, row.worst_error, row.speedup
    flat: dict[str, object] = {
        "grid": "x".join(map(str, workload.token_grid)),
        "tokens": workload.num_tokens,
        "input": workload.input.label,
        "workload_digest": workload.digest,
        "method": case.method,
        "engine": case.engine,
        "pass": case.passes,
        "options": json.dumps(case.options, sort_keys=True) if case.options else None,
        "counters": json.dumps(r.work.counters, sort_keys=True) if r.work and r.work.counters else None,
        "is_dense": case.claims.is_dense,
        "is_causal": case.claims.causal,
        "is_adapted": case.claims.adapted,
        "status": r.status.value,
        "is_correct": row.is_correct,
        "executed_flop_per_s": row.executed_flop_per_s,
        "error_relative_l2": worst.relative_l2 if worst else None,
        "error_budget": worst.budget if worst else None,
        "rows_checked": r.correctness.rows if r.correctness else None,
        "mass_kept": r.correctness.mass_kept if r.correctness else None,
        "dense_baseline": dense.result.case.implementation if dense else None,
        "speedup_over_dense": speedup.value if speedup else None,
        "speedup_low": speedup.low if speedup else None,
        "speedup_high": speedup.high if speedup else None,
        "speedup_attend_only": row.speedup_attend_only.value if row.speedup_attend_only else None,
        "speedup_attend_select": row.speedup_attend_select.value if row.speedup_attend_select else None,
        "ideal_speedup": row.ideal_speedup,
        "achieved_share": row.achieved_share,
        "attend_only_s": row.attend_only.median if row.attend_only else None,
        "attend_select_s": row.attend_select.median if row.attend_select else None,
    }
    flat |= {f"{OPTION}{name}": _plain(value) for name, value in case.options.items()}
    flat |= {f"phase_{name}_s": median for name, median in row.phases.items()}
    if whole:
        flat |= {"num_samples": whole.num_samples, "median_s": whole.median, "low_s": whole.low, "high_s": whole.high}
        flat |= {"q1_s": whole.q1, "q3_s": whole.q3, "p95_s": whole.p95, "min_s": whole.minimum}
        flat |= {"interval_level": whole.interval_level, "variation": whole.variation}
    if r.correctness and r.correctness.dense:
        flat["dense_error_relative_l2"] = r.correctness.dense.relative_l2
        flat["dense_error_cosine"] = r.correctness.dense.cosine
    if case.paper:
        flat |= {"paper_speedup": case.paper.speedup, "paper_standing": case.paper.standing}
    # The rest bears its stored name.
    for part in (r, case, workload, r.timing, r.memory, r.work):
        if part is not None:
            fields = type(part).model_fields
            flat |= {name: getattr(part, name) for name in COLUMNS if name in fields and name not in flat}
    return flat


def _plain(value: object) -> object:
    """An option as a cell: sides as `4x4x4`, the rest as it is."""
    return "x".join(map(str, value)) if isinstance(value, list) else value
