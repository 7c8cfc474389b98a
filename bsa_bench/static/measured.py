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

ENGINE = "triton"
_FORMATS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
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
    passes: str
    dtype: str
    head_dim: int
    kept_rows: int
    seconds: float
    flop_per_s: float

    def is_of(self, config: KernelConfig) -> bool:
        """Whether a configuration is a kernel of this pass with this head size, format and number of kept rows."""
        is_forward = config.kernel.endswith(":forward_kernel")
        constants = config.constexprs
        return (
            is_forward == (self.passes == "forward")
            and (constants.get("D"), constants.get("K")) == (self.head_dim, self.kept_rows)
            and config.signature.get("q_ptr") == f"*{self.dtype}"
        )


def device_of(device_name: str) -> str | None:
    """The device in `DEVICES` that a driver's name means: `NVIDIA H200` is the H200-SXM."""
    words = device_name.upper().replace("-", " ").split()
    if "PCIE" in words or "NVL" in words:
        return None  # other clocks and power than the figures' SXM modules
    return next((name for name in DEVICES if name.split("-")[0].upper() in words), None)


def read_measured(folders: Iterable[Path]) -> list[Measured]:
    """Collect correct results of the Triton engine on known GPUs from runs."""
    found = []
    for folder in folders:
        run = read_run(folder)
        devices = {line.environment.hash: line.environment.device_name for line in run.run_lines}
        for row in derive(run.latest()):
            made = _measured(row, run.run_id, devices.get(row.result.env_hash, ""))
            found += [made] if made else []
    return found


def _measured(row: Row, run_id: str, device_name: str) -> Measured | None:
    result: Result = row.result
    case, device = result.case, device_of(device_name)
    phase = _PHASES.get(case.passes, "")
    if case.engine != ENGINE or not row.is_correct or device is None or phase not in row.phases:
        return None
    work, options = result.work, case.options
    if work is None or work.flops_executed is None or case.workload.dtype not in _FORMATS:
        return None
    block_rows = math.prod(options.query_block or options.block) if options else 64
    seconds = row.phases[phase]
    return Measured(
        run=run_id,
        case_id=result.case_id,
        device=device,
        device_name=device_name,
        passes=case.passes,
        dtype=_FORMATS[case.workload.dtype],
        head_dim=case.workload.head_dim,
        kept_rows=round((work.query_keep_realised or 1.0) * block_rows),
        seconds=seconds,
        flop_per_s=work.flops_executed / seconds,
    )
