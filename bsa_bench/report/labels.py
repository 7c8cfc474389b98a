"""Short names of cases and series, and the words that report and terminal share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Protocol

from bsa_bench.report.markdown import code
from bsa_bench.result import Case, Result
from bsa_bench.stats import Summary
from bsa_bench.store.break_even import density_options
from bsa_bench.store.derive import Ratio, Row
from bsa_bench.text import visible
from bsa_bench.units import format_ratio, format_seconds, three_digits
from bsa_bench.workload import Workload

ONE_PROCESS = (
    "One process: the interval is of the samples within it and says nothing of how far another process would be off; "
    "bsa-bench run --processes 5 measures that"
)
"""The footnote of what is marked `one process`."""
_SHORT = {"kv_density": "kv", "query_keep": "keep", "query_block": "query block"}


class Labels:
    """Name the cases of one run by what distinguishes them; what all cases of a method share is not repeated."""

    def __init__(self, cases: Iterable[Case]) -> None:
        cases = list(cases)
        self._methods = {case.method for case in cases if not case.claims.is_dense}
        pairs = {(case.variant, case.label) for case in cases if case.options}
        variants = [variant for variant, _ in pairs if variant]
        self._sufficient = {variant for variant in variants if variants.count(variant) == 1}
        values: dict[str, dict[str, set[str]]] = {}
        for case in cases:
            found = values.setdefault(case.method, {})
            for name, value in case.options.items():
                found.setdefault(name, set()).add(repr(value))
        self._varying = {
            method: [name for name, different in options.items() if len(different) > 1]
            for method, options in values.items()
        }
        #: Of each method the option that the run varies as its density.
        self.density = density_options(cases)

    def of(self, case: Case, *, without_density: bool = False) -> str:
        """`bsa@gather`, or with what sets it apart `bsa@gather kv 0.1, keep 0.5`."""
        if not case.options:
            return case.implementation
        if case.variant in self._sufficient and not without_density:
            return visible(f"{case.implementation} {case.variant}")
        left_out = self.density.get(case.method) if without_density else None
        parts = [_option(name, case.options.get(name)) for name in self._varying[case.method] if name != left_out]
        if case.variant and not without_density:
            parts.insert(0, case.variant)
        return visible(" ".join([case.implementation, ", ".join(parts)])).strip()

    def setting(self, case: Case) -> str:
        """The part of `of` that names options, behind the method where the run has several."""
        options = self.of(case).partition(" ")[2]
        return f"{case.method} {options}".strip() if len(self._methods) > 1 else options


def workload_label(case: Case) -> str:
    """What the rows of one table attend to: `16x32x32 = 16,384 tokens, ..., causal`."""
    return f"{visible(case.workload.label)}{', causal' * case.claims.causal}"


def input_line(results: Iterable[Result]) -> str | None:
    """What the input of rows of one workload was made of, as code: a user's file may have any name."""
    text = next((result.input.description for result in results if result.input), None)
    return f"`{one_line(text).replace('`', chr(39))}`" if text else None


def input_caveats(results: Iterable[Result]) -> list[str]:
    """Of each clip what was measured that is hardly the film that was asked for, with the lengths it is so at."""
    found: dict[tuple[str, str], list[int]] = {}
    for result in results:
        workload = result.case.workload
        name = f"`{one_line(workload.input.label).replace('`', chr(39))}`"
        for text in result.input.footage.caveats if result.input and result.input.footage else ():
            lengths = found.setdefault((name, text), [])
            lengths += [workload.num_tokens] * (workload.num_tokens not in lengths)
    return [
        f"{name} at {join_words([f'{n:,}' for n in sorted(lengths)])} tokens is {text}"
        for (name, text), lengths in found.items()
    ]


def shape_label(workload: Workload) -> str:
    """A workload but for its length: `wan2.1-1.3b, 12 heads x 128, bfloat16, video:bikes`."""
    model = f"{workload.model}, " if workload.model else ""
    batch = f"batch {workload.batch}, " if workload.batch != 1 else ""
    heads = f"{workload.heads} head{'s' * (workload.heads != 1)} x {workload.head_dim}"
    return visible(f"{model}{batch}{heads}, {workload.dtype}, {workload.input.label}")


def timer_label(rows: Iterable[Row]) -> str:
    """The timers and cache states of the rows: `host timer, cache warm`."""
    pairs = sorted({(t.timer, t.cache) for r in rows if (t := r.result.timing)})
    return " and ".join(f"{timer} timer, cache {cache}" for timer, cache in pairs)


class _HasCase(Protocol):
    @property
    def case(self) -> Case: ...


def describe_cases(results: Iterable[_HasCase], labels: Labels) -> str:
    """`` `full@flex` (forward) at 4,096 and 16,384 tokens; ... ``."""
    groups: dict[str, dict[str, list[int]]] = {}
    for r in results:
        lengths = groups.setdefault(labels.of(r.case), {}).setdefault(r.case.passes, [])
        if r.case.workload.num_tokens not in lengths:
            lengths.append(r.case.workload.num_tokens)
    texts = []
    for label, passes in groups.items():
        by_lengths: dict[tuple[int, ...], list[str]] = {}
        for name, lengths in passes.items():
            by_lengths.setdefault(tuple(sorted(lengths)), []).append(name)
        texts += [
            f"{code(label)} ({join_words(names)}) at {join_words([f'{n:,}' for n in lengths])} tokens"
            for lengths, names in by_lengths.items()
        ]
    return "; ".join(texts)


def counter_lines(rows: Iterable[Row], labels: Labels, *, most: int | None = None) -> list[str]:
    """What each counted row counted: `bitstopper@simulator at 1,024 tokens: mean planes 4.1, survivors 0.2`.

    `most` is how many of its counters are named at most.
    """
    lines = []
    for row in rows:
        if row.is_counted:
            case, work = row.result.case, row.result.work
            counters = list(work.counters.items()) if work else []
            parts = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in counters[:most]]
            more = [f"and {len(counters) - len(parts)} more"] if len(counters) > len(parts) else []
            text = ", ".join([*parts, *more]) or "no counters"
            lines.append(f"{labels.of(case)} at {case.workload.num_tokens:,} tokens: {text}")
    return lines


def join_words(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def one_line(text: str | None) -> str:
    """A reason as one line without its full stop; null says that none was recorded."""
    return re.sub(r"\s+", " ", text).strip().rstrip(".") if text else "no reason recorded"


def latency_text(summary: Summary | None) -> str:
    """`5.20 ms ± 2.1%`: the median and the wider half of its interval."""
    if summary is None:
        return "-"
    half = max(summary.median - summary.low, summary.high - summary.median)
    share = f" ± {_two_digits(100 * half / summary.median)}%" if summary.num_samples > 1 and summary.median else ""
    return format_seconds(summary.median) + share


def processes_text(number: int) -> str:
    """`one process`, `5 processes`."""
    return "one process" if number == 1 else f"{number} processes"


def speedup_text(ratio: Ratio | None) -> str:
    """`8.76x (one process)`, or `8.10x [7.40, 8.90], 5 processes`: only several have an interval that counts."""
    if ratio is None:
        return "-"
    if ratio.num_processes == 1:
        return f"{format_ratio(ratio.value)} ({processes_text(1)})"
    interval = f"[{three_digits(ratio.low)}, {three_digits(ratio.high)}]"
    return f"{format_ratio(ratio.value)} {interval}, {processes_text(ratio.num_processes)}"


def interval_text(ratio: Ratio) -> str:
    """What stands behind `faster_words`: `(one process)`, `(7.40x to 8.90x, 5 processes)`, turned over if slower."""
    number = processes_text(ratio.num_processes)
    if ratio.num_processes == 1:
        return f"({number})"
    ends = (ratio.low, ratio.high) if ratio.value >= 1 else (1 / ratio.high, 1 / ratio.low)
    return f"({format_ratio(ends[0])} to {format_ratio(ends[1])}, {number})"


def bimodal_lines(rows: Iterable[Row], labels: Labels) -> list[str]:
    """Of each row with two groups of processes their centres: `bsa@gather, forward at 1,024 tokens: 5 ms and 6 ms`."""
    return [
        f"{labels.of(case)}, {case.passes} at {row.num_tokens:,} tokens: "
        + join_words([format_seconds(mode) for mode in row.whole.modes])
        for row in rows
        if row.is_bimodal and row.whole and (case := row.result.case)
    ]


def percent(share: float | None) -> str:
    """`5.1%`."""
    return "-" if share is None else f"{three_digits(100 * share)}%"


def _two_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 9.95 else f"{value:.2g}"


def scientific(value: float | None) -> str:
    """`4.1e-07`; of the order of one plainly, `0.213`."""
    if value is None:
        return "-"
    return three_digits(value) if value == 0 or value >= 0.001 else f"{value:.1e}"


def faster_words(speedup: float) -> str:
    """`12.9x faster than`, `1.20x slower than`."""
    return f"{three_digits(speedup)}x faster than" if speedup >= 1 else f"{three_digits(1 / speedup)}x slower than"


def _option(name: str, value: object) -> str:
    if isinstance(value, list):
        text = "x".join(map(str, value))
    elif isinstance(value, bool):
        text = "yes" if value else "no"
    else:
        text = "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    return f"{_SHORT.get(name, name.replace('_', ' '))} {text}"
