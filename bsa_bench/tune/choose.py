"""From measured times to a table: the fastest tiles that go together, each with its reason; the rest stays in force."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from bsa_bench.tune.search import Outcome
from bsa_bench.units import format_seconds
from bsa_kernels.block_sparse.tile_table import Arch, Entry, Kernel, Tiles, tiles_for

BLOCK_KEYS = 64
_GROUPED: tuple[Kernel, ...] = ("attend", "grad_q")


@dataclass(frozen=True)
class Origin:
    """What every reason names: the GPU, the day, and the compiler."""

    device: str
    date: str
    triton: str


@dataclass(frozen=True)
class Tuned:
    """A table, and what of the measurements it could not use, in sentences."""

    entries: tuple[Entry, ...]
    notes: tuple[str, ...]


def tuned_table(outcomes: Iterable[Outcome], table: Sequence[Entry], *, arch: Arch, origin: Origin) -> Tuned:
    """The table with an entry for each question that was answered in place of the one in force.

    `attend` and `grad_q` share their groups of query blocks, so they are chosen together: the group with the least sum
    of both, and of the backward that is faster with it. Whether the backward is fused by default is decided only where
    all three kernels of it were measured.
    """
    by_class: dict[tuple[int, int], list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.status == "OK":
            question = outcome.candidate.question
            by_class.setdefault((question.head_dim, question.kept_rows), []).append(outcome)
    found, notes = list(table), []
    for (head_dim, kept_rows), mine in by_class.items():
        changed = _with_class(found, mine, arch, head_dim, kept_rows, origin)
        if changed is None:
            kernels = ", ".join(dict.fromkeys(outcome.candidate.question.kernel for outcome in mine))
            notes.append(
                f"head size {head_dim}, {kept_rows} kept rows: stays as it was, for no size of groups was measured for "
                f"all of {kernels} and is in force for the rest; tune attend and grad_q together, with more time"
            )
        found = changed or found
    return Tuned(tuple(found), tuple(notes))


@dataclass(frozen=True)
class _Option:
    """The tiles of one size of groups: `cost_s` of what was measured and depends on that size."""

    cost_s: float
    chosen: dict[Kernel, Outcome]
    is_fused: bool


def _with_class(
    table: list[Entry], outcomes: Sequence[Outcome], arch: Arch, head_dim: int, kept_rows: int, origin: Origin
) -> list[Entry] | None:
    """The table with the best tiles of one class; None where what was measured goes together with nothing."""
    in_force = _tiles(table, arch, head_dim, kept_rows)
    measured = {outcome.candidate.question.kernel for outcome in outcomes}
    groups = {o.candidate.tile.group for o in outcomes if o.candidate.question.kernel in _GROUPED}
    fits: list[tuple[_Option, list[Entry]]] = []
    for group in sorted(groups or {in_force.attend.group}):
        best: dict[Kernel, Outcome] = {}
        for outcome in sorted(outcomes, key=lambda each: each.total_s):
            kernel = outcome.candidate.question.kernel
            if kernel not in _GROUPED or outcome.candidate.tile.group == group:
                best.setdefault(kernel, outcome)
        if best.keys() != measured:
            continue
        option = _option(best, is_fused=in_force.backward == "fused")
        entries = _replaced(table, option, outcomes, arch, origin)
        try:
            tiles = _tiles(entries, arch, head_dim, kept_rows)
        except ValueError:
            continue  # the kernel of the two that was not measured has no tile in these groups
        if all(getattr(tiles, kernel) == o.candidate.tile for kernel, o in best.items()):
            fits.append((option, entries))
    return min(fits, key=lambda each: each[0].cost_s)[1] if fits else None


def _option(best: dict[Kernel, Outcome], *, is_fused: bool) -> _Option:
    cost = {kernel: outcome.total_s for kernel, outcome in best.items()}
    split_s = cost.get("grad_q", 0.0) + cost.get("grad_kv", 0.0)
    if {"grad_q", "grad_kv", "grad_fused"} <= best.keys():
        is_fused = cost["grad_fused"] < split_s
    backward_s = cost.get("grad_fused", 0.0) if is_fused else split_s
    return _Option(cost.get("attend", 0.0) + backward_s, best, is_fused)


def _replaced(
    table: Sequence[Entry], option: _Option, outcomes: Sequence[Outcome], arch: Arch, origin: Origin
) -> list[Entry]:
    entries = {(entry.kernel, entry.arch, entry.head_dim, entry.kept_rows): entry for entry in table}
    for kernel, outcome in option.chosen.items():
        question = outcome.candidate.question
        key = (kernel, arch, question.head_dim, question.kept_rows)
        rivals = [each for each in outcomes if each.candidate.question == question]
        entries[key] = Entry(
            kernel=kernel,
            arch=arch,
            head_dim=question.head_dim,
            kept_rows=question.kept_rows,
            tile=outcome.candidate.tile,
            reason=_reason(outcome, rivals, origin),
            is_default_backward=kernel == "grad_fused" and option.is_fused,
        )
    return list(entries.values())


def _reason(outcome: Outcome, rivals: Sequence[Outcome], origin: Origin) -> str:
    times = ", ".join(f"{format_seconds(s)} at {tokens:,} tokens" for tokens, s in outcome.seconds.items())
    before = [each for each in rivals if each.candidate.is_in_force and each is not outcome]
    against = f", {before[0].total_s / outcome.total_s:.2f}x as fast as the tile before" if before else ""
    return (
        f"measured: {times}; chosen of {len(rivals)}{against}; {origin.device}, {origin.date}, Triton {origin.triton}"
    )


def _tiles(table: Sequence[Entry], arch: Arch, head_dim: int, kept_rows: int) -> Tiles:
    return tiles_for(
        arch=arch,
        head_dim=head_dim,
        kept_rows=kept_rows,
        block_keys=BLOCK_KEYS,
        dtype=torch.bfloat16,
        table=table,
    )
