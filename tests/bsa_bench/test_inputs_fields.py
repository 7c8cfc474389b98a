from itertools import pairwise

import pytest
import torch

from bsa_bench.inputs.fields import object_mask, smooth_field

GRID = (6, 14, 18)


def centre_of(mask_HW):
    weight = mask_HW / mask_HW.sum()
    rows, columns = torch.arange(mask_HW.shape[0]), torch.arange(mask_HW.shape[1])
    return (weight.sum(1) * rows).sum().item(), (weight.sum(0) * columns).sum().item()


def test_the_object_moves_right_at_every_step_and_swings_up_and_down():
    centres = [centre_of(mask) for mask in object_mask(GRID, phase=0.0)]
    columns = [column for _, column in centres]
    assert all(after - before > 1 for before, after in pairwise(columns))
    rows = [row for row, _ in centres]
    assert max(rows) - min(rows) > 3


def test_the_object_is_opaque_inside_clear_outside_and_a_small_part_of_the_picture():
    mask = object_mask(GRID, phase=0.3)
    assert mask.amax(dim=(1, 2)).min() > 0.9
    assert mask.amin(dim=(1, 2)).max() < 0.01
    assert 0.02 < mask.mean() < 0.3


def test_the_object_carries_its_feature_from_the_first_picture_to_the_last():
    field = torch.nn.functional.normalize(smooth_field(GRID, seed=1, element=0), dim=-1)

    def least_likeness(mask):
        inside_TC = torch.stack([field[t].flatten(0, 1)[mask[t].argmax()] for t in range(GRID[0])])
        return (inside_TC @ inside_TC.T).min().item()

    # The phase is drawn; strangers in the background reach about 0.3.
    assert max(least_likeness(object_mask(GRID, phase=step / 32)) for step in range(32)) > 0.8
    assert least_likeness(torch.rand(GRID, generator=torch.Generator().manual_seed(0))) < 0.3


@pytest.mark.parametrize("grid", [(1, 1, 1), (1, 1, 13), (2, 1, 5), (1, 4, 4), (5, 7, 9)])
def test_any_grid_has_a_finite_field(grid):
    field = smooth_field(grid, seed=0, element=0)
    assert field.shape == (*grid, 64)
    assert torch.isfinite(field).all()


def test_batch_elements_and_seeds_have_different_fields():
    one = smooth_field(GRID, seed=0, element=0)
    assert torch.equal(one, smooth_field(GRID, seed=0, element=0))
    assert not torch.allclose(one, smooth_field(GRID, seed=0, element=1))
    assert not torch.allclose(one, smooth_field(GRID, seed=1, element=0))
