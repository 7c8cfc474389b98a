"""The report's Markdown tables."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import PurePath

from bsa_bench.report.findings import fastest, groups
from bsa_bench.report.labels import Labels, latency_text, percent, processes_text, scientific, shape_label, speedup_text
from bsa_bench.report.markdown import code, words
from bsa_bench.report.table_text import markdown_grid
from bsa_bench.report.verdicts import Verdicts
from bsa_bench.result import Environment
from bsa_bench.store.derive import Latency, Ratio, Row
from bsa_bench.store.frame import PHASES
from bsa_bench.store.reader import Run
from bsa_bench.units import format_bytes, format_ratio, format_seconds, three_digits

STANDING = {
    "P": "the paper itself",
    "N": "second-hand notes that quote its tables",
    "P/N": "the paper for one part, second-hand notes for the rest",
    "D": "our derivation",
}


def table(head: Sequence[str], body: Sequence[Sequence[str]], *, words: int = 1) -> list[str]:
    """Lay out a Markdown table; the first `words` columns stand left, the figures right."""
    return markdown_grid(head, [i < words for i in range(len(head))], body)


def environment_table(run: Run) -> list[str]:
    """Where the run was made, as two columns."""
    return table(["", ""], list(map(list, environment_facts(run).items())), words=2)


def environment_facts(run: Run) -> dict[str, str]:
    """Where the run was made, in Markdown; what is not known is left out."""
    env, line = run.environment, run.run_lines[-1]
    facts = {
        "Suite": f"{code(line.suite)}: {words(line.suite_title)}",
        "Suite file": line.suite_sha256 and f"SHA-256 {code(line.suite_sha256)}",
        "Input files": ", ".join(
            f"{code(PurePath(path).name)}: SHA-256 {code(digest)}" for path, digest in line.files.items()
        ),
        "Profile": line.profile,
        "Processes": f"{line.num_processes} a case, in random order with seed {line.seed}"
        if line.num_processes > 1
        else None,
        "Command": code(shlex.join(line.command)),
        "Started": ", resumed ".join(each.utc for each in run.run_lines),
        "Device": f"{words(env.device_name)} ({env.device_kind})",
        **{f"Device: {words(name.replace('_', ' '))}": _fact(value) for name, value in env.device_details.items()},
        **{f"CPU: {name.replace('_', ' ')}": _fact(value) for name, value in env.cpu.items()},
        "System": words(env.os),
        "Python": env.python,
        "Packages": ", ".join(words(f"{name} {version}") for name, version in env.packages.items() if version),
        "Not installed": ", ".join(words(name) for name, version in env.packages.items() if not version),
        "Variables": ", ".join(code(f"{name}={value}") for name, value in env.variables.items()),
        "Commit": _commit(env),
        "Environment digest": code(env.hash),
    }
    return {name: str(value) for name, value in facts.items() if value not in {None, ""}}


def overview_table(rows: Sequence[Row], labels: Labels, verdicts: Verdicts) -> list[str]:
    """One line for each workload and pass: the fastest dense row, the fastest correct row, the speed-up."""
    body = []
    for group in groups(rows).values():
        best, case = fastest(group), group[0].result.case
        dense = best.dense if best else None
        body.append(
            [
                f"{words(shape_label(case.workload))}{', causal' * case.claims.causal}",
                case.passes,
                f"{case.workload.num_tokens:,}",
                _named(dense, labels) + (verdicts.share_measured(case) if dense else ""),
                _named(best, labels),
                ("dense" if best.is_dense else speedup_text(best.speedup)) if best and best.speedup else "-",
                format_ratio(best.ideal_speedup) if best and not best.is_dense else "-",
                percent(best.achieved_share) if best and not best.is_dense else "-",
            ]
        )
    head = ["Shape", "Pass", "Tokens", "Fastest dense", "Fastest correct", "Speed-up", "Ideal", "Achieved"]
    return table(head, body, words=2)


def speed_table(rows: Sequence[Row], labels: Labels, verdicts: Verdicts) -> list[str]:
    """All implementations at one workload and pass, the fastest first, those without a figure last."""
    best = fastest(rows)
    has_several = any(row.num_processes > 1 for row in rows)
    body = []
    for row in _by_latency(rows):
        label = code(labels.of(row.result.case))
        memory = row.result.memory
        body.append(
            [
                f"**{label}**" if row is best else label,
                row.status_word,
                latency_text(row.whole) + _doubts(row),
                _samples_text(row.whole),
                *([_variation_text(row.whole)] if has_several else []),
                verdicts.baseline(row) if row.is_baseline else speedup_text(row.speedup),
                "-" if row.is_dense or not row.whole else format_ratio(row.ideal_speedup),
                "-" if row.is_dense else percent(row.achieved_share),
                _part_text(row.attend_only, row.speedup_attend_only),
                _part_text(row.attend_select, row.speedup_attend_select),
                format_bytes(memory.peak_above_inputs_bytes if memory else None),
                three_digits(row.executed_flop_per_s / 1e12) if row.executed_flop_per_s else "-",
            ]
        )
    head = ["Implementation", "Status", "Median", "Samples", *(["CV within / between"] if has_several else [])]
    head += ["Speed-up over fastest dense", "Ideal", "Achieved"]
    head += ["Attend only", "Attend + select", "Peak memory above inputs", "TFLOP/s exec"]
    return table(head, body, words=2)


def fidelity_table(rows: Sequence[Row], labels: Labels) -> list[str]:
    """How true each implementation is at one workload: a line for each, of its pass that errs most."""
    worst: dict[str, Row] = {}
    for row in rows:
        label = labels.of(row.result.case)
        if row.result.correctness and (label not in worst or _badness(row) > _badness(worst[label])):
            worst[label] = row
    body = []
    for label, row in worst.items():
        checks, error = row.result.correctness, row.worst_error
        assert checks is not None
        body.append(
            [
                code(label),
                "correct" if checks.passed else "**wrong**",
                three_digits(row.density) if row.density else "-",
                f"{scientific(error.relative_l2)} / {scientific(error.budget)} ({error.output})" if error else "-",
                f"{checks.rows:,}",
                scientific(checks.dense.relative_l2 if checks.dense else None),
                percent(checks.mass_kept),
                {True: "yes", False: "no", None: "-"}[row.repeat_identical],
            ]
        )
    head = ["Implementation", "Verdict", "Realised density", "Error / budget, masked oracle", "Rows checked a head"]
    head += ["Error against dense", "Mass kept", "Repeats bitwise"]
    return table(head, body, words=2) if body else []


def list_lines(rows: Sequence[Row], labels: Labels) -> list[str]:
    """The lists that each sparse implementation walks at one workload, a line for each."""
    found: dict[str, str] = {}
    for row in rows:
        work = row.result.work
        if work is None or work.list_mean is None or work.list_max is None:
            continue
        text = f"{code(labels.of(row.result.case))}: {three_digits(work.list_mean)} KV blocks in the mean, at most "
        text += f"{work.list_max:,}; union efficiency {percent(work.union_efficiency)}"
        found.setdefault(labels.of(row.result.case), f"- {text}")
    return list(found.values())


def phase_table(rows: Sequence[Row], labels: Labels) -> list[str]:
    """Medians of the phases of each sparse row."""
    timed = [row for row in rows if row.is_correct and not row.is_dense and row.phases]
    if not timed:
        return []
    names = [n for n in PHASES if any(n in r.phases for r in timed)]
    names += sorted({n for r in timed for n in r.phases} - set(PHASES))
    body = [
        [
            code(labels.of(row.result.case)),
            row.result.case.passes,
            f"{row.num_tokens:,}",
            *(format_seconds(row.phases.get(name)) for name in names),
            format_seconds(sum(row.phases.values())),
            format_seconds(row.whole.median if row.whole else None),
        ]
        for group in groups(timed).values()
        for row in group
    ]
    head = ["Implementation", "Pass", "Tokens", *(words(n.replace("_", " ")) for n in names), "Sum", "Whole operator"]
    return table(head, body, words=2)


def paper_table(rows: Sequence[Row], labels: Labels) -> list[str]:
    """The figures of a paper beside those of this run, for the rows that quote one."""
    body = []
    for row in rows:
        case = row.result.case
        if case.paper:
            body.append(
                [
                    code(labels.of(case)),
                    case.passes,
                    f"{case.workload.num_tokens:,}",
                    f"{case.paper.speedup:g}x (paper's figure, {case.paper.standing})",
                    speedup_text(row.speedup) if row.speedup else _no_speedup(row),
                    format_ratio(row.ideal_speedup),
                    f"{STANDING[case.paper.standing]}: {words(case.paper.source)}",
                ]
            )
    head = ["Implementation", "Pass", "Tokens", "Paper's figure", "Measured here", "Ideal here", "Standing and source"]
    return table(head, body, words=2) if body else []


def _fact(value: object) -> object:
    return words(value) if isinstance(value, str) else value


def _commit(env: Environment) -> str | None:
    if env.git_commit is None:
        return None
    return f"`{env.git_commit[:12]}`{' with uncommitted changes' if env.git_dirty else ''}"


def _named(row: Row | None, labels: Labels) -> str:
    return f"{code(labels.of(row.result.case))} {format_seconds(row.whole.median)}" if row and row.whole else "-"


def _by_latency(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: row.whole.median if row.whole else math.inf)


def _doubts(row: Row) -> str:
    """Footnote marks: † a short interval, ‡ a warm-up that did not settle, § disturbed or held back, ¶ bimodal."""
    is_too_long = row.is_disturbed or row.quota_wait_s > 0
    return " †" * row.is_interval_short + " ‡" * (not row.is_settled) + " §" * is_too_long + " ¶" * row.is_bimodal


def _samples_text(whole: Latency | None) -> str:
    """`21`, or `105 in 5 processes`."""
    if whole is None:
        return "-"
    where = f" in {processes_text(whole.num_processes)}" * (whole.num_processes > 1)
    return f"{whole.num_samples}{where}"


def _variation_text(whole: Latency | None) -> str:
    """`1.2% / 8.4%`; of one process there is none between."""
    if whole is None:
        return "-"
    return f"{percent(whole.within)} / {percent(whole.between) if whole.num_processes > 1 else '-'}"


def _no_speedup(row: Row) -> str:
    return "no correct dense row" if row.is_correct else row.status_word


def _part_text(summary: Latency | None, ratio: Ratio | None) -> str:
    if summary is None:
        return "-"
    return (
        f"{format_seconds(summary.median)} ({format_ratio(ratio.value)})" if ratio else format_seconds(summary.median)
    )


def _badness(row: Row) -> float:
    error = row.worst_error
    if error is None:
        return -1.0
    return error.relative_l2 / error.budget if error.budget else error.relative_l2
