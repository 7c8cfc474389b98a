"""The fixture `bsa_case` for pytest: time a case of bsa-bench in a test, and gate on it.

pytest loads this module in every session of everybody who has bsa-bench installed, so that it imports next to nothing;
what it does is in `bsa_bench.pytest_support`, loaded when a test uses the fixture.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import pytest

if TYPE_CHECKING:
    from bsa_bench.pytest_support.session import Session
    from bsa_bench.pytest_support.timed_case import TimedCase

_SESSION = pytest.StashKey["Session"]()
_OPTIONS = {
    "bsa_device": ("auto", "cpu or cuda; auto (default): a GPU where there is one"),
    "bsa_processes": ("N", "in how many processes bsa_case times each case (default: 5)"),
    "bsa_threads": ("N", "CPU threads of a worker"),
    "bsa_results": ("DIR", "keep the runs of bsa_case in this folder (default: pytest's temporary one)"),
    "bsa_on_infra": ("fail|skip", "what a test comes to if the machine disturbed its measurement (default: fail)"),
}
"""Each is a flag, `--bsa-device`, and an ini value, `bsa_device`; the flag counts."""


class BsaCase(Protocol):
    """What the fixture `bsa_case` is."""

    def __call__(self, implementation: str, /, *, suite: str | None = None, **keys: object) -> TimedCase:
        """Declare a case; it is measured when something of it is first asked for.

        Args:
            implementation: `method@engine`, such as `bsa@gather`.
            suite: a built-in suite or a TOML file that the keys are laid over.
            keys: those of `bsa-bench run KEY=VALUE`, one value each: `tokens=4096`, `kv_density=0.1`, `grid=(8, 16,
                16)`, `passes="backward"` (default: forward), `processes=3`. They have to name one case.

        Raises:
            UsageError: a name, key or value is wrong.
        """


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the flags and ini values."""
    group = parser.getgroup("bsa-bench", "attention benchmarks (bsa_case)")
    for name, (metavar, text) in _OPTIONS.items():
        group.addoption(f"--{name.replace('_', '-')}", default=None, metavar=metavar, help=text)
        parser.addini(name, text, default="")
    paths = "folders of the repository that a revision's packages are imported from, relative to its top (such as src)"
    parser.addini("bsa_paths", paths, type="args", default=[])


@pytest.fixture
def bsa_case(request: pytest.FixtureRequest) -> Iterator[BsaCase]:
    """Declare cases of bsa-bench by `bsa_case("bsa@gather", tokens=4096)`: their correctness, latency and speed-up."""
    from bsa_bench.errors import BenchError
    from bsa_bench.pytest_support.declare import declare
    from bsa_bench.pytest_support.timed_case import TimedCase

    session = _session(request)
    cases: list[TimedCase] = []
    benchmark = request.getfixturevalue("benchmark") if "benchmark" in request.fixturenames else None

    def make(implementation: str, /, *, suite: str | None = None, **keys: object) -> TimedCase:
        __tracebackhide__ = True
        try:
            choices = {kind: declare(implementation, keys, device_kind=kind, suite=suite) for kind in session.kinds}
        except BenchError as error:  # told at the line of the test
            raise error.with_traceback(None) from None
        cases.append(TimedCase(session, choices, cases))
        return cases[-1]

    yield make
    facts = {case.case_id: case.properties() for case in cases if case.is_measured}
    request.node.user_properties.extend((f"bsa-bench {name}", json.dumps(known)) for name, known in facts.items())
    if facts and benchmark is not None:  # of pytest-benchmark
        benchmark.extra_info["bsa_bench"] = facts


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what was measured, and where it is."""
    session = config.stash.get(_SESSION, None)
    if session is not None and session.lines:
        terminalreporter.section("bsa-bench")
        for line in session.lines:
            terminalreporter.write_line(line)
        terminalreporter.write_line(f"results: {session.settings.results}")


def _session(request: pytest.FixtureRequest) -> Session:
    """That of this run of pytest, made when a test first asks."""
    from pathlib import Path

    from bsa_bench.pytest_support.session import Session
    from bsa_bench.pytest_support.settings import SessionSettings

    config = request.config
    if _SESSION not in config.stash:
        asked = {name: config.getoption(name) or config.getini(name) for name in _OPTIONS}
        folder = asked.pop("bsa_results")
        factory: pytest.TempPathFactory = request.getfixturevalue("tmp_path_factory")
        config.stash[_SESSION] = Session(
            SessionSettings.of(
                results=Path(folder).absolute() if folder else factory.mktemp("bsa-bench"),
                paths=config.getini("bsa_paths"),
                num_pytest_processes=int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")),
                **{name.removeprefix("bsa_"): text for name, text in asked.items()},
            )
        )
    return config.stash[_SESSION]
