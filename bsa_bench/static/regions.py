"""Count what the instructions of a loop, or those outside all loops, do; each count knows its source lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import TypeVar

from bsa_bench.static.classify import (
    LANES,
    Kind,
    OperandSource,
    Pipe,
    TensorClass,
    TensorOp,
    bytes_per_lane,
    kind_of,
    pipe_of,
    tensor_op_of,
)
from bsa_bench.static.flow import Flow, Loop
from bsa_bench.static.iteration import read_iteration
from bsa_bench.static.sass import Instruction, Sass, SourceLine

T = TypeVar("T")
_MOVES: dict[Kind, str] = {
    "global load": "plain",
    "cp.async": "cp.async",
    "TMA": "TMA",
    "global store": "store",
    "atomic": "atomic",
    "shared load": "shared load",
    "shared store": "shared store",
    "spill load": "spill load",
    "spill store": "spill store",
}
# Their operands name descriptors of whole tiles; how many bytes these hold is in no instruction.
BULK = {"UTMALDG", "UBLKCP", "UTMASTG", "UTMAREDG", "UBLKRED", "UTMAPF", "UBLKPF", "UTMACCTL", "UTMACMDFLUSH"}


@dataclass(frozen=True)
class TensorCount:
    """Tensor-core instructions of one shape, each warp's (each CTA's for tcgen05)."""

    tensor_class: TensorClass
    shape: str
    types: str
    a_source: OperandSource
    count: int
    lines: tuple[SourceLine, ...]


@dataclass(frozen=True)
class AccessCount:
    """Memory instructions of one kind and width, each warp's; `bytes_per_lane` is None for bulk copies (TMA)."""

    kind: str
    opcode: str
    bytes_per_lane: int | None
    count: int
    lines: tuple[SourceLine, ...]


@dataclass(frozen=True)
class LineCount:
    """The instructions of a region that come from one line of the user's source.

    `num_optional` are those that a loop's trip may make its products without.
    """

    line: SourceLine | None
    count: int
    mix: Mapping[Kind, int]
    num_optional: int = 0


@dataclass(frozen=True)
class Region:
    """A loop's own instructions (one trip, inner loops left out), or all that are in no loop.

    Attributes:
        loop: the loop's number, None outside loops; `parent` the loop around it.
        address: of its first instruction.
        num_instructions: those of one warp in a trip that takes every branch.
        num_conditional: those of them that some trips jump over.
        is_wait: it spins on a barrier and does no work.
        mix, pipes: instructions by kind and by pipe.
        shared_bytes_per_warp: what its loads, stores and asynchronous copies move to and from shared memory.
        required: instructions of a loop with matrix products that each trip runs that makes one; None without
            products. What an elected warp alone runs to issue a product is not among them.
        products: the matrix instructions of the trip that makes most, in a loop with products.
    """

    loop: int | None
    parent: int | None
    address: int
    num_instructions: int
    num_conditional: int
    is_wait: bool
    mix: Mapping[Kind, int]
    pipes: Mapping[Pipe, int]
    tensor: tuple[TensorCount, ...]
    accesses: tuple[AccessCount, ...]
    shared_bytes_per_warp: int
    lines: tuple[LineCount, ...]
    instructions: tuple[Instruction, ...] = field(repr=False)
    tensor_ops: tuple[TensorOp, ...] = field(repr=False)
    required: tuple[Instruction, ...] | None = field(default=None, repr=False)
    products: tuple[TensorOp, ...] = field(default=(), repr=False)

    def count(self, kind: Kind) -> int:
        """How many instructions are of a kind."""
        return self.mix.get(kind, 0)

    @cached_property
    def charged(self) -> tuple[Instruction, ...]:
        """Those that a trip with products must act on: on no branch that it can pass by, and under no predicate."""
        return tuple(each for each in self._required if not each.is_guarded)

    @cached_property
    def optional(self) -> tuple[Instruction, ...]:
        """All others."""
        required = {each.address for each in self._required}
        return tuple(each for each in self.instructions if each.is_guarded or each.address not in required)

    @property
    def _required(self) -> tuple[Instruction, ...]:
        return self.instructions if self.required is None else self.required

    @property
    def num_tensor(self) -> int:
        """How many tensor-core instructions it has."""
        return self.count("tensor")


def read_regions(sass: Sass, flow: Flow) -> tuple[Region, list[Region]]:
    """The region outside all loops, and one for each loop in the order of `flow.loops`."""
    in_loops: set[int] = set().union(*(loop.blocks for loop in flow.loops))
    outside = _reachable(flow) - in_loops
    loops = [
        _region(sass, flow, sorted(flow.own_blocks(loop)), loop, is_wait=_is_wait(sass, flow, loop))
        for loop in flow.loops
    ]
    return _region(sass, flow, sorted(outside), None), loops


def own_line(source: Sequence[SourceLine]) -> SourceLine | None:
    """Of a chain of calls, the innermost line that is not Triton's own library."""
    ours = (line for line in source if not line.file.startswith("triton/"))
    return next(ours, source[0] if source else None)


def _region(sass: Sass, flow: Flow, blocks: Sequence[int], loop: Loop | None, *, is_wait: bool = False) -> Region:
    instructions = _of_blocks(sass, flow, blocks)
    conditional = [] if loop is None else _of_blocks(sass, flow, [b for b in blocks if b not in loop.always])
    iteration = read_iteration(sass, flow, loop) if loop else None
    required = tuple(_of_blocks(sass, flow, sorted(iteration.required))) if iteration else None
    return Region(
        loop=loop.index if loop else None,
        parent=loop.parent if loop else None,
        address=instructions[0].address if instructions else 0,
        num_instructions=len(instructions),
        num_conditional=len(conditional),
        is_wait=is_wait,
        mix=_counted(kind_of(each) for each in instructions),
        pipes=_counted(pipe_of(each) for each in instructions),
        tensor=_tensor_counts(instructions),
        accesses=_access_counts(instructions),
        shared_bytes_per_warp=sum(map(shared_bytes_of, instructions)),
        lines=_line_counts(instructions, required),
        instructions=tuple(instructions),
        tensor_ops=tuple(tensor_op_of(each) for each in instructions if kind_of(each) == "tensor"),
        required=required,
        products=iteration.products if iteration else (),
    )


def _counted(items: Iterable[T]) -> Mapping[T, int]:
    return MappingProxyType(dict(Counter(items).most_common()))


def _of_blocks(sass: Sass, flow: Flow, blocks: Iterable[int]) -> list[Instruction]:
    spans = (flow.blocks[block] for block in blocks)
    found = (each for span in spans for each in sass.instructions[span.start : span.stop])
    return [each for each in found if each.name != "NOP"]


def _reachable(flow: Flow) -> set[int]:
    seen, todo = {0}, [0]
    while todo:
        for following in flow.blocks[todo.pop()].successors:
            if following not in seen:
                seen.add(following)
                todo.append(following)
    return seen


def _is_wait(sass: Sass, flow: Flow, loop: Loop) -> bool:
    """A loop that only asks a barrier again and again: a few instructions, one of which is the question."""
    instructions = _of_blocks(sass, flow, loop.blocks)
    asks = any("TRYWAIT" in each.opcode or each.name in {"DEPBAR", "NANOSLEEP"} for each in instructions)
    works = any(kind_of(each) in {*_MOVES, "tensor", "fp32"} for each in instructions)
    return asks and not works and len(instructions) <= 12


def _tensor_counts(instructions: Sequence[Instruction]) -> tuple[TensorCount, ...]:
    groups: dict[TensorOp, list[Instruction]] = {}
    for each in instructions:
        if kind_of(each) == "tensor":
            groups.setdefault(tensor_op_of(each), []).append(each)
    return tuple(
        TensorCount(op.tensor_class, op.shape, op.types, op.a_source, len(group), lines_of(group))
        for op, group in groups.items()
    )


def _access_counts(instructions: Sequence[Instruction]) -> tuple[AccessCount, ...]:
    groups: dict[tuple[str, str, int | None], list[Instruction]] = {}
    for each in instructions:
        kind = _MOVES.get(kind_of(each))
        if kind is not None:
            width = None if each.name in BULK else bytes_per_lane(each)
            groups.setdefault((kind, each.opcode, width), []).append(each)
    return tuple(
        AccessCount(kind, opcode, width, len(group), lines_of(group)) for (kind, opcode, width), group in groups.items()
    )


def shared_bytes_of(each: Instruction) -> int:
    """Bytes that a warp moves to or from shared memory by an instruction."""
    kinds = {"shared load", "shared store", "cp.async"}
    return bytes_per_lane(each) * LANES if kind_of(each) in kinds else 0


def lines_of(instructions: Iterable[Instruction]) -> tuple[SourceLine, ...]:
    """The different source lines of instructions, in their order."""
    return tuple(dict.fromkeys(line for each in instructions if (line := own_line(each.source))))


def _line_counts(instructions: Sequence[Instruction], required: Sequence[Instruction] | None) -> tuple[LineCount, ...]:
    always = {each.address for each in (instructions if required is None else required)}
    groups: dict[SourceLine | None, list[Instruction]] = {}
    for each in instructions:
        groups.setdefault(own_line(each.source), []).append(each)
    ordered = sorted(groups.items(), key=lambda item: (item[0] is None, item[0] and (item[0].file, item[0].line)))
    return tuple(
        LineCount(line, len(group), _counted(map(kind_of, group)), sum(each.address not in always for each in group))
        for line, group in ordered
    )
