"""What a run found, in sentences."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from bsa_bench.report.labels import (
    ONE_PROCESS,
    Labels,
    bimodal_lines,
    describe_cases,
    input_caveats,
    join_words,
    latency_text,
    one_line,
    percent,
    processes_text,
    scientific,
    shape_label,
)
from bsa_bench.report.markdown import code, words
from bsa_bench.report.verdicts import Verdicts
from bsa_bench.result import CHECKED_WITHIN, PASSES, Result, Status
from bsa_bench.store.break_even import BreakEven, break_even_densities, break_even_lengths
from bsa_bench.store.derive import DISTURBED_SHARE, Row, scope
from bsa_bench.store.reader import Run
from bsa_bench.units import format_ratio, three_digits

MAX_BULLETS = 24


NOT_RUN, UNAVAILABLE = "Unverified, wrong or not run", "Unavailable here"


def findings(run: Run, rows: Sequence[Row], labels: Labels, *, leave_out: Collection[str] = ()) -> list[str]:
    """Write the section's Markdown lines, without the headings that are left out."""
    correct = [row for row in rows if row.is_correct]
    verdicts = Verdicts(rows, run.environment.device_kind)
    lines: list[str] = []
    if not correct:
        lines.append("Nothing was measured and proved correct, so there is no speed to report.")
    elif not any(row.is_dense for row in correct):
        lines.append("No dense row was measured and proved correct, so there is no speed-up to report.")
    elif all(row.is_dense for row in correct):
        lines.append("No sparse row was measured and proved correct: this run compares dense engines only.")
    for title, bullets in (
        ("Fastest correct implementation", _fastest(correct, labels, verdicts)),
        ("Speed-up of the sparse operators at the longest length", _speedups(correct, labels, verdicts)),
        ("Break-even length", _break_even_lengths(rows, labels)),
        ("Break-even density", [_break_even_density(b, labels) for b in break_even_densities(rows)]),
        (NOT_RUN, _failures(run, rows, labels)),
        (UNAVAILABLE, [f"{code(name)}: {words(one_line(why))}" for name, why in unavailable(run).items()]),
        ("To keep in mind", _caveats(run, rows, labels)),
    ):
        if bullets and title not in leave_out:
            lines += ["", f"### {title}", "", *_listed(bullets)]
    return lines


def unavailable(run: Run) -> dict[str, str]:
    """Engines and implementations that cannot run here, with the reason that was given last."""
    return {name: why for line in run.run_lines for name, why in line.unavailable.items()}


def is_unavailable(run: Run, result: Result) -> bool:
    """Whether a case did not run for a reason that the list of what is unavailable gives already."""
    return result.status is Status.UNSUPPORTED and result.reason in unavailable(run).values()


def groups(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows that are compared with each other, by workload (causal attention by itself) and pass.

    Shape by shape, bidirectional attention, shorter lengths and simpler passes first.
    """
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        case = row.result.case
        found.setdefault((f"{case.workload.digest}{' causal' * case.claims.causal}", case.passes), []).append(row)
    first_seen: dict[str, int] = {}
    for index, row in enumerate(r for group in found.values() for r in group):
        first_seen.setdefault(scope(row.result.case.workload), index)

    def order(key: tuple[str, str]) -> tuple[int, int, bool, str, int]:
        row = found[key][0]
        shape = first_seen[scope(row.result.case.workload)]
        case = row.result.case
        return (shape, row.num_tokens, case.claims.causal, key[0], PASSES.index(case.passes))

    return {key: found[key] for key in sorted(found, key=order)}


def fastest(rows: Iterable[Row]) -> Row | None:
    """The fastest correct row of what stands for dense attention, more or less exactly."""
    timed = [
        (row.whole.median, i, row)
        for i, row in enumerate(rows)
        if row.is_correct and row.whole and row.result.case.claims.approximates_dense
    ]
    return min(timed)[2] if timed else None


def _listed(bullets: Sequence[str]) -> list[str]:
    lines = [f"- {bullet}" for bullet in bullets[:MAX_BULLETS]]
    if len(bullets) > MAX_BULLETS:
        lines.append(f"- and {len(bullets) - MAX_BULLETS} more; the tables below hold all of them.")
    return lines


def _longest(correct: Sequence[Row]) -> list[list[Row]]:
    """For each shape and pass, the rows of its longest workload."""
    last: dict[tuple[str, str, bool], list[Row]] = {}
    for rows in groups(correct).values():
        case = rows[0].result.case
        last[scope(case.workload), case.passes, case.claims.causal] = rows
    return list(last.values())


def _fastest(correct: Sequence[Row], labels: Labels, verdicts: Verdicts) -> list[str]:
    bullets = []
    for rows in _longest(correct):
        best = fastest(rows)
        if best is None:
            continue
        case = best.result.case
        where = f"{case.passes}, {case.workload.num_tokens:,} tokens ({words(shape_label(case.workload))})"
        text = (
            f"{where}: **{code(labels.of(case))}**, {latency_text(best.whole)} ({processes_text(best.num_processes)})"
        )
        if best.is_baseline:
            text += f"; it is dense{_beside_sparse(rows, verdicts)}"
        elif best.dense:
            dense = f"{verdicts.dense_name(best, labels, quote=code)}, {latency_text(best.dense.whole)}"
            doubt = f"; no verdict, {why}" if best.speedup and (why := verdicts.doubt(best)) else ""
            text += f"; the fastest dense row is {dense}{doubt}"
        bullets.append(text + ".")
    return bullets


def _beside_sparse(rows: Sequence[Row], verdicts: Verdicts) -> str:
    """What the fastest row, a dense one, says of the sparse rows of its workload."""
    sparse = [row for row in rows if not row.is_dense]
    judged = [row for row in sparse if row.speedup]
    if not sparse:
        return ""
    if not judged:
        return ", no sparse row has a speed-up"
    closest = max(judged, key=lambda row: row.speedup.value if row.speedup else 0.0)
    why = verdicts.doubt(closest)
    return f"; whether a sparse row beats it is open, {why}" if why else ", no sparse row beats it"


def _speedups(correct: Sequence[Row], labels: Labels, verdicts: Verdicts) -> list[str]:
    bullets = []
    for rows in _longest([row for row in correct if row.speedup]):
        sparse = [row for row in rows if not row.is_dense and row.speedup]
        for row in sorted(sparse, key=lambda r: r.speedup.value if r.speedup else 0, reverse=True):
            case = row.result.case
            text = (
                f"{case.passes}, {row.num_tokens:,} tokens: {code(labels.of(case))} as a whole operator"
                f"{':' if verdicts.doubt(row) else ' is'} {verdicts.words(row, labels, quote=code, strong='**')}"
            )
            if row.achieved_share is not None and row.density is not None:
                text += (
                    f"; ideal {format_ratio(row.ideal_speedup)} at the realised density {three_digits(row.density)}, "
                    f"of which {percent(row.achieved_share)} is achieved"
                )
            parts = [
                f"{name} {format_ratio(ratio.value)}"
                for name, ratio in (
                    ("attend only", row.speedup_attend_only),
                    ("attend + select", row.speedup_attend_select),
                )
                if ratio
            ]
            text += f". {join_words(parts).capitalize()}" if parts else ""
            checks = row.result.correctness
            if checks and checks.dense:
                text += f". Error against dense attention {scientific(checks.dense.relative_l2)} (relative L2)"
                text += f", {percent(checks.mass_kept)} of the attention mass kept" if checks.mass_kept else ""
            bullets.append(text + ".")
    return bullets


def _break_even_lengths(rows: Sequence[Row], labels: Labels) -> list[str]:
    """None of them where each was measured at one length: that is no search for a break-even length."""
    found = break_even_lengths(rows)
    several = [b for b in found if len({row.num_tokens for row in b.rows}) > 1]
    return [_break_even_length(b, labels) for b in found] if several else []


def _break_even_length(found: BreakEven, labels: Labels) -> str:
    case = found.rows[0].result.case
    who = f"{case.passes}: {code(labels.of(case))} ({words(shape_label(case.workload))})"
    lengths = sorted({row.num_tokens for row in found.rows})
    span = f"{lengths[0]:,} to {lengths[-1]:,} tokens" if len(lengths) > 1 else f"only {lengths[0]:,} tokens"
    if found.at is None:
        return f"{who}: not reached in the measured range ({span})."
    if found.below is None or found.above is None:
        return f"{who}: already faster at the shortest measured length, {found.at:,.0f} tokens (measured: {span})."
    return (
        f"{who}: about **{_rounded(found.at)} tokens**, interpolated between {found.below:,.0f} (slower) and "
        f"{found.above:,.0f} (faster from there on; measured: {span})."
    )


def _break_even_density(found: BreakEven, labels: Labels) -> str:
    row = found.rows[0]
    case = row.result.case
    densities = [r.density for r in found.rows if r.density]
    who = f"{case.passes}, {row.num_tokens:,} tokens: {code(labels.of(case, without_density=True))}"
    span = f"{three_digits(min(densities))} to {three_digits(max(densities))}"
    if found.at is None:
        return f"{who}: not reached in the measured range (realised density {span})."
    if found.below is None:
        return f"{who}: faster at every measured density, {span}."
    return f"{who}: faster below a realised density of about **{three_digits(1 / found.at)}**, interpolated ({span})."


def _rounded(tokens: float) -> str:
    """Two significant digits: an interpolated length is not known better."""
    digits = max(len(str(round(tokens))) - 2, 0)
    return f"{round(tokens, -digits):,.0f}"


def failures(run: Run, rows: Sequence[Row]) -> dict[tuple[Status, str], list[Result]]:
    """The cases without a figure, by status and reason; not those that are unavailable here."""
    grouped: dict[tuple[Status, str], list[Result]] = {}
    for row in rows:
        r = row.result
        if r.status is not Status.OK and not row.is_counted and not is_unavailable(run, r):
            grouped.setdefault((r.status, one_line(r.reason)), []).append(r)
    order = list(Status)
    return dict(sorted(grouped.items(), key=lambda item: order.index(item[0][0])))


def _failures(run: Run, rows: Sequence[Row], labels: Labels) -> list[str]:
    unverified = [row.result for row in rows if row.is_unverified]
    bullets = [
        f"**{status}** ({status.meaning}): {words(reason)}. {describe_cases(results, labels)}."
        for (status, reason), results in failures(run, rows).items()
    ]
    if unverified:
        text = "measured but never compared with an oracle, so neither compared nor plotted"
        bullets.insert(0, f"**unverified** ({text}): {describe_cases(unverified, labels)}.")
    unseen = run.run_lines[-1].num_cases - len(rows)
    if unseen > 0:
        bullets.append(
            f"**not reached**: {unseen} of {run.run_lines[-1].num_cases} cases have no line; --resume goes on."
        )
    return bullets


def _caveats(run: Run, rows: Sequence[Row], labels: Labels) -> list[str]:
    bullets = []
    if any(row.is_correct and row.num_processes == 1 for row in rows):
        bullets.append(f"{ONE_PROCESS}.")
    bullets += [f"Input: {text}." for text in input_caveats(r.result for r in rows)]
    restless = [r.result for r in rows if r.is_correct and not r.is_settled]
    if restless:
        bullets.append(f"The warm-up did not settle before its cap: {describe_cases(restless, labels)}.")
    held_back = [r.result for r in rows if r.quota_wait_s]
    if held_back:
        bullets.append(
            "A CPU quota (a control group's, as of a container) kept these from running for a part of the time that "
            f"they were timed, so that their times are too long: {describe_cases(held_back, labels)}. Take fewer "
            "threads, or a larger quota."
        )
    throttled = [r.result for r in rows if r.is_throttled and not r.quota_wait_s]
    if throttled:
        bullets.append(f"The device throttled while these were timed: {describe_cases(throttled, labels)}.")
    disturbed = [r.result for r in rows if r.is_disturbed]
    if disturbed:
        bullets.append(
            f"Others, processes or the host, took more than {percent(DISTURBED_SHARE)} of the processor time while "
            f"these were timed, so that their times are too long: {describe_cases(disturbed, labels)}."
        )
    if split := bimodal_lines(rows, labels):
        bullets.append(
            "The processes of these fall into two groups, so that the median is of one of them or between: "
            f"{'; '.join(map(words, split))}."
        )
    apart = [r.result for r in rows if any(timing.timers_disagree for timing in r.timings)]
    if apart:
        bullets.append(
            f"The medians of two timers are more than {percent(CHECKED_WITHIN)} apart, so that one of them measures "
            f"something else: {describe_cases(apart, labels)}."
        )
    environments = {r.result.env_hash for r in rows}
    if len(environments) > 1:
        bullets.append(
            f"The run was made in {len(environments)} different environments; rows are compared within one only."
        )
    if run.environment.git_dirty:
        bullets.append("The working tree had changes that no commit holds.")
    if run.torn_line:
        bullets.append(
            f"Line {run.torn_line} of the results file is unfinished (its writer was killed); it is left out."
        )
    return bullets
