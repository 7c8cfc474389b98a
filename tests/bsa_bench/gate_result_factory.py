"""A made-up gate result with every verdict in every tier: all figures are scripted, none was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bsa_bench.gate.verdict import (
    Change,
    Check,
    GateResult,
    Pairs,
    Side,
    Tier,
    TierResult,
    Verdict,
    exit_code,
    summarise,
)

SPILLS = Change(
    metric="spills in the main loop",
    base=0,
    head=12,
    severity="fail",
    rule="spills in the main loop must not rise",
    line="triton_attend.py:118",
)
STACK = Change(
    metric="stack bytes",
    base=0,
    head=96,
    severity="fail",
    rule="stack: none before, some now",
    line="triton_attend.py:118",
)
REGISTERS = Change(metric="registers", base=198, head=200, severity="info")
SASS_DIFF = (
    "@@ -112,9 +112,21 @@",
    "  LDSM.16.M88.4 R, [R+UR]                                      triton_attend.py:117",
    *(f"+ STL [R1+{4 * i:#x}], R                                          triton_attend.py:118" for i in range(12)),
    "- IMAD.MOV.U32 R, RZ, RZ, R                                    triton_attend.py:118",
    *(f"+ LDL R, [R1+{4 * i:#x}]                                          triton_attend.py:121" for i in range(12)),
)


def pairs(ratio: float = 1.0, *, half: float = 0.025, base_s: float = 12.3e-3, num: int = 8, **fields: Any) -> Pairs:
    """What `num` pairs said; the interval is the ratio +- `half`."""
    base: dict[str, Any] = {
        "stage": "confirm" if num >= 8 else "screen",
        "log_ratios": tuple(ratio - 1 + 0.004 * (i % 3 - 1) for i in range(num)),
        "ratio": ratio,
        "low": ratio - half,
        "high": ratio + half,
        "p": 0.0039 if num >= 8 else None,
        "limit": 0.05,
        "detectable": 0.0812,
        "sd": 0.031,
        "base_s": base_s,
        "head_s": base_s * ratio,
    }
    return Pairs(**(base | fields))


def check(tier: Tier, name: str, verdict: Verdict, **fields: Any) -> Check:
    return Check(tier=tier, name=name, verdict=verdict, **fields)


def compiled_tier() -> TierResult:
    name = "attend-bf16-d128-k32"
    return TierResult(
        tier=0,
        checks=(
            check(0, "pool-bf16-d128", Verdict.UNCHANGED, where="sm_80"),
            check(
                0,
                name,
                Verdict.FAILED,
                where="sm_90",
                changes=(SPILLS, STACK, REGISTERS),
                detail=SASS_DIFF,
            ),
            check(
                0,
                "attend-bwd-kv-bf16-d128-k32",
                Verdict.WARNING,
                where="sm_100",
                changes=(
                    Change(
                        metric="instructions per iteration",
                        base=398,
                        head=421,
                        severity="warn",
                        rule="main loop: more than 5% longer",
                    ),
                ),
            ),
            check(0, name, Verdict.SAME, where="sm_80", changes=(REGISTERS,)),
            check(
                0,
                "attend-fp8-d256",
                Verdict.NOT_MEASURED,
                where="sm_80",
                reason="neither side compiles: fp8e4nv not supported in this architecture",
            ),
        ),
        notes=("both sides compiled now, by Triton 3.9.0",),
        wall_s=48.2,
    )


def counters_tier() -> TierResult:
    return TierResult(
        tier=1,
        checks=(
            check(
                1,
                "bsa@triton 4x8x8, forward",
                Verdict.FAILED,
                changes=(
                    Change(
                        metric="FLOP executed",
                        base=4_294_967_296,
                        head=4_362_076_160,
                        severity="fail",
                        rule="must equal the baseline",
                    ),
                    Change(
                        metric="index-list digest",
                        base="3b1e" * 16,
                        head="90cd" * 16,
                        severity="fail",
                        rule="must equal the baseline",
                    ),
                ),
            ),
            check(1, "full@triton 4x8x8, forward", Verdict.UNCHANGED),
        ),
        wall_s=3.4,
    )


def cpu_tier() -> TierResult:
    return TierResult(
        tier=2,
        checks=(
            check(2, "bsa@gather 8x16x16, forward", Verdict.SLOWER, pairs=pairs(1.1)),
            check(2, "bsa@gather 8x16x16, backward", Verdict.FASTER, pairs=pairs(0.87, base_s=61e-3)),
            check(
                2,
                "vsa@gather 8x16x16, forward",
                Verdict.AMBIGUOUS,
                reason="two groups of pairs: the processes of a side are not alike",
                pairs=pairs(1.04, half=0.06, modes=(0.98, 1.09)),
            ),
            check(2, "full@sdpa-flash 8x16x16, forward", Verdict.SAME, pairs=pairs(1.003, num=3), is_control=True),
            check(
                2,
                "bsa@triton interpreted 3x5x7, backward",
                Verdict.WRONG,
                reason="grad_k: relative error 0.034, budget 0.0021",
            ),
            check(2, "full@triton interpreted 3x5x7, forward", Verdict.VERIFIED),
            check(2, "moba@gather 8x16x16, forward", Verdict.NOT_MEASURED, reason="no time was left for it"),
        ),
        notes=("one thread, huge pages; limits of this machine from 2026-11-20",),
        wall_s=312.0,
    )


def gpu_tier() -> TierResult:
    return TierResult(
        tier=3,
        checks=(
            check(
                3,
                "bsa@triton wan2.1-1.3b, forward",
                Verdict.INFRA_ERROR,
                reason="the device throttled for 120 ms meanwhile",
            ),
            check(
                3,
                "bsa@triton wan2.1-1.3b, backward",
                Verdict.CALIBRATION_NEEDED,
                reason="no limits file of this machine",
                pairs=pairs(1.02, low=None, high=None, detectable=None, sd=None, num=1),
            ),
        ),
        wall_s=20.0,
    )


NO_GPU = TierResult(tier=3, reason="no NVIDIA GPU here", is_absent=True)
UNCHANGED_TIER = TierResult(tier=0, checks=(check(0, "pool-bf16-d128", Verdict.UNCHANGED, where="sm_80"),), wall_s=2.0)


def result(tiers: Sequence[TierResult] | None = None, **fields: Any) -> GateResult:
    """Of these tiers; without any, of all four with every verdict."""
    tiers = (compiled_tier(), counters_tier(), cpu_tier(), gpu_tier()) if tiers is None else tuple(tiers)
    base: dict[str, Any] = {
        "utc": "2026-11-28T09:30:00+00:00",
        "command": ("bsa-bench", "gate", "--base", "main"),
        "base": Side(label="main", commit="0123456789abcdef0123456789abcdef01234567", dirty=False),
        "head": Side(label="working tree", commit="fedcba9876543210fedcba9876543210fedcba98", dirty=True),
        "tiers": tiers,
        "environment": {"cpu": "AMD EPYC, 2 cores", "torch": "2.13.0", "huge_pages": True},
        "exit_code": exit_code(tiers),
        "summary": summarise(tiers),
    }
    return GateResult(**(base | fields))
