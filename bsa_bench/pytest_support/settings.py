"""What the options of pytest say about the measurements of a session."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar, cast

from bsa_bench.errors import UsageError
from bsa_bench.gate.sides import check_paths
from bsa_bench.run.job import DeviceKind
from bsa_bench.static.sides import HERE

PATHS = "bsa_paths"
OnDoubt = Literal["fail", "skip", "pass"]
OnInfra = Literal["fail", "skip"]
ValueT = TypeVar("ValueT", bound=str)


class BsaTimingWarning(UserWarning):
    """A figure that a test uses is not as good as it looks."""


@dataclass(frozen=True, kw_only=True)
class SessionSettings:
    """How the cases of a session are measured.

    Args:
        results: the folder for runs, and for what workers write.
        device: None for a GPU where there is one.
        processes: in how many each case is timed.
        threads: of a CPU worker; None for as many as a run takes, and one in a pair.
        on_infra: what a test comes to whose measurement the machine disturbed.
        paths: folders, relative to the top of the repository around the working directory, that a revision's code is
            imported from; none where the repository is bsa-bench's own.
        num_pytest_processes: how many run tests at the same time.
    """

    results: Path
    device: DeviceKind | None = None
    processes: int = 5
    threads: int | None = None
    on_infra: OnInfra = "fail"
    paths: tuple[Path, ...] = ()
    num_pytest_processes: int = 1

    @classmethod
    def of(
        cls,
        *,
        results: Path,
        device: str,
        processes: str,
        threads: str,
        on_infra: str,
        paths: list[str],
        num_pytest_processes: int,
    ) -> SessionSettings:
        """From the texts of options and ini values; an empty one leaves the default.

        Raises:
            UsageError: one has a wrong value.
        """
        kind = one_of("bsa_device", device or "auto", ("auto", "cpu", "cuda"))
        folders = tuple(map(Path, paths))
        check_paths(folders, flag=PATHS)
        return cls(
            results=results,
            device=None if kind == "auto" else cast("DeviceKind", kind),
            processes=_count("bsa_processes", processes) or cls.processes,
            threads=_count("bsa_threads", threads),
            on_infra=cast("OnInfra", one_of("bsa_on_infra", on_infra or cls.on_infra, ("fail", "skip"))),
            paths=folders,
            num_pytest_processes=num_pytest_processes,
        )


@dataclass(frozen=True)
class Comparison:
    """What is asked: the revision, the least change that counts (None: the gate's), and how long it may take.

    Raises:
        UsageError: no revision is named, or the limit or the time is not above zero.
    """

    than: str
    limit: float | None = None
    budget_s: float = 420.0

    def __post_init__(self) -> None:
        if self.than == HERE:
            raise UsageError(f"assert_not_slower: than: got {HERE!r}, the sources as they are, expected a revision")
        for name, value in (("limit", self.limit), ("budget_s", self.budget_s)):
            if value is not None and not value > 0:
                raise UsageError(f"assert_not_slower: {name}: got {value}, expected a number above 0")


def one_of(name: str, value: ValueT, allowed: tuple[str, ...]) -> ValueT:
    """The value, if it is allowed.

    Raises:
        UsageError: it is not.
    """
    if value not in allowed:
        raise UsageError(f"{name}: got {value!r}, expected {', '.join(allowed[:-1])} or {allowed[-1]}")
    return value


def _count(name: str, text: str) -> int | None:
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"{name}: got {text!r}, expected a whole number from 1")
    return int(text)
