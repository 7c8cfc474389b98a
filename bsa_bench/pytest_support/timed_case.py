"""What a test holds in its hands: a case that is measured when something of it is first asked for."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NoReturn

import pytest

from bsa_bench.errors import UsageError
from bsa_bench.gate.verdict import Check
from bsa_bench.pytest_support.not_slower import judge
from bsa_bench.pytest_support.session import Choices, Measurement, Session
from bsa_bench.pytest_support.settings import BsaTimingWarning, Comparison, OnDoubt, OnInfra
from bsa_bench.report.labels import latency_text, processes_text
from bsa_bench.result import Status
from bsa_bench.store.derive import Latency, Ratio, Row, WorstError, cohort
from bsa_bench.store.latency import over

_CANNOT_RUN = frozenset({Status.UNSUPPORTED, Status.SKIPPED_OOM})
_COHORT = ("workload", "pass", "environment", "timer", "cache state", "causality")
"""What `cohort` holds, in words."""


class TimedCase:
    """A case of `bsa_case`.

    Nothing runs before a figure is asked for; then the case is measured together with the others that the test has
    declared, process by process in turn, unless the session has measured it before. Where the case cannot run here the
    test is skipped with the reason; where it should have run and did not, the test fails. A figure of speed of a case
    that has none here skips the test too: no test passes on what was not measured.
    """

    def __init__(self, session: Session, choices: Choices, others: Sequence[TimedCase]) -> None:
        self.choices = choices
        self._session, self._others = session, others
        self._measurement: Measurement | None = None

    def __repr__(self) -> str:
        if self._measurement is None:
            return f"<{self.case_id}>"
        row = self._measurement.row
        reason = f", {row.result.reason}" if row.result.reason else ""
        figures = f" {latency_text(row.whole)}, {processes_text(row.num_processes)}" if row.whole else reason
        return f"<{self.case_id}: {row.status_word}{figures}>"

    @property
    def case_id(self) -> str:
        """The readable name of the case; of the first kind of device as long as that is not known."""
        return next(self.choices[kind].case.case_id for kind in self._session.kinds if kind in self.choices)

    @property
    def row(self) -> Row:
        """All that is known of it, whatever it came to; ends no test."""
        return self._measured.row

    @property
    def is_measured(self) -> bool:
        """Whether something of it was asked for already."""
        return self._measurement is not None

    @property
    def is_correct(self) -> bool:
        """Whether its output, and gradients of a pass with a backward, kept the error budget in every process.

        Skips the test where the case cannot run here; fails it where the case ended before it was verified.
        """
        __tracebackhide__ = True
        row = self._ran()
        passed = [bool(each.correctness and each.correctness.passed) for each in row.processes]
        return row.result.status.is_success and all(passed)

    @property
    def error(self) -> WorstError | None:
        """The checked output that comes nearest to its error budget, or passes it farthest, of all processes."""
        __tracebackhide__ = True
        return self._ran().worst_error

    @property
    def density(self) -> float | None:
        """Pairs computed / all pairs, of the plan that was used; None of a method for which that means nothing."""
        __tracebackhide__ = True
        return self._ran().density

    @property
    def latency(self) -> Latency:
        """Seconds of the whole operator over its processes: `median`, and its interval `low` to `high`."""
        __tracebackhide__ = True
        row = self._timed()
        assert row.whole is not None
        return row.whole

    def speedup_over(self, other: TimedCase) -> Ratio:
        """How many times faster it is than another case of the same workload and pass: `value`, `low`, `high`.

        Measured in one run, the interval is of the ratios within rounds of processes. Of cases that were measured in
        different runs it divides the far ends of their intervals.

        Raises:
            UsageError: the two are not comparable, or a time is zero.
        """
        __tracebackhide__ = True
        own, base = self._timed(), other._timed()
        for what, mine, theirs in zip(_COHORT, cohort(own), cohort(base), strict=True):
            if mine != theirs:
                raise UsageError(
                    f"speedup_over: {self.case_id} and {other.case_id} differ in {what}, expected the same"
                )
        assert own.whole is not None
        assert base.whole is not None
        ratio = over(base.whole, own.whole)
        if ratio is None:
            raise UsageError(f"speedup_over: {self!r} and {other!r}: expected times above zero")
        if self._measured.run_folder != other._measured.run_folder:
            low, high = base.whole.low / own.whole.high, base.whole.high / own.whole.low
            level = min(base.whole.interval_level, own.whole.interval_level)
            ratio = Ratio(base.whole.median / own.whole.median, low, high, ratio.num_processes, level)
        if ratio.num_processes == 1:
            warnings.warn(
                f"{self.case_id}: a speed-up of one process each says nothing of how far another one would be off; "
                "raise bsa_processes",
                BsaTimingWarning,
                stacklevel=2,
            )
        return ratio

    def assert_not_slower(
        self,
        than: str,
        *,
        limit: float | None = None,
        on_ambiguous: OnDoubt = "fail",
        on_infra: OnInfra | None = None,
        budget_s: float = 420.0,
    ) -> Check:
        """Fail unless the case is as fast as at a git revision, or faster; by the two-stage rule of `bsa-bench gate`.

        Both run here and now, in pairs of live processes that call in turn, with dense attention as a control. A
        failure says the ratio with its interval, the pairs, and which slow-down so many of them find.

        Args:
            than: a revision of the repository around the working directory.
            limit: the least relative change that counts, 0.05 for 5 %; None for the gate's of this device.
            on_ambiguous: what the test comes to if the pairs tell neither the same nor a change.
            on_infra: what it comes to if the machine disturbed the measurement; None for the session's `bsa_on_infra`.
            budget_s: after which no pair is started any more.

        Returns:
            The check, of verdict SAME, FASTER, UNCHANGED (the sources are the same, nothing was timed), or WARNING.

        Raises:
            UsageError: there is no such revision, or an argument is wrong.
            BenchError: a process of a side cannot be started.
        """
        __tracebackhide__ = True
        comparison = Comparison(than=than, limit=limit, budget_s=budget_s)
        return judge(
            self._session,
            self.choices,
            comparison,
            on_ambiguous=on_ambiguous,
            on_infra=on_infra or self._session.settings.on_infra,
        )

    def properties(self) -> dict[str, object]:
        """What a report of the test may keep of it, empty if nothing was measured; seconds."""
        if self._measurement is None:
            return {}
        row = self._measurement.row
        known: dict[str, object] = {"status": row.status_word, "run": str(self._measurement.run_folder)}
        if row.whole is not None:
            known |= {"median_s": row.whole.median, "low_s": row.whole.low, "high_s": row.whole.high}
            known |= {"interval_level": row.whole.interval_level, "num_processes": row.num_processes}
        return known

    @property
    def _measured(self) -> Measurement:
        __tracebackhide__ = True
        if self._measurement is None:
            self._measurement = self._session.measurement(self.choices, [other.choices for other in self._others])
            line = repr(self).strip("<>")
            if line not in self._session.lines:
                self._session.lines.append(line)
        return self._measurement

    def _ran(self) -> Row:
        """Its row, if it ran far enough to be verified; ends the test otherwise."""
        __tracebackhide__ = True
        row = self._measured.row
        status, reason = row.result.status, row.result.reason or row.result.status.meaning
        if status in _CANNOT_RUN:
            pytest.skip(f"{self.case_id} is {status} here: {reason}")
        if status.is_failure or status is Status.NOT_MEASURED:
            self._fail(row)
        return row

    def _timed(self) -> Row:
        """Its row with a verified time; ends the test otherwise."""
        __tracebackhide__ = True
        row = self._ran()
        if row.result.status is Status.WRONG or row.is_unverified:
            self._fail(row)
        if row.whole is None:
            reason = row.result.reason or row.result.status.meaning
            pytest.skip(f"{self.case_id} has no time here, it is {row.result.status}: {reason}")
        if row.doubts:
            share = f", {row.other_cpu_share:.0%} of the processor" if row.is_disturbed else ""
            message = f"{self.case_id}: {' and '.join(row.doubts)}{share}: its time is not its own alone"
            warnings.warn(message, BsaTimingWarning, stacklevel=3)
        return row

    def _fail(self, row: Row) -> NoReturn:
        __tracebackhide__ = True
        result = row.result
        trace = f"\n{result.traceback}" if result.traceback else ""
        log = f"\nresults and logs: {self._measured.run_folder}"
        pytest.fail(f"{self.case_id} is {row.status_word}: {result.reason or result.status.meaning}{trace}{log}")
