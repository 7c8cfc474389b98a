"""The report's first paragraph: what to use at which length on this device, how far from the ideal and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bsa_bench.report.findings import groups, unavailable
from bsa_bench.report.labels import Labels, join_words, percent, scientific
from bsa_bench.report.markdown import code, words
from bsa_bench.report.verdicts import Verdicts
from bsa_bench.result import Status
from bsa_bench.store.derive import Row
from bsa_bench.store.reader import Run
from bsa_bench.units import format_ratio

PASSES = ("forward+backward", "forward", "backward")
"""Training first: it is what the methods are for."""


def answer(run: Run, rows: Sequence[Row], labels: Labels) -> str:
    """The paragraph as Markdown: of the pass that says most of training, by the lengths of the shape that has most.

    Args:
        run: what was measured.
        rows: as `derive` gives them, all of it.
        labels: of the rows.
    """
    verdicts = Verdicts(rows, run.environment.device_kind)
    told = _ladder(rows)
    parts = []
    if told:
        passes, ladder = told
        parts.append(_what_to_use(run.environment.device_name, passes, ladder, verdicts, labels))
        best = next((row for row in reversed([_best(group) for group in ladder.values()]) if row), None)
        if best is not None and best.speedup is not None:
            parts.append(_how_far(best, verdicts, labels))
    elif any(row.is_correct for row in rows):
        parts.append("This run has no sparse row next to a dense one, so it does not say which to use.")
    else:
        parts.append("Nothing was measured and verified, so there is no answer.")
    parts += [text for text in (_not_run(run, rows),) if text]
    return " ".join(parts)


def _ladder(rows: Sequence[Row]) -> tuple[str, dict[int, list[Row]]] | None:
    """The groups with a speed-up by length, of one pass and shape; None where no sparse row has a speed-up."""
    found: dict[tuple[str, str], dict[int, list[Row]]] = {}
    for (_, passes), group in groups(rows).items():
        if any(not row.is_dense and row.speedup for row in group):
            workload = group[0].result.case.workload
            shape = f"{workload.batch} {workload.heads} {workload.head_dim} {workload.dtype} {workload.input.label}"
            found.setdefault((passes, shape), {})[workload.num_tokens] = group
    for passes in PASSES:
        ladders = [ladder for (each, _), ladder in found.items() if each == passes]
        if ladders:
            return passes, dict(sorted(max(ladders, key=len).items()))
    return None


def _best(group: Sequence[Row]) -> Row | None:
    """The fastest sparse row that has a speed-up."""
    sparse = [row for row in group if not row.is_dense and row.speedup]
    return max(sparse, key=lambda row: row.speedup.value if row.speedup else 0.0, default=None)


def _what_to_use(
    device: str, passes: str, ladder: Mapping[int, Sequence[Row]], verdicts: Verdicts, labels: Labels
) -> str:
    """`use bsa@gather from 4,096 tokens on`, or the dense engine, or that it is open, with the lengths of each."""
    choices: list[tuple[str, list[int]]] = []
    for tokens, group in ladder.items():
        choice = _choice(group, verdicts, labels)
        if choices and choices[-1][0] == choice:
            choices[-1][1].append(tokens)
        else:
            choices.append((choice, [tokens]))
    told = [f"{choice} at {_lengths(lengths)}" for choice, lengths in choices]
    return f"**{passes} on {words(device)}: {'; '.join(told)}.**"


def _choice(group: Sequence[Row], verdicts: Verdicts, labels: Labels) -> str:
    best = _best(group)
    if best is None or best.speedup is None or best.dense is None:
        return "not compared"
    if verdicts.doubt(best) is not None:
        return "no verdict"
    return f"use {code(labels.of((best if best.speedup.value > 1 else best.dense).result.case))}"


def _lengths(lengths: Sequence[int]) -> str:
    if len(lengths) == 1:
        return f"{lengths[0]:,} tokens"
    return (
        f"{lengths[0]:,} to {lengths[-1]:,} tokens" if len(lengths) > 2 else f"{lengths[0]:,} and {lengths[1]:,} tokens"
    )


def _how_far(best: Row, verdicts: Verdicts, labels: Labels) -> str:
    """The speed-up at the longest length, the ideal, what keeps it from that, and what it costs in fidelity."""
    case = best.result.case
    text = f"At {best.num_tokens:,} tokens {code(labels.of(case))} is {verdicts.words(best, labels, quote=code)}"
    if best.achieved_share is not None:
        text += f", {percent(best.achieved_share)} of the ideal {format_ratio(best.ideal_speedup)} (1 / density)"
        text += _why(best)
    checks = best.result.correctness
    if checks and checks.dense:
        text += f"; its output is {scientific(checks.dense.relative_l2)} off dense attention (relative L2)"
        text += f" with {percent(checks.mass_kept)} of the attention mass kept" if checks.mass_kept else ""
        text += ", on this input"
    return text + "."


def _why(best: Row) -> str:
    """What stands between the speed-up and the ideal: the other phases, and the rate at which attend multiplies."""
    if not best.phases or best.speedup_attend_only is None or not best.ideal_speedup or best.whole is None:
        return ""
    attend = sum(seconds for name, seconds in best.phases.items() if name.startswith("attend"))
    others = 1 - attend / sum(best.phases.values())
    rate = best.speedup_attend_only.value / best.ideal_speedup
    return (
        f": attend multiplies at {percent(rate)} of the dense rate, "
        f"and the other phases take {percent(others)} of the time"
    )


def _not_run(run: Run, rows: Sequence[Row]) -> str:
    """What a reader may look for in vain."""
    missing = unavailable(run)
    failed = [row for row in rows if row.result.status.is_failure]
    left = sum(row.result.status is Status.NOT_MEASURED for row in rows)
    texts = []
    if missing:
        texts.append(f"not available here: {join_words(list(map(code, missing)))}")
    if failed:
        names = dict.fromkeys(code(row.result.case.implementation) for row in failed)
        texts.append(f"failed: {len(failed)} cases of {join_words(list(names))}")
    if left:
        texts.append(f"not reached: {left} cases")
    text = "; ".join(texts)
    return f"{text[:1].upper()}{text[1:]}." if text else ""
