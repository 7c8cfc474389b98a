"""Candidates and outcomes for tests of the tuner; nothing here computes attention."""

from bsa_bench.static.config import KernelConfig
from bsa_bench.tune.candidates import Candidate, Question
from bsa_bench.tune.choose import Origin
from bsa_bench.tune.search import Outcome
from bsa_kernels.block_sparse.tile_table import Tile

ORIGIN = Origin(device="Made-up GPU", date="2026-01-02", triton="3.9.0")


def candidate(kernel, *, head_dim=128, kept_rows=32, is_in_force=False, **tile):
    group, pack = tile.get("group", 1), tile.get("pack", 1)
    values = {"rows": kept_rows * group * pack, "keys": 64, "num_warps": 4, "num_stages": 2} | tile
    made = Tile(**values)
    name = f"{kernel}-d{head_dim}-k{kept_rows}-g{group}-p{pack}-s{made.num_stages}"
    config = KernelConfig(name=name, kernel=f"made_up:{kernel}", signature={})
    return Candidate(Question(kernel, head_dim, kept_rows), made, config, is_in_force)


def ok(of, *seconds):
    lengths = (23_296, 153_600)
    return Outcome(of, "OK", dict(zip(lengths, seconds, strict=False)))
