"""What of a compiled kernel makes it slow, in sentences that name the cause, the figures and the source lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from bsa_bench.static.reading import Reading
from bsa_bench.static.regions import Region, own_line
from bsa_bench.static.sass import SourceLine

FASTEST_CLASS = {"sm_80": "mma.sync", "sm_90": "wgmma", "sm_100": "tcgen05"}
_FULL_TILE_ROWS = 64
_FEW_SECTORS = 8
"""A vector of a few indices or of one number a row may touch so many sectors more than it needs without being felt."""


def findings(reading: Reading) -> list[str]:
    """The findings of a kernel, the gravest first; none is a compliment."""
    main = reading.main
    loops = [loop for loop in reading.loops if not loop.is_wait]
    return [
        *_spills(reading, main, loops),
        *_tensor_class(reading),
        *_pipeline(reading),
        *_loads(reading),
        *_occupancy(reading),
        *_unread(reading),
    ]


def _spills(reading: Reading, main: Region | None, loops: list[Region]) -> Iterator[str]:
    stack = reading.compiled.record.stack_bytes
    for loop in loops:
        stores, loads = loop.count("spill store"), loop.count("spill load")
        if stores or loads:
            where = "main loop" if loop is main else f"loop {loop.loop}"
            lines = _lines(a.lines for a in loop.accesses if a.kind.startswith("spill"))
            yield (
                f"registers spill inside the {where}: {stores} stores and {loads} loads of local memory a trip{lines}; "
                f"{stack} bytes of stack"
            )
    outside = reading.outside.count("spill store") + reading.outside.count("spill load")
    if outside:
        yield f"registers spill outside the loops: {outside} accesses to local memory; {stack} bytes of stack"
    elif stack and not reading.spill_loads and not reading.spill_stores:
        yield f"{stack} bytes of stack are reserved, but no instruction uses them"


def _tensor_class(reading: Reading) -> Iterator[str]:
    best = FASTEST_CLASS[reading.compiled.arch]
    for count in reading.tensor:
        if count.tensor_class != best:
            rows = min((dot.m for dot in reading.dots), default=_FULL_TILE_ROWS)
            why = f": {rows} rows are less than {_FULL_TILE_ROWS}" if rows < _FULL_TILE_ROWS else ""
            yield f"dots fall back to {count.tensor_class} {count.shape} instead of {best}{why}{_lines([count.lines])}"


def _pipeline(reading: Reading) -> Iterator[str]:
    wanted = reading.wanted_depth
    if reading.main is None or wanted < 2:
        return
    if not reading.tile_buffers:
        yield f"num_stages = {reading.num_stages}, but no tile of the main loop is loaded ahead into shared memory"
        return
    short = [buffer for buffer in reading.tile_buffers if buffer.depth < reading.buffers_asked_of(buffer)]
    if short:
        depths = ", ".join(dict.fromkeys(f"{buffer.name} {buffer.depth}" for buffer in short))
        wants = ", ".join(dict.fromkeys(str(reading.buffers_asked_of(buffer)) for buffer in short))
        hint = (
            "; an index that is loaded inside the loop does this, carry the next one as a loop variable"
            if any(buffer.waits_for_load for buffer in short)
            else ""
        )
        yield f"fewer buffers than num_stages = {reading.num_stages} asks for: {depths} instead of {wants}{hint}"


def _loads(reading: Reading) -> Iterator[str]:
    for access in reading.coalescing:
        if access.verdict == "uncoalesced" and (access.sectors or 0) - (access.ideal_sectors or 0) > _FEW_SECTORS:
            where = _lines([[access.line] if access.line else []])
            yield (
                f"uncoalesced {access.kind} in the main loop{where}: {access.vector_bytes} bytes a lane, "
                f"{access.sectors} sectors of 32 bytes a warp where {access.ideal_sectors} would do"
            )
    plain = [access for access in reading.accesses if access.kind == "plain" and access.direction == "load"]
    # What stands on a branch is not loaded ahead, nor need it be.
    tiles = [access for access in plain if len(access.shape) > 1 and reading.is_always_moved(access)]
    if tiles and reading.wanted_depth > 1:
        where = _lines([[line] for access in tiles if (line := own_line(access.source))])
        yield f"tiles of the main loop come by plain loads through registers, not by asynchronous copies{where}"


def _occupancy(reading: Reading) -> Iterator[str]:
    ctas, limits = reading.occupancy.ctas, reading.occupancy.limits
    if ctas == 0:
        yield f"does not fit an SM: {reading.occupancy.limited_by}"
    elif ctas == 1 and reading.compiled.record.num_warps <= 4:
        others = ", ".join(f"{name} would allow {number}" for name, number in limits.items() if number > 1)
        warps = reading.compiled.record.num_warps
        yield f"one CTA of {warps} warps on an SM ({reading.occupancy.limited_by}; {others})"


def _unread(reading: Reading) -> Iterator[str]:
    if reading.flow.has_unread_jumps:
        yield "a jump's target is computed at run time: loops through it are not seen"


def _lines(groups: Iterable[Iterable[SourceLine]]) -> str:
    lines = list(dict.fromkeys(str(line) for group in groups for line in group))
    shown = ", ".join(lines[:4]) + (", ..." if len(lines) > 4 else "")
    return f" ({shown})" if lines else ""
