"""Statistics: of the samples of one process, over processes, and of pairs of processes.

The process is the replicate (samples of one process share its memory layout, clocks and neighbours), so that only what
is taken over processes says how far a figure would move when it is measured again.
"""

from __future__ import annotations

from bsa_bench.stats.samples import Summary, median_interval, quantile, summarise

__all__ = ["Summary", "median_interval", "quantile", "summarise"]
