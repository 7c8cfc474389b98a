"""The stages of a block method: one wiring for every engine, the one that `bsa_attention` runs."""

from dataclasses import replace

import pytest
import torch
from kernel_helpers import DEVICE, hand_plan, qkv, random_mask, run, triton_engine

from bsa_kernels import BlockGrid, api, bsa_attention, full_plan
from bsa_kernels.block_engine import UnsupportedPlanError
from bsa_kernels.engines import get_engine
from bsa_kernels.engines.gluon import GLUON
from bsa_kernels.engines.kept import GATHER, REFERENCE
from bsa_kernels.engines.triton import TRITON
from bsa_kernels.methods.bsa.options import BsaOptions
from bsa_kernels.methods.bsa.pipeline import bsa_operator
from bsa_kernels.operator import Operator
from bsa_kernels.stages import block_stages

GRID, BLOCK = (4, 5, 6), (4, 4, 4)
BLOCKS = BlockGrid(GRID, BLOCK)
TILED = triton_engine(is_tiled=True)
KEPT = ["permute", "select", "plan", "attend", "fill"]


def tensors(inputs):
    return {name: getattr(inputs, name).detach() for name in "qkv"}


def stages_of(engine, select=None, **options):
    plan = hand_plan(BLOCKS, BLOCKS, random_mask(BLOCKS, BLOCKS, 0.6, heads=1))
    return plan, block_stages(
        engine, BLOCKS, BLOCKS, select or (lambda *_, is_tiled: None), lambda _: plan, scale=0.25, **options
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "names"),
    [
        (REFERENCE, KEPT),
        (GATHER, KEPT),
        (TRITON, ["select", "plan", "attend"]),
        (TILED, ["permute", "select", "plan", "attend", "restore"]),
    ],
    ids=["reference", "gather", "triton", "triton tiled"],
)
def test_an_engine_s_layout_decides_the_stages_and_staged_gradients_equal_autograd_s(engine, names):
    plan, stages = stages_of(engine)
    inputs = qkv(GRID, 16, heads=1)
    marks = []
    state, gradients = Operator(stages).run_staged(tensors(inputs), marks.append, inputs.do)
    backward = [f"{name}_backward" for name in reversed(names) if name not in {"select", "plan"}]
    assert marks == [*names, *backward]
    assert state["plan"] is plan
    expected = run(engine.name, inputs, plan, scale=0.25)
    torch.testing.assert_close(state["o"], expected["o"])
    for name in "qkv":
        torch.testing.assert_close(gradients[name], expected[f"d{name}"])


@pytest.mark.parametrize(("engine", "is_tiled"), [(TRITON, False), (TILED, True), (GATHER, True)])
def test_a_selection_reads_q_and_k_as_the_engine_does_and_is_told_so(engine, is_tiled):
    seen = []

    def select(scores, k, *, is_tiled):
        seen.append((scores, k, is_tiled))

    _, stages = stages_of(engine, select, reads=("scores", "k"), out="o_fine")
    given = {**tensors(qkv(GRID, 16, heads=1)), "scores": torch.ones(3, device=DEVICE)}
    state = Operator(stages).run(given)
    ((scores, k, told),) = seen
    assert scores is given["scores"]
    assert told is is_tiled
    assert torch.equal(k, BLOCKS.permute(given["k"]) if is_tiled else given["k"])
    assert state["o_fine"].shape == given["q"].shape


@pytest.mark.slow
@pytest.mark.parametrize("engine", [TILED, GATHER], ids=["triton", "gather"])
def test_tile_major_tensors_stay_tile_major(engine):
    _, stages = stages_of(engine)
    _, of_tiles = stages_of(engine, is_tiled=True)
    given = tensors(qkv(GRID, 16, heads=1))
    assert [stage.name for stage in of_tiles] == ["select", "plan", "attend", *([] if engine.fills else ["fill"])]
    out = Operator(of_tiles).forward({name: BLOCKS.permute(x) for name, x in given.items()})
    assert torch.equal(out, BLOCKS.permute(Operator(stages).forward(given)))


def test_an_engine_that_reads_natural_order_takes_no_tiles():
    with pytest.raises(ValueError, match="is_tiled: expected an engine that reads tile-major tensors, got 'triton'"):
        stages_of(TRITON, is_tiled=True)


def test_a_plan_that_an_engine_has_not_is_refused_with_its_reason_in_the_stage_plan():
    blocks = BlockGrid(GRID, (2, 4, 4))
    plan = full_plan(1, 1, blocks, device=DEVICE)
    stages = block_stages(GLUON, blocks, blocks, lambda *_, is_tiled: None, lambda _: plan, scale=1.0)
    with pytest.raises(UnsupportedPlanError, match=r"engine 'gluon': expected KV blocks of 64 tokens") as caught:
        Operator(stages).run(tensors(qkv(GRID, 64, heads=1)))
    assert caught.value.__notes__ == ["in stage plan"]


@pytest.mark.slow
@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("engine", ["reference", "gather", "triton"])
def test_bsa_attention_runs_the_operator_that_a_benchmark_times(engine, tiled, monkeypatch):
    made = []

    def noted(*arguments, **options):
        made.append(bsa_operator(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(api, "_kept_operator", noted)
    given = tensors(qkv(GRID, 16, heads=1))
    if tiled:
        given = {name: BLOCKS.permute(x) for name, x in given.items()}
    out = bsa_attention(**given, grid=GRID, kv_density=0.5, engine=engine, tiled=tiled)
    (operator,) = made
    options = BsaOptions(grid=GRID, kv_density=0.5)
    again = bsa_operator(options, get_engine(engine, tiled=tiled), scale=0.25, is_tiled=tiled)
    assert [stage.name for stage in operator.stages] == [stage.name for stage in again.stages]
    assert torch.equal(out, again.forward(given))


def test_the_kept_operator_of_a_layer_is_made_once():
    options = BsaOptions(grid=GRID)
    kept = api._kept_operator(options, TRITON, scale=0.5, is_tiled=False)
    assert api._kept_operator(replace(options), TRITON, scale=0.5, is_tiled=False) is kept
    assert api._kept_operator(options, TRITON, scale=0.25, is_tiled=False) is not kept
