"""How well each load and store of a tensor fills the 32-byte sectors that a warp touches, read from TTGIR.

The address of every element of one request (a vector register of each of the 32 lanes of warp 0) is worked out as a
sum of known numbers and unknown ones: arguments, program ids, loaded indices. Two addresses that differ by an unknown
number are taken to lie in different sectors. Assumed: masks are all true; where the unknown part of an address says
nothing about its alignment, it begins a sector. An address that is no such sum gives "unknown", never "coalesced".
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from bsa_bench.static.addresses import Addresses, Index, UnknownAddressError, alignment
from bsa_bench.static.conditions import mask_of
from bsa_bench.static.mlir import Module, Operation, Type
from bsa_bench.static.mlir_names import split
from bsa_bench.static.sass import SourceLine

SECTOR_BYTES = 32
VECTOR_BYTES = 16

Bases = list[Index]
AccessKind = Literal["load", "store", "cp.async"]
AccessKey = tuple[AccessKind, tuple[SourceLine, ...]]
"""What the machine code is asked for: a kind of access and the lines it comes from, the innermost call first."""


@dataclass(frozen=True)
class Coalescing:
    """One load or store: bytes of an element and of a vector of a thread, sectors of a warp's request.

    `ideal_sectors` would hold the same bytes without a gap. The numbers are None where the verdict is "unknown", and
    `reason` says why.
    """

    line: SourceLine | None
    kind: AccessKind
    element_bytes: int
    vector_bytes: int | None
    sectors: int | None
    ideal_sectors: int | None
    verdict: Literal["coalesced", "uncoalesced", "unknown"]
    reason: str
    loop: int | None = None


_KINDS: dict[str, AccessKind] = {
    "tt.load": "load",
    "tt.store": "store",
    "ttg.async_copy_global_to_local": "cp.async",
}


_ANY = -1


def read_coalescing(
    text: str, *, loop: int | None = _ANY, widths: Mapping[AccessKey, Collection[int]] | None = None
) -> list[Coalescing]:
    """Judge each plain load, store and cp.async of a tensor in the last TTGIR stage, in the order of the text.

    Args:
        text: the stage.
        loop: judge only what stands in this loop (None: in none); by default everything.
        widths: bytes a lane that the machine code moves; it knows what the source promises of addresses and what the
            text here no longer says, so no access is narrower than the narrowest of its kind and lines.

    Raises:
        ValueError: the text is no whole TTGIR module.
    """
    module = Module(text)
    addresses = Addresses(module)
    found = []
    for operation in module.operations:
        if operation.name in _KINDS and loop in {_ANY, operation.loop}:
            pointers = module.type_of(split(operation.types, "->")[0])
            if pointers.kind == "tensor":
                least = min((widths or {}).get((_KINDS[operation.name], operation.source), ()), default=1)
                found.append(_judge(addresses, operation, pointers, least))
    return found


def _judge(addresses: Addresses, operation: Operation, pointers: Type, least_bytes: int) -> Coalescing:
    kind, element = _KINDS[operation.name], pointers.bits // 8
    line = operation.source[0] if operation.source else None
    try:
        registers, lanes = _bases(pointers.layout, pointers.shape)
        pointer = operation.operands[0]
        width = _vector(addresses, operation, element, registers, lanes, pointers.shape)
        promised = _promised(operation, least_bytes, element, registers)
        if width < promised:  # each lane's vector begins in one sector, and ends there: it is aligned
            width = promised
            starts = {addresses.pair(pointer, _at([], 0, lanes, lane, pointers.shape)) for lane in range(32)}
            touched, num_elements = starts, len(starts) * width
        else:
            vectors = [[_at(registers, r, lanes, lane, pointers.shape) for r in range(width)] for lane in range(32)]
            touched = {addresses.pair(pointer, index) for vector in vectors for index in vector}
            num_elements = len(touched)
    except UnknownAddressError as error:
        return Coalescing(line, kind, element, None, None, None, "unknown", str(error), operation.loop)
    sectors = len({(far, near // SECTOR_BYTES) for far, near in touched})
    ideal = -(-num_elements * element // SECTOR_BYTES)
    fits = sectors <= ideal
    reason = f"a warp's request of {num_elements} x {element} B touches {sectors} sectors, {ideal} would do"
    verdict: Literal["coalesced", "uncoalesced"] = "coalesced" if fits else "uncoalesced"
    return Coalescing(line, kind, element, width * element, sectors, ideal, verdict, reason, operation.loop)


def _vector(
    addresses: Addresses, operation: Operation, element: int, registers: Bases, lanes: Bases, shape: Index
) -> int:
    """Elements that a thread moves at once: neighbours in registers and in memory, aligned, under one mask."""
    pointer, mask = operation.operands[0], mask_of(operation)
    width = min(1 << len(registers), VECTOR_BYTES // element)
    for lane in range(32):
        indices = [_at(registers, r, lanes, lane, shape) for r in range(width)]
        far, near = addresses.pair(pointer, indices[0])
        while width > 1 and math.gcd(alignment(dict(far)), near) % (width * element):
            width //= 2
        while any(addresses.pair(pointer, i) != (far, near + r * element) for r, i in enumerate(indices[:width])):
            width //= 2
        while mask and len({addresses.mask_key(mask, index, width) for index in indices[:width]}) > 1:
            width //= 2
    return width


def _promised(operation: Operation, least_bytes: int, element: int, registers: Bases) -> int:
    """Elements that a thread moves at once as the compiler or the machine code says, which know the source's hints."""
    stated = re.search(r"\bcontiguity = (\d+) : i32", operation.text)
    width = max(int(stated[1]) if stated else 1, least_bytes // element, 1)
    return min(width, 1 << len(registers), max(VECTOR_BYTES // element, 1))


def _bases(layout: str, shape: Index) -> tuple[Bases, Bases]:
    """Where bit i of a register's number and of a lane's number moves in a tensor, for both numbers."""
    if found := re.fullmatch(r"#ttg\.slice<\{dim = (\d+), parent = (.*)\}>", layout):
        dim = int(found[1])
        # The size of the lost dimension does not matter: all along it hold the same.
        registers, lanes = _bases(found[2], (*shape[:dim], 1 << 30, *shape[dim:]))
        registers, lanes = ([(*b[:dim], *b[dim + 1 :]) for b in bases] for bases in (registers, lanes))
        return [base for base in registers if any(base)], lanes
    if layout.startswith("#ttg.linear<"):
        fields = dict(re.findall(r"(register|lane) = (\[.*?\])(?=, \w+ =)", layout))
        registers, lanes = ([tuple(base) for base in ast.literal_eval(fields[name])] for name in ("register", "lane"))
        return registers, lanes
    if layout.startswith("#ttg.blocked<"):
        fields = {name: ast.literal_eval(value) for name, value in re.findall(r"(\w+) = (\[[\d, ]*\])", layout)}
        order = fields["order"]
        used, parts = [1] * len(shape), []
        for sizes in (fields["sizePerThread"], fields["threadsPerWarp"]):
            bases = []
            for dim in order:
                for _ in range(int(sizes[dim]).bit_length() - 1):
                    # Past the end of the tensor the layout begins again.
                    bases.append(
                        tuple(used[dim] if d == dim and used[dim] < shape[d] else 0 for d in range(len(shape)))
                    )
                    used[dim] *= 2
            parts.append(bases)
        return [base for base in parts[0] if any(base)], parts[1]
    if re.match(r"#ttg\.nvidia_mma<\{versionMajor = [23],", layout) and len(shape) == 2:
        # Accumulator fragments: a lane holds two columns of rows 0-7 and of rows 8-15.
        return [(0, 1), (8, 0)], [(0, 2), (0, 4), (1, 0), (2, 0), (4, 0)]
    raise UnknownAddressError(f"the layout {layout[:80]} is not evaluated")


def _at(registers: Bases, register: int, lanes: Bases, lane: int, shape: Index) -> Index:
    index = [0] * len(shape)
    for bases, number in ((registers, register), (lanes, lane)):
        for bit, base in enumerate(bases):
            if number >> bit & 1:
                index = [i ^ b for i, b in zip(index, base, strict=True)]
    return tuple(i % size for i, size in zip(index, shape, strict=True))
