"""The disassembly of a kernel (SASS, as `nvdisasm -c -gi` prints it) as instructions that know their source line.

Source: https://docs.nvidia.com/cuda/cuda-binary-utilities, "nvdisasm" and "Instruction Set Reference".
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

_INSTRUCTION = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P[T\d]+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
_LABEL = re.compile(r"(\.L_[\w.$]+|\$[\w.$]+):\s*$")
_SECTION = re.compile(r"\s*\.section\s+\.text\.([^,\s]+),")
_LINE = re.compile(r'//## File "([^"]*)", line (\d+)( inlined at )?')
# Listings for sm_80 have no `.target`, only `.headerflags @"... EF_CUDA_SM80 ..."`.
_TARGET = re.compile(r"\s*(?:\.target\s+sm_|\.headerflags\s.*?\bEF_CUDA_SM)(\w+)")
_REFERENCE = re.compile(r"`\(([^)]+)\)")
# A computed jump lists where it may go: `BRX R4 -0x100 (*"BRANCH_TARGETS .L_x_2,.L_x_3"*)`.
_TARGETS = re.compile(r'"BRANCH_TARGETS ([^"]+)"')


@dataclass(frozen=True)
class SourceLine:
    """A line of a source file, 1-based."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file.rpartition('/')[2]}:{self.line}"


@dataclass(frozen=True)
class Instruction:
    """One instruction of a warp.

    `opcode` carries its modifiers (`LDG.E.128`); `operands` is the text after it; `guard` is the predicate under which
    it acts (`!P0`); `source` is where it comes from, the innermost call first, empty without line info.
    """

    address: int
    opcode: str
    operands: str
    guard: str | None
    source: tuple[SourceLine, ...] = ()

    @cached_property
    def name(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.partition(".")[0]

    @property
    def is_never(self) -> bool:
        """Whether its guard is constantly false, as in the `@!PT LDS RZ, [RZ]` that ptxas pads copies with."""
        return self.guard in {"!PT", "!UPT"}

    @property
    def is_guarded(self) -> bool:
        """Whether it acts only under a predicate; else it takes its issue slot alone."""
        return self.guard not in {None, "PT", "UPT"}

    @cached_property
    def target(self) -> str | None:
        """The label that it refers to."""
        found = _REFERENCE.search(self.operands)
        return found[1] if found else None

    @cached_property
    def targets(self) -> tuple[str, ...]:
        """All labels that it may jump to: its target, or those that a computed jump lists."""
        if self.target is not None:
            return (self.target,)
        found = _TARGETS.search(self.operands)
        return tuple(label.strip() for label in found[1].split(",")) if found else ()

    def __str__(self) -> str:
        guard = f"@{self.guard} " if self.guard else ""
        return f"{guard}{self.opcode} {self.operands}".rstrip()


@dataclass(frozen=True)
class Sass:
    """A kernel's instructions by address, its labels as indices of instructions, and the target (`sm_90a`)."""

    name: str
    target: str
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]


def read_sass(listing: str, kernel: str) -> Sass:
    """Read one kernel's section of a listing.

    Raises:
        ValueError: the listing has no such kernel, or no instruction in it.
    """
    target = next((f"sm_{m[1]}" for line in listing.splitlines() if (m := _TARGET.match(line))), "")
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    sections = []
    source: list[SourceLine] = []
    is_new_place = True
    inside = False
    for line in listing.splitlines():
        if section := _SECTION.match(line):
            sections.append(section[1])
            inside = section[1] == kernel
        elif not inside:
            continue
        elif found := _INSTRUCTION.match(line):
            address, guard, opcode, operands = found.groups()
            instructions.append(Instruction(int(address, 16), opcode, operands, guard, tuple(source)))
            is_new_place = True
        elif place := _LINE.search(line):
            # A chain of `inlined at` lines comes before its instruction, the innermost line first.
            source = [] if is_new_place else source
            source.append(SourceLine(place[1], int(place[2])))
            is_new_place = place[3] is None
        elif label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
    if not instructions:
        raise ValueError(f"kernel: expected {kernel!r} in the listing, got {', '.join(sections) or 'no code'}")
    return Sass(kernel, target, tuple(instructions), labels)


# After a dot it is a part of a register (`R0.B1`: its second byte).
_REGISTER = re.compile(r"(?<!\.)\b(UR|UP|R|P|B|SB)(\d+)\b")
_IMMEDIATE_TARGET = re.compile(r"`\([^)]*\)|-?\b0x[0-9a-f]+\s*(?:\(\*.*\*\))?\s*$")


def normalised(instructions: Sequence[Instruction]) -> Iterator[str]:
    """The text of instructions without what register allocation and placement chose.

    Registers of each file are numbered in the order of their first appearance, jump targets lose their names, and
    `.reuse` marks go; constants, widths, modifiers and order stay.
    """
    numbers: dict[str, str] = {}

    def rename(found: re.Match[str]) -> str:
        file = found[1]
        if found[0] not in numbers:
            numbers[found[0]] = f"{file}_{sum(1 for old in numbers.values() if old.startswith(f'{file}_'))}"
        return numbers[found[0]]

    for each in instructions:
        operands = _REFERENCE.sub("`(target)", each.operands.replace(".reuse", ""))
        if each.name in {"CALL", "RET", "BRX", "JMP"}:
            operands = _IMMEDIATE_TARGET.sub("target", operands)
        guard = f"@{each.guard} " if each.guard else ""
        yield _REGISTER.sub(rename, f"{guard}{each.opcode} {operands}".rstrip())


def digest(instructions: Sequence[Instruction]) -> str:
    """SHA-256 of the normalised text: the same for what computes the same in the same way."""
    return hashlib.sha256("\n".join(normalised(instructions)).encode()).hexdigest()
