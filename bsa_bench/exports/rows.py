"""What every export takes from a run: its rows with a verified latency, the samples of each by process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bsa_bench.errors import StoreError
from bsa_bench.result import Case, Environment
from bsa_bench.store.derive import Latency, Ratio, Row, derive
from bsa_bench.store.frame import environment_of, flags
from bsa_bench.store.reader import Run

#: Marks of a time that may be off, however narrow its interval.
DOUBTS = {
    "is_disturbed": "others took the processor",
    "is_throttled": "the device throttled",
    "is_bimodal": "the processes fall into two groups",
    "timers_disagree": "two timers disagree",
}


@dataclass(frozen=True)
class ExportRow:
    """A case with a verified latency.

    Attributes:
        row: what was derived from its result.
        environment: where it was measured.
        processes: the samples of each process, in seconds and in order.
    """

    row: Row
    environment: Environment
    processes: list[list[float]]

    @property
    def case(self) -> Case:
        """What was measured."""
        return self.row.result.case

    @property
    def name(self) -> str:
        """The case's id: readable, unique in a run, and the same in every run of every version."""
        return self.row.result.case_id

    @property
    def samples(self) -> list[float]:
        """The samples of all processes, one process after the other."""
        return [sample for process in self.processes for sample in process]

    @property
    def latency(self) -> Latency:
        """The median of the process medians with its interval, and what the samples together say."""
        assert self.row.whole is not None
        return self.row.whole

    @property
    def speedup(self) -> Ratio | None:
        """Over the fastest dense row; null where there is none, and for that row itself."""
        return None if self.row.is_baseline else self.row.speedup

    @property
    def peak_bytes(self) -> int | None:
        """Peak memory above the inputs."""
        memory = self.row.result.memory
        return memory.peak_above_inputs_bytes if memory else None

    @property
    def executed_tflop_per_s(self) -> Ratio | None:
        """FLOP executed over the median, in 1e12/s, and over the ends of its interval."""
        work, own = self.row.result.work, self.latency
        if work is None or work.flops_executed is None or own.low <= 0:
            return None
        tflop = work.flops_executed / 1e12
        return Ratio(tflop / own.median, tflop / own.high, tflop / own.low, own.num_processes, own.interval_level)

    @property
    def flags(self) -> dict[str, bool | None]:
        """What a report marks the row with."""
        return flags(self.row)

    @property
    def doubts(self) -> list[str]:
        """Why the latency is to be doubted, in a few words each; empty for most rows."""
        marks = self.flags
        return [words for name, words in DOUBTS.items() if marks[name]] + ["warm-up not settled"] * (
            marks["settled"] is False
        )

    @property
    def axes(self) -> dict[str, str | int | float | bool]:
        """What sets the case apart, as flat values."""
        case, workload = self.case, self.case.workload
        axes: dict[str, str | int | float | bool] = {
            "implementation": case.implementation,
            "pass": case.passes,
            "tokens": workload.num_tokens,
            "grid": "x".join(map(str, workload.token_grid)),
            "batch": workload.batch,
            "heads": workload.heads,
            "head_dim": workload.head_dim,
            "dtype": workload.dtype,
            "input": workload.input.label,
        }
        for name, value in case.options.items():
            if value is not None:
                axes[name] = value if isinstance(value, str | int | float) else _text(value)
        return axes


def measured_rows(run: Run, derived: Sequence[Row] | None = None) -> list[ExportRow]:
    """Take the rows with a verified latency, in the order of execution.

    Args:
        run: what was measured.
        derived: all rows of it, where they were derived already.

    Raises:
        StoreError: a row's environment is described nowhere in the run, or two cases have one name.
    """
    rows = [_export_row(run, row) for row in (derive(run.latest()) if derived is None else derived) if row.is_correct]
    hashes: dict[str, str] = {}
    for row in rows:
        case_hash = row.row.result.case_hash
        if hashes.setdefault(row.name, case_hash) != case_hash:
            raise StoreError(
                f"{run.path}: the cases {hashes[row.name]} and {case_hash} are both named {row.name}, expected names "
                "of their own; the label() of the method must tell its options apart"
            )
    return rows


def _export_row(run: Run, row: Row) -> ExportRow:
    environment = environment_of(run, row.result)
    if environment is None:
        raise StoreError(
            f"{run.path}: case {row.result.case_id} was measured in the environment {row.result.env_hash}, "
            "which no run line describes"
        )
    return ExportRow(row, environment, [timing.samples for timing in row.timings])


def _text(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, Sequence) else str(value)
