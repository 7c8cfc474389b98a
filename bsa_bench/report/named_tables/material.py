"""What named tables are made from: the rows of one or several runs, those of one implementation by their passes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from bsa_bench.report.labels import Labels, shape_label
from bsa_bench.result import PASSES, Case, Environment, PassName
from bsa_bench.store.derive import Row, derive, scope
from bsa_bench.store.frame import environment_of
from bsa_bench.store.reader import Run


@dataclass(frozen=True)
class Source:
    """The rows of a run in one environment, which are compared with each other and with no others.

    `heading` names the device, and what tells the source from others of the same device. `num_unseen` cases of the run
    have no line; they are counted in its first source.
    """

    run: Run
    rows: tuple[Row, ...]
    environment: Environment
    heading: str
    num_unseen: int = 0


@dataclass(frozen=True)
class Entry:
    """An implementation with its options at one workload: its rows by pass."""

    source: Source
    by_pass: Mapping[PassName, Row]

    @property
    def case(self) -> Case:
        """Of any of its passes."""
        return next(iter(self.by_pass.values())).result.case

    @property
    def rows(self) -> list[Row]:
        """Those that have a latency."""
        return [row for row in self.by_pass.values() if row.whole]

    @property
    def is_dense(self) -> bool:
        """Whether it computes dense attention."""
        return self.case.claims.is_dense

    @property
    def first(self) -> Row:
        """Its first measured row in the order of passes: what is the same in all passes is taken from there."""
        return next(self.by_pass[name] for name in PASSES if name in self.by_pass and self.by_pass[name].whole)

    def latency(self, passes: PassName) -> float:
        """Median seconds of a pass; infinite where it has none."""
        row = self.by_pass.get(passes)
        return row.whole.median if row and row.whole and row.is_correct else float("inf")


@dataclass(frozen=True)
class Block:
    """Entries of one run that are compared with each other: one workload, causal ones by themselves."""

    source: Source
    entries: tuple[Entry, ...]

    @property
    def case(self) -> Case:
        """Of any of its entries."""
        return self.entries[0].case

    @property
    def num_tokens(self) -> int:
        """L."""
        return self.case.workload.num_tokens


@dataclass(frozen=True)
class Material:
    """The runs of a table."""

    sources: tuple[Source, ...]

    @cached_property
    def labels(self) -> Labels:
        """Names of the cases of all runs."""
        return Labels(row.result.case for source in self.sources for row in source.rows)

    @property
    def run_names(self) -> str:
        """The runs' names, for messages."""
        return ", ".join(dict.fromkeys(source.run.run_id for source in self.sources))

    @property
    def suites(self) -> str:
        """The runs' suites, for messages."""
        return ", ".join(dict.fromkeys(source.run.run_lines[-1].suite for source in self.sources))

    def passes(self, only: Sequence[PassName] = PASSES) -> list[PassName]:
        """Which of these passes have a latency in any run."""
        measured = {row.result.case.passes for source in self.sources for row in source.rows if row.whole}
        return [name for name in only if name in measured]

    def blocks(self, only: Sequence[PassName] = PASSES) -> list[Block]:
        """What has a latency in one of these passes, by shape, length, causality and run; dense entries first."""
        found: dict[tuple[int, int, bool, int], dict[str, dict[PassName, Row]]] = {}
        shapes: dict[str, int] = {}
        for place, source in enumerate(self.sources):
            for row in source.rows:
                case = row.result.case
                if case.passes not in only:
                    continue
                shape = shapes.setdefault(scope(case.workload), len(shapes))
                key = (shape, row.num_tokens, case.claims.causal, place)
                # Two grids of one length are two workloads.
                group = f"{case.workload.digest} {case.group}"
                found.setdefault(key, {}).setdefault(group, {})[case.passes] = row
        blocks = []
        for key in sorted(found):
            source = self.sources[key[-1]]
            entries = [Entry(source, by_pass) for by_pass in found[key].values()]
            entries = [entry for entry in entries if entry.rows]
            by_workload: dict[str, list[Entry]] = {}
            for entry in sorted(entries, key=lambda entry: not entry.is_dense):
                by_workload.setdefault(entry.case.workload.digest, []).append(entry)
            blocks += [Block(source, tuple(own)) for own in by_workload.values()]
        return blocks


def material_of(runs: Iterable[Run]) -> Material:
    """Derive the rows of runs; a run that is given twice counts once."""
    sources = [source for run in {run.path.resolve(): run for run in runs}.values() for source in _by_environment(run)]
    devices = Counter(source.environment.device_name for source in sources)
    in_runs = Counter(source.run.path for source in sources)
    named = []
    for source in sources:
        heading = source.environment.device_name
        if devices[heading] > 1:
            heading += f", run {source.run.run_id}"
            heading += f", environment {source.heading}" * (in_runs[source.run.path] > 1)
        named.append(replace(source, heading=heading))
    return Material(tuple(named))


def _by_environment(run: Run) -> list[Source]:
    """A source for each environment, headed by its digest; a run without results is one too."""
    rows = derive(run.latest())
    by_hash: dict[str, list[Row]] = {}
    for row in rows:
        by_hash.setdefault(row.result.env_hash, []).append(row)
    num_unseen = max(run.run_lines[-1].num_cases - len(rows), 0)
    sources: list[Source] = []
    for digest, own in (by_hash or {run.environment.hash: []}).items():
        environment = (environment_of(run, own[0].result) if own else None) or run.environment
        sources.append(Source(run, tuple(own), environment, digest, 0 if sources else num_unseen))
    return sources


def shape_of(case: Case) -> str:
    """A case's workload but for its length, and whether it is causal."""
    return f"{shape_label(case.workload)}{', causal' * case.claims.causal}"


def block_titles(material: Material, blocks: Sequence[Block]) -> list[str]:
    """What tells each block from the others: its length, and what not all blocks share."""
    shapes = {shape_of(block.case) for block in blocks}
    grids = Counter((block.source.heading, block.num_tokens, shape_of(block.case)) for block in blocks)
    titles = []
    for block in blocks:
        title = f"{block.num_tokens:,} tokens"
        if grids[block.source.heading, block.num_tokens, shape_of(block.case)] > 1:
            title += f" ({'x'.join(map(str, block.case.workload.token_grid))})"
        title += f", {shape_of(block.case)}" * (len(shapes) > 1)
        titles.append(title + f"; {block.source.heading}" * (len(material.sources) > 1))
    return titles
