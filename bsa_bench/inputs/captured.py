"""Read q, k and v that were saved from a model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from bsa_bench.errors import InputError
from bsa_bench.files import describe_tensors, why_no_file
from bsa_bench.inputs.finite import not_finite
from bsa_bench.text import shortened
from bsa_bench.workload import Workload

if TYPE_CHECKING:
    import torch

_NAMES = ("q", "k", "v")
_FLOATS = ("F16", "BF16", "F32", "F64")
_MOST_NAMES = 6
_LAYERED = re.compile(r"(?:^|[^a-zA-Z])([qkvQKV])(?=[^a-zA-Z]|$)")
"""A name's part that says which of the three it is: `layers.0.q`, `blocks/3/attn/k`, `q_17`, `to_v`."""


def check_captured(path: Path, workload: Workload) -> None:
    """Raise InputError unless the header of `path` has q, k, v of the workload's shape; no tensor is read."""
    import safetensors

    if why := why_no_file(path):
        raise InputError(f"captured: {why}")
    expected = (workload.batch, workload.heads, workload.num_tokens, workload.head_dim)
    try:
        with safetensors.safe_open(str(path), framework="numpy") as file:
            missing = [name for name in _NAMES if name not in file.keys()]  # noqa: SIM118  not a dict
            if missing:
                raise InputError(
                    f"captured {path}: expected tensors q, k and v, missing {', '.join(missing)}; "
                    + _what_there_is(sorted(file.keys()), path)
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
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"captured {path}: {_what_it_is(path, error)}") from error


def _what_it_is(path: Path, error: Exception) -> str:
    """Of a file that safetensors does not read: by its name, and how it is saved as it should be."""
    try:
        name = describe_tensors(path)
    except OSError:
        name = None
    if name is None:
        return f"not a readable safetensors file ({shortened(str(error), 200)})"
    return (
        f"it is {name}, expected a safetensors file; load q, k and v [batch, heads, tokens, head_dim] and write "
        'safetensors.torch.save_file({"q": q, "k": k, "v": v}, "qkv.safetensors")'
    )


def _what_there_is(names: list[str], path: Path) -> str:
    """The tensors of a file without q, k and v; where several layers have some, what to write for one of them."""
    listed = ", ".join(shortened(name, 80) for name in names[:_MOST_NAMES]) or "nothing"
    listed += f" and {len(names) - _MOST_NAMES:,} more" * (len(names) > _MOST_NAMES)
    groups: dict[str, dict[str, str]] = {}
    for name in names:
        if found := _LAYERED.search(name):
            groups.setdefault(name[: found.start(1)] + name[found.end(1) :], {})[found.group(1).lower()] = name
    whole = [each for each in groups.values() if each.keys() == set(_NAMES)]
    if not whole:
        return f"it has {listed}"
    tensors = ", ".join(f'"{name}": t["{shortened(whole[0][name], 80)}"]' for name in _NAMES)
    return (
        f"it has {listed}; there are q, k and v of {len(whole):,} layer{'s' * (len(whole) != 1)}, and one file holds "
        f'one. Write one of them: t = safetensors.torch.load_file("{path.name}"); '
        f'safetensors.torch.save_file({{{tensors}}}, "layer.safetensors")'
    )


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
