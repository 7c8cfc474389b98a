"""The rules of tier 1: counters equal the baseline's, and a call takes hardly more Python calls than before."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence

from pydantic import JsonValue

from bsa_bench.gate.counters_record import CaseCounters, HostCost, Launch
from bsa_bench.gate.verdict import Change, Check, Verdict

CALLS_LIMIT = 0.05
"""How many more Python calls a pass may take: 0.05 is 5 %."""
EQUAL = "must equal the baseline"
FEW_CALLS = f"may grow by {CALLS_LIMIT:.0%}"
COUNTABLE = "must be countable, as it was in the baseline"
_MODULES_TOLD = 5


def compare_counters(base: Sequence[CaseCounters], head: Sequence[CaseCounters], *, with_host: bool) -> list[Check]:
    """Compare all cases, in the order of the head; then those that only the base has.

    Args:
        base, head: the sides.
        with_host: whether host costs compare, which they do between the same versions alone.
    """
    before, names = {case.name: case for case in base}, {case.name for case in head}
    checks = [compare_case(before.get(case.name), case, with_host=with_host) for case in head]
    gone = (case for case in base if case.name not in names)
    return checks + [
        Check(tier=1, name=case.name, verdict=Verdict.WARNING, reason="in the baseline, and not counted any more")
        for case in gone
    ]


def compare_case(base: CaseCounters | None, head: CaseCounters, *, with_host: bool) -> Check:
    """Compare one case; without a base it is new."""
    if head.reason is not None and (base is None or base.reason is not None):
        return Check(tier=1, name=head.name, verdict=Verdict.NOT_MEASURED, reason=head.reason)
    if base is None:
        return Check(tier=1, name=head.name, verdict=Verdict.WARNING, reason="new: the baseline does not have it")
    if base.reason is not None:
        return Check(tier=1, name=head.name, verdict=Verdict.NOT_MEASURED, reason=f"base: {base.reason}")
    if head.reason is not None:
        change = Change(metric="counted", base=True, head=False, severity="fail", rule=COUNTABLE)
        return Check(tier=1, name=head.name, verdict=Verdict.FAILED, reason=head.reason, changes=(change,))
    changes = list(_exact(_figures(base), _figures(head)))
    launches, lines = _launch_changes(base.launches, head.launches)
    changes, detail = changes + launches, list(lines)
    if with_host:
        host, lines = _host_changes(base.host, head.host)
        changes, detail = changes + host, detail + lines
    failed = any(change.severity == "fail" for change in changes)
    changes.sort(key=lambda change: change.severity != "fail")
    verdict = Verdict.FAILED if failed else Verdict.SAME if changes else Verdict.UNCHANGED
    return Check(tier=1, name=head.name, verdict=verdict, changes=tuple(changes), detail=tuple(detail))


def _figures(case: CaseCounters) -> dict[str, JsonValue]:
    """Work and traffic by name; a method's own counters among them."""
    work = {} if case.work is None else case.work.model_dump(mode="json")
    counters = work.pop("counters", {})
    traffic = {} if case.traffic is None else case.traffic.model_dump(mode="json")
    return work | {f"counters.{name}": value for name, value in counters.items()} | traffic


def _exact(base: Mapping[str, JsonValue], head: Mapping[str, JsonValue], prefix: str = "") -> Iterator[Change]:
    """A failed change for every figure that is not the same; null where a side has none."""
    for name in dict.fromkeys([*base, *head]):
        if base.get(name) != head.get(name):
            yield Change(metric=prefix + name, base=base.get(name), head=head.get(name), severity="fail", rule=EQUAL)


def _launch_changes(base: Sequence[Launch], head: Sequence[Launch]) -> tuple[list[Change], list[str]]:
    """What differs between the launches; with other kernels, or another order of them, the two lists as a diff."""
    if [each.kernel for each in base] != [each.kernel for each in head]:
        change = Change(metric="launches", base=len(base), head=len(head), severity="fail", rule=EQUAL)
        sides = [[f"{each.kernel} {list(each.grid)}" for each in side] for side in (base, head)]
        lines = difflib.unified_diff(sides[0], sides[1], lineterm="", n=1)
        return [change], [line for line in lines if not line.startswith(("---", "+++", "@@"))]
    changes: list[Change] = []
    for number, (a, b) in enumerate(zip(base, head, strict=True), start=1):
        prefix = f"launch {number} {a.kernel} "
        changes += _exact(_of_launch(a), _of_launch(b), prefix)
    return changes, []


def _of_launch(launch: Launch) -> dict[str, JsonValue]:
    return {"grid": list(launch.grid), "arguments": launch.arguments, **launch.options}


def _host_changes(base: HostCost | None, head: HostCost | None) -> tuple[list[Change], list[str]]:
    if base is None or head is None:
        return list(_exact({"host cost": base is not None}, {"host cost": head is not None})), []
    changes = list(_exact(base.torch_ops, head.torch_ops))
    changes += _exact({"peak_bytes": base.peak_bytes}, {"peak_bytes": head.peak_bytes})
    if base.python_calls == head.python_calls:
        return changes, []
    is_more = head.python_calls > base.python_calls * (1 + CALLS_LIMIT)
    change = Change(
        metric="python_calls",
        base=base.python_calls,
        head=head.python_calls,
        severity="fail" if is_more else "info",
        rule=FEW_CALLS,
    )
    return [*changes, change], _changed_modules(base.calls_by_module, head.calls_by_module) if is_more else []


def _changed_modules(base: Mapping[str, int], head: Mapping[str, int]) -> list[str]:
    """The modules whose functions are called more often, those that grew most first."""
    grown = {name: head[name] - base.get(name, 0) for name in head if head[name] > base.get(name, 0)}
    most = sorted(grown, key=lambda name: -grown[name])[:_MODULES_TOLD]
    return [f"{name}: {base.get(name, 0)} -> {head[name]} calls" for name in most]
