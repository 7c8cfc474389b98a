"""What an SM of an architecture has: the limits that set how many CTAs fit, and throughputs, with their sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from bsa_bench.static.classify import LANES, TensorClass
from bsa_bench.static.config import ArchName

TypeClass = Literal["16-bit", "8-bit", "4-bit", "tf32", "64-bit"]
SUB_PARTITIONS = 4
"""An SM has four, each with a quarter of the registers; a warp lives in one."""


@dataclass(frozen=True)
class Figure:
    """A number, where it comes from, and whether somebody measured it (else the vendor or a specification states it).

    The unit is in the name of the field that holds it.
    """

    value: float
    source: str
    measured: bool = False


@dataclass(frozen=True)
class Architecture:
    """An SM.

    Attributes:
        register_unit: the registers of a warp are rounded up to a multiple of it.
        shared_bytes_per_sm, shared_bytes_per_cta: of the largest configuration; what one CTA may ask for.
        shared_bytes_reserved_per_cta, shared_unit_bytes: what the system adds; then all is rounded up to a multiple.
        tensor_memory_columns: 0 where there is no tensor memory.
        issue_per_clock: instructions of warps.
        lanes_per_clock: results of `fp32` (add, multiply, fma), `int32` (also logic, comparisons, minimum and maximum,
            moves, packing conversions), `mufu` (exp2, reciprocal, ...), `shuffle`.
        tensor_flop_per_clock: dense, by class of instruction and type of operands, accumulated in fp32.
        half_rate_below_rows: a matrix instruction of fewer rows runs at half that rate; 0 where none does.
        source: of the limits.
    """

    name: ArchName
    registers_per_sm: int
    register_unit: int
    max_registers_per_thread: int
    max_warps_per_sm: int
    max_ctas_per_sm: int
    shared_bytes_per_sm: int
    shared_bytes_per_cta: int
    shared_bytes_reserved_per_cta: int
    shared_unit_bytes: int
    tensor_memory_columns: int
    issue_per_clock: Figure
    lanes_per_clock: Mapping[str, Figure]
    shared_bytes_per_clock: Figure
    tensor_flop_per_clock: Mapping[tuple[TensorClass, TypeClass], Figure]
    half_rate_below_rows: int
    source: str


_GUIDE = "CUDA C++ Programming Guide"
_LIMITS = f"{_GUIDE}, technical specifications by compute capability; CUDA Occupancy Calculator (allocation units)"
_HOPPER_PAPER = "arXiv 2501.12084 (Luo et al., Dissecting the NVIDIA Hopper Architecture)"
_FA4 = "FlashAttention-4 paper, section on the B200"


def _lanes(*, fp32: int) -> Mapping[str, Figure]:
    found = {"fp32": fp32, "int32": 64, "mufu": 16, "shuffle": 32}
    source = f"{_GUIDE}, throughput of native arithmetic instructions"
    return {name: Figure(value, source) for name, value in found.items()}


def _tensor(
    tensor_class: TensorClass, rate: float, source: str, *, measured: bool = False
) -> dict[tuple[TensorClass, TypeClass], Figure]:
    """From the rate of 16-bit operands: 8-bit ones run twice, tf32 ones half as fast."""
    factors: dict[TypeClass, float] = {"16-bit": 1.0, "8-bit": 2.0, "tf32": 0.5}
    return {(tensor_class, name): Figure(rate * factor, source, measured) for name, factor in factors.items()}


def _architecture(
    name: ArchName,
    *,
    shared_kib: int,
    fp32: int,
    shared_rate: Figure,
    tensor: dict[tuple[TensorClass, TypeClass], Figure],
    tensor_memory_columns: int = 0,
    half_rate_below_rows: int = 0,
) -> Architecture:
    """With what has not changed since sm_80."""
    return Architecture(
        name=name,
        registers_per_sm=65_536,
        register_unit=256,
        max_registers_per_thread=255,
        max_warps_per_sm=64,
        max_ctas_per_sm=32,
        shared_bytes_per_sm=shared_kib * 1024,
        shared_bytes_per_cta=(shared_kib - 1) * 1024,
        shared_bytes_reserved_per_cta=1024,
        shared_unit_bytes=128,
        tensor_memory_columns=tensor_memory_columns,
        issue_per_clock=Figure(SUB_PARTITIONS, f"{_GUIDE}: four schedulers, an instruction a clock each"),
        lanes_per_clock=MappingProxyType(_lanes(fp32=fp32)),
        shared_bytes_per_clock=shared_rate,
        tensor_flop_per_clock=MappingProxyType(tensor),
        half_rate_below_rows=half_rate_below_rows,
        source=_LIMITS,
    )


ARCHITECTURES: Mapping[ArchName, Architecture] = MappingProxyType(
    {
        "sm_80": _architecture(
            "sm_80",
            shared_kib=164,
            fp32=64,
            shared_rate=Figure(128, "32 banks of 4 bytes (CUDA C++ Programming Guide)"),
            tensor=_tensor("mma.sync", 2048, "NVIDIA A100 whitepaper: 1,024 fp16 FMA a clock and SM"),
        ),
        "sm_90": _architecture(
            "sm_90",
            shared_kib=228,
            fp32=128,
            shared_rate=Figure(128, f"32 banks of 4 bytes; {_HOPPER_PAPER} measures 127.4 to 127.9"),
            tensor=_tensor("wgmma", 4096, "NVIDIA H100 whitepaper: 2,048 fp16 FMA a clock and SM")
            | _tensor("mma.sync", 0.629 * 4096, f"{_HOPPER_PAPER}: 62.9 % of the peak on average", measured=True),
        ),
        # mma.sync runs on sm_100 too, at a rate that no source states: no ceiling for it.
        "sm_100": _architecture(
            "sm_100",
            shared_kib=228,
            fp32=128,
            shared_rate=Figure(128, f"{_FA4}: as on Hopper"),
            tensor=_tensor("tcgen05", 8192, f"{_FA4}: 8,192 FLOP a clock and SM, bf16")
            | {("tcgen05", "4-bit"): Figure(4 * 8192, "NVIDIA HGX B200 datasheet: fp4 runs twice as fast as fp8")},
            tensor_memory_columns=512,
            half_rate_below_rows=128,
        ),
    }
)


@dataclass(frozen=True)
class Occupancy:
    """CTAs that an SM holds at a time: `limits` is what each resource alone would allow, `limited_by` the scarcest."""

    ctas: int
    limits: Mapping[str, int]
    limited_by: str


def occupancy(
    arch: Architecture, *, registers: int, shared_bytes: int, num_warps: int, tensor_memory_columns: int = 0
) -> Occupancy:
    """Count the CTAs that fit an SM.

    Args:
        arch: limits and allocation units.
        registers: of a thread, as compiled.
        shared_bytes: of a CTA, as asked for at launch.
        num_warps: of a CTA.
        tensor_memory_columns: of a CTA.

    Raises:
        ValueError: a count is no count of a kernel that could be launched.
    """
    if not 1 <= registers <= arch.max_registers_per_thread:
        raise ValueError(f"registers: expected 1 to {arch.max_registers_per_thread} a thread, got {registers}")
    if num_warps < 1 or shared_bytes < 0 or tensor_memory_columns < 0:
        raise ValueError(
            f"expected num_warps >= 1, shared_bytes >= 0 and tensor_memory_columns >= 0, got {num_warps}, "
            f"{shared_bytes} and {tensor_memory_columns}"
        )
    warp_registers = _up(registers * LANES, arch.register_unit)
    register_warps = arch.registers_per_sm // SUB_PARTITIONS // warp_registers * SUB_PARTITIONS
    shared = _up(shared_bytes + arch.shared_bytes_reserved_per_cta, arch.shared_unit_bytes)
    limits = {
        "registers": register_warps // num_warps,
        "shared memory": arch.shared_bytes_per_sm // shared if shared_bytes <= arch.shared_bytes_per_cta else 0,
        "warps": arch.max_warps_per_sm // num_warps,
        "CTA slots": arch.max_ctas_per_sm,
    }
    if tensor_memory_columns:
        limits["tensor memory"] = arch.tensor_memory_columns // tensor_memory_columns
    scarcest = min(limits, key=lambda name: limits[name])
    return Occupancy(limits[scarcest], limits, scarcest)


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
