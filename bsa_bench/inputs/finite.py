"""Values of a safetensors file that no attention can be measured on: NaN, infinity, and what a cast overflows to."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bsa_bench.workload import DType

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: From here on a magnitude is rounded to infinity: the largest number and half of its last place.
_OVERFLOW: dict[DType, float] = {
    "float16": 65520.0,
    "bfloat16": float.fromhex("0x1.ffp+127"),
    "float32": float.fromhex("0x1.ffffffp+127"),
    "float64": float("inf"),
}
_STORED = {"F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8"}
_CHUNK = 1 << 22


def not_finite(path: Path, name: str, dtype: DType) -> str | None:
    """What is wrong with a tensor of a file once it is cast, or None; in words, with the first such value.

    Args:
        path: of the safetensors file, whose header is right.
        name: of a tensor of floating-point numbers.
        dtype: what it is cast to.
    """
    stat = path.stat()
    return _not_finite(path, name, dtype, (stat.st_size, stat.st_mtime_ns, stat.st_ino))


@lru_cache(maxsize=64)  # a file serves many cases
def _not_finite(path: Path, name: str, dtype: DType, _state: object) -> str | None:
    import numpy as np

    stored, kind, shape = _stored(path, name)
    first: tuple[int, float] | None = None
    num_nan = num_infinite = num_overflowing = 0
    for start in range(0, stored.size, _CHUNK):
        values = _values(stored[start : start + _CHUNK], kind)
        magnitudes = np.abs(values)
        with np.errstate(over="ignore"):  # where the format stored is narrower, its own infinity is the limit
            bad = ~(magnitudes < _OVERFLOW[dtype])  # NaN is below nothing
        if not bad.any():
            continue
        if first is None:
            at = int(bad.argmax())
            first = (start + at, float(values[at]))
        nan, infinite = int(np.isnan(values).sum()), int(np.isinf(values).sum())
        num_nan, num_infinite = num_nan + nan, num_infinite + infinite
        num_overflowing += int(bad.sum()) - nan - infinite
    if first is None:
        return None
    place, value = first
    counts = [
        f"{count:,} {what}"
        for count, what in (
            (num_nan, "NaN"),
            (num_infinite, "infinite"),
            (num_overflowing, f"beyond the largest {dtype}"),
        )
        if count
    ]
    where = tuple(int(index) for index in np.unravel_index(place, shape))
    return f"has values that are not finite in {dtype} ({', '.join(counts)}; the first is {value:g} at {list(where)})"


def _stored(path: Path, name: str) -> tuple[NDArray[Any], str, tuple[int, ...]]:
    """The elements as they lie in the file, their format and their shape."""
    import numpy as np

    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(length))[name]
    start, end = entry["data_offsets"]
    kind, shape = entry["dtype"], tuple(entry["shape"])
    item = np.dtype(_STORED[kind])
    data = np.memmap(path, dtype=item, mode="r", offset=8 + length + start, shape=((end - start) // item.itemsize,))
    return data, kind, shape


def _values(stored: NDArray[Any], kind: str) -> NDArray[np.floating[Any]]:
    """As numbers that compare exactly; numpy has no bfloat16, which is the upper half of a float32."""
    import numpy as np

    if kind == "BF16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    values = np.asarray(stored)
    return values.astype(np.float64 if kind == "F64" else np.float32)
