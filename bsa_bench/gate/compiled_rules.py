"""The rules of compiled code: what may not get worse from the base to the head, and by how much it may."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue

from bsa_bench.gate.compiled_figures import COPY_KINDS, DOT_KINDS, CodeFigures, DotKind, MainLoop, Places
from bsa_bench.gate.verdict import Change
from bsa_bench.static.architectures import ARCHITECTURES
from bsa_bench.static.config import ArchName
from bsa_bench.units import format_bytes

Severity = Literal["fail", "warn", "info"]
_SHARE_TOLERANCE = 1e-9
"""Of sums and quotients of FLOP."""


@dataclass(frozen=True)
class Rule:
    """A figure and what may become of it.

    Attributes:
        metric: the figure's name.
        read: its value as a reader sees it, None where a kernel has no such figure.
        judge: how bad a step from base to head is, None where no rule is broken.
        text: the rule in words.
        place: the source line that explains the figure.
        is_quiet: the figure always differs a little, and is not worth a word unless the rule is broken.
    """

    metric: str
    read: Callable[[CodeFigures], JsonValue]
    judge: Callable[[CodeFigures, CodeFigures], Severity | None] = lambda _base, _head: None
    text: str = ""
    place: Callable[[Places], str | None] = lambda _: None
    is_quiet: bool = False


def compare_code(base: CodeFigures, head: CodeFigures, arch: ArchName, places: Places) -> tuple[Change, ...]:
    """All figures that differ, those that break a rule first; each broken rule with its source line in the head."""
    changes = [change for rule in (*RULES, _shared_rule(arch)) if (change := _change(rule, base, head, places))]
    order = {"fail": 0, "warn": 1, "info": 2}
    return tuple(sorted(changes, key=lambda change: order[change.severity]))


def check_alone(head: CodeFigures, arch: ArchName, places: Places) -> tuple[Change, ...]:
    """What is wrong with code that has no base: it cannot be launched."""
    rule = _shared_rule(arch)
    severity = rule.judge(head, head)
    return (_as_change(rule, None, rule.read(head), severity, places),) if severity else ()


def _change(rule: Rule, base: CodeFigures, head: CodeFigures, places: Places) -> Change | None:
    before, after, severity = rule.read(base), rule.read(head), rule.judge(base, head)
    if severity is None and (before == after or rule.is_quiet):
        return None
    return _as_change(rule, before, after, severity or "info", places)


def _as_change(rule: Rule, before: JsonValue, after: JsonValue, severity: Severity, places: Places) -> Change:
    is_broken = severity != "info"
    return Change(
        metric=rule.metric,
        base=before,
        head=after,
        severity=severity,
        rule=rule.text if is_broken else "",
        line=rule.place(places) if is_broken else None,
    )


# What the rules compare


def _grew(base: float, head: float, share: float, least: float = 0) -> bool:
    """Whether a figure rose by a share of itself, and by the least that counts; both limits are too much already."""
    growth = head - base
    return growth > 0 and growth >= share * base - _SHARE_TOLERANCE and growth >= least


def _of_main(figure: Callable[[MainLoop], JsonValue]) -> Callable[[CodeFigures], JsonValue]:
    return lambda code: figure(code.main) if code.main else None


def _in_both(
    judge: Callable[[MainLoop, MainLoop], Severity | None],
) -> Callable[[CodeFigures, CodeFigures], Severity | None]:
    """Of main loops, where both sides have one; that one is lost is a rule of its own."""
    return lambda base, head: judge(base.main, head.main) if base.main and head.main else None


def _fails(is_broken: bool) -> Severity | None:
    return "fail" if is_broken else None


def _dots_text(code: CodeFigures) -> str | None:
    """`wgmma in the main loop`, `wgmma 75 %, fma 25 % in the main loop`, `mma.sync outside loops`."""
    if code.main is None:
        return f"{', '.join(code.dot_kinds)}, in no loop" if code.dot_kinds else None
    total = sum(code.main.dot_flop.values())
    shares = [f"{kind} {flop / total:.0%}" for kind, flop in code.main.dot_flop.items()]
    inside = ", ".join(shares) if len(shares) > 1 else ", ".join(code.main.dot_flop or code.main.tensor_classes)
    others = [kind for kind in code.dot_kinds if kind not in code.main.dot_flop and kind not in inside]
    return f"{inside} in the main loop" + (f", {', '.join(others)} elsewhere" if others else "")


def _loses_tensor_class(base: CodeFigures, head: CodeFigures) -> Severity | None:
    if base.main is not None and head.main is None:
        return "fail"
    if _is_slower(base.dot_kinds, head.dot_kinds):
        return "fail"
    if base.main is None or head.main is None:
        return None
    loses = _is_slower(base.main.tensor_classes, head.main.tensor_classes)
    return _fails(loses or _falls_in_share(base.main.dot_flop, head.main.dot_flop))


def _is_slower(base: tuple[DotKind, ...], head: tuple[DotKind, ...]) -> bool:
    """Whether the fastest or the slowest of the kinds is slower than it was, or none is left."""
    if not base:
        return False
    if not head:
        return True
    before, after = (sorted(map(DOT_KINDS.index, kinds)) for kinds in (base, head))
    return after[0] < before[0] or after[-1] < before[-1]


def _falls_in_share(base: Mapping[DotKind, int], head: Mapping[DotKind, int]) -> bool:
    """Whether less of the FLOP than before are of a kind, or of faster ones."""
    if not base or not head:
        return False

    def share(flop: Mapping[DotKind, int], slowest: int) -> float:
        return sum(flop.get(kind, 0) for kind in DOT_KINDS[slowest:]) / sum(flop.values())

    ranks = range(1, len(DOT_KINDS))
    return any(share(head, rank) < share(base, rank) - _SHARE_TOLERANCE for rank in ranks)


def _copies_text(main: MainLoop) -> str | None:
    return ", ".join(f"{kind} {format_bytes(size)}" for kind, size in main.tile_bytes.items()) or None


def _loses_async_copies(base: MainLoop, head: MainLoop) -> Severity | None:
    def ahead(main: MainLoop) -> int:
        return sum(main.tile_bytes.get(kind, 0) for kind in COPY_KINDS if kind != "plain")

    more_plain = head.tile_bytes.get("plain", 0) > base.tile_bytes.get("plain", 0)
    return _fails(more_plain and ahead(head) < ahead(base))


def _spills_more(figure: Callable[[CodeFigures], int]) -> Callable[[CodeFigures, CodeFigures], Severity | None]:
    def judge(base: CodeFigures, head: CodeFigures) -> Severity | None:
        before, after = figure(base), figure(head)
        return _fails(after > 0 if before == 0 else _grew(before, after, 0.10, 16))

    return judge


def _tensor_per_flop(base: MainLoop, head: MainLoop) -> Severity | None:
    before, after = base.tensor_per_mflop, head.tensor_per_mflop
    return _fails(before is not None and after is not None and after > before * 1.02 * (1 + _SHARE_TOLERANCE))


def _instructions(base: MainLoop, head: MainLoop) -> Severity | None:
    if _grew(base.num_instructions, head.num_instructions, 0.20):
        return "fail"
    return "warn" if _grew(base.num_instructions, head.num_instructions, 0.05) else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def _shared_rule(arch: ArchName) -> Rule:
    limit = ARCHITECTURES[arch].shared_bytes_per_cta
    return Rule(
        "shared memory, bytes",
        lambda code: code.shared_bytes,
        lambda _, head: _fails(head.shared_bytes > limit),
        f"at most {limit} bytes, which is all that a CTA gets on {arch}",
        lambda places: places.shared,
    )


_SPILL_RULE = "none where there were none, else less than 10 % and 16 bytes more"

RULES: tuple[Rule, ...] = (
    Rule(
        "matmuls",
        _dots_text,
        _loses_tensor_class,
        "no matmul falls to a slower class of instruction, and none leaves the main loop",
        lambda places: places.dot,
    ),
    Rule(
        "tile loads of the main loop",
        _of_main(_copies_text),
        _in_both(_loses_async_copies),
        "no tile that came by TMA or cp.async comes by plain loads",
        lambda places: places.plain_load,
    ),
    Rule(
        "pipeline depth",
        _of_main(lambda main: main.depth),
        _in_both(lambda base, head: _fails(head.depth < base.depth)),
        "as many buffers of each tile as before",
        lambda places: places.shallow,
    ),
    Rule(
        "spills in the main loop",
        _of_main(lambda main: main.num_spills),
        _in_both(lambda base, head: _fails(head.num_spills > base.num_spills)),
        "no more than before, whatever the size",
        lambda places: places.main_spill,
    ),
    Rule(
        "stack, bytes",
        lambda code: code.stack_bytes,
        _spills_more(lambda code: code.stack_bytes),
        _SPILL_RULE,
        lambda places: places.spill,
    ),
    Rule(
        "spilled, bytes",
        lambda code: code.spill_bytes,
        _spills_more(lambda code: code.spill_bytes),
        _SPILL_RULE,
        lambda places: places.spill,
    ),
    Rule(
        "CTAs per SM",
        lambda code: code.ctas,
        lambda base, head: _fails(head.ctas < base.ctas),
        "no fewer than before",
        lambda places: places.loop,
    ),
    Rule(
        "tensor instructions per MFLOP",
        _of_main(lambda main: _rounded(main.tensor_per_mflop)),
        _in_both(_tensor_per_flop),
        "at most 2 % more",
        lambda places: places.tensor,
    ),
    Rule(
        "instructions per iteration",
        _of_main(lambda main: main.num_instructions),
        _in_both(_instructions),
        "5 % more is worth a look, 20 % more is too much",
        lambda places: places.instructions,
    ),
    Rule("registers", lambda code: code.registers),
    Rule("warps", lambda code: code.num_warps),
    Rule("spill loads", lambda code: code.spill_loads),
    Rule("spill stores", lambda code: code.spill_stores),
    Rule("tensor instructions per iteration", _of_main(lambda main: main.num_tensor)),
    Rule("exp2 per iteration", _of_main(lambda main: main.num_exp2)),
    Rule("FLOP per iteration", _of_main(lambda main: main.flop)),
    Rule("wanted pipeline depth", _of_main(lambda main: main.wanted_depth)),
    Rule(
        "compile time, s",
        lambda code: code.compile_s,
        lambda base, head: "warn" if _grew(base.compile_s, head.compile_s, 1.0, 2.0) else None,
        "twice as long and 2 s more is worth a look",
        is_quiet=True,
    ),
    Rule(
        "cubin, bytes",
        lambda code: code.cubin_bytes,
        lambda base, head: "warn" if _grew(base.cubin_bytes, head.cubin_bytes, 0.20) else None,
        "20 % more is worth a look",
        is_quiet=True,
    ),
)
