"""The command that measures one case of a run again."""

from __future__ import annotations

import shlex

from bsa_bench.result import Case, RunLine
from bsa_bench.suite.settings import settings_of

_KEPT_FLAGS = ("--threads", "--time-limit")


def command_again(line: RunLine, case: Case) -> str | None:
    """Write the command that measures this case, and no other, as the run did; null where no suite made the run.

    The suite is the one that the run was started with, a file of the user's included; a run that pytest made has none.
    """
    suite = _flag(line.command, "--suite")
    if line.command[1:2] != ["run"] or suite is None:
        return None
    words = ["bsa-bench", "run", "--suite", suite, "--device", line.environment.device_kind, "--profile", line.profile]
    words += ["--processes", str(line.num_processes)]
    words += [] if line.timer is None else ["--timer", line.timer]
    words += [] if line.cache is None else ["--cache", line.cache]
    for flag in _KEPT_FLAGS:
        value = _flag(line.command, flag)
        words += [flag, value] if value is not None else []
    words += settings_of(case)
    words += [setting for setting in line.command if setting == "limit=off"]
    return shlex.join(words)


def _flag(command: list[str], name: str) -> str | None:
    """The value of a flag, written `--suite quick` or `--suite=quick`."""
    for word, following in zip(command, [*command[1:], None], strict=True):
        if word == name:
            return following
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return None
