"""A suite as a value: what the runner, the command line and the report see of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from bsa_bench.errors import SuiteError
from bsa_bench.result import CacheChoice, Case, TimerChoice
from bsa_bench.suite.expand import Dropped, Expansion, expand
from bsa_bench.suite.layers import Layer
from bsa_bench.suite.schema import DeviceKind
from bsa_bench.workload import short_digest

DEFAULT_TIME_LIMIT_S = 600.0


@dataclass(frozen=True)
class Limits:
    """Seconds: `time_limit_s` ends one case, `budget_s` (null: none) the whole run."""

    time_limit_s: float = DEFAULT_TIME_LIMIT_S
    budget_s: float | None = None


@dataclass(frozen=True)
class SuiteInfo:
    """A line of `list_suites`; `num_cases` is for the kind of device that was asked for."""

    name: str
    title: str
    description: str
    num_cases: int


@dataclass(frozen=True)
class Suite:
    """A checked suite for one kind of device.

    `layer` holds the file and its device part merged, `source` is where it came from, as messages call it, and `sha256`
    is of that file; null where there is none.
    """

    name: str
    device_kind: DeviceKind
    layer: Layer
    source: str
    sha256: str | None = None

    @property
    def title(self) -> str:
        """One line for the report's head."""
        assert self.layer.part.title is not None
        return self.layer.part.title

    @property
    def description(self) -> str:
        """What it measures and why, as its file says."""
        return (self.layer.part.description or "").strip()

    @property
    def profile(self) -> Literal["quick", "report"]:
        """How long to warm up and to sample."""
        return self.layer.part.profile or "quick"

    @property
    def num_processes(self) -> int | None:
        """In how many processes each case is measured; null leaves it to the profile."""
        return self.layer.part.processes

    @property
    def timer(self) -> TimerChoice:
        """What is timed with."""
        return self.layer.part.timer or "auto"

    @property
    def cache(self) -> CacheChoice | None:
        """The state of the caches before each sample; null leaves it to device and profile."""
        return self.layer.part.cache

    @property
    def limits(self) -> Limits:
        """Time limits."""
        part = self.layer.part
        return Limits(part.time_limit_s or DEFAULT_TIME_LIMIT_S, part.budget_s)

    @property
    def implementations(self) -> tuple[str, ...]:
        """Every implementation it asks for, in its order."""
        return tuple(dict.fromkeys(self.layer.part.implementations or ()))

    @property
    def priority(self) -> tuple[str, ...]:
        """Implementations in the order in which a budget is spent on them; none: on what tells most, whoever it is."""
        return self.implementations if self.layer.part.order == "listed" else ()

    def cases(self) -> list[Case]:
        """What to measure, in order: by tokens, then implementation, then options, then pass."""
        return list(self._expansion.cases)

    @property
    def dropped(self) -> tuple[Dropped, ...]:
        """What it leaves out, and why."""
        return self._expansion.dropped

    @cached_property
    def digest(self) -> str:
        """Short stable digest of what is measured and how long; not of titles or file names."""
        limits = self.limits
        times = [self.profile, limits.time_limit_s, limits.budget_s]
        processes = [self.num_processes] if self.num_processes else []
        timing = [self.layer.part.timer, self.cache] if self.layer.part.timer or self.cache else []
        return short_digest([*times, *processes, *timing, [case.case_hash for case in self._expansion.cases]])

    @cached_property
    def _expansion(self) -> Expansion:
        return expand(self.layer, suite=self.name, device_kind=self.device_kind, source=self.source)


def make_suite(name: str, *, device_kind: DeviceKind, layer: Layer, source: str, sha256: str | None) -> Suite:
    """Make a suite and expand it, so that whatever is wrong shows now.

    Raises:
        SuiteError: no title, or what `expand` raises.
    """
    if layer.part.title is None:
        raise SuiteError(f"{source}: title: is missing, expected one line of text")
    suite = Suite(name, device_kind, layer, source, sha256)
    suite.cases()
    return suite
