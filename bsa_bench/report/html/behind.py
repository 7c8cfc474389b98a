"""What is behind a row of the table: its command, its samples, its checks, its options and its digests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from statistics import median
from typing import Any

from bsa_bench.report.again import command_again
from bsa_bench.report.html.records import rounded
from bsa_bench.report.labels import percent, processes_text, scientific, workload_label
from bsa_bench.result import Case, RunLine
from bsa_bench.store.derive import Row
from bsa_bench.store.latency import Latency
from bsa_bench.units import format_bytes, format_flop, format_seconds, three_digits

Facts = dict[str, str]


def behind(row: Row, line: RunLine, *, every: int) -> dict[str, Any]:
    """Everything that the page shows of a row once it is opened; of the samples each `every`th."""
    result = row.result
    return {
        "id": result.case_id,
        "command": command_again(line, result.case),
        "sections": {
            name: facts
            for name, facts in (
                ("Latency", _latency(row)),
                ("Phases", {_words(name): format_seconds(value) for name, value in row.phases.items()}),
                ("Correctness", _correctness(row)),
                ("Work and memory", _work(row)),
                ("Options", _options(result.case)),
                ("Identity", _identity(row, line)),
            )
            if facts
        },
        "checks": _checks(row),
        "samples": {
            str(each.process_index + 1): [rounded(sample) for sample in each.timing.samples[::every]]
            for each in row.processes
            if each.timing
        },
        "reason": result.reason,
        "traceback": next((each.traceback for each in row.processes if each.traceback), None),
    }


def _latency(row: Row) -> Facts:
    whole, timing = row.whole, row.result.timing
    if whole is None or timing is None:
        return {}
    facts = {
        "Median": format_seconds(whole.median),
        "Interval": f"{_span(whole)} at {percent(whole.interval_level)} coverage",
        "Samples": f"{whole.num_samples} in {processes_text(whole.num_processes)}",
        "Quartiles": f"{format_seconds(whole.q1)}, {format_seconds(whole.q3)}",
        "95th percentile": format_seconds(whole.p95),
        "Fastest": format_seconds(whole.minimum),
        "CV within a process": percent(whole.within),
        "CV between processes": percent(whole.between) if whole.num_processes > 1 else "-",
        "Timer": f"{timing.timer}, cache {timing.cache}",
        "First call": format_seconds(timing.first_call_s),
        "Warm-up": f"{format_seconds(timing.warmup_s)}{'' if row.is_settled else ', did not settle'}",
    }
    if row.speedup and row.dense and not row.is_baseline:
        ratio, level = row.speedup, row.speedup.interval_level
        covers = f"at {percent(level)} coverage" if level else "the far ends of two intervals within one process"
        facts["Compared with"] = f"{row.dense.result.case.implementation}, {format_seconds(_median(row.dense))}"
        facts["Speed-up"] = f"{three_digits(ratio.low)} to {three_digits(ratio.high)}, {covers}"
    if timing.warm:
        facts["Median with a warm cache"] = format_seconds(median(timing.warm))
    if timing.cross_check:
        check = timing.cross_check
        facts["Other timer"] = (
            f"{check.timer}: {format_seconds(check.median_s) if check.reason is None else check.reason}"
        )
    facts["Host time until enqueued"] = format_seconds(timing.host_s)
    if row.other_cpu_share is not None:
        facts["Processor time that others took"] = percent(row.other_cpu_share)
    if row.executed_flop_per_s:
        facts["TFLOP/s exec"] = three_digits(row.executed_flop_per_s / 1e12)
    return _known(facts)


def _correctness(row: Row) -> Facts:
    checks = row.result.correctness
    if checks is None:
        return {}
    known = {True: "yes", False: "no", None: "not known"}
    facts = {
        "Verdict": "correct" if checks.passed else "wrong",
        "Oracle": checks.oracle,
        "Rows checked of each head": f"{checks.rows:,}",
        "Repeats bitwise": known[row.repeat_identical],
        "Inputs unchanged": known[row.inputs_unchanged],
    }
    rest = row.result.case.workload.num_tokens - checks.rows
    if checks.checked and rest > 0:
        how = "not looked at" if checks.sample_seed is None else "finite; no other engine was asked"
        if checks.witness:
            how = f"largest difference from {checks.witness} {scientific(checks.unseen_max_abs)}"
        facts["Other rows"] = f"{rest:,}: {how}"
    if checks.sample_seed is not None:
        facts["Seed of the rows"] = f"{checks.sample_seed}"
    if checks.dense:
        facts["Error against dense"] = f"{scientific(checks.dense.relative_l2)}, cosine {checks.dense.cosine:.6g}"
    if checks.mass_kept is not None:
        facts["Attention mass kept"] = percent(checks.mass_kept)
    if checks.reason:
        facts["Note"] = checks.reason
    return facts


def _checks(row: Row) -> list[list[str]]:
    """Output, error, budget, largest error, its budget and cosine, of the process that ended worst."""
    checks = row.result.correctness
    if checks is None:
        return []
    return [
        [
            name,
            scientific(figures.relative_l2),
            scientific(checks.budget.get(name)),
            scientific(figures.max_abs),
            scientific(checks.max_abs_budget.get(name)),
            f"{figures.cosine:.8g}",
        ]
        for name, figures in checks.checked.items()
    ]


def _work(row: Row) -> Facts:
    work, memory, facts = row.result.work, row.result.memory, {}
    if work:
        facts = {
            "FLOP executed": format_flop(work.flops_executed),
            "FLOP nominal": format_flop(work.flops_nominal),
            "FLOP of dense attention": format_flop(work.flops_dense_equiv),
            "Sparsity asked for": percent(work.sparsity_nominal),
            "Realised density": three_digits(row.density) if row.density else "-",
            "KV density": percent(work.kv_density_realised),
            "Queries computed": percent(work.query_keep_realised),
            "Union efficiency": percent(work.union_efficiency),
        }
        facts |= {f"Counter: {_words(name)}": f"{value:.4g}" for name, value in work.counters.items()}
    if row.result.energy and row.result.energy.joules_per_call is not None:
        facts["Energy per call"] = f"{three_digits(row.result.energy.joules_per_call)} J, by {row.result.energy.how}"
    if memory:
        facts |= {
            "Peak above inputs": format_bytes(memory.peak_above_inputs_bytes),
            "Predicted": format_bytes(memory.predicted_bytes),
            "Inputs": format_bytes(memory.inputs_bytes),
            "Memory by": memory.how if memory.reason is None else f"{memory.how}; {memory.reason}",
        }
    return _known(facts)


def _options(case: Case) -> Facts:
    return {name: json.dumps(value, ensure_ascii=False) for name, value in case.options.items()}


def _identity(row: Row, line: RunLine) -> Facts:
    result, work, commit = row.result, row.result.work, line.environment.git_commit
    facts: dict[str, str | None] = {
        "Workload": workload_label(result.case),
        "Input": result.input.description if result.input else None,
        "Input file": (spec := result.case.workload.input).sha256 and f"SHA-256 {spec.sha256}",
        "Suite": result.case.suite,
        "Variant": result.case.variant,
        "Backend": result.backend,
        "Engine version": result.engine_version,
        "Measured": row.processes[0].utc,
        "Case digest": result.case_hash,
        "Workload digest": result.case.workload.digest,
        "Environment digest": result.env_hash,
        "Plan digest": work.plan_digest if work else None,
        "Commit": f"{commit}{' with uncommitted changes' if line.environment.git_dirty else ''}" if commit else None,
    }
    if result.case.paper:
        paper = result.case.paper
        facts["Paper's figure"] = f"{paper.speedup:g}x (standing {paper.standing}; not measured here): {paper.source}"
    return _known(facts)


def _known(facts: Mapping[str, str | None]) -> Facts:
    return {name: value for name, value in facts.items() if value not in {None, "", "-"} and value is not None}


def _span(whole: Latency) -> str:
    return f"{format_seconds(whole.low)} to {format_seconds(whole.high)}"


def _median(row: Row) -> float | None:
    return row.whole.median if row.whole else None


def _words(name: str) -> str:
    return name.replace("_", " ")
