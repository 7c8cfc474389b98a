"""The table of tiles: what it says of every call, how it is read, and that the one we ship is whole."""

from dataclasses import replace
from itertools import product
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bsa_kernels import BlockGrid
from bsa_kernels.block_sparse.tables import Layout
from bsa_kernels.block_sparse.tile_table import (
    DEFAULT_TABLE,
    ENVIRONMENT,
    MAX_HEAD_DIM,
    Arch,
    Entry,
    Kernel,
    Tile,
    Tiles,
    arch_of,
    load_tiles,
    padded,
    table_in_force,
    tiles_for,
)

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
ARCHS, KERNELS = get_args(Arch), get_args(Kernel)
WIDTHS = (64, 128, 256)
WHOLE = """
[[tile]]
kernel = "attend"
arch = "sm_90"
head_dim = 64
kept_rows = 32
rows = 32
keys = 64
num_warps = 4
num_stages = 2
reason = "a test"
"""


def by_kernel(tiles):
    return {name: getattr(tiles, name) for name in KERNELS}


def choose(table=None, *, arch="sm_90", head_dim=64, kept_rows=32, block_keys=64, dtype=BF16, **more):
    given_ = {"arch": arch, "head_dim": head_dim, "kept_rows": kept_rows, "block_keys": block_keys, "dtype": dtype}
    return tiles_for(**given_, table=table, **more)


def table_of(*tiles, kernel="grad_kv", kept_rows=32, **more):
    """These tiles for one kernel, and one tile of the same rows for each of the others."""
    plain = Tile(kept_rows, 64, 4, 2)
    all_tiles = [(name, plain) for name in KERNELS if name != kernel] + [(kernel, tile) for tile in tiles]
    return [Entry(name, "sm_90", 64, kept_rows, tile, "a test", **more) for name, tile in all_tiles]


def shipped():
    return load_tiles(DEFAULT_TABLE)


# What calls get


@pytest.mark.parametrize("head_dim", [8, 64, 80, 128, 160, 256])
@pytest.mark.parametrize("arch", ARCHS)
def test_the_shipped_table_serves_every_call_with_tiles_that_take_all_rows(arch, head_dim):
    kept = (1, 7, 16, 27, 32, 33, 64, 105, 128, 256, 512)
    for kept_rows, block_keys, dtype in product(kept, (1, 27, 64, 512), (BF16, FP16, FP32)):
        tiles = choose(arch=arch, head_dim=head_dim, kept_rows=kept_rows, block_keys=block_keys, dtype=dtype)
        for name, tile in by_kernel(tiles).items():
            assert all(side >= 16 and side & (side - 1) == 0 for side in (tile.rows, tile.keys)), name
            assert tile.keys <= max(16, padded(block_keys))
            if tile.group * tile.pack > 1:
                assert tile.rows >= tile.group * tile.pack * kept_rows, name
            else:
                assert tile.rows <= padded(kept_rows), name


def test_half_of_a_block_s_rows_are_attended_in_pairs_and_all_of_them_alone():
    for arch, head_dim in product(ARCHS, WIDTHS):
        assert choose(arch=arch, head_dim=head_dim, kept_rows=32).attend.group == 2
        assert choose(arch=arch, head_dim=head_dim, kept_rows=64).attend.group == 1


def test_the_walks_share_their_groups_in_every_choice():
    for arch, head_dim, kept in product(ARCHS, WIDTHS, (16, 32, 64, 128, 256)):
        tiles = choose(arch=arch, head_dim=head_dim, kept_rows=kept)
        assert tiles.attend.group == tiles.grad_q.group


def test_fp32_gets_small_tiles_in_split_form_whatever_the_table():
    tiles = choose([], dtype=FP32)
    assert set(by_kernel(tiles).values()) == {Tile(32, 32, 4, 1)}
    assert tiles.backward == "split"
    assert choose([], dtype=FP32, head_dim=256).attend == Tile(16, 16, 8, 1)


def test_the_class_of_the_rows_is_taken_else_the_next_larger_else_the_largest():
    table = [
        entry
        for rows, keys in ((32, 16), (64, 32), (128, 64))
        for entry in table_of(Tile(rows, keys, 4, 2), kept_rows=rows)
    ]
    found = {rows: choose(table, kept_rows=rows).grad_kv for rows in (20, 32, 33, 64, 100, 128, 300)}
    assert {rows: (tile.rows, tile.keys) for rows, tile in found.items()} == {
        20: (32, 16),
        32: (32, 16),
        33: (64, 32),
        64: (64, 32),
        100: (128, 64),
        128: (128, 64),
        300: (128, 64),
    }
    assert choose(table, kept_rows=5).grad_kv == Tile(16, 16, 4, 2)  # shrinks


def test_a_tile_of_several_blocks_serves_its_own_class_only():
    pair, alone = Tile(64, 64, 4, 2, group=2), Tile(64, 32, 4, 2)
    walks = [Entry(name, "sm_90", 64, 32, pair, "a test") for name in ("attend", "grad_q")]
    table = [*walks, *table_of(alone, kernel="grad_q", kept_rows=64)]
    assert choose(table, kept_rows=32).attend == choose(table, kept_rows=32).grad_q == pair
    assert choose(table, kept_rows=16).grad_q == Tile(16, 32, 4, 2)
    assert choose(table, kept_rows=64).grad_q == choose(table, kept_rows=128).grad_q == alone


def test_two_blocks_a_step_are_not_taken_where_a_block_would_not_fit():
    table = table_of(Tile(64, 64, 4, 2, pack=2))
    assert choose(table, kept_rows=32).grad_kv.pack == 2
    assert choose(table, kept_rows=16).grad_kv.rows == 64
    with pytest.raises(ValueError, match="none for grad_kv on sm_90, head size 64, 64 rows"):
        choose(table, kept_rows=64)


def test_the_fused_form_is_the_default_where_its_entry_says_so():
    assert choose(table_of(Tile(32, 64, 4, 2))).backward == "split"
    assert choose(table_of(Tile(32, 64, 4, 2), is_default_backward=True)).backward == "fused"


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"arch": "sm_100"}, "tiles: the table has none for attend on sm_100, head size 64, 32 rows"),
        ({"head_dim": 65}, "tiles: the table has none for attend on sm_90, head size 128, 32 rows"),
    ],
)
def test_a_call_that_nothing_serves_is_refused(wanted, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        choose(table_of(Tile(32, 64, 4, 2)), **wanted)


def test_the_walk_of_the_backward_needs_an_entry_in_the_forward_s_groups():
    table = table_of(Tile(64, 64, 4, 2, group=2), kernel="attend")
    with pytest.raises(ValueError, match=r"^tiles: the table has none for grad_q .* 32 rows in groups of 2$"):
        choose(table)


def test_tiles_of_two_groupings_are_refused():
    one, two = Tile(64, 64, 4, 2), Tile(64, 64, 4, 2, group=2)
    with pytest.raises(ValueError, match=r"^tiles: attend has groups of 2, grad_q of 1$"):
        Tiles(two, one, one, one, "split")


def test_the_interpreter_has_hopper_s_tiles_and_other_gpus_those_of_their_generation(monkeypatch):
    found = {}
    for capability in ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        found[capability] = arch_of(torch.device("cuda"))
    assert found == {
        (8, 0): "sm_80",
        (8, 6): "sm_80",
        (8, 9): "sm_80",
        (9, 0): "sm_90",
        (10, 0): "sm_100",
        (10, 3): "sm_100",
        (12, 0): "sm_80",
    }
    assert arch_of(torch.device("cpu")) == "sm_90"


# Sizes

SIDES, BOTH = st.sampled_from([16, 32, 64, 128]), st.booleans()


@st.composite
def some_tiles(draw):
    few, packs, caps = st.sampled_from([1, 2, 4]), st.sampled_from([1, 2]), st.sampled_from([None, 128, 255])
    group = draw(few)

    def tile(**more):
        sizes = {"rows": draw(SIDES), "keys": draw(SIDES), "num_warps": draw(few), "num_stages": draw(few)}
        return Tile(**sizes, maxnreg=draw(caps), **more)

    walks = (tile(group=group, transposed=draw(BOTH)) for _ in range(2))
    return Tiles(*walks, *(tile(pack=draw(packs)) for _ in range(2)), draw(st.sampled_from(["split", "fused"])))


@pytest.mark.slow
@given(some_tiles())
def test_a_layout_is_decoded_as_it_was_encoded(tiles):
    layout = Layout(BlockGrid((5, 6, 7), (4, 4, 4)), BlockGrid((5, 6, 7), (2, 4, 8)), True, False, tiles)
    assert Layout.decode(layout.encode()) == layout
    assert Layout.decode(layout.encode()) is Layout.decode(layout.encode())
    assert tiles.max_keys == max(tile.keys for tile in by_kernel(tiles).values())


def test_the_compiler_s_options_name_a_cap_only_where_there_is_one():
    tile = Tile(64, 64, 8, 3)
    assert tile.options == {"num_warps": 8, "num_stages": 3}
    assert replace(tile, maxnreg=128).options == {"num_warps": 8, "num_stages": 3, "maxnreg": 128}


# Files


def test_the_shipped_table_gives_a_reason_for_each_entry():
    for entry in shipped():
        assert len(entry.reason.split()) > 2, entry
        assert len(entry.reason) > 10, entry


def test_the_shipped_table_has_one_entry_for_each_case():
    cases = [(e.kernel, e.arch, e.head_dim, e.kept_rows, e.tile.group) for e in shipped()]
    assert len(set(cases)) == len(cases)
    assert {(kernel, arch, width) for kernel, arch, width, *_ in cases} == set(product(KERNELS, ARCHS, WIDTHS))
    assert max(WIDTHS) == MAX_HEAD_DIM


def test_a_table_is_read_once_and_completely(tmp_path):
    path = tmp_path / "tiles.toml"
    path.write_text(WHOLE + WHOLE.replace("rows = 32\nkeys", "rows = 64\ngroup = 2\nkeys") + "maxnreg = 128\n")
    first, second = load_tiles(path)
    assert first == Entry("attend", "sm_90", 64, 32, Tile(32, 64, 4, 2), "a test")
    assert second.tile == Tile(64, 64, 4, 2, group=2, maxnreg=128)
    assert load_tiles(path) is load_tiles(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rows = 32\nkeys", "rows = 24\nkeys", "entry 1: rows: expected a power of two of at least 16, got 24"),
        ("keys = 64", "keys = 8", "entry 1: keys: expected a power of two of at least 16, got 8"),
        ('"attend"', '"forward"', r"entry 1: expected a kernel of \('attend', .* and an arch of .*, got .*'forward'"),
        ('"sm_90"', '"sm_70"', r"entry 1: expected a kernel of .* and an arch of \('sm_80', .*, got .*'sm_70'"),
        ("keys = 64", "keys = 64\ngroup = 3", "entry 1: expected group 1, 2 or 4 and pack 1 or 2, got 3 and 1"),
        ("keys = 64", "keys = 64\npack = 4", "entry 1: expected group 1, 2 or 4 and pack 1 or 2, got 1 and 4"),
        ("keys = 64", "keys = 64\ngroup = 2", "entry 1: rows: expected 2 blocks of 32, got 32"),
        ("keys = 64", "keys = 64\npack = 2", "entry 1: rows: expected 2 blocks of 32, got 32"),
        ("keys = 64", "keys = 64\nwidth = 2", "entry 1: .*width"),
        ("keys = 64", "", "entry 1: .*keys"),
        ('reason = "a test"', "", "entry 1: .*reason"),
        ("[[tile]]", "[[tiles]]", r"expected at least one \[\[tile\]\]"),
        ("keys = 64", "keys = ", "Invalid value"),
    ],
)
def test_a_wrong_table_is_refused_with_its_file_and_entry(tmp_path, old, new, message):
    path = tmp_path / "tiles.toml"
    assert old in WHOLE
    path.write_text(WHOLE.replace(old, new))
    with pytest.raises(ValueError, match=f"^tiles: {path}: {message}"):
        load_tiles(path)


def test_a_table_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "tiles.toml"
    path.write_bytes(b"\xef\xbb\xbf" + DEFAULT_TABLE.read_bytes())
    assert load_tiles(path) == load_tiles(DEFAULT_TABLE)


def test_a_table_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"tiles: .*none\.toml: .*No such file"):
        load_tiles(tmp_path / "none.toml")


def test_the_environment_names_the_table_in_force(tmp_path, monkeypatch):
    path = tmp_path / "tiles.toml"
    path.write_text(WHOLE)
    monkeypatch.setenv(ENVIRONMENT, str(path))
    assert [entry.reason for entry in table_in_force()] == ["a test"]
    monkeypatch.setenv(ENVIRONMENT, "")
    assert table_in_force() is shipped()
    monkeypatch.delenv(ENVIRONMENT)
    assert table_in_force() is shipped()
