"""What the gate knows of one compiled configuration: the figures that its rules are about, small enough to keep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import NonNegativeInt, PositiveInt, model_validator

from bsa_bench.result import Line, NonNegative
from bsa_bench.static.analyse import Analysis
from bsa_bench.static.classify import TensorClass
from bsa_bench.static.compile import Failure, FailureKind
from bsa_bench.static.config import ArchName
from bsa_bench.static.reading import Reading
from bsa_bench.static.regions import Region, own_line
from bsa_bench.static.sass import SourceLine
from bsa_bench.static.ttgir import Dot, read_ttgir

DotKind = Literal["fma", "mma.sync", "wgmma", "tcgen05"]
DOT_KINDS: tuple[DotKind, ...] = ("fma", "mma.sync", "wgmma", "tcgen05")
"""What computes a dot, the slowest first; `fma` is none of the tensor cores."""
CopyKind = Literal["tma", "cp.async", "plain"]
COPY_KINDS: tuple[CopyKind, ...] = ("tma", "cp.async", "plain")

Key = tuple[str, ArchName]
"""A configuration's name and its architecture."""


class MainLoop(Line):
    """The loop that holds the dots; instructions are those of one warp in one iteration.

    Args:
        digest: of its normalised SASS.
        num_spills: loads and stores of spilled registers.
        flop: of a CTA's matmuls in an iteration, as executed.
        tensor_classes: instructions of the tensor cores that it uses.
        dot_flop: FLOP of an iteration by what computes them, as Triton states them.
        tile_bytes: bytes of tiles that an iteration loads, by how they come.
        depth, wanted_depth: buffers of the tile that has fewest (1: nothing is loaded ahead), and those that
            `num_stages` asks for.
    """

    digest: str
    num_instructions: PositiveInt
    num_tensor: PositiveInt
    num_exp2: NonNegativeInt
    num_spills: NonNegativeInt
    flop: NonNegativeInt
    tensor_classes: tuple[TensorClass, ...]
    dot_flop: dict[DotKind, PositiveInt]
    tile_bytes: dict[CopyKind, PositiveInt]
    depth: PositiveInt
    wanted_depth: PositiveInt

    @property
    def tensor_per_mflop(self) -> float | None:
        """Tensor instructions of a warp per MFLOP of its CTA; None where the FLOP are not known."""
        return self.num_tensor / self.flop * 1e6 if self.flop else None


class CodeFigures(Line):
    """Code that a configuration compiled to.

    Args:
        triton: the version that compiled it.
        digest: of its normalised SASS.
        registers: of a thread.
        stack_bytes, spill_loads, spill_stores, spill_bytes: of a thread: its stack, the instructions that move spilled
            registers, and the bytes that these move.
        shared_bytes, num_warps: of a CTA.
        ctas: that fit an SM.
        dot_kinds: what computes dots anywhere in the kernel, the slowest first.
        cubin_bytes, compile_s: size of the binary, and how long it took.
        main: its main loop, null without one.
    """

    triton: str
    digest: str
    registers: PositiveInt
    stack_bytes: NonNegativeInt
    spill_loads: NonNegativeInt
    spill_stores: NonNegativeInt
    spill_bytes: NonNegativeInt
    shared_bytes: NonNegativeInt
    num_warps: PositiveInt
    ctas: NonNegativeInt
    dot_kinds: tuple[DotKind, ...]
    cubin_bytes: PositiveInt
    compile_s: NonNegative
    main: MainLoop | None

    @property
    def footprint(self) -> tuple[str, int, int, int, int]:
        """What must be the same for a GPU to run the same: instructions, and what a launch takes of an SM.

        The digest alone does not say it: it has no register numbers and no sizes of shared memory.
        """
        return self.digest, self.registers, self.stack_bytes, self.shared_bytes, self.num_warps


class CompileFailure(Line):
    """Why a configuration gave no code, or none that could be read."""

    kind: FailureKind
    message: str


class CompiledFigures(Line):
    """One configuration on one architecture: its code, or why there is none."""

    name: str
    arch: ArchName
    code: CodeFigures | None = None
    failure: CompileFailure | None = None

    @property
    def key(self) -> Key:
        """What makes two of them comparable."""
        return self.name, self.arch

    @model_validator(mode="after")
    def _has_one(self) -> Self:
        if (self.code is None) == (self.failure is None):
            raise ValueError(f"{self.name}, {self.arch}: expected either code or a failure")
        return self


def figures_of(each: Analysis | Failure) -> CompiledFigures:
    """The figures of a compilation, or its failure."""
    if isinstance(each, Failure):
        failure = CompileFailure(kind=each.kind, message=each.message)
        return CompiledFigures(name=each.config.name, arch=each.arch, failure=failure)
    reading = each.reading
    record = reading.compiled.record
    code = CodeFigures(
        triton=record.triton,
        digest=reading.digest,
        registers=record.registers,
        stack_bytes=record.stack_bytes,
        spill_loads=reading.spill_loads,
        spill_stores=reading.spill_stores,
        spill_bytes=sum(map(_spill_bytes, _regions(reading))),
        shared_bytes=record.shared_bytes,
        num_warps=record.num_warps,
        ctas=reading.occupancy.ctas,
        dot_kinds=tuple(kind for kind in DOT_KINDS if kind in {dot.kind for dot in _all_dots(reading)}),
        cubin_bytes=record.cubin_bytes,
        compile_s=record.compile_s,
        main=_main_loop(reading),
    )
    return CompiledFigures(name=each.name, arch=each.arch, code=code)


@dataclass(frozen=True)
class Places:
    """Source lines as `file.py:12` for what a figure may say; None where nothing of the kind is there.

    Attributes:
        dot: the first of the dots that the slowest instructions compute.
        tensor: most tensor instructions of the main loop come from it.
        spill, main_spill: most accesses to spilled registers come from it, anywhere and in the main loop.
        plain_load: a tile of the main loop comes by plain loads there.
        shallow: fills the tile that is least far ahead; where nothing is loaded ahead, loads the first tile.
        shared: fills the largest buffer in shared memory.
        loop: begins the main loop.
        instructions: most instructions of the main loop come from it.
    """

    dot: str | None = None
    tensor: str | None = None
    spill: str | None = None
    main_spill: str | None = None
    plain_load: str | None = None
    shallow: str | None = None
    shared: str | None = None
    loop: str | None = None
    instructions: str | None = None


def places_of(analysis: Analysis) -> Places:
    """Where in the source the figures of a compilation come from."""
    reading, main = analysis.reading, analysis.reading.main
    ttgir = read_ttgir(reading.compiled.ttgir)
    dots = sorted(ttgir.dots, key=lambda dot: DOT_KINDS.index(dot.kind))
    tiles = [a for a in reading.accesses if a.direction == "load" and len(a.shape) > 1]
    buffers = sorted(reading.tile_buffers, key=lambda buffer: buffer.depth)
    largest = sorted((b for b in ttgir.buffers if not b.is_barrier), key=lambda buffer: -buffer.bytes)
    index = reading.crew.loops[0]
    return Places(
        dot=_first(own_line(dot.source) for dot in dots),
        tensor=_most(main, "tensor") if main else None,
        spill=_most_of_all(_regions(reading), "spill load", "spill store"),
        main_spill=_most(main, "spill load", "spill store") if main else None,
        plain_load=_first(own_line(access.source) for access in tiles if access.kind == "plain"),
        shallow=_first(map(own_line, [*(each.source for each in buffers), *(each.source for each in tiles)])),
        shared=_first(own_line(buffer.source) for buffer in largest),
        loop=_first([own_line(ttgir.loops[index].source)]) if index is not None else None,
        instructions=_most(main) if main else None,
    )


def _main_loop(reading: Reading) -> MainLoop | None:
    main = reading.main
    if main is None:
        return None
    assert reading.main_digest is not None
    dot_flop: Counter[DotKind] = Counter()
    for dot in reading.dots:
        dot_flop[dot.kind] += dot.flop
    tile_bytes: Counter[CopyKind] = Counter()
    for access in reading.accesses:
        if access.direction == "load" and len(access.shape) > 1:
            tile_bytes[access.kind] += access.bytes
    return MainLoop(
        digest=reading.main_digest,
        num_instructions=main.num_instructions,
        num_tensor=main.num_tensor,
        num_exp2=main.count("exp2"),
        num_spills=main.count("spill load") + main.count("spill store"),
        flop=reading.flop_per_trip,
        tensor_classes=tuple(dict.fromkeys(count.tensor_class for count in reading.tensor)),
        dot_flop={kind: dot_flop[kind] for kind in DOT_KINDS if dot_flop[kind]},
        tile_bytes={kind: tile_bytes[kind] for kind in COPY_KINDS if tile_bytes[kind]},
        depth=reading.depth,
        wanted_depth=reading.wanted_depth,
    )


def _all_dots(reading: Reading) -> tuple[Dot, ...]:
    return read_ttgir(reading.compiled.ttgir).dots


def _regions(reading: Reading) -> tuple[Region, ...]:
    return (reading.outside, *reading.loops)


def _spill_bytes(region: Region) -> int:
    return sum(each.count * (each.bytes_per_lane or 0) for each in region.accesses if each.kind.startswith("spill"))


def _first(lines: Iterable[SourceLine | None]) -> str | None:
    return next((str(line) for line in lines if line is not None), None)


def _most(region: Region, *kinds: str) -> str | None:
    """The line with most instructions of these kinds, of all kinds without any."""
    return _most_of_all((region,), *kinds)


def _most_of_all(regions: Iterable[Region], *kinds: str) -> str | None:
    counts: Counter[SourceLine] = Counter()
    for region in regions:
        for each in region.lines:
            number = sum(n for kind, n in each.mix.items() if kind in kinds) if kinds else each.count
            if each.line is not None and number:
                counts[each.line] += number
    return _first(line for line, _ in counts.most_common(1))
