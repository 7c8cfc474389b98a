"""What the source asks of a loop (`tl.range(..., num_stages=4)`), from TTIR: passes drop it from what they rewrite."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from bsa_bench.static.mlir_names import Names, split
from bsa_bench.static.sass import SourceLine

Attributes = Mapping[str, str]
_LOOP = re.compile(r"(?:%\S+ = )?scf\.(?:for|while)\b")


def attributes_of(closing: str) -> dict[str, str]:
    """Those on the line that ends a loop: `} {tt.flatten, tt.num_stages = 4 : i32}`; a bare name has the empty text."""
    found = re.fullmatch(r"\}\s*\{(.*)\}", closing.strip())
    pairs = (part.partition(" = ") for part in (split(found[1]) if found else ()))
    return {name.strip(): value.partition(" : ")[0].strip() for name, _, value in pairs}


def read_loop_attributes(text: str) -> list[tuple[tuple[SourceLine, ...], dict[str, str]]]:
    """Each loop of a TTIR module in the order in which they begin: its source lines and its attributes."""
    names, open_at = Names(text), list[int | None]()
    found: list[tuple[tuple[SourceLine, ...], dict[str, str]]] = []
    for line, location in _lines(text):
        if line.startswith("}"):
            number = open_at.pop() if open_at else None
            if line.endswith("{"):  # `} else {`, `} do {`
                open_at.append(number)
            elif number is not None:
                found[number] = names.source_of(location), attributes_of(line)
        elif line.endswith("{"):
            is_loop = _LOOP.match(line) is not None
            open_at.append(len(found) if is_loop else None)
            found += [((), {})] if is_loop else []
    return found


def attributes_for(
    loops: Sequence[tuple[tuple[SourceLine, ...], Attributes]], source: tuple[SourceLine, ...], number: int
) -> Attributes:
    """What is asked of a loop: the one of its number among those of its lines; the first, if passes made more."""
    same = [attributes for lines, attributes in loops if lines == source]
    return same[number if number < len(same) else 0] if same else {}


def _lines(text: str) -> Iterator[tuple[str, str]]:
    """Lines of operations without their locations, and the locations."""
    for raw in text.splitlines():
        line, at = raw.strip(), raw.strip().rfind(" loc(")
        if not line or line.startswith(("#", "//")):
            continue
        yield (line[:at].rstrip(), line[at + 5 : -1]) if at >= 0 and line.endswith(")") else (line, "")
