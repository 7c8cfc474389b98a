"""From times to a table: what goes together, what stays in force, what is written."""

import os
import tomllib

import pytest
import torch
from tune_factory import ORIGIN, candidate, ok

from bsa_bench.errors import StoreError
from bsa_bench.store.whole_file import check_place, write_whole
from bsa_bench.tune.choose import tuned_table
from bsa_bench.tune.search import Outcome
from bsa_bench.tune.table import format_table
from bsa_kernels.block_sparse.tile_table import DEFAULT_TABLE, load_tiles, tiles_for

TABLE = load_tiles(DEFAULT_TABLE)


def tuned(*outcomes, arch="sm_90"):
    return list(tuned_table(outcomes, TABLE, arch=arch, origin=ORIGIN).entries)


def tiles(table, kept_rows=32, head_dim=128, arch="sm_90"):
    return tiles_for(
        arch=arch, head_dim=head_dim, kept_rows=kept_rows, block_keys=64, dtype=torch.bfloat16, table=table
    )


def test_the_least_sum_over_all_lengths_wins_and_the_rest_stays_in_force():
    short, long = candidate("grad_kv", num_stages=1), candidate("grad_kv", num_stages=3)
    table = tuned(ok(short, 1e-3, 9e-3), ok(long, 2e-3, 7e-3))
    assert tiles(table).grad_kv == long.tile
    assert len(table) == len(TABLE)
    assert sum(entry not in TABLE for entry in table) == 1
    for kept_rows in (64, 128):
        assert tiles(table, kept_rows) == tiles(TABLE, kept_rows)
    assert tiles(table, arch="sm_80") == tiles(TABLE, arch="sm_80")


def test_the_reason_names_figures_device_date_and_compiler():
    before = candidate("grad_kv", is_in_force=True)
    best = candidate("grad_kv", num_stages=3)
    (entry,) = set(tuned(ok(before, 2e-3, 20e-3), ok(best, 1e-3, 10e-3))) - set(TABLE)
    assert entry.reason == (
        "measured: 1.00 ms at 23,296 tokens, 10.0 ms at 153,600 tokens; chosen of 2, 2.00x as fast as the tile before; "
        "Made-up GPU, 2026-01-02, Triton 3.9.0"
    )


def test_what_is_wrong_or_failed_is_never_chosen():
    wrong, failed = (Outcome(candidate("grad_kv", num_stages=n), "WRONG", reason="bad") for n in (1, 3))
    assert tuned(wrong, failed) == list(TABLE)


def test_attend_and_grad_q_get_the_group_that_is_best_for_both():
    pair, quad = ({"group": 2}, {"group": 4, "num_warps": 8})
    table = tuned(
        ok(candidate("attend", **pair), 3.0),
        ok(candidate("attend", **quad), 2.0),
        ok(candidate("grad_q", **pair), 3.0),
        ok(candidate("grad_q", **quad), 5.0),
    )
    assert (tiles(table).attend.group, tiles(table).grad_q.group) == (2, 2)
    table = tuned(
        ok(candidate("attend", **pair), 3.0),
        ok(candidate("attend", **quad), 2.0),
        ok(candidate("grad_q", **pair), 3.0),
        ok(candidate("grad_q", **quad), 3.5),
    )
    assert (tiles(table).attend.group, tiles(table).grad_q.group) == (4, 4)


def test_a_group_without_a_tile_for_the_kernel_that_was_not_measured_is_passed_over():
    table = tuned(ok(candidate("attend", group=2, num_stages=3), 3.0), ok(candidate("attend", group=4), 1.0))
    assert tiles(table).attend == candidate("attend", group=2, num_stages=3).tile
    assert tiles(table).grad_q == tiles(TABLE).grad_q
    alone = tuned_table([ok(candidate("attend", group=4), 1.0)], TABLE, arch="sm_90", origin=ORIGIN)
    assert alone.entries == TABLE
    (note,) = alone.notes
    assert note.startswith(
        "head size 128, 32 kept rows: stays as it was, for no size of groups was measured for all of"
    )


@pytest.mark.parametrize(("fused_s", "form"), [(4.9, "fused"), (5.1, "split")])
def test_the_backward_is_fused_where_that_beats_both_kernels_of_the_split_one(fused_s, form):
    outcomes = [
        ok(candidate("grad_q", group=2), 2.0),
        ok(candidate("grad_kv"), 3.0),
        ok(candidate("grad_fused"), fused_s),
    ]
    assert tiles(tuned(*outcomes)).backward == form
    assert tiles(tuned(outcomes[0], outcomes[2])).backward == tiles(TABLE).backward
    # A table that has it fused keeps that until all three are measured.
    once = tuned_table(outcomes, TABLE, arch="sm_90", origin=ORIGIN).entries
    again = tuned_table([ok(candidate("grad_fused", num_stages=1), 9.0)], once, arch="sm_90", origin=ORIGIN).entries
    assert tiles(again).backward == form


def test_every_class_that_a_call_can_have_is_still_served():
    table = tuned(
        *(ok(candidate(kernel, kept_rows=64, group=2, num_warps=8), 1.0) for kernel in ("attend", "grad_q")),
        ok(candidate("attend", kept_rows=32, transposed=True), 1.0),
        ok(candidate("grad_q", kept_rows=32), 1.0),
    )
    for kept_rows in (1, 16, 32, 48, 64, 128, 512):
        for head_dim in (16, 64, 128, 256):
            tiles(table, kept_rows, head_dim)
    assert tiles(table, 64).attend.group == 2
    assert tiles(table, 32).attend.transposed


def test_a_table_reads_back_as_it_was_written(tmp_path):
    table = tuned(
        ok(candidate("attend", kept_rows=64, group=2, num_warps=8, maxnreg=128), 1.0),
        ok(candidate("grad_q", kept_rows=64, group=2, num_warps=8), 1.0),
        ok(candidate("grad_fused", pack=2), 1.0),
        ok(candidate("attend", kept_rows=32, transposed=True), 1.0),
        ok(candidate("grad_q", kept_rows=32), 1.0),
    )
    path = tmp_path / "tiles.toml"
    write_whole(path, format_table(table, head=["Two lines,", 'the second with a "quote".']))
    assert load_tiles(path) == tuple(table)
    assert path.read_text().startswith('# Two lines,\n# the second with a "quote".\n\n[[tile]]\nkernel = "attend"\n')
    entry = tomllib.loads(format_table(TABLE[:1], head=[]))["tile"][0]
    assert entry == tomllib.loads(DEFAULT_TABLE.read_text())["tile"][0]
    assert [p.name for p in tmp_path.iterdir()] == ["tiles.toml"]


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path):
    check_place(tmp_path / "tiles.toml", flag="--out")
    os.mkfifo(tmp_path / "pipe")
    for wrong in (tmp_path, tmp_path / "missing" / "tiles.toml", tmp_path / "pipe"):
        with pytest.raises(StoreError, match=r"^--tiles: .* expected a file in a folder that can be written"):
            check_place(wrong, flag="--tiles")


def test_a_file_that_cannot_be_written_leaves_nothing_and_what_was_there_stays(tmp_path):
    gone = tmp_path / "gone" / "tiles.toml"
    with pytest.raises(StoreError, match=r"^--out: .*gone"):
        write_whole(gone, "text", flag="--out")
    with pytest.raises(StoreError, match=rf"^{gone}: No such file"):
        write_whole(gone, "text")
    old = tmp_path / "tiles.toml"
    old.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(old, "\ud800")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("tiles.toml", "old")]
