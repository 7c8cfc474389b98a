"""The notes below a table: where it was measured and how, what its figures mean, what was left out and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bsa_bench.report.findings import is_unavailable, unavailable
from bsa_bench.report.labels import describe_cases, join_words, one_line, processes_text, timer_label
from bsa_bench.report.named_tables.material import Material, Source, shape_of
from bsa_bench.result import Result, Status
from bsa_bench.store.derive import Row

DIGITS = "Figures have the digits that their intervals support, at most three."
SPEEDUP = (
    "Speed-up is of the whole operator (permutation, selection, lists, attention and fill included) over the fastest "
    "correct dense implementation of the same workload and pass, timer and cache state."
)
FLOP = (
    "FLOP are those of the matrix multiplications that the method asks for, and of its selection; a multiply-add is "
    "2, softmax is not counted, backward is 2.5x forward."
)
SPARSITY = "Sparsity is 1 - the share of dense attention's pairs that the plan in use computes, as measured."
ONE_PROCESS = (
    "Measured in one process: the interval is of its samples and says nothing of how far another process would be "
    "off, so none of these rows is marked as best; `bsa-bench run --processes 5` measures that."
)


def notes_for(material: Material, shown: Iterable[Row], *own: str, has_intervals: bool = True) -> tuple[str, ...]:
    """All notes of a table: its own, then the runs, the shape if all rows share it, and what was left out.

    Args:
        material: the runs.
        shown: the rows whose figures the table holds.
        own: what this table's figures mean.
        has_intervals: whether they have intervals, so that the number of processes matters.
    """
    rows = [row for row in shown if row.whole]
    ids = {id(row.result) for row in rows}
    notes = list(own)
    shapes = {shape_of(row.result.case) for row in rows}
    if len(shapes) == 1:
        notes.append(f"Shape: {shapes.pop()}.")
    notes += [_run_note(each, [row for row in each.rows if id(row.result) in ids]) for each in material.sources]
    if has_intervals and any(row.num_processes == 1 for row in rows):
        notes.append(ONE_PROCESS)
    return (*notes, *left_out(material))


def left_out(material: Material) -> list[str]:
    """What the runs have no latency of, and why: failed, wrong, not measured, not available there."""
    by_parts: dict[str, list[str]] = {}
    for source in material.sources:
        if parts := _left_out(source, material):
            by_parts.setdefault("; ".join(parts), []).append(f"`{source.run.run_id}`")
    has_several = len(material.sources) > 1
    return [
        f"Left out{f' of {join_words(list(dict.fromkeys(names)))}' * has_several}: {parts}."
        for parts, names in by_parts.items()
    ]


def _left_out(source: Source, material: Material) -> list[str]:
    grouped: dict[tuple[Status, str], list[Result]] = {}
    for row in source.rows:
        if row.whole is None and not row.is_counted and not is_unavailable(source.run, row.result):
            status = row.result.status
            reason = status.meaning if status is Status.NOT_MEASURED else one_line(row.result.reason)
            grouped.setdefault((status, reason), []).append(row.result)
    parts = [
        f"{describe_cases(results, material.labels)}: {status} ({reason})"
        for (status, reason), results in grouped.items()
    ]
    counted = [row.result for row in source.rows if row.is_counted]
    if counted:
        parts.append(f"{describe_cases(counted, material.labels)}: counted, never timed")
    by_reason: dict[str, list[str]] = {}
    for name, why in unavailable(source.run).items():
        by_reason.setdefault(one_line(why), []).append(f"`{name}`")
    parts += [
        f"{join_words(list(dict.fromkeys(names)))}: not available there ({why})" for why, names in by_reason.items()
    ]
    if source.num_unseen:
        parts.append(
            f"{source.num_unseen} of {source.run.run_lines[-1].num_cases} cases were not reached; --resume goes on"
        )
    return parts


def _run_note(source: Source, rows: Sequence[Row]) -> str:
    line, env = source.run.run_lines[-1], source.environment
    numbers = sorted({row.num_processes for row in rows})
    processes = " to ".join(dict.fromkeys((str(numbers[0]), processes_text(numbers[-1])))) if numbers else "none"
    if len(numbers) == 1:
        processes = processes_text(numbers[0])
    commit = (
        f", commit `{env.git_commit[:12]}`{' with uncommitted changes' if env.git_dirty else ''}"
        if env.git_commit
        else ""
    )
    text = f"Run `{source.run.run_id}`: suite `{line.suite}`, {line.utc[:10]}, bsa-bench{commit}; {env.device_name}"
    text += f", torch {env.packages.get('torch')}" if env.packages.get("torch") else ""
    if not rows:
        return f"{text}; no row of it is in this table."
    return f"{text}; {processes} per case; {timer_label(rows)}."
