"""What changed between two compilations of the same configurations: resources, counts, and the main loop's SASS."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from bsa_bench.static.analyse import Analysis
from bsa_bench.static.compile import Failure
from bsa_bench.static.regions import Region, own_line
from bsa_bench.static.sass import Instruction

Verdict = Literal["same", "same main loop", "changed", "added", "removed", "failed"]
_CONTEXT = 2
_REGISTER = re.compile(r"\b(U?[RP]|S?B)\d+\b")


@dataclass(frozen=True)
class Change:
    """One configuration on one architecture, before and after.

    Attributes:
        verdict: by the digests of the normalised SASS; `failed` where a side does not compile.
        figures: name -> (before, after), those that differ.
        opcodes: opcode -> how many more (or fewer) the main loop has.
        lines: the main loop's changed instructions as a unified diff, registers without numbers.
        reason: why it was not compared.
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
    figures = {key: (ours[key], theirs[key]) for key in ours if ours[key] != theirs[key]}
    if base.reading.main_digest == head.reading.main_digest:
        return Change(name, arch, "same main loop", figures, {}, ())
    mains = base.reading.main, head.reading.main
    opcodes = [Counter(each.opcode for each in main.instructions) if main else Counter() for main in mains]
    delta = {op: opcodes[1][op] - opcodes[0][op] for op in sorted({*opcodes[0], *opcodes[1]})}
    return Change(name, arch, "changed", figures, {k: v for k, v in delta.items() if v}, tuple(_diff(*mains)))


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


def _diff(base: Region | None, head: Region | None) -> Iterator[str]:
    """Removed and added instructions with their source lines, and some unchanged ones around them."""
    before, after = (main.instructions if main else () for main in (base, head))
    old, new = ([_anonymous(each) for each in side] for side in (before, after))
    matcher = difflib.SequenceMatcher(a=old, b=new, autojunk=False)
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


def _anonymous(each: Instruction) -> str:
    """Without the numbers of registers, which one insertion would change everywhere after it."""
    text = re.sub(r"`\([^)]*\)", "`(target)", str(each).replace(".reuse", ""))
    return _REGISTER.sub(r"\1", text)


def _with_line(each: Instruction) -> str:
    line = own_line(each.source)
    return f"{_anonymous(each):<60} {line or ''}".rstrip()
