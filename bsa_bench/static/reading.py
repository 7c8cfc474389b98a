"""Read what a kernel became: its resources, its loops, what its main loop does, and what of that makes it slow."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from bsa_bench.static.architectures import ARCHITECTURES, Occupancy, occupancy
from bsa_bench.static.classify import Kind, OperandSource, TensorOp, bytes_per_lane, kind_of
from bsa_bench.static.coalescing import AccessKey, AccessKind, Coalescing, read_coalescing
from bsa_bench.static.compile import Compiled
from bsa_bench.static.flow import Flow, read_flow
from bsa_bench.static.loop_attributes import attributes_for, read_loop_attributes
from bsa_bench.static.model import NOTHING, WARPGROUP, Traffic
from bsa_bench.static.regions import BULK, Region, TensorCount, own_line, read_regions
from bsa_bench.static.sass import Sass, digest, read_sass
from bsa_bench.static.ttgir import Access, Buffer, Dot, Ttgir, read_ttgir

_OPERAND_ROW_BYTES = 32
"""Of a row of an operand, every kind of tensor-core instruction takes 32 bytes."""
_ACCESSES: dict[Kind, AccessKind] = {"global load": "load", "global store": "store", "cp.async": "cp.async"}


@dataclass(frozen=True)
class Crew:
    """Who makes a trip of the main loop: all warps of a CTA, or the partitions of a specialised kernel.

    Attributes:
        warps: those of one partition that runs the loop.
        teams: partitions that run it, each a copy of its own; one where warps are not specialised.
        loops: the TTGIR loops of a trip: the main one (None where it is no loop there), and those of partitions
            that load for it.
    """

    warps: int
    teams: int
    loops: tuple[int | None, ...]

    @property
    def all_warps(self) -> int:
        """Warps of a CTA that run the loop."""
        return self.warps * self.teams


@dataclass(frozen=True)
class Reading:
    """A compiled configuration, read.

    Attributes:
        compiled: where it comes from, with registers, stack and shared memory.
        occupancy: CTAs that fit an SM.
        outside: instructions in no loop.
        loops: outer loops before inner ones.
        main: the loop that holds the dots; of several the one with most of them, then the shortest. None without one.
        crew: the warps that run the main loop, and the loops that run beside it.
        flop_per_trip: FLOP of a CTA's matrix products in a trip of the main loop.
        half_rate_flop: those of them whose instructions have too few rows for the whole rate.
        traffic, optional_traffic: bytes that every trip with products moves, and those that only some do besides.
        num_stages: what the main loop asks for, else the launch.
        dots: the matrix products of the main loop, as Triton states them.
        buffers: tiles in shared memory that the main loop's copies fill in turn.
        accesses: loads, stores and atomics of the main loop.
        coalescing: of those of them that are tensors.
        digest, main_digest: of the normalised SASS of the kernel and of its main loop.
    """

    compiled: Compiled
    occupancy: Occupancy
    outside: Region
    loops: tuple[Region, ...]
    main: Region | None
    crew: Crew
    flop_per_trip: int
    half_rate_flop: int
    traffic: Traffic
    optional_traffic: Traffic
    num_stages: int
    dots: tuple[Dot, ...]
    buffers: tuple[Buffer, ...]
    accesses: tuple[Access, ...]
    coalescing: tuple[Coalescing, ...]
    digest: str
    main_digest: str | None
    sass: Sass = field(repr=False)
    flow: Flow = field(repr=False)

    @property
    def spill_loads(self) -> int:
        """LDL instructions anywhere."""
        return sum(region.count("spill load") for region in (self.outside, *self.loops))

    @property
    def spill_stores(self) -> int:
        """STL instructions anywhere."""
        return sum(region.count("spill store") for region in (self.outside, *self.loops))

    @property
    def tensor(self) -> tuple[TensorCount, ...]:
        """The tensor-core instructions of the main loop, by shape."""
        return self.main.tensor if self.main else ()

    @cached_property
    def tensor_classes(self) -> tuple[str, ...]:
        """`wgmma`, `mma.sync`, `tcgen05`: those that the main loop uses."""
        return tuple(dict.fromkeys(count.tensor_class for count in self.tensor))

    @property
    def depth(self) -> int:
        """Buffers of the tile of the main loop that has fewest; 1 where nothing is loaded ahead."""
        return min((buffer.depth for buffer in self.tile_buffers), default=1)

    @property
    def tile_buffers(self) -> tuple[Buffer, ...]:
        """The buffers of operands; those of indices and of numbers a row are no tiles."""
        return tuple(buffer for buffer in self.buffers if len(buffer.tile) > 1)

    def is_always_moved(self, access: Access) -> bool:
        """Whether every trip with products makes an access of the main loop."""
        return _is_always_moved(access, self.dots)

    def buffers_asked_of(self, buffer: Buffer) -> int:
        """Buffers of a tile that `num_stages` asks for: as many, if products still read one while the next is filled.

        One less where a tile passes through registers, or each iteration waits for its products.
        """
        products_run_on = buffer.feeds_products and not any(dot.is_waited for dot in self.dots)
        return max(self.num_stages - (not products_run_on), 1)

    @property
    def wanted_depth(self) -> int:
        """Buffers that `num_stages` asks for: as many; one less where mma.sync takes its operands through registers."""
        return max(self.num_stages - (self.tensor_classes == ("mma.sync",)), 1)


def read(compiled: Compiled) -> Reading:
    """Read one compiled configuration.

    Raises:
        ValueError: the listing or the TTGIR is written in a way not known here.
    """
    record = compiled.record
    sass = read_sass(compiled.listing, record.kernel_name)
    flow = read_flow(sass)
    outside, loops = read_regions(sass, flow)
    ttgir = read_ttgir(compiled.ttgir)
    main = _main_loop(loops)
    index = _same_loop(main, ttgir) if main else None
    crew = _crew(ttgir, index, record.num_warps)
    dots = tuple(dot for dot in ttgir.dots if main and dot.loop == index)
    if main is not None:
        typed = _with_types(main, dots)
        loops, main = [typed if loop is main else loop for loop in loops], typed
    accesses = tuple(access for access in ttgir.accesses if main and access.loop in crew.loops)
    arch = ARCHITECTURES[compiled.arch]
    traffic, optional_traffic = _traffic(main, dots, accesses, crew) if main else (NOTHING, NOTHING)
    return Reading(
        compiled=compiled,
        occupancy=occupancy(
            arch,
            registers=record.registers,
            shared_bytes=record.shared_bytes,
            num_warps=record.num_warps,
            tensor_memory_columns=record.tensor_memory_columns,
        ),
        outside=outside,
        loops=tuple(loops),
        main=main,
        crew=crew,
        flop_per_trip=_flop(main, dots, crew) if main else 0,
        half_rate_flop=sum(
            dot.flop
            for dot in _most_dots(dots)
            if dot.kind == "tcgen05" and (dot.instruction or (dot.m,))[0] < arch.half_rate_below_rows
        ),
        traffic=traffic,
        optional_traffic=optional_traffic,
        num_stages=_num_stages(compiled, ttgir, index),
        dots=dots,
        buffers=tuple(
            b for b in ttgir.buffers if main and b.loop in crew.loops and b.is_filled_by_copies and not b.is_barrier
        ),
        accesses=accesses,
        coalescing=tuple(read_coalescing(compiled.ttgir, loop=index, widths=_widths(main))) if main else (),
        digest=digest(sass.instructions),
        main_digest=digest(main.instructions) if main else None,
        sass=sass,
        flow=flow,
    )


def _main_loop(loops: Sequence[Region]) -> Region | None:
    # A loop around another may hold dots too: those of the inner one's first trips, moved out of it.
    around = {loop.parent for loop in loops if loop.num_tensor}
    with_dots = [loop for loop in loops if loop.num_tensor and loop.loop not in around]
    return min(with_dots, key=lambda loop: (-loop.num_tensor, loop.num_instructions), default=None)


def _same_loop(main: Region, ttgir: Ttgir) -> int | None:
    """The number of the TTGIR loop whose dots come from the same source lines; of several the one with most FLOP."""
    lines = {line for count in main.tensor for line in count.lines}
    flop: dict[int | None, int] = {}
    for dot in ttgir.dots:
        if own_line(dot.source) in lines or not lines:
            flop[dot.loop] = flop.get(dot.loop, 0) + dot.flop
    # A dot of the main loop may also stand before it or in a loop around it, where its first trip was moved out of it.
    around = {ttgir.loops[loop].parent for loop in flop if loop is not None}
    inside = {loop: total for loop, total in flop.items() if loop is not None and loop not in around}
    return max(inside, key=lambda loop: inside[loop], default=None)


def _num_stages(compiled: Compiled, ttgir: Ttgir, index: int | None) -> int:
    """What the loop itself asks for, which is stronger than the launch's."""
    asked = compiled.config.num_stages
    if index is None:
        return asked
    loop = ttgir.loops[index]
    number = [other.index for other in ttgir.loops if other.source == loop.source].index(index)
    attributes = attributes_for(read_loop_attributes(compiled.ttir), loop.source, number)
    return int({**loop.attributes, **attributes}.get("tt.num_stages", asked))


def _widths(main: Region) -> dict[AccessKey, set[int]]:
    """Bytes a lane of the machine code's loads, stores and copies, by what they are and the lines they come from."""
    found: dict[AccessKey, set[int]] = {}
    for each in main.instructions:
        name = _ACCESSES.get(kind_of(each))
        if name is not None and each.name not in BULK:
            found.setdefault((name, each.source), set()).add(bytes_per_lane(each))
    return found


def _crew(ttgir: Ttgir, index: int | None, num_warps: int) -> Crew:
    if index is None:
        return Crew(num_warps, 1, (None,))
    partition = ttgir.loops[index].partition
    if partition is None:
        return Crew(num_warps, 1, (index,))
    flop: dict[int, int] = {}
    for dot in ttgir.dots:
        if dot.loop is not None:
            flop[dot.loop] = flop.get(dot.loop, 0) + dot.flop
    teams = {ttgir.loops[loop].partition for loop, total in flop.items() if total == flop.get(index)}
    working = {ttgir.loops[loop].partition for loop in flop}
    loading = {a.loop for a in ttgir.accesses if a.kind != "plain" and a.direction == "load" and a.loop is not None}
    beside = {loop for loop in loading if ttgir.loops[loop].partition not in working}
    return Crew(ttgir.warps_of(partition), len(teams), (index, *sorted(beside)))


def _flop(main: Region, dots: Sequence[Dot], crew: Crew) -> int:
    """FLOP of a trip as executed: of the instructions where they state their shape, else of Triton's dots.

    Of branches that exclude each other, those of the one with most.
    """
    if any(op.tensor_class == "tcgen05" for op in main.products):
        return sum(dot.flop for dot in _most_dots(dots)) * _copies(main, dots, crew)
    times = {"mma.sync": crew.all_warps, "wgmma": crew.all_warps // WARPGROUP}
    return sum(2 * op.m * op.n * op.k * times[op.tensor_class] for op in main.products)


def _copies(main: Region, dots: Sequence[Dot], crew: Crew) -> int:
    """Trips of Triton's loop in one of the machine code's, which LLVM and ptxas may unroll once more."""
    stated = _most_dots(dots)
    if any(dot.branches for dot in dots):
        return 1  # which instructions are of one trip is not known
    if all(dot.kind == "tcgen05" for dot in stated):
        issued = sum(op.tensor_class == "tcgen05" for op in main.tensor_ops)
        expected = sum(dot.num_instructions for dot in stated)
    else:
        issued, expected = _flop(main, dots, crew), crew.teams * sum(dot.flop for dot in stated)
    return issued // expected if expected and issued % expected == 0 else 1


def _with_types(main: Region, dots: Sequence[Dot]) -> Region:
    """The loop with what its tcgen05 instructions do not say, the sizes and types of their products, from the dots."""
    if not any(op.tensor_class == "tcgen05" for op in main.products):
        return main
    stated = tuple(
        TensorOp("tcgen05", dot.batch * dot.m, dot.n, dot.k, f"{_type(dot.a_type)}.{_type(dot.b_type)}", _place(dot))
        for dot in _most_dots(dots)
        if dot.kind == "tcgen05"
    )
    return replace(main, products=stated) if stated else main


def _type(element: str) -> str:
    """As the machine code of other classes names it: fp32 is multiplied as tf32, fp8 has its two sizes alone."""
    names = {"f32": "TF32", "i8": "S8", "e2m1": "E2M1"}
    return names.get(element, re.sub(r"^F8(E\dM\d).*", r"\1", element.upper()))


def _place(dot: Dot) -> OperandSource:
    return "tensor memory" if dot.a_from == "tensor memory" else "shared"


def _most_dots(dots: Sequence[Dot]) -> tuple[Dot, ...]:
    """The dots of the trip that does most: for each condition, those of one arm."""
    chosen: dict[int, int] = {}
    for condition in sorted({condition for dot in dots for condition, _ in dot.branches}, reverse=True):
        flop: dict[int, int] = {}
        for dot in dots:
            # An inner condition has a higher number than those around it: its arm is chosen by now.
            inner = {c: arm for c, arm in dot.branches if c > condition}
            arms = dict(dot.branches)
            if condition in arms and all(chosen[c] == arm for c, arm in inner.items()):
                flop[arms[condition]] = flop.get(arms[condition], 0) + dot.flop
        chosen[condition] = max(flop, key=lambda arm: flop[arm])
    return tuple(dot for dot in dots if all(chosen[condition] == arm for condition, arm in dot.branches))


def _around_all(dots: Sequence[Dot]) -> frozenset[tuple[int, int]]:
    """The branches that all products stand in: a trip that makes any takes them."""
    return frozenset.intersection(*(dot.branches for dot in dots)) if dots else frozenset()


def _is_always_moved(access: Access, dots: Sequence[Dot]) -> bool:
    return access.branches <= _around_all(dots) and not access.can_be_off


def _traffic(main: Region, dots: Sequence[Dot], accesses: Sequence[Access], crew: Crew) -> tuple[Traffic, Traffic]:
    """What every trip with products moves, and what only some do."""
    always = [access for access in accesses if _is_always_moved(access, dots)]
    rest = [access for access in accesses if not _is_always_moved(access, dots)]
    groups = crew.all_warps // WARPGROUP
    charged = {each.address for each in main.charged}
    operands = [
        (groups * _OPERAND_ROW_BYTES * (op.n + (op.m if op.a_source == "shared" else 0)), each.address in charged)
        for each, op in zip((i for i in main.instructions if kind_of(i) == "tensor"), main.tensor_ops, strict=True)
        if op.tensor_class == "wgmma"
    ]
    copies = _copies(main, dots, crew)
    operands += [
        (dot.shared_bytes * copies, dot.branches <= _around_all(dots)) for dot in dots if dot.kind == "tcgen05"
    ]
    sums = {kind: sum(size for size, is_charged in operands if is_charged == kind) for kind in (True, False)}
    return _moved(always * copies, sums[True]), _moved(rest * copies, sums[False])


def _moved(accesses: Sequence[Access], operand_bytes: int) -> Traffic:
    bulk = sum(access.bytes for access in accesses if access.kind == "tma")
    moved = {kind: sum(a.bytes for a in accesses if a.direction == kind) for kind in ("load", "atomic")}
    return Traffic(moved["load"], bulk, operand_bytes, moved["atomic"])
