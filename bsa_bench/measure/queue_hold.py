"""What a GPU timer does before a sample: evict the L2, and hold the stream until the host has enqueued the call."""

from __future__ import annotations

import torch
from torch import Tensor

from bsa_bench.errors import BenchError

FIRST_HOLD_S, LONGEST_HOLD_S = 200e-6, 10e-3
_CALIBRATION_CYCLES = 2_000_000


def flush_buffer(device: torch.device) -> Tensor:
    """Bytes whose overwriting evicts the L2: twice its queried size.

    Raises:
        BenchError: the driver reports no L2.
    """
    l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
    if not l2_bytes:
        raise BenchError(f"{device}: the driver reports an L2 of {l2_bytes!r} bytes, so cold caches cannot be made")
    return torch.empty(2 * l2_bytes, dtype=torch.int8, device=device)


class QueueHold:
    """A kernel that spins while the host enqueues what is timed, so that launch latencies are not in the time.

    How long it has to spin is learnt from the samples: where the device began before the host was done, the next hold
    is longer, up to `LONGEST_HOLD_S`. A call that waits for the device by itself outlasts any hold.
    """

    def __init__(self) -> None:
        self.seconds = FIRST_HOLD_S
        self._cycles_per_s: float | None = None

    def start(self) -> None:
        """Enqueue the kernel.

        Raises:
            BenchError: the device's clock does not move while it spins.
        """
        if self._cycles_per_s is None:
            self._cycles_per_s = _cycles_per_s()
        torch.cuda._sleep(max(int(self.seconds * self._cycles_per_s), 1))  # noqa: SLF001  # the one spin of torch

    def learn(self, dispatch_s: float, *, ran_dry: bool) -> None:
        """Take in how long the host needed, and whether the device was through with the hold by then."""
        if ran_dry:
            self.seconds = min(max(self.seconds, 1.5 * dispatch_s), LONGEST_HOLD_S)


def _cycles_per_s() -> float:
    """The rate of the clock that torch's spinning kernel counts, by CUDA events."""
    torch.cuda._sleep(_CALIBRATION_CYCLES // 10)  # noqa: SLF001  # the first launch loads the kernel
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    torch.cuda._sleep(_CALIBRATION_CYCLES)  # noqa: SLF001
    end.record()
    torch.cuda.synchronize()
    elapsed_s = start.elapsed_time(end) * 1e-3
    if elapsed_s <= 0:
        raise BenchError(f"a kernel of {_CALIBRATION_CYCLES:,} cycles took {elapsed_s} s by CUDA events")
    return _CALIBRATION_CYCLES / elapsed_s
