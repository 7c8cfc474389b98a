"""The text of a TTGIR module as operations with their values, types, loops and source lines.

The text is MLIR, one operation a line: `%results = dialect.operation operands {attributes} : types loc(#loc7)`. An
operation with a body ends its line with `{` and has its location on the line of the closing brace. Lines that begin
with `#` give names to layouts and locations. Written against triton 3.6 to 3.9; whatever is not understood raises.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from typing import Literal

from bsa_bench.static.mlir_names import Names, split
from bsa_bench.static.sass import SourceLine

VALUE = re.compile(r"%[\w$.-]+(?:#\d+)?")
_OPERATION = re.compile(r'(?:(%[^=]*?) = )?"?([a-z_]\w*(?:\.\w+)+)"?(.*)')
_PARTITION = re.compile(r"(default|partition\d+)(?:\((.*?)\))?(?: num_warps\((\d+)\))? \{")
_FOR = re.compile(r"\s*(?:unsigned )?(%\S+) = (%\S+) to (%\S+) step (%\S+)(?: iter_args\((.*?)\) ->)?")
DOTS = {"tt.dot", "ttng.warp_group_dot", "ttng.tc_gen5_mma", "ttng.tc_gen5_mma_scaled"}
TMA: dict[str, Literal["load", "store", "atomic"]] = {
    "ttng.async_tma_copy_global_to_local": "load",
    "ttng.async_tma_gather": "load",
    "ttng.async_tma_copy_local_to_global": "store",
    "ttng.async_tma_scatter": "store",
    "ttng.async_tma_reduce": "atomic",
}
PLAIN: dict[str, Literal["load", "store", "atomic"]] = {
    "tt.load": "load",
    "tt.store": "store",
    "tt.atomic_rmw": "atomic",
    "tt.atomic_cas": "atomic",
}
# Operations that would change what is counted here, if they were not in the tables above.
_COUNTED = re.compile(r"dot|mma|async_copy|async_tma|tt\.load|tt\.store|atomic|descriptor_|tt\.call|bulk")
_HARMLESS = re.compile(r".*_(wait|commit|arrive)|ttng\.reinterpret_tensor_descriptor|ttng\.async_copy_mbarrier_arrive")


@dataclass(frozen=True)
class Type:
    """A type of the text; `layout` is resolved (`#ttg.blocked<...>`), scalars have the shape ()."""

    kind: Literal["tensor", "shared", "tensor memory", "scalar"]
    shape: tuple[int, ...]
    element: str
    layout: str = ""

    @property
    def pointee(self) -> str:
        found = re.fullmatch(r"!tt\.ptr<(.*?)(?:, \d+)?>", self.element)
        return found[1] if found else self.element

    @property
    def bits(self) -> int:
        """Bits of an element in memory, or of what it points to."""
        found = re.fullmatch(r"(?:bf|f|i|ui|si)(\d+)(?:E\w+)?", self.pointee)
        if found is None:
            raise ValueError(f"TTGIR: element type {self.element!r}: expected an integer or floating-point type")
        return max(8, int(found[1]))

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.bits // 8

    @property
    def stored_bytes(self) -> int:
        """As `bytes`, with the padding of fp4 that an instruction multiplies by fp8."""
        return self.bytes * (2 if "fp4Padded = true" in self.layout else 1)


@dataclass(eq=False)
class Operation:
    """One operation: `text` is what stands between its name and its types, `yields` what a loop hands to its next trip.

    `variable` is what the source assigns it to, in the outermost function if it was inlined; empty where unknown.
    `operands` of `scf.for` are the lower bound, the upper bound, the step and the first values that it carries.
    `branches` are the arms of conditions that it stands in, the outermost first: the condition's number, and its arm.
    `closing` is the line that ends its body.
    """

    name: str
    operands: tuple[Value, ...]
    text: str
    types: str
    loop: int | None
    variable: str = ""
    source: tuple[SourceLine, ...] = ()
    yields: tuple[Value, ...] = ()
    branches: tuple[tuple[int, int], ...] = ()
    closing: str = ""

    def hint(self, name: str) -> tuple[int, ...]:
        """What the source promises of the result: `tt.divisibility`, ...; a number for each axis, or none at all."""
        found = re.search(rf"\b{re.escape(name)} = dense<\[?([\d, ]+)\]?> : tensor<(\d+)x", self.text)
        if found is None:
            return ()
        numbers = tuple(int(number) for number in found[1].split(","))
        return numbers if len(numbers) > 1 else numbers * int(found[2])


@dataclass(frozen=True, eq=False)
class Value:
    """A value: result `number` of its owner, or, where a loop owns it, what that carries or (-1) counts."""

    name: str
    owner: Operation | None = None
    number: int = 0
    role: Literal["result", "carried", "argument", "opaque"] = "result"
    divisibility: int = 1

    @property
    def constant(self) -> int | None:
        """Its number, if it is an integer constant; a tensor of one number counts as that."""
        if self.owner is None or self.owner.name != "arith.constant":
            return None
        text = self.owner.text.strip()
        found = re.fullmatch(r"(?:\{.*\} )?(?:dense<)?(true|false|-?\d+)>?", text)
        if found is None:
            return None
        return int(found[1]) if found[1] not in {"true", "false"} else int(found[1] == "true")


@dataclass
class _Region:
    owner: Operation | None
    names: dict[str, Value]
    loop: int | None
    partition: str | None
    is_body_of_loop: bool = False
    branches: tuple[tuple[int, int], ...] = ()


def _other_arm(region: _Region) -> tuple[tuple[int, int], ...]:
    if region.owner is None or region.owner.name != "scf.if":
        return region.branches
    *around, (condition, arm) = region.branches
    return *around, (condition, arm + 1)


@dataclass
class Module:
    """The operations of a text in order; a step on the way to `Ttgir`."""

    text: str
    operations: list[Operation] = field(default_factory=list)
    loops: list[tuple[Operation, int | None, str | None]] = field(default_factory=list)
    partition_warps: list[int] = field(default_factory=list)
    _types: dict[str, Type] = field(default_factory=dict)
    _regions: list[_Region] = field(default_factory=list)

    def __post_init__(self) -> None:
        lines = self.text.splitlines()
        self._names = Names(self.text)
        for number, line in enumerate(lines, 1):
            if line.strip() and not line.startswith(("#", "//")):
                try:
                    self._read(line.strip())
                except ValueError as error:
                    raise ValueError(f"TTGIR, line {number}: {error}; the line: {line.strip()[:160]}") from None
        if self._regions or not self.operations:
            raise ValueError("TTGIR: expected one whole module with a kernel; the text is empty or cut off")

    def attribute(self, name: str) -> str:
        """An attribute of the module."""
        found = re.search(rf'^module attributes.*?"?{re.escape(name)}"? = "?([\w:]+)', self.text, re.MULTILINE)
        if found is None:
            raise ValueError(
                f"TTGIR: the module has no attribute {name!r}; expected the last stage of triton 3.6 to 3.9"
            )
        return found[1]

    def type_of(self, text: str) -> Type:
        """Read a type."""
        if text not in self._types:
            self._types[text] = self._read_type(text)
        return self._types[text]

    def _read_type(self, text: str) -> Type:
        found = re.fullmatch(r"(tensor|(?:!ttg\.memdesc)?)<(.*)>", text)
        if found is None:
            return Type("scalar", (), text)
        head, *rest = split(found[2])
        shape = re.match(r"(?:\d+x)*", head)
        sizes = shape[0] if shape else ""
        dims = tuple(int(size) for size in sizes.split("x")[:-1])
        layout = self._names.resolved(rest[0]) if rest else ""
        if found[1] == "tensor":
            return Type("tensor", dims, head[len(sizes) :], layout)
        space = self._names.resolved(rest[1])
        kind: Literal["shared", "tensor memory"] = "tensor memory" if "tensor_memory" in space else "shared"
        return Type(kind, dims, head[len(sizes) :], layout)

    def _read(self, line: str) -> None:
        at = line.rfind(" loc(")
        location = ""
        if at >= 0 and line.endswith(")"):
            line, location = line[:at], line[at + 5 : -1]
        opens = line.endswith("{")
        if line.startswith("}"):
            region = self._regions.pop()
            if opens:  # `} else {`, `} do {`
                self._regions.append(replace(region, names={}, branches=_other_arm(region)))
            elif region.owner:
                region.owner.source = self._names.source_of(location)
                region.owner.closing = line
        elif line.startswith("^"):
            self._regions[-1].names |= {name: Value(name, role="opaque") for name in re.findall(r"(%[\w$.-]+):", line)}
        elif line.startswith("module"):
            self._regions.append(_Region(None, {}, None, None))
        elif found := _PARTITION.fullmatch(line):
            self._open_partition(found[1], found[2] or "", found[3])
        elif found := _OPERATION.fullmatch(line):
            self._read_operation(found[1] or "", found[2], found[3], location, opens=opens)
        else:
            raise ValueError("expected an operation")

    def _open_partition(self, name: str, arguments: str, warps: str | None) -> None:
        parent = self._regions[-1]
        last = next(o for o in reversed(self.operations) if o.name == "ttg.warp_specialize")
        names = re.findall(r"(%[\w$.-]+):", arguments)
        if warps is not None:
            self.partition_warps.append(int(warps))
        # A partition sees what it captures under names of its own.
        bound = dict(zip(names, last.operands, strict=True)) if names else {}
        self._regions.append(_Region(None, bound, parent.loop, name, branches=parent.branches))

    def _read_operation(self, results: str, name: str, rest: str, location: str, *, opens: bool) -> None:
        here = self._regions[-1] if self._regions else _Region(None, {}, None, None)
        if (
            _COUNTED.search(name)
            and name not in DOTS | TMA.keys() | PLAIN.keys() | {"ttg.async_copy_global_to_local"}
            and not _HARMLESS.fullmatch(name)
        ):
            raise ValueError(f"operation {name!r} is not one that is known here")
        if name == "tt.func":
            self._open_function(rest)
            return
        parts = split(rest.removesuffix("{"), " : ")
        text = " : ".join(parts[:-1]) or parts[-1]
        variable = self._names.caller_of(location) or re.sub(r"(_\d+)?(:\d+)?$", "", results.partition(",")[0][1:])
        variable = variable or self._names.name_of(location)
        operation = Operation(name, (), text, parts[-1], here.loop, variable, self._names.source_of(location))
        operation.branches = here.branches
        inner = _Region(operation, {}, here.loop, here.partition, branches=here.branches)
        if name == "scf.if":
            inner.branches = (*here.branches, (len(self.operations), 0))
        if name in {"scf.for", "scf.while"}:
            self.loops.append((operation, here.loop, here.partition))
            inner.loop, inner.is_body_of_loop = len(self.loops) - 1, True
        if name == "scf.for":
            self._open_for(operation, rest, inner)
        else:
            carried = re.findall(r"(%[\w$.-]+) = (%[\w$.-]+(?:#\d+)?)", rest) if name == "scf.while" else []
            inner.names |= {own: Value(own, operation, role="opaque") for own, _ in carried}
            used = [first for _, first in carried] if carried else VALUE.findall(operation.text)
            operation.operands = tuple(self._value(name) for name in used)
        if name == "scf.yield" and here.owner is not None and here.is_body_of_loop:
            here.owner.yields = operation.operands
        number = 0
        for result in split(results) if results else ():
            own, _, count = result.partition(":")
            if count:
                here.names |= {f"{own}#{i}": Value(own, operation, number + i) for i in range(int(count))}
            else:
                here.names[own] = Value(own, operation, number)
            number += int(count or 1)
        self.operations.append(operation)
        if opens:
            self._regions.append(inner)

    def _open_function(self, rest: str) -> None:
        if len(self._regions) != 1 or self.operations:
            raise ValueError("a second function; expected a kernel with all calls inlined (no `noinline`)")
        found = re.search(r"@[\w$.\"-]+\((.*)", rest)
        names = {}
        for argument in split((found[1] if found else "").rpartition(")")[0]):
            own = argument.partition(":")[0].strip()
            number = re.search(r"tt\.divisibility = (\d+)", argument)
            names[own] = Value(own, role="argument", divisibility=int(number[1]) if number else 1)
        self._regions.append(_Region(None, names, None, None))

    def _open_for(self, operation: Operation, rest: str, inner: _Region) -> None:
        found = _FOR.match(rest)
        if found is None:
            raise ValueError("expected `scf.for %i = %lower to %upper step %step`")
        carried = [pair.split(" = ") for pair in split(found[5])] if found[5] else []
        operation.operands = tuple(self._value(name) for name in (*found.group(2, 3, 4), *(v for _, v in carried)))
        inner.names[found[1]] = Value(found[1], operation, -1, "carried")
        inner.names |= {own: Value(own, operation, i, "carried") for i, (own, _) in enumerate(carried)}

    def _value(self, name: str) -> Value:
        for region in reversed(self._regions):
            if name in region.names:
                return region.names[name]
        raise ValueError(f"value {name} is used before it is defined")
