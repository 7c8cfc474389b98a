"""The sparsity schedule of training."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bsa_kernels.methods.bsa.blocks import select_blocks
from bsa_kernels.methods.bsa.schedule import sparsity_at

BLOCKS_OF_61_FRAMES = 364


@pytest.mark.parametrize(
    ("step", "sparsity", "kept_blocks", "query_keep"),
    [
        (0, 0, 364, 1),
        (29, 0, 364, 1),
        (30, 0.03, 354, 0.97),  # 0.97 * 364 = 353.08
        (59, 0.03, 354, 0.97),
        (60, 0.06, 343, 0.94),  # 342.16
        (480, 0.48, 190, 0.52),  # 189.28
        (510, 0.51, 179, 0.5),  # 178.36
        (870, 0.87, 48, 0.5),  # 47.32
        (899, 0.87, 48, 0.5),
        (900, 0.9, 37, 0.5),  # 36.4
        (30_000, 0.9, 37, 0.5),
    ],
)
def test_sparsity_rises_by_three_hundredths_every_thirty_steps_up_to_nine_tenths(
    step, sparsity, kept_blocks, query_keep
):
    got = sparsity_at(step, BLOCKS_OF_61_FRAMES)
    assert got.sparsity == pytest.approx(sparsity, abs=1e-12)
    assert got.kv_density * BLOCKS_OF_61_FRAMES == pytest.approx(kept_blocks, abs=1e-9)
    assert got.query_keep == pytest.approx(query_keep, abs=1e-12)


@given(st.integers(1, 3000), st.integers(0, 40))
def test_the_kept_blocks_are_the_exact_ceiling_of_the_share(num_blocks, rises):
    # In whole hundredths, without rounding.
    hundredths = 100 - min(90, 3 * rises)
    kept = -(-hundredths * num_blocks // 100)
    assert round(sparsity_at(30 * rises, num_blocks).kv_density * num_blocks, 6) == kept


@given(st.integers(0, 2000), st.integers(0, 2000), st.integers(1, 500))
def test_a_later_step_is_never_denser(one, other, num_blocks):
    early, late = (sparsity_at(step, num_blocks) for step in sorted((one, other)))
    assert late.kv_density <= early.kv_density
    assert late.query_keep <= early.query_keep
    assert 0 < late.kv_density <= 1
    assert 0.5 <= late.query_keep <= 1


@given(st.integers(1, 300), st.integers(0, 1000))
def test_topk_at_the_scheduled_density_keeps_the_scheduled_number(num_blocks, step):
    density = sparsity_at(step, num_blocks).kv_density
    mask = select_blocks(torch.arange(float(num_blocks)).view(1, 1, 1, -1), kv_density=density, rule="topk")
    assert int(mask.sum()) == round(density * num_blocks)
    assert math.isclose(density * num_blocks, int(mask.sum()))


def test_the_steps_can_be_set():
    got = sparsity_at(20, 100, every=10, rise=0.1, limit=0.5)
    assert (got.sparsity, got.kv_density, got.query_keep) == (0.2, 0.8, 0.8)
    assert sparsity_at(1000, 100, every=10, rise=0.1, limit=0.5).kv_density == 0.5


@pytest.mark.parametrize(("step", "num_blocks"), [(-1, 364), (0, 0)])
def test_a_step_or_a_number_of_blocks_out_of_range_is_named(step, num_blocks):
    with pytest.raises(ValueError, match=f"step >= 0 and num_blocks >= 1, got step={step}, num_blocks={num_blocks}"):
        sparsity_at(step, num_blocks)
