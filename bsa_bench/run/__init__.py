"""The scheduler: what runs, in which order, in which process, for how long; and what becomes of it."""

from __future__ import annotations

from bsa_bench.run.estimate import DeviceModel, Estimate, predict
from bsa_bench.run.execute import execute
from bsa_bench.run.order import PlannedCase, plan_run
from bsa_bench.run.progress import Progress, make_progress
from bsa_bench.run.settings import RunOutcome, RunSettings

__all__ = [
    "DeviceModel",
    "Estimate",
    "PlannedCase",
    "Progress",
    "RunOutcome",
    "RunSettings",
    "execute",
    "make_progress",
    "plan_run",
    "predict",
]
