"""How fast a kernel's main loop can be at best: the time that each resource of an SM needs for a trip, at its peak.

All is counted in clocks of one SM for one trip of one CTA. A resource is shared by the CTAs of an SM, so that its
clocks for a trip do not depend on how many there are. Two bounds follow:

- **overlapped**: everything runs beside everything else; the slowest resource sets the time. No kernel with these
  instructions is faster.
- **in order**: matrix products and the rest of the arithmetic take turns, as they do where one warpgroup works and
  nothing else fills its gaps; memory traffic still runs beside them if the loop has two buffers or more.
"""

from __future__ import annotations

from dataclasses import dataclass

from bsa_bench.static.architectures import Architecture, TypeClass
from bsa_bench.static.classify import LANES, TensorClass, TensorOp
from bsa_bench.static.config import Work
from bsa_bench.static.devices import Device
from bsa_bench.static.regions import Region

WARPGROUP = 4

ASSUMPTIONS = (
    "Each resource runs at the peak that its figure states; the SM at the clock at which the vendor states its peak.",
    "Every warp takes every branch of the loop; waits, latencies and bank conflicts cost nothing.",
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
    """Clocks of an SM that a trip of one CTA needs of one resource; `detail` says of what."""

    name: str
    clocks: float
    detail: str


@dataclass(frozen=True)
class Ceiling:
    """What a loop can reach on a device.

    Attributes:
        flop_per_trip: FLOP of the matrix products of one CTA, as executed.
        resources: the slowest first.
        overlapped_clocks, in_order_clocks: of one SM for a trip of one CTA.
        overlapped_flop_per_s, in_order_flop_per_s: of the whole device.
        limited_by: the resource that sets the overlapped bound.
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
        """The resource that sets the overlapped bound."""
        return self.resources[0].name


@dataclass(frozen=True)
class Traffic:
    """What a trip of one CTA moves, in bytes: out of L2, through shared memory beyond the warps' instructions, and in
    additions to memory (atomics).
    """

    l2_bytes: int
    bulk_shared_bytes: int
    operand_bytes: int
    added_bytes: int = 0


def predict(
    loop: Region,
    *,
    flop_per_trip: int,
    half_rate_flop: int = 0,
    traffic: Traffic,
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
        traffic: bytes of one CTA.
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
    shared_bytes = loop.shared_bytes_per_warp * num_warps + traffic.bulk_shared_bytes + traffic.operand_bytes
    matmul = [
        Resource("tensor cores", tensor, _tensor_detail(flop_per_trip, half_rate_flop)),
        Resource("shared memory", shared_bytes / arch.shared_bytes_per_clock.value, f"{shared_bytes / 1024:.1f} KiB"),
    ]
    clock, num_sms = device.boost_clock_hz.value, device.num_sms.value
    l2_bytes_per_clock = device.l2_bytes_per_s.value / clock / num_sms
    memory = [Resource("L2", traffic.l2_bytes / l2_bytes_per_clock, f"{traffic.l2_bytes / 1024:.1f} KiB")]
    if traffic.added_bytes and device.l2_added_bytes_per_s is not None:
        added_bytes_per_clock = device.l2_added_bytes_per_s.value / clock / num_sms
        clocks = traffic.added_bytes / added_bytes_per_clock
        memory.append(Resource("additions to memory", clocks, f"{traffic.added_bytes / 1024:.1f} KiB"))
    if work is not None:
        hbm_bytes = work.hbm_bytes / (work.programs * work.trips)
        hbm_bytes_per_clock = device.hbm_bytes_per_s.value / clock / num_sms
        memory.append(Resource("HBM", hbm_bytes / hbm_bytes_per_clock, f"{hbm_bytes / 1024:.1f} KiB"))
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


def _vector_resources(loop: Region, num_warps: int, arch: Architecture) -> list[Resource]:
    lanes = {name: figure.value for name, figure in arch.lanes_per_clock.items()}
    per_lane = num_warps * LANES
    multiply_adds = sum(each.name == "IMAD" for each in loop.instructions)
    packed = sum(each.name in {"FADD2", "FMUL2", "FFMA2"} for each in loop.instructions)
    floats = loop.pipes.get("fma", 0) - multiply_adds + packed  # a packed one works on two numbers a lane
    logic, special = loop.pipes.get("alu", 0), loop.pipes.get("mufu", 0)
    shuffles = loop.count("shuffle")
    return [
        Resource(
            "issue slots",
            loop.num_instructions * num_warps / arch.issue_per_clock.value,
            f"{loop.num_instructions} instructions a warp",
        ),
        Resource(
            "fp32",
            per_lane * (floats / lanes["fp32"] + multiply_adds / lanes["int32"]),
            f"{floats} fp32, {multiply_adds} integer multiply-adds",
        ),
        Resource("integer and logic", per_lane * logic / lanes["int32"], f"{logic} instructions"),
        Resource("exp and other special functions", per_lane * special / lanes["mufu"], f"{special} instructions"),
        Resource("shuffles", per_lane * shuffles / lanes["shuffle"], f"{shuffles} instructions"),
    ]


def _tensor_clocks(loop: Region, flop_per_trip: int, arch: Architecture) -> float:
    """Each instruction at the rate of its class and type, by its share of the loop's FLOP."""
    shares: dict[tuple[TensorClass, TypeClass], float] = {}
    for op in loop.tensor_ops:
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
    if any(narrow in op.types for narrow in ("E4M3", "E5M2", "S8", "U8")) or op.k >= 32:
        return "8-bit"
    return "16-bit"
