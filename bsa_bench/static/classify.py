"""What an instruction is for: its kind, the pipe that runs it, the bytes or FLOP that it moves.

Source: CUDA Binary Utilities, "Instruction Set Reference" (names); PTX ISA, `mma`, `wgmma`, `tcgen05` (shapes). Which
pipe runs which opcode: the throughput table of the CUDA C++ Programming Guide, and "Pipelines" of Nsight Compute.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from bsa_bench.static.sass import Instruction

Kind = Literal[
    "tensor",
    "exp2",
    "other special function",
    "conversion",
    "fp32",
    "integer and logic",
    "uniform",
    "shuffle",
    "global load",
    "cp.async",
    "TMA",
    "global store",
    "atomic",
    "shared load",
    "shared store",
    "tensor memory",
    "spill load",
    "spill store",
    "constant load",
    "barrier",
    "control",
    "other",
]
Pipe = Literal["tensor", "fma", "alu", "mufu", "lsu", "uniform", "other"]
TensorClass = Literal["mma.sync", "wgmma", "tcgen05"]
OperandSource = Literal["registers", "shared", "tensor memory"]

LANES = 32
"""Of a warp."""
_TENSOR = {
    **dict.fromkeys(("HMMA", "IMMA", "QMMA", "BMMA", "DMMA", "OMMA"), "mma.sync"),
    **dict.fromkeys(("HGMMA", "QGMMA", "IGMMA", "BGMMA"), "wgmma"),
    **dict.fromkeys(("UTCHMMA", "UTCQMMA", "UTCIMMA", "UTCOMMA"), "tcgen05"),
}
_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("F2F", "F2FP", "F2I", "F2IP", "I2F", "I2FP", "I2I", "I2IP", "FRND"), "conversion"),
    **dict.fromkeys(("SHFL", "REDUX", "CREDUX", "VOTE", "VOTEU", "MATCH"), "shuffle"),
    **dict.fromkeys(("LDG", "LD"), "global load"),
    "LDGSTS": "cp.async",
    **dict.fromkeys(("UTMALDG", "UBLKCP", "UTMAPF", "UBLKPF", "UTMASTG", "UTMACCTL", "UTMACMDFLUSH"), "TMA"),
    **dict.fromkeys(("STG", "ST"), "global store"),
    **dict.fromkeys(("RED", "REDG", "ATOM", "ATOMG", "ATOMS", "REDS", "UTMAREDG", "UBLKRED"), "atomic"),
    **dict.fromkeys(("LDS", "LDSM"), "shared load"),
    **dict.fromkeys(("STS", "STSM"), "shared store"),
    **dict.fromkeys(("LDTM", "STTM", "UTCCP", "UTCSHIFT"), "tensor memory"),
    "LDL": "spill load",
    "STL": "spill store",
    **dict.fromkeys(("LDC", "ULDC", "LDCU"), "constant load"),
    **dict.fromkeys(
        ("BAR", "SYNCS", "WARPSYNC", "MEMBAR", "FENCE", "DEPBAR", "LDGDEPBAR", "ARRIVES", "UTCBAR", "ERRBAR", "CCTL"),
        "barrier",
    ),
    **dict.fromkeys(("UCGABAR_ARV", "UCGABAR_WAIT", "ACQBULK", "WARPGROUP", "UTMACMDFLUSH", "USETMAXREG"), "barrier"),
    **dict.fromkeys(
        ("BRA", "BRX", "JMP", "CALL", "RET", "EXIT", "BSSY", "BSYNC", "BREAK", "BMOV", "NOP", "YIELD", "NANOSLEEP"),
        "control",
    ),
    **dict.fromkeys(("ELECT", "PLOP3", "UPLOP3", "S2R", "S2UR", "CS2R", "R2UR", "BPT", "KILL"), "other"),
}
_FMA_PIPE = {"FADD", "FMUL", "FFMA", "FADD2", "FMUL2", "FFMA2", "HADD2", "HMUL2", "HFMA2", "FADD32I", "FFMA32I", "IMAD"}
_FP32 = {
    "FADD",
    "FMUL",
    "FFMA",
    "FADD2",
    "FMUL2",
    "FFMA2",
    "FMNMX",
    "FMNMX3",
    "FSEL",
    "FSET",
    "FSETP",
    "FCHK",
    "FSWZADD",
}
_HALF = {"HADD2", "HMUL2", "HFMA2", "HMNMX2", "HSET2", "HSETP2", "VHMNMX"}
# What a Triton kernel computes with; anything else that starts a known integer or move family is integer and logic.
_INTEGER = re.compile(
    r"^(I(ADD|MAD|ABS|MNMX|SETP|DP|SCADD|MUL)|V(IADD|IMNMX|ABSDIFF)|LOP|SHF|SHL|SHR|LEA|PRMT|SEL$|MOV|BREV|FLO|POPC|BMSK|SGXT|P2R|R2P)"
)


@dataclass(frozen=True)
class TensorOp:
    """One tensor-core instruction.

    `m`, `n`, `k` are what it computes: for `mma.sync` by a warp, for `wgmma` by a warpgroup of four warps, for
    `tcgen05` by the CTA, whose m, n and types are in no opcode (0 and empty here). `a_source` is where the first
    operand comes from.
    """

    tensor_class: TensorClass
    m: int
    n: int
    k: int
    types: str
    a_source: OperandSource

    @property
    def shape(self) -> str:
        """`m64n128k16`; without m and n where the opcode does not say them."""
        return f"m{self.m}n{self.n}k{self.k}" if self.m else f"k{self.k}"


def kind_of(each: Instruction) -> Kind:
    """Name what an instruction is for; padding that never acts is `other`."""
    name = each.name
    if each.is_never:
        return "other"
    if name in _TENSOR:
        return "tensor"
    if name == "MUFU":
        return "exp2" if each.opcode.startswith("MUFU.EX2") else "other special function"
    if name in _KINDS:
        return _KINDS[name]
    if name in _FP32 or name in _HALF:
        return "fp32"
    if _INTEGER.match(name):
        return "integer and logic"
    if name.startswith("U"):
        return "uniform"
    return "other"


def pipe_of(each: Instruction) -> Pipe:
    """Name the pipe that an instruction takes time of besides its issue slot."""
    kind = kind_of(each)
    if kind == "tensor":
        return "tensor"
    if each.is_never:
        return "other"
    if each.name == "MUFU" or each.name in {"I2F", "F2I", "F2F", "FRND", "POPC", "FLO", "BREV"}:
        return "mufu"
    if each.name in _FMA_PIPE:
        return "fma"
    if kind in {"fp32", "integer and logic", "conversion"}:
        return "alu"
    if kind == "uniform":
        return "uniform"
    if kind in {
        "shuffle",
        "global load",
        "cp.async",
        "global store",
        "atomic",
        "shared load",
        "shared store",
        "spill load",
        "spill store",
    }:
        return "lsu"
    return "other"


_DEPTHS = {"UTCHMMA": 16, "UTCQMMA": 32, "UTCIMMA": 32, "UTCOMMA": 64}
_SHAPES = {"16816": (16, 8, 16), "1688": (16, 8, 8), "16832": (16, 8, 32), "884": (8, 8, 4), "1684": (16, 8, 4)}
_MMA = re.compile(r"^[A-Z]+MMA\.(?:SP\.)?(\d+)(?:x(\d+)x(\d+))?(?:\.([\w.]+))?$")


def tensor_op_of(each: Instruction) -> TensorOp:
    """Read a tensor-core instruction.

    Raises:
        ValueError: its shape is written in a way not known here.
    """
    tensor_class = _TENSOR[each.name]
    if tensor_class == "tcgen05":
        # kind::f16 multiplies 16 numbers deep, one byte wide ones 32, fp4 on both sides 64.
        deep = _DEPTHS[each.name]
        source = "tensor memory" if each.operands.startswith("tmem") else "shared"
        return TensorOp("tcgen05", 0, 0, deep, "", source)  # type: ignore[arg-type]
    found = _MMA.match(each.opcode)
    if found and found[2]:
        m, n, k = int(found[1]), int(found[2]), int(found[3])
    elif found and found[1] in _SHAPES:
        m, n, k = _SHAPES[found[1]]
    else:
        raise ValueError(
            f"tensor instruction: expected a shape such as HMMA.16816 or HGMMA.64x64x16, got {each.opcode}"
        )
    from_shared = tensor_class == "wgmma" and each.operands.count(",") and "gdesc" in each.operands.split(",")[1]
    types = "F64" if each.name == "DMMA" else found[4] or ""
    return TensorOp(tensor_class, m, n, k, types, "shared" if from_shared else "registers")  # type: ignore[arg-type]


_WIDTH = re.compile(r"\.(?:[USF]|BF)?(8|16|32|64|128|256)(?:(?:x|_V)(\d))?(?=\.|$)")


def bytes_per_lane(each: Instruction) -> int:
    """Bytes that each lane of a warp moves: 4 unless the opcode says otherwise (`LDG.E.128`, `RED.E.ADD.F32x4`: 16)."""
    if each.name in {"LDSM", "STSM"}:  # each matrix is 8 x 8 numbers of two bytes, four bytes a lane
        matrices = re.search(r"\.([124])$", each.opcode)
        return 4 * int(matrices[1]) if matrices else 4
    found = _WIDTH.findall(each.opcode)
    if not found:
        return 4
    bits, numbers = found[-1]
    return int(bits) * int(numbers or 1) // 8
