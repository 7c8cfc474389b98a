"""Profilers of their own on a GPU: Nsight Systems and Nsight Compute, as command lines, and Triton Proton."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bsa_bench.child_process import module_command

PYTHON_WORKER = module_command("bsa_bench.profiling.worker")
PROTON = "Triton Proton"


@dataclass(frozen=True)
class Tool:
    """A program that starts a process and records it between cudaProfilerStart and cudaProfilerStop.

    Args:
        title: its name.
        program: on PATH.
        file: what it writes.
        num_calls: how many calls it records at most; null for as many as all.
        options: its command line before the process's, for a file without its suffix.
    """

    title: str
    program: str
    file: str
    num_calls: int | None
    options: Callable[[Path], list[str]]

    def command(self, folder: Path, target: Sequence[str]) -> list[str]:
        """The command line that records a process."""
        return [self.program, *self.options(folder / self.program), *target]


def _nsys(out: Path) -> list[str]:
    return [
        "profile",
        "--trace=cuda,nvtx",
        "--sample=none",
        "--cpuctxsw=none",
        "--capture-range=cudaProfilerApi",
        "--capture-range-end=stop",
        f"--output={out}",
    ]


def _ncu(out: Path) -> list[str]:
    """Every kernel of a call, replayed for its counters, at the clocks that the GPU has by itself."""
    return [
        "--profile-from-start",
        "off",
        "--clock-control",
        "none",
        "--nvtx",
        "--set",
        "detailed",
        "--export",
        str(out),
    ]


TOOLS = (
    Tool("Nsight Systems", "nsys", "nsys.nsys-rep", None, _nsys),
    Tool("Nsight Compute", "ncu", "ncu.ncu-rep", 1, _ncu),
)


def missing(tool: Tool) -> str | None:
    """Why a tool cannot be run here, or None."""
    if shutil.which(tool.program):
        return None
    return f"{tool.title}: {tool.program} is not on PATH, so nothing of it is here"


def missing_proton() -> str | None:
    """Why Proton cannot be run here, or None; loads no triton."""
    return (
        None if importlib.util.find_spec("triton") else f"{PROTON}: triton is not installed, so nothing of it is here"
    )
