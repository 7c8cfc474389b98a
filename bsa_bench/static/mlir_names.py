"""What an MLIR text gives names to at its edges: layouts, and the lines of the source that operations come from."""

from __future__ import annotations

import re
from functools import lru_cache

from bsa_bench.static.sass import SourceLine


@lru_cache(maxsize=4096)
def split(text: str, separator: str = ",") -> tuple[str, ...]:
    """Split at a separator that stands in no bracket and no string."""
    parts, depth, start, quoted, i = [], 0, 0, False, 0
    while i < len(text):
        character = text[i]
        if character == '"':
            quoted = not quoted
        elif quoted:
            pass
        elif not depth and text.startswith(separator, i):
            parts.append(text[start:i].strip())
            start = i + len(separator)
            i = start
            continue
        elif text.startswith("->", i):
            i += 1
        elif character in "<([{":
            depth += 1
        elif character in ">)]}":
            depth -= 1
        i += 1
    return *parts, text[start:].strip()


class Names:
    """The lines of a text that begin with `#`: `#loc7 = loc("k.py":3:4)`, `#blocked = #ttg.blocked<...>`."""

    def __init__(self, text: str) -> None:
        lines = (re.match(r"(#[\w-]+) = (.*)", line) for line in text.splitlines())
        self._aliases = {found[1]: found[2] for found in lines if found}

    def resolved(self, layout: str) -> str:
        """A layout with the names in it replaced by what they stand for."""
        return re.sub(r"#[\w-]+(?![\w.<-])", lambda m: self._aliases.get(m[0], m[0]), layout)

    def source_of(self, location: str) -> tuple[SourceLine, ...]:
        """The lines that a location stands for, the innermost call first."""
        location = location.strip()
        if location.startswith("#loc"):
            return self.source_of(self._aliases.get(location, "loc(unknown)")[4:-1])
        if found := re.match(r'"([^"]*)":(\d+):\d+', location):
            return (SourceLine(found[1], int(found[2])),)
        if found := re.fullmatch(r"callsite\((.*)\)", location):
            return tuple(line for part in split(found[1], " at ") for line in self.source_of(part))
        if found := re.fullmatch(r"fused(?:<.*>)?\[(.*)\]", location):
            return next((lines for part in split(found[1]) if (lines := self.source_of(part))), ())
        if found := re.fullmatch(r'"[^"]*"\((.*)\)', location):
            return self.source_of(found[1])
        return ()

    def name_of(self, location: str) -> str:
        """The variable that a location names; empty where it names none."""
        found = re.match(r'"([^"]*)"\(', self._aliases.get(location, location).removeprefix("loc("))
        return found[1] if found else ""

    def caller_of(self, location: str) -> str:
        """The variable that the outermost call gives its result to, for a location inside of calls."""
        while location.startswith("#loc"):
            location = self._aliases.get(location, "loc(unknown)")[4:-1]
        if found := re.fullmatch(r"callsite\((.*)\)", location):
            outer = split(found[1], " at ")[1]
            return self.caller_of(outer) or self.name_of(outer)
        return ""
