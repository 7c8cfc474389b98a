"""Candidates and what their machine code says, from the compiler where it is quick."""

import pytest
from compile_cache import cache_folder

from bsa_bench.static.compile import Failure, Settings
from bsa_bench.tune import candidates as module
from bsa_bench.tune.candidates import Question, dismiss, list_candidates
from bsa_kernels.block_sparse.tile_table import Tile

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def settings():
    return Settings(cache_folder())


@pytest.fixture(scope="module")
def listed(settings):
    return list_candidates(
        "sm_90",
        settings,
        kernels=("attend", "grad_q", "grad_kv", "grad_fused"),
        head_dims=(64, 128),
        kept_rows=(32, 64),
    )


def test_every_question_has_the_tile_in_force_and_each_tile_once(listed):
    questions = {each.question for each in listed}
    assert len(questions) == 4 * 2 * 2
    for question in questions:
        mine = [each for each in listed if each.question == question]
        assert sum(each.is_in_force for each in mine) == 1
        assert len({each.tile for each in mine}) == len(mine)
    names = {each.name for each in listed}
    assert not [name for name in names if name.endswith("-padded")]


def test_tiles_are_read_from_what_is_compiled(listed):
    found = {each.name: each for each in listed}
    quad = found["attend-bf16-d128-k32-g4-128x64-w8-s1"]
    assert quad.question == Question("attend", 128, 32)
    assert quad.tile == Tile(128, 64, 8, 1, group=4)
    assert found["attend-bf16-d128-k32-g1-32x64-w4-s1-t"].tile == Tile(32, 64, 4, 1, transposed=True)
    assert found["grad_fused-bf16-d128-k32-p2-64x64-w8-s2"].tile == Tile(64, 64, 8, 2, pack=2)
    assert found["attend-bf16-d128-k64-g2-128x64-w8-s2-r128"].tile.maxnreg == 128


def test_only_what_is_asked_for_is_listed(settings):
    listed = list_candidates("sm_80", settings, kernels=["grad_kv"], head_dims=[128], kept_rows=[32])
    assert {each.question for each in listed} == {Question("grad_kv", 128, 32)}


def test_what_spills_in_its_main_loop_is_dismissed_and_the_rest_is_predicted(listed, settings):
    names = ["grad_kv-bf16-d128-k32-p1-32x64-w4-s1", "grad_fused-bf16-d128-k32-p2-64x64-w4-s2"]
    kept, gone = dismiss([each for each in listed if each.name in names], "sm_90", settings)
    assert [each.candidate.name for each in kept] == names[:1]
    assert kept[0].predicted_flop_per_s > 50e12
    (gone,) = gone
    assert gone.candidate.name == names[1]
    assert gone.reason.startswith("spills in its main loop: ")


def test_what_does_not_compile_is_dismissed_though_it_is_in_force(listed, settings, monkeypatch):
    mine = [each for each in listed if each.question == Question("grad_kv", 128, 32)][:2]
    assert mine[0].is_in_force
    monkeypatch.setattr(
        module, "compile_all", lambda jobs, _: [Failure(c, a, "compiler", "boom\nmore", "") for c, a in jobs]
    )
    kept, gone = dismiss(mine, "sm_90", settings)
    assert not kept
    assert {each.reason for each in gone} == {"does not compile: boom"}
