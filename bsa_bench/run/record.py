"""Turn what happened to a case in a process into a stored line, in order, and remember its status."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from bsa_bench.result import Case, Environment, Memory, Result, RunLine, Status
from bsa_bench.run.estimate import predict
from bsa_bench.run.resume import files_of
from bsa_bench.run.rounds import Ledger
from bsa_bench.run.settings import RunSettings
from bsa_bench.store.writer import RunWriter


class Recorder:
    """Stores results and numbers them.

    Attributes:
        ledger: the final statuses of all cases and processes; those of before a resume included.
    """

    def __init__(self, writer: RunWriter, environment: Environment, settings: RunSettings, ledger: Ledger) -> None:
        self._writer = writer
        self._environment = environment
        self._settings = settings
        self.next_seq = writer.next_seq
        self.ledger = ledger

    def start(self, asked: Sequence[Case], reasons: dict[str, str], *, seed: int) -> None:
        """Store the run's line; `reasons` says by case hash why a case cannot run here, `seed` is of the order."""
        settings = self._settings
        unavailable = _unavailable(asked, reasons)
        self._writer.append(
            RunLine(
                run_id=self._writer.run_id,
                utc=_utc_now(),
                suite=settings.suite,
                suite_title=settings.suite_title,
                suite_sha256=settings.suite_sha256,
                files=files_of(asked),
                profile=settings.profile,
                command=list(settings.command),
                environment=self._environment,
                num_cases=len(asked),
                num_processes=settings.num_processes,
                seed=seed if settings.num_processes > 1 else None,
                timer=settings.timing.timer if settings.timing else None,
                cache=settings.timing.cache if settings.timing else None,
                ceilings=list(settings.ceilings),
                unavailable=unavailable,
            )
        )

    def take_over(self, case: Case, process_index: int, result: Result) -> Result:
        """Store a worker's result under our own number, case, process and memory prediction."""
        memory = result.memory
        if memory is not None:
            memory = memory.model_copy(update={"predicted_bytes": predict(case, self._settings.device).bytes})
        ours = {"seq": self.next_seq, "case": case, "process_index": process_index, "memory": memory}
        return self._store([result.model_copy(update=ours)])

    def record(
        self,
        case: Case,
        process_index: int,
        status: Status,
        reason: str,
        *,
        traceback: str | None = None,
        wall_s: float | None = None,
    ) -> Result:
        """Store what became of a case that no worker could report."""
        return self._store([self._own(case, process_index, status, reason, traceback=traceback, wall_s=wall_s)])

    def record_all(self, reasons: Sequence[tuple[Case, int, str]], status: Status) -> None:
        """Store cases and processes of them that no worker was started for, in one write."""
        if reasons:
            self._store([self._own(case, index, status, why, place=i) for i, (case, index, why) in enumerate(reasons)])

    def _store(self, results: list[Result]) -> Result:
        self._writer.append(*results)
        self.next_seq += len(results)
        for result in results:
            self.ledger.note(result.case_hash, result.process_index, result.status)
        return results[-1]

    def _own(
        self,
        case: Case,
        process_index: int,
        status: Status,
        reason: str,
        *,
        place: int = 0,
        traceback: str | None = None,
        wall_s: float | None = None,
    ) -> Result:
        estimate = predict(case, self._settings.device)
        memory = Memory(
            inputs_bytes=estimate.inputs_bytes,
            predicted_bytes=estimate.bytes,
            how="predicted",
            reason=f"not measured: {status.meaning}",
        )
        return Result(
            run_id=self._writer.run_id,
            seq=self.next_seq + place,
            utc=_utc_now(),
            case=case,
            case_id=case.case_id,
            case_hash=case.case_hash,
            env_hash=self._environment.hash,
            process_index=process_index,
            status=status,
            reason=reason,
            memory=memory,
            wall_s=wall_s,
            traceback=traceback,
        )


def _unavailable(asked: Sequence[Case], reasons: dict[str, str]) -> dict[str, str]:
    """Reasons by implementation; one that lacks only some passes is named with them."""
    found: dict[tuple[str, str], list[str]] = {}
    for case in asked:
        if case.case_hash in reasons:
            passes = found.setdefault((case.implementation, reasons[case.case_hash]), [])
            passes += [case.passes] * (case.passes not in passes)
    runs = {case.implementation for case in asked if case.case_hash not in reasons}
    return {
        f"{name} ({', '.join(passes)})" if name in runs else name: reason for (name, reason), passes in found.items()
    }


def _utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
