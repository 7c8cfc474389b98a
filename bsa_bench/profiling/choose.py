"""Which case is profiled: one of a suite or of a stored run, by its id or by what it implements."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bsa_bench.errors import UsageError
from bsa_bench.result import Case
from bsa_bench.run.job import DeviceKind
from bsa_bench.store.reader import read_run
from bsa_bench.suite import load_suite, override
from bsa_bench.suite.suggest import did_you_mean

_MAX_LISTED = 8


def suite_cases(suite: str, overrides: Sequence[str], device: DeviceKind) -> list[Case]:
    """The cases of a suite on a device."""
    return override(load_suite(suite, device_kind=device), overrides).cases()


def run_cases(folder: Path) -> list[Case]:
    """The cases of a stored run, each once."""
    return list({result.case.case_hash: result.case for result in read_run(folder).latest()}.values())


def choose_case(asked: str, cases: Sequence[Case], *, where: str) -> Case:
    """The case of that id; or the only one of that implementation, or whose id begins with what was asked.

    Raises:
        UsageError: there is none, or there are several; the message lists them.
    """
    by_id = {case.case_id: case for case in cases}
    if asked in by_id:
        return by_id[asked]
    found = [case for case_id, case in by_id.items() if case_id.startswith(asked.rstrip("/") + "/")]
    if len(found) == 1:
        return found[0]
    if not found:
        names = [*by_id, *dict.fromkeys(case.implementation for case in cases)]
        raise UsageError(f"case {asked!r}: {where} has none of this id or implementation{did_you_mean(asked, names)}")
    listed = [f"  {case.case_id}" for case in found[:_MAX_LISTED]]
    more = [f"  and {len(found) - _MAX_LISTED} more"] if len(found) > _MAX_LISTED else []
    lines = "\n".join([*listed, *more])
    raise UsageError(
        f"case {asked!r}: {where} has {len(found)} of these, expected one; give an id, or overrides such as "
        f"passes=forward:\n{lines}"
    )
