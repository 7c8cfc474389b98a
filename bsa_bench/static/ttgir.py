"""What Triton decided, read from the text of the last TTGIR stage: dots, shared buffers, copies and loops."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from bsa_bench.static.conditions import branches_in_loop, can_be_off
from bsa_bench.static.loop_attributes import Attributes, attributes_of
from bsa_bench.static.mlir import DOTS, PLAIN, TMA, VALUE, Module, Operation, Type, Value
from bsa_bench.static.mlir_names import split
from bsa_bench.static.sass import SourceLine
from bsa_bench.static.slices import name_of_load, waits_for_load

_VIEWS = {f"ttg.memdesc_{view}" for view in ("index", "subslice", "trans", "reshape", "reinterpret")}


@dataclass(frozen=True)
class Loop:
    """A loop of the text; `trips` where its bounds are constants, `partition` if specialised warps run it.

    `attributes` are what the text keeps of what was asked of the loop: `tt.num_stages`, `tt.flatten`, ...
    """

    index: int
    parent: int | None
    kind: Literal["for", "while"]
    trips: int | None
    partition: str | None
    source: tuple[SourceLine, ...]
    attributes: Attributes = field(default_factory=dict)


@dataclass(frozen=True)
class Dot:
    """A product [batch, m, k] x [batch, k, n] of the whole CTA, or of the warps of its partition.

    `a_type` and `b_type` are the element types of the operands, `e2m1` for fp4, of which a byte holds two; `a_bytes`
    and `b_bytes` those of their numbers. `instruction` is the shape that one instruction takes: of a
    warp, for wgmma of a warp group, for tcgen05 of the CTA. `branches` are those of the loop that it stands in;
    `is_waited`: its barrier lives for one iteration, so that the next one finds it done.
    """

    kind: Literal["mma.sync", "wgmma", "tcgen05", "fma"]
    m: int
    n: int
    k: int
    batch: int
    a_type: str
    b_type: str
    accumulator_type: str
    a_from: str
    b_from: str
    a_bytes: int
    b_bytes: int
    instruction: tuple[int, int, int] | None
    loop: int | None
    source: tuple[SourceLine, ...]
    branches: frozenset[tuple[int, int]] = frozenset()
    is_waited: bool = False

    @property
    def flop(self) -> int:
        return 2 * self.batch * self.m * self.n * self.k

    @property
    def num_instructions(self) -> int:
        """Instructions that it takes, each of `instruction`; 0 where that is not known."""
        if self.instruction is None:
            return 0
        m, n, k = self.instruction
        return self.batch * -(-self.m // m) * -(-self.n // n) * -(-self.k // k)

    @property
    def shared_bytes(self) -> int:
        """Bytes of those operands that are read from shared memory."""
        operands = ((self.a_from, self.a_bytes), (self.b_from, self.b_bytes))
        return sum(size for place, size in operands if place == "shared")


@dataclass(frozen=True)
class Access:
    """A load, store or atomic of global memory; `bytes` is the data of one execution by the whole CTA.

    `variable` is what the source assigns it to (empty where unknown), `buffer` the index of the buffer that it fills.
    `branches` are those of the loop that it stands in; `can_be_off`: one condition switches it off, as a branch would;
    `waits_for_load`: its address hangs on a load of the same iteration.
    """

    kind: Literal["plain", "cp.async", "tma"]
    direction: Literal["load", "store", "atomic"]
    operation: str
    shape: tuple[int, ...]
    element: str
    bytes: int
    variable: str
    buffer: int | None
    loop: int | None
    source: tuple[SourceLine, ...]
    branches: frozenset[tuple[int, int]] = frozenset()
    can_be_off: bool = False
    waits_for_load: bool = False


@dataclass(frozen=True)
class Buffer:
    """An allocation of shared memory: `depth` tiles, taken in turn. `bytes` is the size of all of them.

    `is_filled_by_copies`: asynchronous copies write it, the deepest of them in `loop`, and `source` is where that is;
    `waits_for_load` is that copy's. `feeds_products`: they read it where it is, not through registers.
    """

    name: str
    depth: int
    tile: tuple[int, ...]
    element: str
    bytes: int
    is_barrier: bool
    is_filled_by_copies: bool
    loop: int | None
    source: tuple[SourceLine, ...]
    waits_for_load: bool = False
    feeds_products: bool = False


@dataclass(frozen=True)
class Ttgir:
    """A kernel. `num_warps` are those it was compiled for; `partition_warps` those that specialisation adds."""

    target: str
    num_warps: int
    partition_warps: tuple[int, ...]
    loops: tuple[Loop, ...]
    dots: tuple[Dot, ...]
    buffers: tuple[Buffer, ...]
    accesses: tuple[Access, ...]

    def warps_of(self, partition: str | None) -> int:
        """Warps that run a partition: the kernel's own, or those that specialisation adds for it."""
        if partition is None or partition == "default":
            return self.num_warps
        return self.partition_warps[int(partition.removeprefix("partition"))]

    def depths(self, loop: int) -> tuple[int, ...]:
        """The depth of each buffer that copies in a loop fill, inner loops apart; empty if nothing is pipelined.

        Buffers of single numbers and vectors count only where there are no tiles.
        """
        filled = [b for b in self.buffers if b.is_filled_by_copies and not b.is_barrier and b.loop == loop]
        return tuple(b.depth for b in [b for b in filled if len(b.tile) > 1] or filled)


def read_ttgir(text: str) -> Ttgir:
    """Read the text of the last TTGIR stage of a kernel.

    Raises:
        ValueError: the text is no whole TTGIR module, or holds something that would be counted wrongly.
    """
    module = Module(text)
    if module.attribute("ttg.num-ctas") != "1":
        raise ValueError("TTGIR: a cluster of CTAs (num_ctas > 1) is not read; compile with num_ctas=1")
    allocations = [o for o in module.operations if o.name == "ttg.local_alloc"]
    accesses = tuple(a for o in module.operations if (a := _access(module, o, allocations)) is not None)
    return Ttgir(
        target=module.attribute("ttg.target"),
        num_warps=int(module.attribute("ttg.num-warps")),
        partition_warps=tuple(module.partition_warps),
        loops=tuple(_loop(i, *entry) for i, entry in enumerate(module.loops)),
        dots=tuple(_dot(module, o) for o in module.operations if o.name in DOTS),
        buffers=tuple(_buffer(module, i, o, accesses) for i, o in enumerate(allocations)),
        accesses=accesses,
    )


def _loop(index: int, operation: Operation, parent: int | None, partition: str | None) -> Loop:
    trips = None
    if operation.name == "scf.for":
        lower, upper, step = (value.constant for value in operation.operands[:3])
        if lower is not None and upper is not None and step:
            trips = max(0, -(-(upper - lower) // step))
    kind: Literal["for", "while"] = "for" if operation.name == "scf.for" else "while"
    return Loop(index, parent, kind, trips, partition, operation.source, attributes_of(operation.closing))


def _dot(module: Module, operation: Operation) -> Dot:
    if operation.name.startswith("ttng.tc_gen5"):
        a, b, c = (module.type_of(part) for part in split(operation.types)[:3])
    else:
        operands, result = split(operation.types, "->")
        a, b = (module.type_of(part) for part in split(operands, " * "))
        c = module.type_of(result)
    is_fp4 = {side: f"{side} = e2m1" in operation.text for side in ("lhs", "rhs")}
    k = a.shape[-1] * (1 + is_fp4["lhs"])
    if (*c.shape, k) != (*a.shape[:-1], b.shape[-1], b.shape[-2] * (1 + is_fp4["rhs"])) or "two_ctas" in operation.text:
        raise ValueError(
            f"TTGIR: {operation.name} multiplies {a.shape} by {b.shape} to {c.shape}; expected one CTA's product"
        )
    places = {"tensor": "registers"}
    kind, instruction = _instruction(operation, a, c)
    return Dot(
        kind=kind,
        m=c.shape[-2],
        n=c.shape[-1],
        k=k,
        batch=math.prod(c.shape[:-2]),
        a_type="e2m1" if is_fp4["lhs"] else a.element,
        b_type="e2m1" if is_fp4["rhs"] else b.element,
        accumulator_type=c.element,
        a_from=places.get(a.kind, a.kind),
        b_from=places.get(b.kind, b.kind),
        a_bytes=a.bytes,
        b_bytes=b.bytes,
        instruction=instruction,
        loop=operation.loop,
        source=operation.source,
        branches=branches_in_loop(module, operation),
        is_waited=any(_is_short_lived_barrier(value, operation) for value in operation.operands),
    )


def _is_short_lived_barrier(value: Value, product: Operation) -> bool:
    owner = value.owner
    if owner is None or owner.name != "ttg.local_alloc" or product.loop is None:
        return False
    return owner.loop == product.loop and "xi64" in owner.types


def _instruction(
    operation: Operation, a: Type, c: Type
) -> tuple[Literal["mma.sync", "wgmma", "tcgen05", "fma"], tuple[int, int, int] | None]:
    """The class of a product and the shape of one instruction, by the layout of its accumulator."""
    # mma.sync and tcgen05 take 32 bytes along k; fp4 is as wide as fp8 unless both operands are fp4. fp64 has a rule of
    # its own.
    num_fp4 = operation.text.count("= e2m1")
    step = 64 if num_fp4 == 2 else 256 // a.bits if a.bits <= 32 else None
    if c.layout.startswith("#ttng.tensor_memory_encoding"):
        found = re.search(r"blockM = (\d+), blockN = (\d+)", c.layout)
        if found:
            return "tcgen05", (int(found[1]), int(found[2]), step) if step else None
    if c.layout.startswith("#ttg.nvidia_mma"):
        major = re.search(r"versionMajor = (\d+)", c.layout)
        shape = re.search(r"instrShape = \[([\d, ]+)\]", c.layout)
        sizes = [int(size) for size in shape[1].split(",")] if shape else []
        if major and major[1] == "3" and len(sizes) == 3:
            return "wgmma", (4 * sizes[0], sizes[1], sizes[2])  # a warp's 16 rows; the instruction is of four warps
        if major and major[1] == "2" and len(sizes) >= 2:
            return "mma.sync", (sizes[-2], sizes[-1], step) if step else None
    if c.layout.startswith("#ttg.blocked"):
        return "fma", None
    raise ValueError(f"TTGIR: {operation.name} with the accumulator layout {c.layout!r} is not known")


def _access(module: Module, operation: Operation, allocations: list[Operation]) -> Access | None:
    kind: Literal["plain", "cp.async", "tma"]
    direction: Literal["load", "store", "atomic"]
    buffer = None
    if operation.name in PLAIN:
        kind, direction = "plain", PLAIN[operation.name]
        text = operation.types
        if direction == "atomic":
            text = split(split(text, "->")[0].removeprefix("(").removesuffix(")"))[0]
        data = module.type_of(text)
    elif operation.name == "ttg.async_copy_global_to_local":
        kind, direction = "cp.async", "load"
        data, buffer = module.type_of(split(operation.types, "->")[1]), operation.operands[1]
    elif operation.name in TMA:
        kind, direction = "tma", TMA[operation.name]
        data = [
            t for part in split(operation.types.replace("->", ",")) if (t := module.type_of(part)).kind == "shared"
        ][-1]
        # The tile in shared memory is the first value after the coordinates: `%descriptor[%row, %column] %tile`.
        buffer = operation.operands[len(VALUE.findall(operation.text.partition("]")[0]))]
    else:
        return None
    root = _root(buffer, allocations) if direction == "load" else None
    return Access(
        kind=kind,
        direction=direction,
        operation=operation.name,
        shape=data.shape,
        element=data.pointee,
        bytes=data.bytes,
        variable=name_of_load(module, operation) if direction == "load" else operation.variable,
        buffer=root,
        loop=operation.loop,
        source=operation.source,
        branches=branches_in_loop(module, operation),
        can_be_off=can_be_off(module, operation),
        waits_for_load=waits_for_load(operation),
    )


def _root(buffer: Value | None, allocations: Sequence[Operation]) -> int | None:
    """The number of the allocation that a value is a view of."""
    while buffer is not None and buffer.owner is not None:
        if buffer.owner in allocations:
            return allocations.index(buffer.owner)
        if buffer.owner.name not in _VIEWS:
            break
        buffer = buffer.owner.operands[0]
    return None


def _buffer(module: Module, index: int, operation: Operation, accesses: tuple[Access, ...]) -> Buffer:
    whole = module.type_of(split(operation.types, "->")[-1])
    # Only a leading dimension that is indexed away counts buffers; `<3x64xf32>` alone may be a tile.
    views = (o for o in module.operations if o.name == "ttg.memdesc_index" and o.operands[0].owner is operation)
    is_indexed = any(True for _ in views)
    fills = [access for access in accesses if access.buffer == index]
    nesting: dict[int | None, int] = {None: 0}
    for number, (_, parent, _) in enumerate(module.loops):
        nesting[number] = nesting[parent] + 1
    deepest = max(fills, key=lambda access: nesting[access.loop], default=None)
    return Buffer(
        name=(deepest.variable if deepest else "") or operation.variable,
        depth=whole.shape[0] if is_indexed else 1,
        tile=whole.shape[1:] if is_indexed else whole.shape,
        element=whole.element,
        bytes=whole.stored_bytes,
        is_barrier=whole.element == "i64",
        is_filled_by_copies=bool(fills),
        loop=deepest.loop if deepest else operation.loop,
        source=deepest.source if deepest else operation.source,
        waits_for_load=deepest is not None and deepest.waits_for_load,
        feeds_products=any(
            _root(value, [operation]) == 0 for each in module.operations if each.name in DOTS for value in each.operands
        ),
    )
