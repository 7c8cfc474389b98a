import math

import pytest
import torch

from bsa_bench.errors import InputError
from bsa_bench.inputs.projection import QK_SHARE, Projection, apply_rope, check_head_dim, rms_norm, rope_table

GRID = (3, 5, 7)


def rotate_one(x_D, position):
    """Rotate one head vector pair by pair with plain sine and cosine, frequencies as Wan's rope_params gives them."""
    d = len(x_D)
    out, pair = [], 0
    for place, width in zip(position, (d - 4 * (d // 6), 2 * (d // 6), 2 * (d // 6)), strict=True):
        for i in range(0, width, 2):
            angle = place / 10000 ** (i / width)
            a, b = x_D[2 * pair].item(), x_D[2 * pair + 1].item()
            out += [a * math.cos(angle) - b * math.sin(angle), a * math.sin(angle) + b * math.cos(angle)]
            pair += 1
    assert len(out) == d
    return torch.tensor(out)


@pytest.mark.parametrize("head_dim", [2, 6, 32, 64, 80, 128])
def test_rope_is_wans_rotation_of_every_token(head_dim):
    x_MHD = torch.randn(math.prod(GRID), 2, head_dim)
    rotated = apply_rope(x_MHD, rope_table(GRID, head_dim))
    for t, h, w in ((0, 0, 0), (2, 0, 0), (0, 4, 0), (0, 0, 6), (2, 3, 5)):
        token = (t * 5 + h) * 7 + w
        torch.testing.assert_close(rotated[token, 1], rotate_one(x_MHD[token, 1], (t, h, w)), atol=1e-5, rtol=1e-5)


def test_rope_keeps_norms():
    x_MHD = torch.randn(math.prod(GRID), 3, 64)
    torch.testing.assert_close(apply_rope(x_MHD, rope_table(GRID, 64)).norm(dim=-1), x_MHD.norm(dim=-1))


def test_rope_products_depend_on_the_relative_position_only():
    num_tokens = math.prod(GRID)
    table = rope_table(GRID, 32)
    q = apply_rope(torch.randn(32).expand(num_tokens, 1, 32).contiguous(), table)[:, 0].view(*GRID, 32)
    k = apply_rope(torch.randn(32).expand(num_tokens, 1, 32).contiguous(), table)[:, 0].view(*GRID, 32)
    first = q[0, 1, 1] @ k[1, 3, 0]
    torch.testing.assert_close(q[1, 2, 5] @ k[2, 4, 4], first, atol=1e-5, rtol=1e-4)
    assert abs(q[1, 2, 5] @ k[2, 4, 5] - first) > 1e-3


def test_rms_norm_gives_unit_mean_square_and_keeps_zero():
    x = 37 * torch.randn(4, 96)
    torch.testing.assert_close(rms_norm(x).square().mean(-1), torch.ones(4))
    assert not rms_norm(torch.zeros(1, 8)).any()


def project(heads, head_dim, chunks, seed=0):
    projection = Projection.draw(num_features=24, heads=heads, head_dim=head_dim, grid=GRID, seed=seed)
    q, k, v = (torch.full((heads, math.prod(GRID), head_dim), torch.nan) for _ in range(3))
    projection.write(chunks, q, k, v)
    return q, k, v


def test_qk_norm_spans_all_heads_and_leaves_v_alone():
    q, k, v = project(3, 16, [torch.randn(math.prod(GRID), 24)])
    for x_HLD in (q, k):
        torch.testing.assert_close(x_HLD.square().mean(dim=(0, 2)), torch.ones(math.prod(GRID)), atol=1e-4, rtol=1e-4)
        assert x_HLD.square().mean(dim=2).std() > 0.1
    assert v.square().mean(dim=(0, 2)).std() > 0.05


def test_chunks_of_any_size_give_the_same_projection():
    features = torch.randn(math.prod(GRID), 24)
    for whole, parts in zip(project(2, 32, [features]), project(2, 32, features.split(13)), strict=True):
        torch.testing.assert_close(whole, parts)


def test_q_and_k_of_one_token_share_what_the_weights_share():
    q, k, _ = project(8, 64, [torch.randn(math.prod(GRID), 24)])
    cosine = torch.nn.functional.cosine_similarity(q, k, dim=-1)
    assert cosine.mean().item() == pytest.approx(QK_SHARE, abs=0.05)


def test_an_odd_head_size_is_refused_with_its_remedy():
    with pytest.raises(InputError, match=r"head_dim: got 33, expected an even size.*gaussian"):
        check_head_dim(33)
    check_head_dim(34)
