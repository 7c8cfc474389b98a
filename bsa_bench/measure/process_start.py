"""What a process was started with, noted before it sets anything up itself. Loads no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from bsa_bench.file_digest import file_digest
from bsa_bench.measure.cpu_settings import usable_cores

_RECORDED = (
    "BSA_KERNELS_",
    "PYTORCH_",
    "TORCH_",
    "TORCHDYNAMO_",
    "TORCHINDUCTOR_",
    "TRITON_",
    "CUDA_",
    "NVIDIA_TF32",
    "OMP_",
    "MKL_",
    "KMP_",
    "GOMP_",
    "GLIBC_",
    "MALLOC_",
)
_COMPILERS = frozenset({"CC", "CXX"})
"""What torch, Triton and the engine `cpu` compile with."""
_FOLDERS = frozenset(
    {
        "BSA_BENCH_CACHE",
        "CUDA_CACHE_PATH",
        "PYTORCH_KERNEL_CACHE_PATH",
        "TMPDIR",
        "TORCHINDUCTOR_CACHE_DIR",
        "TORCH_COMPILE_DEBUG_DIR",
        "TORCH_EXTENSIONS_DIR",
        "TORCH_HOME",
        "TORCH_TRACE",
        "TRITON_CACHE_DIR",
        "TRITON_DUMP_DIR",
        "TRITON_HOME",
        "XDG_CACHE_HOME",
    }
)
"""Where temporary files, caches and dumps go: recorded, but one machine's timings compare wherever that is."""
_FILES = frozenset({"BSA_KERNELS_TILES"})
"""What they hold decides what is launched, so that is hashed and the path is not."""
_SET_BY_WORKERS = frozenset({"OMP_NUM_THREADS"})
"""Recorded as it was given; a worker sets it to `--threads`, which is hashed."""


@dataclass(frozen=True)
class ProcessStart:
    """The variables that matter to timings or say where files go, and how many cores the process may use.

    Torch, Triton and this package set variables and pin processes as they are used: what is imported, and what a run
    asks for, must not show in a description of the machine.
    """

    variables: Mapping[str, str]
    usable_cores: int

    @classmethod
    def now(cls) -> ProcessStart:
        """Of this process as it is; to be called first of all."""
        kept = {k: v for k, v in sorted(os.environ.items()) if k.startswith(_RECORDED) or k in _FOLDERS | _COMPILERS}
        kept |= {f"{name} SHA-256": file_digest(kept[name]) or "not readable" for name in _FILES if kept.get(name)}
        return cls(kept, len(usable_cores()))


def is_hashed(variable: str) -> bool:
    """Whether a recorded variable changes what is computed or how fast, not just where files lie."""
    return variable not in _FOLDERS | _FILES | _SET_BY_WORKERS
