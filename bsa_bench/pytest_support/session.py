"""One pytest session: what this machine is, and what was measured on it, each case once."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeAlias

import pytest

from bsa_bench.catalog import unsupported_case
from bsa_bench.errors import EXIT_INTERRUPTED
from bsa_bench.gate.verdict import Check
from bsa_bench.inputs import check_inputs
from bsa_bench.pytest_support.declare import NAME, Declared
from bsa_bench.pytest_support.settings import Comparison, OnInfra, SessionSettings
from bsa_bench.result import Case, Environment
from bsa_bench.run import DeviceModel, RunSettings, execute, make_progress
from bsa_bench.run.job import DeviceKind, Profile
from bsa_bench.run.probe import Question, probe, question_of
from bsa_bench.store import read_run
from bsa_bench.store.derive import Row, derive
from bsa_bench.store.writer import RunWriter, check_writable, default_run_id

KINDS: tuple[DeviceKind, ...] = ("cpu", "cuda")
Choices: TypeAlias = Mapping[DeviceKind, Declared]
"""What a test declared, for each kind of device that the session may turn out to use."""


class _Key(NamedTuple):
    """What tests share a measurement of."""

    case_hash: str
    profile: Profile
    num_processes: int


@dataclass(frozen=True)
class Measurement:
    """A case over its processes, and the run that holds them."""

    row: Row
    run_folder: Path


@dataclass
class Session:
    """Measures what tests declare, in processes of its own; nothing twice.

    Attributes:
        settings: what the options say.
        lines: for the summary at the end, one for each thing that was measured.
        checks: of cases by their hash against revisions, each with those of its control.
    """

    settings: SessionSettings
    lines: list[str] = field(default_factory=list)
    checks: dict[tuple[str, Comparison], list[Check]] = field(default_factory=dict)
    _environment: Environment | None = None
    _reasons: dict[Question, str | None] = field(default_factory=dict)
    _measured: dict[_Key, Measurement] = field(default_factory=dict)
    _num_runs: int = 0

    @property
    def kinds(self) -> tuple[DeviceKind, ...]:
        """The kinds of device that a case may have to be made for."""
        if self._environment is not None:
            return (self._environment.device_kind,)
        return (self.settings.device,) if self.settings.device else KINDS

    def environment(self, asked: Mapping[DeviceKind, Sequence[Case]]) -> Environment:
        """What this machine is; asks what of the cases cannot run here on the way.

        Raises:
            UsageError: the device asked for is not here.
            StoreError: the machine does not answer.
        """
        questions = {kind: [question_of(case) for case in asked.get(kind, ())] for kind in self.kinds}
        known = self._environment
        if known is None or {*questions[known.device_kind]} - self._reasons.keys():
            device = known.device_kind if known else self.settings.device
            found = probe(questions, device=device, threads=self.settings.threads)
            self._reasons |= found.reasons
            self._environment = known or found.environment
        assert self._environment is not None
        return self._environment

    def unavailable(self, case: Case) -> str | None:
        """Why a case that was asked about cannot run here, or None."""
        return unsupported_case(case) or self._reasons[question_of(case)]

    def check_alone(self, on_infra: OnInfra) -> None:
        """End the test if others run at the same time, for they would be measured with it."""
        __tracebackhide__ = True
        number = self.settings.num_pytest_processes
        if number > 1:
            infra(
                f"{number} processes of pytest-xdist run tests at once here, which disturbs what is timed; "
                "run the tests that use bsa_case by themselves, with -n 0",
                on_infra,
            )

    def measurement(self, wanted: Choices, others: Sequence[Choices]) -> Measurement:
        """What a case came to; measured now, together with the others of its test, unless it was before.

        Together, their processes run in turn, so that a ratio is of processes that ran side by side in time.

        Raises:
            UsageError: the device asked for is not here, or the input cannot be made.
            StoreError: results cannot be stored, or the machine does not answer.
        """
        __tracebackhide__ = True
        self.check_alone(self.settings.on_infra)
        asked = {kind: [choices[kind].case for choices in (wanted, *others)] for kind in self.kinds}
        kind = self.environment(asked).device_kind
        check_inputs(asked[kind])
        declared = wanted[kind]
        key = self._key(declared)
        if key not in self._measured:
            limit_s = declared.time_limit_s
            alike = {self._key(each): each for each in (declared, *(choices[kind] for choices in others))}
            self._measure(
                {
                    other: each
                    for other, each in alike.items()
                    if other not in self._measured and (other[1:], each.time_limit_s) == (key[1:], limit_s)
                }
            )
        return self._measured[key]

    def _key(self, declared: Declared) -> _Key:
        return _Key(declared.case.case_hash, declared.profile, declared.num_processes or self.settings.processes)

    def _measure(self, wanted: Mapping[_Key, Declared]) -> None:
        """One run of cases of one profile, number of processes and time limit."""
        assert self._environment is not None
        check_writable(self.settings.results)
        self._num_runs += 1
        first, declared = next(iter(wanted.items()))
        run_settings = RunSettings(
            suite=NAME,
            suite_title="Cases of pytest",
            command=("pytest",),
            device=DeviceModel.of(self._environment),
            profile=first.profile,
            num_processes=first.num_processes,
            threads=self.settings.threads,
            case_limit_s=declared.time_limit_s,
        )
        # Two sessions may begin in the same second.
        name = f"{default_run_id(NAME)}-{self._num_runs}-{secrets.token_hex(2)}"
        with RunWriter.create(self.settings.results, name) as writer:
            outcome = execute(
                [each.case for each in wanted.values()],
                run_settings,
                self._environment,
                unavailable=self.unavailable,
                writer=writer,
                progress=make_progress(plain=True),
            )
            folder = writer.folder
        if outcome.exit_code == EXIT_INTERRUPTED:
            pytest.exit(f"bsa_case: {outcome.messages[0]}")
        rows = {row.result.case_hash: row for row in derive(read_run(folder).latest())}
        self._measured |= {key: Measurement(rows[key.case_hash], folder) for key in wanted}


def infra(message: str, on_infra: OnInfra) -> None:
    """End the test because of the machine: it says nothing of the code, so it never passes."""
    __tracebackhide__ = True
    ended: Callable[[str], None] = pytest.skip if on_infra == "skip" else pytest.fail
    ended(f"INFRA_ERROR: {message}")
