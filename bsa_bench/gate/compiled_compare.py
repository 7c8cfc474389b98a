"""Compare what kernels compiled to, configuration by configuration: a check for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from bsa_bench.gate.compiled_figures import CodeFigures, CompiledFigures, Key, Places, places_of
from bsa_bench.gate.compiled_rules import check_alone, compare_code
from bsa_bench.gate.verdict import Change, Check, Verdict
from bsa_bench.static.analyse import Analysis
from bsa_bench.static.diff import CodeDiff, code_diff

Look = Callable[[Key], Analysis | None]
"""Finds the code of a configuration again; None where only its figures are kept."""
_DETAIL_LINES = 200
"""Of a changed loop that are kept with a check."""


def _nowhere(_: Key) -> Analysis | None:
    return None


def compare_compiled(
    base: Sequence[CompiledFigures],
    head: Sequence[CompiledFigures],
    *,
    base_code: Look = _nowhere,
    head_code: Look = _nowhere,
) -> list[Check]:
    """Apply the rules to each configuration and architecture, in the order of `head`; what `base` alone has comes last.

    Args:
        base, head: the figures of both sides.
        base_code, head_code: find the code that figures are of, asked for where it differs: source lines come from the
            head's, changed instructions from both.

    Returns:
        A check for each. `FAILED` broke a rule, `SAME` has other code and broke none.
    """
    before, after = ({each.key: each for each in side} for side in (base, head))
    checks = [_check(before.get(key), each, base_code, head_code) for key, each in after.items()]
    gone = [each for key, each in before.items() if key not in after]
    return checks + [_as_check(each, Verdict.WARNING, "removed: the head has no such configuration") for each in gone]


def _check(base: CompiledFigures | None, head: CompiledFigures, base_code: Look, head_code: Look) -> Check:
    if head.code is None or (base is not None and base.code is None):
        return _check_failure(base, head)
    if base is None:
        changes = check_alone(head.code, head.arch, _places(head_code(head.key)))
        return _as_check(head, _verdict(changes), "new: the base has no such configuration", changes)
    assert base.code is not None
    if base.code.footprint == head.code.footprint:
        return _as_check(head, Verdict.UNCHANGED)
    theirs, ours = base_code(base.key), head_code(head.key)
    diff = _diff(theirs, ours)
    places = _places(ours)
    if diff is not None and diff.added and base.code.main and head.code.main:
        places = replace(places, instructions=str(max(diff.added, key=lambda line: diff.added[line])))
    changes = compare_code(base.code, head.code, head.arch, places)
    reason = _reason(base.code, head.code, changes)
    return _as_check(head, _verdict(changes), reason, changes, _detail(diff))


def _check_failure(base: CompiledFigures | None, head: CompiledFigures) -> Check:
    """Where a side has no code."""
    if head.failure is None:
        assert base is not None
        assert base.failure is not None
        return _as_check(head, Verdict.SAME, f"compiles, which the base does not: {base.failure.message}")
    if base is not None and base.failure is not None:
        return _as_check(head, Verdict.NOT_MEASURED, f"compiles on neither side: {head.failure.message}")
    if head.failure.kind == "unread":
        return _as_check(head, Verdict.NOT_MEASURED, f"compiles to what cannot be read: {head.failure.message}")
    start = "new, and does not compile" if base is None else "does not compile any more"
    return _as_check(head, Verdict.FAILED, f"{start} ({head.failure.kind}): {head.failure.message}")


def _as_check(
    each: CompiledFigures,
    verdict: Verdict,
    reason: str | None = None,
    changes: tuple[Change, ...] = (),
    detail: tuple[str, ...] = (),
) -> Check:
    return Check(
        tier=0, name=each.name, where=each.arch, verdict=verdict, reason=reason, changes=changes, detail=detail
    )


def _verdict(changes: Sequence[Change]) -> Verdict:
    found = {change.severity for change in changes}
    if "fail" in found:
        return Verdict.FAILED
    return Verdict.WARNING if "warn" in found else Verdict.SAME


def _reason(base: CodeFigures, head: CodeFigures, changes: Sequence[Change]) -> str | None:
    if any(change.severity == "fail" for change in changes):
        return None
    if base.digest == head.digest:
        return "the same instructions; other resources"
    if base.main and head.main and base.main.digest == head.main.digest:
        return "the same main loop; other code outside it"
    return "other instructions"


def _places(code: Analysis | None) -> Places:
    return Places() if code is None else places_of(code)


def _diff(base: Analysis | None, head: Analysis | None) -> CodeDiff | None:
    """Of the main loops; of kernels without one, of what is outside loops."""
    if base is None or head is None or (base.reading.main is None) != (head.reading.main is None):
        return None
    digests = {each.reading.main_digest or each.reading.digest for each in (base, head)}
    return None if len(digests) == 1 else code_diff(base, head)


def _detail(diff: CodeDiff | None) -> tuple[str, ...]:
    if diff is None or len(diff.lines) <= _DETAIL_LINES:
        return diff.lines if diff else ()
    more = len(diff.lines) - _DETAIL_LINES
    return (*diff.lines[:_DETAIL_LINES], f"... and {more} more lines; bsa-bench static diff shows all")
