"""`bsa-bench limits`: measure what this GPU delivers, print it, write it for `static --limits`."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

from bsa_bench.errors import EXIT_NOTHING_MEASURED, EXIT_OK
from bsa_bench.limits.file import Limit, Limits
from bsa_bench.store.whole_file import check_place, write_whole
from bsa_bench.units import format_seconds, three_digits

_SCALES = {"B/s": (1e12, "TB/s"), "FLOP/s": (1e12, "TFLOP/s")}


def limits(out: Path | None, *, as_json: bool) -> int:
    """Measure and tell; returns the exit code.

    Raises:
        StoreError: the file cannot be written; found out before anything is measured.
        BenchError: a kernel gave a wrong result.
    """
    from bsa_bench.measure.process_start import ProcessStart

    started = ProcessStart.now()
    import torch

    if out is not None:
        check_place(out, flag="--out")
    if not torch.cuda.is_available():
        print("torch sees no NVIDIA GPU here, so nothing can be measured", file=sys.stderr)
        return EXIT_NOTHING_MEASURED
    from bsa_bench.limits.ceilings import CudaClock
    from bsa_bench.limits.measure import measure
    from bsa_bench.measure.environment import collect_environment

    device = torch.device("cuda")
    environment = collect_environment(started=started, threads=None, kind="cuda")
    found: list[Limit] = []
    for limit in measure(device, CudaClock()):
        found.append(limit)
        if not as_json:
            print(text_of(limit), flush=True)
    document = Limits(
        device_name=environment.device_name,
        date=datetime.now(UTC).date().isoformat(),
        packages=dict(environment.packages),
        limits=found,
    )
    if as_json:
        print(document.model_dump_json(indent=1))
    if out is not None:
        write_whole(out, document.model_dump_json(indent=1) + "\n", flag="--out")
        print(f"limits: {out}; use them with bsa-bench static --limits {out}", file=sys.stderr)
    return EXIT_OK


def text_of(limit: Limit) -> str:
    """A line of text."""
    if limit.unit == "s":
        value = format_seconds(limit.value)
    else:
        scale, unit = _SCALES[limit.unit]
        value = f"{three_digits(limit.value / scale)} {unit}"
    return f"{limit.name:28} {value:>14}   {limit.detail}"
