"""Families: an implementation with its options in one pass, at several lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bsa_bench.report.named_tables.material import Material, Source, shape_of
from bsa_bench.result import PASSES, Case, PassName
from bsa_bench.store.derive import Row, cohort, scope
from bsa_bench.workload import short_digest


class GroupKey(NamedTuple):
    """What the rows of a group share: in sorting, shape, pass and run."""

    shape: int
    passes: int
    source: int


@dataclass(frozen=True)
class Family:
    """Rows that differ in length alone."""

    source: Source
    by_tokens: Mapping[int, Row]

    @property
    def case(self) -> Case:
        """Of any of its rows."""
        return next(iter(self.by_tokens.values())).result.case

    @property
    def passes(self) -> PassName:
        """The pass of all its rows."""
        return self.case.passes


Groups = Sequence[tuple[GroupKey, Sequence[Family]]]


def families(material: Material) -> Groups:
    """Families with a latency, by shape (causal ones by themselves), pass and run; dense ones first.

    Of two grids of one length the one that was measured first stands for it.
    """
    shapes: dict[str, int] = {}
    found: dict[GroupKey, dict[str, dict[int, Row]]] = {}
    for place, source in enumerate(material.sources):
        for row in source.rows:
            case = row.result.case
            shape = shapes.setdefault(f"{scope(case.workload)} {case.claims.causal}", len(shapes))
            key = GroupKey(shape, PASSES.index(case.passes), place)
            timers = cohort(row)[2:] if row.whole else (row.result.env_hash,)
            name = short_digest([case.implementation, case.options, timers[0]])
            found.setdefault(key, {}).setdefault(name, {}).setdefault(row.num_tokens, row)
    groups = []
    for key in sorted(found):
        own = [Family(material.sources[key.source], by_tokens) for by_tokens in found[key].values()]
        own = [family for family in own if any(row.whole for row in family.by_tokens.values())]
        if own:
            groups.append((key, sorted(own, key=lambda family: not family.case.claims.is_dense)))
    return groups


def group_title(material: Material, groups: Groups, key: GroupKey) -> str:
    """The pass, and what not all groups share."""
    own = dict(groups)[key]
    title: str = own[0].passes
    if len({each.shape for each, _ in groups}) > 1:
        title += f", {shape_of(own[0].case)}"
    return title + f"; {own[0].source.heading}" * (len(material.sources) > 1)
