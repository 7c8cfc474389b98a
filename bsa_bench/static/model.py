"""How fast a kernel's main loop can be at best: the time that each resource of an SM needs for a trip, at its peak.

All is counted in clocks of one SM for one trip of one CTA. A resource is shared by the CTAs of an SM, so that its
clocks for a trip do not depend on how many there are. What a trip may do without is not charged but shown beside it.
Two bounds follow:

- **overlapped**: everything runs beside everything else; the slowest resource sets the time. No kernel with these
  instructions is faster.
- **in order**: matrix products and the rest of the arithmetic take turns, as they do where one warpgroup works and
  nothing else fills its gaps; memory traffic still runs beside them if the loop has two buffers or more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from bsa_bench.static.architectures import Architecture, TypeClass
from bsa_bench.static.classify import LANES, Kind, Pipe, TensorClass, TensorOp, kind_of, pipe_of
from bsa_bench.static.config import Work
from bsa_bench.static.devices import Device
from bsa_bench.static.regions import Region, shared_bytes_of
from bsa_bench.static.sass import Instruction

WARPGROUP = 4
# Of pipes that several kinds of instructions share: those that the pipe is not named for.
_FILLERS: dict[tuple[Pipe, Kind], str] = {
    ("alu", "conversion"): "conversions",
    ("alu", "fp32"): "comparisons, minimum and maximum",
    ("mufu", "conversion"): "conversions",
    ("mufu", "integer and logic"): "bit counts",
}

ASSUMPTIONS = (
    "Each resource runs at the peak that its figure states; the SM at the clock at which the vendor states its peak.",
    "Charged is what every iteration with matmuls must run: branches that it may pass by cost nothing.",
    "An instruction under a predicate costs its issue slot; waits, latencies and bank conflicts cost nothing.",
    "Masks of loads and stores are true, but for a condition that is one for the whole tile, which is a branch.",
    "L2 delivers what the loop loads at its whole bandwidth, shared evenly by the SMs; each CTA loads for itself.",
    "HBM moves each tensor of the launch once (best case: L2 serves every second read).",
    "fp32 has a pipe of its own; integers, logic, comparisons, minimum and maximum, moves and conversions share one.",
)
LEFT_OUT = (
    "power: under matrix load the clock falls (see the measured matrix product, where a device has one)",
    "launch, and the code before and after the loop",
    "additions to memory (atomics), where nobody measured how fast the device makes them: bsa-bench limits",
    "dependencies inside a trip (the softmax waits for the first product, the second product for the softmax)",
    "imbalance of list lengths and the last, incomplete wave of CTAs",
)


@dataclass(frozen=True)
class Resource:
    """Clocks of an SM that a trip of one CTA needs of one resource; `detail` says of what.

    `optional_clocks` are those that a trip needs besides if it takes every branch; `filled_by` is what takes most of
    the clocks, where that is not what the resource is named for.
    """

    name: str
    clocks: float
    detail: str
    optional_clocks: float = 0.0
    filled_by: str | None = None


@dataclass(frozen=True)
class Ceiling:
    """What a loop can reach on a device.

    Attributes:
        flop_per_trip: FLOP of the matrix products of one CTA, as executed.
        resources: the slowest first.
        overlapped_clocks, in_order_clocks: of one SM for a trip of one CTA.
        overlapped_flop_per_s, in_order_flop_per_s: of the whole device.
        limited_by: what sets the overlapped bound: the slowest resource, by what fills it.
        overlapped_s: time of the launch, if one is given.
    """

    device: str
    flop_per_trip: int
    resources: tuple[Resource, ...]
    overlapped_clocks: float
    in_order_clocks: float
    overlapped_flop_per_s: float
    in_order_flop_per_s: float
    overlapped_s: float | None

    @property
    def limited_by(self) -> str:
        """What sets the overlapped bound."""
        return self.resources[0].filled_by or self.resources[0].name


@dataclass(frozen=True)
class Traffic:
    """What a trip of one CTA moves, in bytes: out of L2, through shared memory beyond the warps' instructions, and in
    additions to memory (atomics).
    """

    l2_bytes: int
    bulk_shared_bytes: int
    operand_bytes: int
    added_bytes: int = 0


NOTHING = Traffic(0, 0, 0)


def predict(
    loop: Region,
    *,
    flop_per_trip: int,
    half_rate_flop: int = 0,
    traffic: Traffic,
    optional_traffic: Traffic = NOTHING,
    num_warps: int,
    depth: int,
    arch: Architecture,
    device: Device,
    work: Work | None,
) -> Ceiling:
    """Bound the rate of a main loop on a device.

    Args:
        loop: the main loop, counted for one warp.
        flop_per_trip: FLOP of one CTA.
        half_rate_flop: those of them whose instructions have too few rows for the whole rate.
        traffic: bytes of one CTA in every trip.
        optional_traffic: those that a trip may do without.
        num_warps: warps of a CTA that run the loop.
        depth: buffers of the loop's tiles; below 2 nothing is loaded ahead.
        arch: throughputs a clock.
        device: of that architecture.
        work: the launch, for HBM; None leaves HBM out.

    Raises:
        ValueError: the architecture has no figure for the loop's tensor-core instructions.
    """
    vector = _vector_resources(loop, num_warps, arch)
    # At half the rate, work takes the time of twice as much.
    tensor = _tensor_clocks(loop, flop_per_trip + half_rate_flop, arch)
    shared = _shared_bytes(loop, traffic, optional_traffic, num_warps)
    matmul = [
        Resource("tensor cores", tensor, _tensor_detail(flop_per_trip, half_rate_flop)),
        _bytes_resource("shared memory", *shared, arch.shared_bytes_per_clock.value),
    ]
    clock, num_sms = device.boost_clock_hz.value, device.num_sms.value
    per_clock = device.l2_bytes_per_s.value / clock / num_sms
    memory = [_bytes_resource("L2", traffic.l2_bytes, optional_traffic.l2_bytes, per_clock)]
    if device.l2_added_bytes_per_s is not None and traffic.added_bytes + optional_traffic.added_bytes:
        per_clock = device.l2_added_bytes_per_s.value / clock / num_sms
        added = traffic.added_bytes, optional_traffic.added_bytes
        memory.append(_bytes_resource("additions to memory", *added, per_clock))
    if work is not None:
        hbm_bytes = work.hbm_bytes / (work.programs * work.trips)
        memory.append(_bytes_resource("HBM", hbm_bytes, 0, device.hbm_bytes_per_s.value / clock / num_sms))
    overlapped = _slowest(*matmul, *vector, *memory)
    arithmetic = _slowest(*matmul) + _slowest(*vector)
    in_order = max(arithmetic, _slowest(*memory)) if depth >= 2 else arithmetic + _slowest(*memory)
    rate = flop_per_trip * clock * num_sms
    return Ceiling(
        device=device.name,
        flop_per_trip=flop_per_trip,
        resources=tuple(sorted((*matmul, *vector, *memory), key=lambda each: -each.clocks)),
        overlapped_clocks=overlapped,
        in_order_clocks=in_order,
        overlapped_flop_per_s=rate / overlapped,
        in_order_flop_per_s=rate / in_order,
        overlapped_s=work.programs * work.trips * overlapped / (clock * num_sms) if work else None,
    )


def _tensor_detail(flop_per_trip: int, half_rate_flop: int) -> str:
    half = f", {half_rate_flop / 1e6:.2f} of them at half the rate (too few rows)" if half_rate_flop else ""
    return f"{flop_per_trip / 1e6:.2f} MFLOP{half}"


def _slowest(*resources: Resource) -> float:
    return max(each.clocks for each in resources)


def _bytes_resource(name: str, charged: float, optional: float, per_clock: float) -> Resource:
    return Resource(name, charged / per_clock, f"{charged / 1024:.1f} KiB", optional / per_clock)


def _shared_bytes(loop: Region, traffic: Traffic, optional: Traffic, num_warps: int) -> tuple[int, int]:
    """Bytes of a CTA through shared memory: in every trip, and besides."""
    spared = sum(shared_bytes_of(each) for each in loop.optional)
    charged = (loop.shared_bytes_per_warp - spared) * num_warps + traffic.bulk_shared_bytes + traffic.operand_bytes
    return charged, spared * num_warps + optional.bulk_shared_bytes + optional.operand_bytes


def _vector_resources(loop: Region, num_warps: int, arch: Architecture) -> list[Resource]:
    """Each with what every trip acts on; of instructions under a predicate, the issue slot alone."""
    charged = _pipes(loop.charged, arch)
    whole = _pipes(loop.instructions, arch)
    num_issued = len(loop.instructions if loop.required is None else loop.required)
    warp_clocks = num_warps / arch.issue_per_clock.value
    issue = Resource(
        "issue slots",
        num_issued * warp_clocks,
        f"{num_issued} instructions a warp",
        (loop.num_instructions - num_issued) * warp_clocks,
    )
    lanes = num_warps * LANES
    others = [
        Resource(name, lanes * pipe.clocks, pipe.detail, lanes * (whole[name].clocks - pipe.clocks), pipe.filled_by)
        for name, pipe in charged.items()
    ]
    return [issue, *others]


@dataclass(frozen=True)
class _Pipe:
    """Clocks of a pipe for one lane's instructions."""

    clocks: float
    detail: str
    filled_by: str | None = None


def _pipes(instructions: Sequence[Instruction], arch: Architecture) -> dict[str, _Pipe]:
    lanes = {name: figure.value for name, figure in arch.lanes_per_clock.items()}
    by_pipe: dict[Pipe, list[Instruction]] = {}
    for each in instructions:
        by_pipe.setdefault(pipe_of(each), []).append(each)
    fma, logic, special = (by_pipe.get(pipe, []) for pipe in ("fma", "alu", "mufu"))
    multiply_adds = sum(each.name == "IMAD" for each in fma)
    packed = sum(each.name in {"FADD2", "FMUL2", "FFMA2"} for each in fma)
    floats = len(fma) - multiply_adds + packed  # a packed one works on two numbers a lane
    float_clocks, integer_clocks = floats / lanes["fp32"], multiply_adds / lanes["int32"]
    shuffles = sum(kind_of(each) == "shuffle" for each in instructions)
    return {
        "fp32": _Pipe(
            float_clocks + integer_clocks,
            f"{floats} fp32, {multiply_adds} integer multiply-adds",
            "integer multiply-adds" if integer_clocks > float_clocks else None,
        ),
        "integer and logic": _Pipe(len(logic) / lanes["int32"], f"{len(logic)} instructions", _filler(logic)),
        "exp and other special functions": _Pipe(
            len(special) / lanes["mufu"], f"{len(special)} instructions", _filler(special)
        ),
        "shuffles": _Pipe(shuffles / lanes["shuffle"], f"{shuffles} instructions"),
    }


def _filler(instructions: Sequence[Instruction]) -> str | None:
    """What a pipe is filled with, if with something else than what it is named for."""
    counts = Counter(_FILLERS.get((pipe_of(each), kind_of(each))) for each in instructions)
    return max(counts, key=lambda name: (counts[name], name is None)) if counts else None


def _tensor_clocks(loop: Region, flop_per_trip: int, arch: Architecture) -> float:
    """Each instruction at the rate of its class and type, by its share of the loop's FLOP."""
    shares: dict[tuple[TensorClass, TypeClass], float] = {}
    for op in loop.products or loop.tensor_ops:
        key = op.tensor_class, _type_class(op)
        shares[key] = shares.get(key, 0.0) + max(op.m * op.n * op.k, 1)
    whole = sum(shares.values())
    clocks = 0.0
    for key, share in shares.items():
        if key not in arch.tensor_flop_per_clock:
            raise ValueError(f"{arch.name}: no figure for the rate of {key[0]} with {key[1]} operands")
        clocks += flop_per_trip * share / whole / arch.tensor_flop_per_clock[key].value
    return clocks


def _type_class(op: TensorOp) -> TypeClass:
    if "TF32" in op.types:
        return "tf32"
    if "F64" in op.types:
        return "64-bit"
    if op.types.count("E2M1") == 2 or (op.tensor_class == "tcgen05" and not op.types and op.k >= 64):
        return "4-bit"
    if any(narrow in op.types for narrow in ("E4M3", "E5M2", "E2M1", "S8", "U8")) or (not op.types and op.k >= 32):
        return "8-bit"
    return "16-bit"
