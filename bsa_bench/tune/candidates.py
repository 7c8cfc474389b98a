"""What is measured: candidates for each tile of the table, but those whose machine code speaks against them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import get_args

from bsa_bench.static.analyse import Analysis, analyse, devices_for
from bsa_bench.static.compile import Compiled, Failure, KernelSet, Settings, Workers, compile_all, list_configs
from bsa_bench.static.config import ArchName, KernelConfig
from bsa_kernels.block_sparse.tile_table import Kernel, Tile

KERNELS: tuple[Kernel, ...] = ("attend", "grad_kv", "grad_q", "grad_fused")


@dataclass(frozen=True)
class Question:
    """A class of the table: which tile is the fastest for this kernel, head size and kept rows of a query block?"""

    kernel: Kernel
    head_dim: int
    kept_rows: int

    def __str__(self) -> str:
        return f"{self.kernel}, head size {self.head_dim}, {self.kept_rows} kept rows"


@dataclass(frozen=True)
class Candidate:
    """A tile that may be the answer; `is_in_force` says that the table has it now."""

    question: Question
    tile: Tile
    config: KernelConfig
    is_in_force: bool = False

    @property
    def name(self) -> str:
        """As `bsa-bench static` calls it."""
        return self.config.name


@dataclass(frozen=True)
class Prospect:
    """A candidate that is worth measuring, and what its main loop allows, FLOP/s as executed (None: not known)."""

    candidate: Candidate
    predicted_flop_per_s: float | None


@dataclass(frozen=True)
class Dismissed:
    """A candidate that is not measured, and why."""

    candidate: Candidate
    reason: str


def list_candidates(
    arch: ArchName,
    settings: Settings,
    *,
    kernels: Collection[str],
    head_dims: Collection[int],
    kept_rows: Collection[int],
) -> list[Candidate]:
    """The tiles in force and those declared beside them, for grids without padding; each tile of a question once."""
    found: dict[tuple[Question, Tile], Candidate] = {}
    toolchain = settings.toolchain
    kernel_sets: tuple[KernelSet, ...] = get_args(KernelSet)
    with Workers(toolchain) as workers:
        listed = {
            kernel_set: list_configs(kernel_set, {}, [arch], dtype="bf16", toolchain=toolchain, workers=workers)[arch]
            for kernel_set in kernel_sets
        }
    for kernel_set, configs in listed.items():
        for config in configs:
            question = _question(config)
            if (
                question is None
                or question.kernel not in kernels
                or question.head_dim not in head_dims
                or question.kept_rows not in kept_rows
                or config.name.endswith("-padded")
            ):
                continue
            tile = _tile(config)
            candidate = Candidate(question, tile, config, is_in_force=kernel_set == "shipped")
            found.setdefault((question, tile), candidate)
    return list(found.values())


def dismiss(
    candidates: Sequence[Candidate], arch: ArchName, settings: Settings
) -> tuple[list[Prospect], list[Dismissed]]:
    """Compile all and leave out what does not compile, does not fit an SM, or spills in its main loop.

    A tile in force stays, spills or not: the others are compared with it.
    """
    compiled = compile_all([(each.config, arch) for each in candidates], settings)
    prospects: list[Prospect] = []
    dismissed: list[Dismissed] = []
    for candidate, found in zip(candidates, _judged(compiled, arch), strict=True):
        reason = _fault(found)
        if reason and not (candidate.is_in_force and isinstance(found, Analysis) and found.reading.occupancy.ctas):
            dismissed.append(Dismissed(candidate, reason))
        else:
            assert isinstance(found, Analysis)
            ceiling = found.ceilings[0].in_order_flop_per_s if found.ceilings else None
            prospects.append(Prospect(candidate, ceiling))
    return prospects, dismissed


def in_order(prospects: Iterable[Prospect]) -> list[Prospect]:
    """The order of measuring: the tile in force of each question, then of each the most promising, and so on.

    So a search that ends early has compared something for every question.
    """
    by_question: dict[Question, list[Prospect]] = {}
    for prospect in prospects:
        by_question.setdefault(prospect.candidate.question, []).append(prospect)
    ranked = []
    for place, mine in enumerate(by_question.values()):
        mine.sort(key=lambda each: (not each.candidate.is_in_force, -(each.predicted_flop_per_s or 0.0)))
        ranked += [(rank, place, each) for rank, each in enumerate(mine)]
    ranked.sort(key=lambda each: each[:2])
    return [prospect for *_, prospect in ranked]


def _judged(compiled: Sequence[Compiled | Failure], arch: ArchName) -> list[Analysis | Failure]:
    return analyse(compiled, devices_for([arch], []))


def _fault(found: Analysis | Failure) -> str | None:
    if isinstance(found, Failure):
        return f"does not compile: {found.message.splitlines()[0]}"
    reading = found.reading
    if not reading.occupancy.ctas:
        return f"does not fit an SM: {reading.occupancy.limited_by}"
    stores, loads = (reading.main.count("spill store"), reading.main.count("spill load")) if reading.main else (0, 0)
    return f"spills in its main loop: {stores} stores and {loads} loads a trip" if stores or loads else None


def _question(config: KernelConfig) -> Question | None:
    """The question that a configuration answers; None for the kernels that no table has."""
    constants = config.constexprs
    function = config.kernel.rpartition(":")[2]
    names: dict[str, Kernel] = {"attend_kernel": "attend", "grad_q_kernel": "grad_q", "grad_kv_kernel": "grad_kv"}
    if function not in names or "ROWS" not in constants:
        return None
    kernel: Kernel = "grad_fused" if constants.get("FUSED") else names[function]
    return Question(kernel, int(constants["D"] or 0), int(constants["K"] or 0))


def _tile(config: KernelConfig) -> Tile:
    constants = config.constexprs
    return Tile(
        rows=int(constants["ROWS"] or 0),
        keys=int(constants["KEYS"] or 0),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        group=int(constants.get("GROUP") or 1),
        pack=int(constants.get("PACK") or 1),
        transposed=bool(constants.get("TRANSPOSED")),
        maxnreg=config.maxnreg,
    )
