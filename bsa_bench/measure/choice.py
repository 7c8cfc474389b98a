"""Which timer and cache state a run uses: what was asked for, checked against the device; loads no torch."""

from __future__ import annotations

from dataclasses import dataclass

from bsa_bench.errors import UsageError
from bsa_bench.result import CacheChoice, Environment, RunLine, TimerChoice, TimerName


@dataclass(frozen=True)
class TimerSetting:
    """A timer, and the cache states that it is used in."""

    timer: TimerName
    cache: CacheChoice

    def __str__(self) -> str:
        return f"timer {self.timer}, cache {self.cache}"


def choose_timer(
    timer: TimerChoice, cache: CacheChoice | None, *, environment: Environment, profile: str
) -> TimerSetting:
    """Turn what was asked for into what is used.

    `auto` is `host` on a CPU and `event` on a GPU. Without a cache state a GPU is measured `cold`, by the profile
    `report` in `both` states; a CPU is always `warm`, as nothing evicts its caches here.

    Raises:
        UsageError: the device has no such timer or cache state.
    """
    if environment.device_kind == "cpu":
        asked = [f"--timer {timer}"] * (timer not in {"auto", "host"}) + [f"--cache {cache}"] * (
            cache not in {None, "warm"}
        )
        if asked:
            raise UsageError(
                f"{' '.join(asked)}: this run measures a CPU ({environment.device_name}), expected --timer auto or "
                "host and --cache warm; CUDA events, profiler spans, CUDA graphs and L2 eviction need an NVIDIA GPU"
            )
        return TimerSetting("host", "warm")
    return TimerSetting("event" if timer == "auto" else timer, cache or ("both" if profile == "report" else "cold"))


def timer_of_run(line: RunLine) -> TimerSetting:
    """What a stored run was measured with; runs of before there was a choice had one for each kind of device."""
    is_cpu = line.environment.device_kind == "cpu"
    return TimerSetting(line.timer or ("host" if is_cpu else "event"), line.cache or ("warm" if is_cpu else "cold"))
