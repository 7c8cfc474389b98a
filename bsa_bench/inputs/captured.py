"""Read q, k and v that were saved from a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bsa_bench.errors import InputError
from bsa_bench.inputs.finite import not_finite
from bsa_bench.workload import Workload

if TYPE_CHECKING:
    import torch

_NAMES = ("q", "k", "v")
_FLOATS = ("F16", "BF16", "F32", "F64")


def check_captured(path: Path, workload: Workload) -> None:
    """Raise InputError unless the header of `path` has q, k, v of the workload's shape; no tensor is read."""
    import safetensors

    if not path.is_file():
        raise InputError(f"captured: no such file: {path}")
    expected = (workload.batch, workload.heads, workload.num_tokens, workload.head_dim)
    try:
        with safetensors.safe_open(str(path), framework="numpy") as file:
            missing = [name for name in _NAMES if name not in file.keys()]  # noqa: SIM118  not a dict
            if missing:
                found = ", ".join(sorted(file.keys())) or "nothing"
                raise InputError(
                    f"captured {path}: expected tensors q, k and v, missing {', '.join(missing)}; it has {found}"
                )
            for name in _NAMES:
                part = file.get_slice(name)
                shape, dtype = tuple(part.get_shape()), part.get_dtype()
                if shape != expected:
                    raise InputError(
                        f"captured {path}: {name} has shape {shape}, expected {expected}, the workload's "
                        "[batch, heads, tokens, head_dim]; mend the workload or save the tensors in that order"
                    )
                if dtype not in _FLOATS:
                    raise InputError(f"captured {path}: {name} is {dtype}, expected one of {', '.join(_FLOATS)}")
    except safetensors.SafetensorError as error:
        raise InputError(f"captured {path}: not a readable safetensors file ({error})") from error


def check_values(path: Path, workload: Workload) -> None:
    """Raise InputError unless all values of a checked file are finite in the workload's dtype; reads them, once."""
    for name in _NAMES:
        if trouble := not_finite(path, name, workload.dtype):
            raise InputError(f"captured {path}: {name} {trouble}; capture them again, or set another dtype")


def read_captured(path: Path, *, dtype: torch.dtype, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return q, k and v of a checked file, cast on the CPU.

    Raises:
        InputError: a value is not finite after the cast.
    """
    import safetensors
    import torch

    tensors = []
    with safetensors.safe_open(str(path), framework="pt", device="cpu") as file:
        for name in _NAMES:
            tensor = file.get_tensor(name).to(dtype)
            if not torch.isfinite(tensor).all():
                raise InputError(f"captured {path}: {name} has values that are not finite in {dtype}")
            tensors.append(tensor.to(device).contiguous())
    q, k, v = tensors
    return q, k, v
