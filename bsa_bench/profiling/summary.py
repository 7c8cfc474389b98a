"""The summary of a profile, in sections: as Markdown, and for a terminal or a pipe."""

from __future__ import annotations

from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bsa_bench.profiling.document import OperatorRow, PhaseRow, ProfileDocument
from bsa_bench.report.tables import table
from bsa_bench.result import Ceiling
from bsa_bench.units import format_bytes, format_flop, format_ratio, format_seconds, three_digits

_MOST_OPERATORS = 12
_SHORT_NAME = 76


@dataclass(frozen=True)
class Section:
    """A title, sentences, and a table; its first `words` columns stand left."""

    title: str
    sentences: list[str] = field(default_factory=list)
    head: list[str] = field(default_factory=list)
    body: list[list[str]] = field(default_factory=list)
    words: int = 1


def sections_of(made: ProfileDocument) -> list[Section]:
    """All of the summary."""
    return [_where(made), _rates(made), _top(made), _prediction(made), _memory(made), _files(made)]


def markdown(made: ProfileDocument) -> str:
    """`summary.md`."""
    lines = [f"# Profile of {made.case_id}", "", *_head(made), ""]
    for section in sections_of(made):
        lines += [f"## {section.title}", ""]
        lines += [line for sentence in section.sentences for line in (sentence, "")]
        if section.body:
            lines += [*table(section.head, section.body, words=section.words), ""]
        if section.title.startswith("Memory"):
            lines += ["![Memory of one call](memory.png)", ""]
    return "\n".join(lines)


def print_summary(made: ProfileDocument, console: Console) -> None:
    """Print the summary."""
    for line in (f"Profile of {made.case_id}", *_head(made)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for section in sections_of(made):
        console.print()
        console.print(section.title, style="bold", markup=False, highlight=False)
        for sentence in section.sentences:
            console.print(sentence, markup=False, highlight=False, soft_wrap=True)
        if section.body:
            console.print(_rich_table(section))


def _rich_table(section: Section) -> Table:
    found = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for index, name in enumerate(section.head):
        found.add_column(Text(name), justify="left" if index < section.words else "right", overflow="fold")
    for row in section.body:
        found.add_row(*map(Text, row))
    return found


def _head(made: ProfileDocument) -> list[str]:
    environment = made.environment
    versions = ", ".join(f"{name} {v}" for name in ("torch", "triton") if (v := environment.packages.get(name)))
    threads = environment.cpu.get("threads")
    where = f"{environment.device_name}, {versions}"
    if environment.device_kind == "cpu" and threads:
        where += f", {threads} thread{'s' * (threads != 1)}"
    return [f"{where}, {made.utc[:16].replace('T', ' ')} UTC.", made.note]


def _where(made: ProfileDocument) -> Section:
    is_device = made.environment.device_kind == "cuda"
    idle = "without a kernel running (waiting for the host)" if is_device else "outside of torch's operators (Python)"
    slowdown = f", {format_ratio(made.slowdown)}" if made.slowdown else ""
    staged = f", {format_seconds(made.staged_s)} phase by phase" if made.staged_s is not None else ""
    sentence = (
        f"One call takes {format_seconds(made.unprofiled_s)} without a profiler{staged}; "
        f"{format_seconds(made.profiled_s)} under torch.profiler{slowdown} (mean of {made.num_traced}). "
        f"{_percent(made.host_share)} of the traced call is {idle}."
    )
    total = [
        "all phases",
        _percent(_part(made.phases_s, made.profiled_s)),
        format_seconds(made.phases_s),
        format_seconds(made.staged_s),
        _percent(made.host_share),
    ]
    body = [
        [
            phase.name,
            _percent(phase.share),
            format_seconds(phase.profiled_s),
            format_seconds(phase.unprofiled_s),
            _percent(_part(phase.host_s, phase.profiled_s)),
        ]
        for phase in made.phases
    ]
    head = ["phase", "share", "traced", "unprofiled", "host share"]
    return Section("Where the time goes", [sentence], head, [*body, total])


def _rates(made: ProfileDocument) -> Section:
    found = [each for each in (made.gemm, made.copy_rate) if each]
    ceilings = "; ".join(f"{each.name} {_rate(each.value, each.unit)} ({each.detail})" for each in found)
    about = (
        "Rates are of the unprofiled time of a phase. Bytes count each tensor that it reads or makes once. The floor "
        "is the time that the ceilings allow for them."
    )
    sentences = [about]
    if ceilings:
        sentences.append(f"Ceilings, measured on this machine just before: {ceilings}.")
    if made.gemm is None:
        sentences.append(f"No GEMM ceiling is measured for {made.case.workload.dtype} on this device.")
    if any((_part(p.floor_s, p.unprofiled_s) or 0) > 1 for p in made.phases):
        sentences.append("Above 100%: tensors of this size stay in a cache, those of the ceiling do not.")
    return Section(
        "Work against the ceilings",
        sentences,
        ["phase", "FLOP", "achieved", "of GEMM", "bytes", "achieved", "of copy", "floor", "of the time"],
        [_rate_cells(phase, made.gemm, made.copy_rate) for phase in made.phases],
    )


def _rate_cells(phase: PhaseRow, gemm: Ceiling | None, copy_rate: Ceiling | None) -> list[str]:
    flop_rate, bytes_rate = phase.flop_per_s, phase.bytes_per_s
    return [
        phase.name,
        format_flop(phase.flop),
        _rate(flop_rate, "FLOP/s"),
        _percent(_part(flop_rate, gemm.value if gemm else None)),
        format_bytes(phase.bytes),
        _rate(bytes_rate, "B/s"),
        _percent(_part(bytes_rate, copy_rate.value if copy_rate else None)),
        format_seconds(phase.floor_s),
        _percent(_part(phase.floor_s, phase.unprofiled_s)),
    ]


def _top(made: ProfileDocument) -> Section:
    kernels = [each for each in made.operators if each.kind == "kernel"]
    shown = kernels or made.operators
    what = "kernels" if kernels else "operators"
    top = shown[:_MOST_OPERATORS]
    left_out = (
        f", {len(top)} of {len(shown)}; all of them, by phase, are in operators.csv" if len(shown) > len(top) else ""
    )
    of_own = "" if kernels else ", each without those that it calls"
    return Section(
        f"Top {what}",
        [f"Per call{of_own}{left_out}."],
        ["phase", "kernel" if kernels else "operator", "calls", "time", "share"],
        [_operator_cells(each, made.profiled_s) for each in top],
        words=2,
    )


def _operator_cells(each: OperatorRow, whole_s: float) -> list[str]:
    name = each.name if len(each.name) <= _SHORT_NAME else each.name[: _SHORT_NAME - 3] + "..."
    return [each.phase, name, f"{each.num_calls:g}", format_seconds(each.self_s), _percent(_part(each.self_s, whole_s))]


def _prediction(made: ProfileDocument) -> Section:
    found = made.prediction
    return Section(
        "Against the prediction",
        ["What run --dry-run predicts of this case, next to what it came to. Memory includes the inputs."],
        ["", "predicted", "here", "here / predicted"],
        [
            [
                "time of a call, unprofiled",
                format_seconds(found.call_s),
                format_seconds(made.unprofiled_s),
                format_ratio(_part(made.unprofiled_s, found.call_s)),
            ],
            [
                "FLOP, selection included",
                format_flop(found.flop),
                format_flop(found.here_flop),
                format_ratio(_part(found.here_flop, found.flop)),
            ],
            [
                "peak memory",
                format_bytes(found.peak_bytes),
                format_bytes(found.here_peak_bytes),
                format_ratio(_part(found.here_peak_bytes, found.peak_bytes)),
            ],
        ],
    )


def _memory(made: ProfileDocument) -> Section:
    where = f", in {made.peak_phase}" if made.peak_phase else ""
    return Section(
        "Memory",
        [f"At most {format_bytes(made.peak_bytes)} allocated by torch above the inputs{where}."],
    )


def _files(made: ProfileDocument) -> Section:
    return Section(
        "Files",
        [f"Left out: {note}." for note in made.tools],
        ["file", ""],
        [[name, about] for name, about in made.files.items()],
        words=2,
    )


def _part(value: float | None, whole: float | None) -> float | None:
    return value / whole if value is not None and whole else None


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}%"


def _rate(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    for factor, prefix in ((1e12, "T"), (1e9, "G")):
        if value >= factor:
            return f"{three_digits(value / factor)} {prefix}{unit}"
    return f"{three_digits(value / 1e6)} M{unit}"
