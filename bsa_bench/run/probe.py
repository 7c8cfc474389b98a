"""Ask a worker process what this machine is and what cannot run on it, so that the command line never loads torch."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bsa_bench.child_process import PACKAGE, check_package, child_environment
from bsa_bench.errors import MachineError, StoreError, UsageError
from bsa_bench.result import Case, Ceiling, Environment
from bsa_bench.run.job import DeviceKind
from bsa_bench.run.settings import WORKER_COMMAND

#: [implementation, dtype, head_dim, backward]
Question = tuple[str, str, int, bool]
PROBE_LIMIT_S = 300


@dataclass(frozen=True)
class Probe:
    """The environment, and by question why that cannot run here (None: it can).

    Args:
        troubles: what is in the way of measuring on this machine.
        notes: what of that could not be looked at.
        ceilings: what the device delivers, where that was asked for.
    """

    environment: Environment
    reasons: dict[Question, str | None]
    troubles: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    ceilings: tuple[Ceiling, ...] = ()

    def unavailable(self, case: Case) -> str | None:
        """The reason why a case cannot run here, or None."""
        return self.reasons[question_of(case)]


def question_of(case: Case) -> Question:
    """What has to be known about a case."""
    return case.implementation, case.workload.dtype, case.workload.head_dim, case.passes != "forward"


def probe(
    questions: Mapping[DeviceKind, Iterable[Question]],
    *,
    device: DeviceKind | None,
    threads: int | None,
    must_be_ready: bool = True,
    with_ceilings: bool = False,
    command: tuple[str, ...] = WORKER_COMMAND,
    environment: Mapping[str, str] | None = None,
    package: Path = PACKAGE,
) -> Probe:
    """Start a worker that describes the machine and answers the questions for the device it finds.

    Args:
        device: the kind to use, or None for a GPU where there is one.
        must_be_ready: refuse a GPU on which others compute, or that is held back.
        with_ceilings: measure matrix products and a copy too, on a machine that is ready.
        command, environment: of the worker; None for the environment of this process.
        package: the folder of the `bsa_bench` that the worker is to import.

    Raises:
        UsageError: the device asked for is not here, or the worker imports another `bsa_bench`.
        MachineError: it is not in a state to be measured.
        StoreError: the worker failed; the message ends with its last words.
    """
    request = {
        "threads": threads,
        "device": device,
        "ceilings": with_ceilings,
        "questions": {kind: sorted(set(asked)) for kind, asked in questions.items()},
    }
    try:
        done = subprocess.run(
            [*command, "--probe"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            check=False,
            timeout=PROBE_LIMIT_S,
            env=child_environment() if environment is None else environment,
        )
    except subprocess.TimeoutExpired:
        raise StoreError(f"the probe of this machine did not answer within {PROBE_LIMIT_S} s") from None
    if done.returncode != 0:
        last = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise StoreError(f"the probe of this machine failed with exit code {done.returncode}:\n{last}")
    try:
        answer = json.loads((done.stdout.splitlines() or [""])[-1])
    except ValueError:
        said = done.stdout[-200:]
        raise StoreError(f"the probe of this machine gave no answer, its output ends with {said!r}") from None
    check_package(answer.get("package"), who="the probe of this machine", expected=package)
    if "error" in answer:
        raise UsageError(str(answer["error"]))
    found = Probe(
        Environment.model_validate(answer["environment"]),
        {(q[0], q[1], q[2], q[3]): q[4] for q in answer["reasons"]},
        troubles=tuple(answer["troubles"]),
        notes=tuple(answer["notes"]),
        ceilings=tuple(map(Ceiling.model_validate, answer["ceilings"])),
    )
    if must_be_ready and found.troubles:
        raise MachineError(f"{found.environment.device_name} is not measured: {'; '.join(found.troubles)}")
    return found
