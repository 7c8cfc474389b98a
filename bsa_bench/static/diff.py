"""What changed between two compilations of the same configurations: resources, counts, and the SASS that matters."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from bsa_bench.static.analyse import Analysis
from bsa_bench.static.compile import Failure
from bsa_bench.static.regions import own_line
from bsa_bench.static.sass import Instruction, SourceLine

Verdict = Literal[
    "same", "same main loop", "changed", "main loop lost", "main loop gained", "added", "removed", "failed"
]
_CONTEXT = 2
_REGISTER = re.compile(r"\b(U?[RP]|S?B)\d+\b")


@dataclass(frozen=True)
class Change:
    """One configuration on one architecture, before and after.

    Attributes:
        verdict: by the digests of the normalised SASS; `failed` where a side does not compile. The main loop is the one
            with the dots: it is lost where no loop has any more.
        figures: name -> (before, after), those that differ; None where a side has no such figure.
        opcodes: opcode -> how many more (or fewer) the main loop has.
        lines: changed instructions of the main loop as a unified diff, registers without numbers; of a kernel that has
            none on either side, those outside its loops.
        reason: why it was not compared, or what its verdict means.
    """

    name: str
    arch: str
    verdict: Verdict
    figures: Mapping[str, tuple[Any, Any]]
    opcodes: Mapping[str, int]
    lines: tuple[str, ...]
    reason: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def compare(base: Sequence[Analysis | Failure], head: Sequence[Analysis | Failure]) -> list[Change]:
    """Compare by configuration name and architecture, in the order of `head`; what `base` alone has comes last."""
    before, after = ({_key(each): each for each in side} for side in (base, head))
    changes = [_change(before.get(key), each, key) for key, each in after.items()]
    return changes + [_change(each, None, key) for key, each in before.items() if key not in after]


def _key(each: Analysis | Failure) -> tuple[str, str]:
    return (each.config.name, each.arch) if isinstance(each, Failure) else (each.name, each.arch)


def _change(base: Analysis | Failure | None, head: Analysis | Failure | None, key: tuple[str, str]) -> Change:
    name, arch = key
    for side, each in (("base", base), ("head", head)):
        if isinstance(each, Failure):
            return Change(name, arch, "failed", {}, {}, (), f"{side} does not compile: {each.message}")
    if not isinstance(base, Analysis) or not isinstance(head, Analysis):
        return Change(name, arch, "added" if base is None else "removed", {}, {}, ())
    if base.reading.digest == head.reading.digest:
        return Change(name, arch, "same", {}, {}, ())
    ours, theirs = _figures(base), _figures(head)
    names = dict.fromkeys((*ours, *theirs))
    figures = {key: (ours.get(key), theirs.get(key)) for key in names if ours.get(key) != theirs.get(key)}
    mains = base.reading.main, head.reading.main
    if (mains[0] is None) != (mains[1] is None):
        if mains[1] is None:
            return Change(name, arch, "main loop lost", figures, {}, (), "no loop of the head has a dot any more")
        return Change(name, arch, "main loop gained", figures, {}, (), "no loop of the base has a dot")
    if mains[0] is not None and base.reading.main_digest == head.reading.main_digest:
        return Change(name, arch, "same main loop", figures, {}, ())
    opcodes = [Counter(each.opcode for each in main.instructions) if main else Counter() for main in mains]
    delta = {op: opcodes[1][op] - opcodes[0][op] for op in sorted({*opcodes[0], *opcodes[1]})}
    lines = code_diff(base, head).lines
    return Change(name, arch, "changed", figures, {k: v for k, v in delta.items() if v}, lines)


@dataclass(frozen=True)
class CodeDiff:
    """The instructions of two main loops compared; of kernels without one, those outside loops.

    Attributes:
        lines: a unified diff, registers without numbers, with the source lines.
        added: how many instructions a source line of the head gained; what only moved does not count.
    """

    lines: tuple[str, ...]
    added: Mapping[SourceLine, int]


def code_diff(base: Analysis, head: Analysis) -> CodeDiff:
    """Compare main loops instruction by instruction; both sides need one, or neither.

    Raises:
        ValueError: one side alone has a main loop.
    """
    readings = base.reading, head.reading
    if (base.reading.main is None) != (head.reading.main is None):
        raise ValueError(f"{head.name}, {head.arch}: expected a main loop on both sides or on neither")
    before, after = ((reading.main or reading.outside).instructions for reading in readings)
    old, new = ([_anonymous(each) for each in side] for side in (before, after))
    matcher = difflib.SequenceMatcher(a=old, b=new, autojunk=False)
    return CodeDiff(tuple(_diff(matcher, before, after)), _added(matcher, before, after))


def _figures(analysis: Analysis) -> dict[str, Any]:
    reading, main = analysis.reading, analysis.reading.main
    record = reading.compiled.record
    figures: dict[str, Any] = {
        "registers": record.registers,
        "stack bytes": record.stack_bytes,
        "shared bytes": record.shared_bytes,
        "CTAs on an SM": reading.occupancy.ctas,
        "spills": reading.spill_loads + reading.spill_stores,
        "buffers": reading.depth,
        "tensor classes": ", ".join(reading.tensor_classes),
        "instructions outside loops": reading.outside.num_instructions,
    }
    if main is not None:
        figures["spills in the main loop"] = main.count("spill load") + main.count("spill store")
        figures["instructions a trip"] = main.num_instructions
        figures["tensor instructions a trip"] = main.num_tensor
        figures["exp2 a trip"] = main.count("exp2")
    for ceiling in analysis.ceilings:
        figures[f"ceiling on {ceiling.device}, TFLOP/s"] = round(ceiling.overlapped_flop_per_s / 1e12, 1)
    return figures


def _diff(
    matcher: difflib.SequenceMatcher[str], before: Sequence[Instruction], after: Sequence[Instruction]
) -> Iterator[str]:
    """Removed and added instructions with their source lines, and some unchanged ones around them."""
    groups = list(matcher.get_grouped_opcodes(_CONTEXT))
    if not groups:
        yield "only the roles of registers changed"
    for group in groups:
        first, last = group[0], group[-1]
        yield f"@@ -{first[1]},{last[2] - first[1]} +{first[3]},{last[4] - first[3]} @@"
        for what, start, stop, other_start, other_stop in group:
            if what == "equal":
                yield from (f"  {_with_line(each)}" for each in after[other_start:other_stop])
                continue
            yield from (f"- {_with_line(each)}" for each in before[start:stop])
            yield from (f"+ {_with_line(each)}" for each in after[other_start:other_stop])


def _added(
    matcher: difflib.SequenceMatcher[str], before: Sequence[Instruction], after: Sequence[Instruction]
) -> Counter[SourceLine]:
    changed = [opcode for opcode in matcher.get_opcodes() if opcode[0] != "equal"]
    removed = Counter(each.opcode for _, start, stop, _, _ in changed for each in before[start:stop])
    added: Counter[SourceLine] = Counter()
    for _, _, _, start, stop in changed:
        for each in after[start:stop]:
            if removed[each.opcode]:
                removed[each.opcode] -= 1
            elif line := own_line(each.source):
                added[line] += 1
    return added


def _anonymous(each: Instruction) -> str:
    """Without the numbers of registers, which one insertion would change everywhere after it."""
    text = re.sub(r"`\([^)]*\)", "`(target)", str(each).replace(".reuse", ""))
    return _REGISTER.sub(r"\1", text)


def _with_line(each: Instruction) -> str:
    line = own_line(each.source)
    return f"{_anonymous(each):<60} {line or ''}".rstrip()
