"""Which speed-ups are verdicts: over the fastest dense engine, undisturbed, and with an interval on one side of 1x."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from bsa_bench.report.labels import Labels, faster_words, interval_text, join_words
from bsa_bench.result import Case, Status
from bsa_bench.run.estimate import assumed_rate
from bsa_bench.run.job import DeviceKind
from bsa_bench.store.derive import Ratio, Row
from bsa_bench.units import format_ratio

HOLDS_ONE = "the interval holds 1x"


class Verdicts:
    """Judges the speed-ups of a run's rows.

    Args:
        rows: all of the run, as `derive` gives them.
        device_kind: of the run; where two dense engines never met, the table of predictions says which is faster.
    """

    def __init__(self, rows: Sequence[Row], device_kind: DeviceKind) -> None:
        self._device_kind = device_kind
        self._measured: dict[tuple[str, str, bool], dict[str, Row]] = {}
        self._left: dict[tuple[str, str, bool], list[Case]] = {}
        for row in rows:
            case = row.result.case
            if row.is_dense and row.is_correct:
                self._measured.setdefault(_rivals(case), {})[case.implementation] = row
            elif row.is_dense and row.result.status is Status.NOT_MEASURED and case.claims.timed:
                self._left.setdefault(_rivals(case), []).append(case)

    def num_dense(self, case: Case) -> tuple[int, int]:
        """How many dense engines were measured for what the case is compared with, and how many were to be."""
        measured = len(self._measured.get(_rivals(case), {}))
        return measured, measured + len(self._left.get(_rivals(case), []))

    def dense_name(self, row: Row, labels: Labels, *, quote: Callable[[str], str] = str) -> str:
        """`full@flex`, or where others were left `the fastest dense measured (1 of 4), full@flex`."""
        assert row.dense is not None
        name = quote(labels.of(row.dense.result.case))
        measured, asked = self.num_dense(row.result.case)
        return name if measured == asked else f"the fastest dense measured ({measured} of {asked}), {name}"

    def baseline(self, row: Row) -> str:
        """`baseline` for the row that others are compared with, `baseline (1 of 4)` where dense engines were left."""
        return f"baseline{self.share_measured(row.result.case)}"

    def share_measured(self, case: Case) -> str:
        """` (1 of 4)` where one of four dense engines was measured for what a case is compared with; else nothing."""
        measured, asked = self.num_dense(case)
        return f" ({measured} of {asked})" if measured < asked else ""

    def doubt(self, row: Row) -> str | None:
        """Why the speed-up of a row is no verdict; null where it is one.

        Raises:
            ValueError: the row has no speed-up.
        """
        if row.speedup is None or row.dense is None:
            raise ValueError(f"row: expected one with a speed-up, got {row.result.case_id}")
        if faster := self.faster_left(row):
            return f"{join_words(faster)} {'is' if len(faster) == 1 else 'are'} expected to be faster and not measured"
        if doubts := dict.fromkeys([*row.doubts, *row.dense.doubts]):
            return f"{join_words(list(doubts))} while timed" if "disturbed" in doubts else join_words(list(doubts))
        return HOLDS_ONE if holds_one(row.speedup) else None

    def faster_left(self, row: Row) -> list[str]:
        """The dense engines that were left and are expected to be faster than the one that the row is compared with."""
        if row.dense is None:
            return []
        left = self._left.get(_rivals(row.result.case), [])
        return [case.implementation for case in left if self._is_faster(case, row.dense)]

    def words(self, row: Row, labels: Labels, *, quote: Callable[[str], str] = str, strong: str = "") -> str:
        """`4.31x faster than full@sdpa-flash (one process)`, or what was measured and why it is no verdict."""
        assert row.speedup is not None
        if why := self.doubt(row):
            return f"no verdict, {why}: {self.measured(row, labels, quote=quote)}"
        name = self.dense_name(row, labels, quote=quote)
        return f"{strong}{faster_words(row.speedup.value)}{strong} {name} {interval_text(row.speedup)}"

    def measured(self, row: Row, labels: Labels, *, quote: Callable[[str], str] = str) -> str:
        """`4.31x over full@sdpa-flash (one process)`, whatever it is worth."""
        assert row.speedup is not None
        name = self.dense_name(row, labels, quote=quote)
        return f"{format_ratio(row.speedup.value)} over {name} {interval_text(row.speedup)}"

    def _is_faster(self, left: Case, measured: Row) -> bool:
        """By where both were measured in this run, at the nearest length; else by the table of predictions."""
        other = measured.result.case
        met = [
            (abs(math.log(there.num_tokens / measured.num_tokens)), there.whole.median / own.whole.median)
            for (_, passes, _), rows in self._measured.items()
            if passes == left.passes
            and (own := rows.get(left.implementation))
            and (there := rows.get(other.implementation))
            and own.whole
            and there.whole
        ]
        if met:
            return min(met)[1] > 1
        return assumed_rate(left, self._device_kind) > assumed_rate(other, self._device_kind)


def holds_one(ratio: Ratio) -> bool:
    """Whether the interval of a ratio leaves open which of the two is faster."""
    return ratio.low <= 1 <= ratio.high


def _rivals(case: Case) -> tuple[str, str, bool]:
    return case.workload.digest, case.passes, case.claims.causal
