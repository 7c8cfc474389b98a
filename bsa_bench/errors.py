"""Domain errors; each carries the exit code with which the command line ends."""

from __future__ import annotations

from typing import ClassVar

EXIT_OK = 0
EXIT_UNEXPECTED = 1
EXIT_SLOWER = 1
EXIT_USAGE = 2
EXIT_WRONG = 3
EXIT_NOTHING_MEASURED = 4
EXIT_INFRASTRUCTURE = 5
EXIT_CALIBRATION_NEEDED = 6
EXIT_AMBIGUOUS = 7
EXIT_SOME_FAILED = 8
EXIT_REPORT_FAILED = 9
EXIT_INTERRUPTED = 130

EXIT_CODES: dict[int, str] = {
    EXIT_OK: "every case that can run here was measured (or was already), and was correct",
    EXIT_UNEXPECTED: (
        "gate and compare: at least one case is slower, or a rule of compiled code or counters is broken; else "
        "unexpected: a defect of bsa-bench (with a traceback), or a pipe that its reader closed"
    ),
    EXIT_USAGE: "usage: a wrong flag, suite, axis, implementation, input or run name; nothing was run",
    EXIT_WRONG: "at least one case gave a wrong result (recorded as WRONG, never as fast)",
    EXIT_NOTHING_MEASURED: "nothing was measured: no case can run here",
    EXIT_INFRASTRUCTURE: (
        "infrastructure: the results folder cannot be written or was lost during the run, the disk is full, or the GPU "
        "is not in a state to be measured"
    ),
    EXIT_CALIBRATION_NEEDED: "gate: this machine was not calibrated, or is too noisy; run bsa-bench noise",
    EXIT_AMBIGUOUS: "gate --ambiguous ambiguous, bisect: what is left can be told neither way",
    EXIT_SOME_FAILED: "some cases crashed, timed out or ran out of memory; they are recorded, the others are measured",
    EXIT_REPORT_FAILED: "run: every case was measured and is stored, but the report could not be written",
    EXIT_INTERRUPTED: "interrupted (Ctrl-C); what was measured is kept, --resume goes on",
}


class BenchError(Exception):
    """A fact of the domain that ends a command with a message and an exit code, not with a traceback."""

    exit_code: ClassVar[int] = EXIT_UNEXPECTED


class UsageError(BenchError):
    """What was asked for does not exist or contradicts itself."""

    exit_code = EXIT_USAGE


class SuiteError(UsageError):
    """A suite file is wrong; the message names the file, the key, the value and what was expected."""


class UnsupportedError(BenchError):
    """An implementation cannot run a case; found only where the case's own sizes are known."""


class InputError(UsageError):
    """An input (clip, tensor file) is missing or does not fit the workload."""


class MachineError(BenchError):
    """The machine is not in a state to be measured: others use it, or it is held back."""

    exit_code = EXIT_INFRASTRUCTURE


class StoreError(BenchError):
    """The results folder cannot be written or read."""

    exit_code = EXIT_INFRASTRUCTURE
