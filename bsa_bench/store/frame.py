"""A run as one flat table: a row for each case, documented columns; and its export."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bsa_bench.errors import StoreError, UsageError
from bsa_bench.result import Environment, Result
from bsa_bench.store.columns import COLUMNS, DIGESTS, LISTS, OPTION, PHASES
from bsa_bench.store.derive import Row, derive
from bsa_bench.store.reader import Run, read_run

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

__all__ = [
    "COLUMNS",
    "PHASES",
    "TableFormat",
    "environment_of",
    "export",
    "flags",
    "frame_of",
    "load_frame",
    "write_table",
]

TableFormat = Literal["csv", "parquet"]


def load_frame(path: str | Path) -> pd.DataFrame:
    """Load a run as a flat table; `COLUMNS` names each column's dtype and meaning.

    One row per case, in the order of execution. What `COLUMNS` does not know, a phase or an option of a third party's
    method, becomes a column after the others.

    Raises:
        StoreError: as `read_run`.
    """
    return frame_of(read_run(path))


def frame_of(run: Run) -> pd.DataFrame:
    """Lay a run that was read already out as the table of `load_frame`."""
    import pandas as pd

    rows = [_flatten(row, environment_of(run, row.result)) for row in derive(run.latest())]
    extra = sorted({name for row in rows for name in row} - set(COLUMNS))
    dtypes = {name: dtype for name, (dtype, _) in COLUMNS.items()}
    dtypes |= {name: "object" if name.startswith(OPTION) else "float64" for name in extra}
    columns = {name: pd.Series([row.get(name) for row in rows], dtype=dtype) for name, dtype in dtypes.items()}
    return pd.DataFrame(columns)


def export(path: str | Path, *, to: TableFormat, out: str | Path) -> Path:
    """Write the flat table of the run at `path` to the file `out`; return it.

    Raises:
        UsageError: an unknown format.
        StoreError: as `read_run`, or `out` cannot be written.
    """
    if to not in {"csv", "parquet"}:
        raise UsageError(f"export format: got {to!r}, expected csv or parquet")
    return write_table(read_run(path), to=to, out=Path(out))


def write_table(run: Run, *, to: TableFormat, out: Path) -> Path:
    """Write the flat table of a run that was read already to the file `out`; return it.

    Its columns and their types are those of `COLUMNS`, whatever the run holds, so that files of several runs are one
    data set; what a third party's method has besides is in `options` and `phases`.

    Raises:
        StoreError: `out` cannot be written.
    """
    frame = frame_of(run)[list(COLUMNS)]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if to == "csv":
            for name in LISTS:
                frame[name] = [json.dumps(cell) if cell is not None else None for cell in frame[name]]
            for name, prefix in DIGESTS.items():
                frame[name] = [f"{prefix}{cell}" if cell is not None else None for cell in frame[name]]
            frame.to_csv(out, index=False, encoding="utf-8")
        else:
            import pyarrow.parquet as pq

            pq.write_table(_typed(frame), out)
    except OSError as error:
        raise StoreError(f"{out}: cannot be written: {error.strerror or error}") from error
    return out


def _typed(frame: pd.DataFrame) -> pa.Table:
    """The table with the types of `COLUMNS`, of columns too in which nothing is."""
    import pandas as pd
    import pyarrow as pa

    types = {"object": pa.string(), "Int64": pa.int64(), "float64": pa.float64(), "boolean": pa.bool_()}
    types |= {name: pa.list_(pa.type_for_alias(each)) for name, each in LISTS.items()}
    schema = pa.schema([(name, types.get(name) or types[dtype]) for name, (dtype, _) in COLUMNS.items()])
    texts = [name for name, (dtype, _) in COLUMNS.items() if dtype == "object" and name not in LISTS]
    cells = {name: [None if cell is None else str(cell) for cell in frame[name]] for name in texts}
    frame = frame.assign(**{name: pd.Series(column, frame.index, "object") for name, column in cells.items()})
    table = pa.Table.from_pandas(frame, schema=schema, preserve_index=False)
    # What pandas notes of a column's content must not differ from file to file either.
    return table.replace_schema_metadata(pa.Schema.from_pandas(frame.iloc[:0], preserve_index=False).metadata)


def environment_of(run: Run, result: Result) -> Environment | None:
    """Where a case was measured: the environment of the last start of the run before it, of those of its digest.

    The digest names no commit, and a run may be resumed at another one.
    """
    ended = datetime.fromisoformat(result.utc)
    starts = [line for line in run.run_lines if line.environment.hash == result.env_hash]
    before = [line for line in starts if datetime.fromisoformat(line.utc) <= ended]
    return (before or starts)[-1].environment if starts else None


def flags(row: Row) -> dict[str, bool | None]:
    """What a report marks a row with, by the names of its columns; null where it was not looked for."""
    is_timed = row.whole is not None
    needs_share = any(timing.timer == "host" for timing in row.timings)
    looked_at_cpu = is_timed and (not needs_share or row.other_cpu_share is not None)
    looked_at_throttling = is_timed and any(
        each.state is not None and each.state.throttle_ns is not None for each in row.processes
    )
    return {
        "is_unverified": row.is_unverified,
        "is_baseline": row.is_baseline,
        "is_disturbed": row.is_disturbed if looked_at_cpu else None,
        "is_throttled": row.is_throttled if looked_at_throttling else None,
        "is_interval_short": row.is_interval_short if is_timed else None,
        "is_bimodal": row.is_bimodal if row.num_processes > 1 else None,
        "settled": row.is_settled if is_timed else None,
        "timers_disagree": row.timers_disagree,
        "host_gaps": row.host_gaps,
    }


def _flatten(row: Row, environment: Environment | None) -> dict[str, object]:
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
        "phases": json.dumps(row.phases, sort_keys=True) if row.phases else None,
        "counters": json.dumps(r.work.counters, sort_keys=True) if r.work and r.work.counters else None,
        "is_dense": case.claims.is_dense,
        "is_causal": case.claims.causal,
        "is_adapted": case.claims.adapted,
        "approximates_dense": case.claims.approximates_dense,
        "status": r.status.value,
        "is_correct": row.is_correct,
        "inputs_unchanged": row.inputs_unchanged,
        "repeat_identical": row.repeat_identical,
        "executed_flop_per_s": row.executed_flop_per_s,
        "error_relative_l2": worst.relative_l2 if worst else None,
        "error_budget": worst.budget if worst else None,
        "rows_checked": r.correctness.rows if r.correctness else None,
        "mass_kept": r.correctness.mass_kept if r.correctness else None,
        "dense_baseline": dense.result.case.implementation if dense else None,
        "speedup_over_dense": speedup.value if speedup else None,
        "speedup_low": speedup.low if speedup else None,
        "speedup_high": speedup.high if speedup else None,
        "speedup_level": speedup.interval_level if speedup else None,
        "speedup_attend_only": row.speedup_attend_only.value if row.speedup_attend_only else None,
        "speedup_attend_select": row.speedup_attend_select.value if row.speedup_attend_select else None,
        "ideal_speedup": row.ideal_speedup,
        "achieved_share": row.achieved_share,
        "attend_only_s": row.attend_only.median if row.attend_only else None,
        "attend_select_s": row.attend_select.median if row.attend_select else None,
    }
    flat |= flags(row) | {"other_cpu_share": row.other_cpu_share}
    flat |= {f"{OPTION}{name}": _plain(value) for name, value in case.options.items()}
    flat |= {f"phase_{name}_s": median for name, median in row.phases.items()}
    if whole:
        flat |= {"num_samples": whole.num_samples, "median_s": whole.median, "low_s": whole.low, "high_s": whole.high}
        flat |= {"q1_s": whole.q1, "q3_s": whole.q3, "p95_s": whole.p95, "min_s": whole.minimum}
        flat |= {"interval_level": whole.interval_level, "variation": whole.variation}
        flat |= {"num_processes": whole.num_processes, "variation_within": whole.within}
        flat["variation_between"] = whole.between if whole.num_processes > 1 else None
        samples = [timing.samples for timing in row.timings]
        flat["samples"] = [sample for own in samples for sample in own]
        flat["samples_per_process"] = [len(own) for own in samples]
        flat["process_medians_s"] = list(whole.medians.values())
    flat["warm_median_s"] = row.warm_median_s
    if r.timing:
        flat["timer_disagreement"] = r.timing.timer_disagreement
    if r.energy:
        flat["joules_per_call"] = r.energy.joules_per_call
        flat["above_idle_joules_per_call"] = r.energy.above_idle_joules_per_call
    if r.correctness and r.correctness.dense:
        flat["dense_error_relative_l2"] = r.correctness.dense.relative_l2
        flat["dense_error_cosine"] = r.correctness.dense.cosine
    if case.paper:
        flat |= {"paper_speedup": case.paper.speedup, "paper_standing": case.paper.standing}
    # The rest bears its stored name.
    for part in (r, case, workload, r.timing, r.memory, r.work, environment):
        if part is not None:
            fields = type(part).model_fields
            flat |= {name: getattr(part, name) for name in COLUMNS if name in fields and name not in flat}
    return flat


def _plain(value: object) -> object:
    """An option as a cell: sides as `4x4x4`, the rest as it is."""
    return "x".join(map(str, value)) if isinstance(value, list) else value
