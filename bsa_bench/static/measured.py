"""Measured rates of the project's kernels, from stored runs on GPUs, to stand beside the predicted ones."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bsa_bench.result import Result
from bsa_bench.static.config import KernelConfig
from bsa_bench.static.devices import DEVICES
from bsa_bench.store.derive import Row, derive
from bsa_bench.store.reader import read_run

#: Engines, and the modules that their configurations are of. The backward of `gluon` is that of `triton`.
_MODULES = {("triton", "forward"): "triton_", ("triton", "backward"): "triton_", ("gluon", "forward"): "gluon_"}
_DENSE_BLOCK = 64
_FORMATS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
_KERNELS = {"forward": {"attend_kernel"}, "backward": {"grad_q_kernel", "grad_kv_kernel"}}
_PHASES = {"forward": "attend", "backward": "attend_backward"}


@dataclass(frozen=True)
class Measured:
    """A measured rate of the attention phase: executed FLOP/s of the forward, or of the whole backward.

    `device` is the name in `DEVICES`; `device_name` the one that the driver reports.
    """

    run: str
    case_id: str
    device: str
    device_name: str
    engine: str
    passes: str
    dtype: str
    head_dim: int
    block_rows: int
    block_keys: int
    kept_rows: int
    has_padding: bool
    seconds: float
    flop_per_s: float

    def is_of(self, config: KernelConfig) -> bool:
        """Whether a configuration is one of our kernels of this pass with this head size, format and these blocks."""
        given = config.constexprs
        module, _, function = config.kernel.rpartition(":")
        sizes = {"D": self.head_dim, "K": self.kept_rows}
        # Not every kernel is compiled for these.
        others = {
            "MK": self.block_keys,
            "MQ": self.block_rows,
            "HAS_PARTIAL": self.has_padding,
            "FUSED": False,
        }
        if "FUSED" in given:
            del others["HAS_PARTIAL"]  # the split form is one kernel for both
        return (
            module.startswith("bsa_kernels.")
            and module.rpartition(".")[2].startswith(_MODULES[self.engine, self.passes])
            and function in _KERNELS[self.passes]
            and all(given.get(name) == size for name, size in sizes.items())
            and all(given.get(name, value) == value for name, value in others.items())
            and config.signature.get("k_ptr", config.signature.get("q_ptr")) == f"*{self.dtype}"
        )


def device_of(device_name: str) -> str | None:
    """The device in `DEVICES` that a driver's name means: `NVIDIA H200` is the H200-SXM."""
    words = device_name.upper().replace("-", " ").split()
    if "PCIE" in words or "NVL" in words:
        return None  # other clocks and power than the figures' SXM modules
    return next((name for name in DEVICES if name.split("-")[0].upper() in words), None)


def read_measured(folders: Iterable[Path]) -> list[Measured]:
    """Collect correct results of our kernels on known GPUs from runs of a commit, not of edited sources."""
    found = []
    for folder in folders:
        run = read_run(folder)
        if any(line.environment.git_dirty for line in run.run_lines):
            continue
        devices = {line.environment.hash: line.environment.device_name for line in run.run_lines}
        for row in derive(run.latest()):
            made = _measured(row, run.run_id, devices.get(row.result.env_hash, ""))
            found += [made] if made else []
    return found


def _measured(row: Row, run_id: str, device_name: str) -> Measured | None:
    result: Result = row.result
    case, device = result.case, device_of(device_name)
    phase = _PHASES.get(case.passes, "")
    if (case.engine, case.passes) not in _MODULES or not row.is_correct or device is None or phase not in row.phases:
        return None
    work = result.work
    if work is None or work.flops_executed is None or case.workload.dtype not in _FORMATS:
        return None
    sides = _sides(case.options.get("block")) or (1, 1, _DENSE_BLOCK)
    block_keys = math.prod(sides)
    block_rows = math.prod(_sides(case.options.get("query_block")) or sides)
    asked = case.options.get("query_keep")
    query_keep = work.query_keep_realised or (asked if isinstance(asked, float) else 1.0)
    seconds = row.phases[phase]
    return Measured(
        run=run_id,
        case_id=result.case_id,
        device=device,
        device_name=device_name,
        engine=case.engine,
        passes=case.passes,
        dtype=_FORMATS[case.workload.dtype],
        head_dim=case.workload.head_dim,
        block_rows=block_rows,
        block_keys=block_keys,
        kept_rows=round(query_keep * block_rows),
        has_padding=any(n % side for n, side in zip(case.workload.token_grid, sides, strict=True)),
        seconds=seconds,
        flop_per_s=work.flops_executed / seconds,
    )


def _sides(value: object) -> tuple[int, ...] | None:
    """The sides of a block among stored options; None where the method has none of that name, or takes another's."""
    return tuple(int(side) for side in value) if isinstance(value, list) else None
