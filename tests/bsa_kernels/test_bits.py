"""Block masks in bits and in lists."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bsa_kernels.bits import count_bits, lists_of_mask, pack_bits, unpack_bits

MASKS = (
    st.lists(st.integers(1, 4), max_size=2),
    st.integers(1, 100),
    st.integers(0, 1 << 16),
    st.sampled_from([0, 0.3, 0.8, 1]),
)


def random_mask(shape, n, seed, density):
    return torch.rand(*shape, n, generator=torch.Generator().manual_seed(seed)) < density


@settings(max_examples=50, deadline=None)
@given(*MASKS)
def test_packed_bits_are_the_binary_digits_of_the_mask_and_unpack_to_it(shape, n, seed, density):
    mask = random_mask(shape, n, seed, density)
    bits = pack_bits(mask)
    assert (bits.dtype, bits.shape) == (torch.int32, (*shape, -(-n // 32)))
    for row, words in zip(mask.view(-1, n).tolist(), bits.view(-1, bits.shape[-1]).tolist(), strict=True):
        number = sum((word % 2**32) << (32 * i) for i, word in enumerate(words))
        assert number == sum(1 << j for j, bit in enumerate(row) if bit)
    assert torch.equal(unpack_bits(bits, n), mask)
    assert torch.equal(count_bits(bits), mask.sum(-1).int())


@pytest.mark.parametrize("n", [31, 32, 64, 65])
def test_masks_and_bits_need_not_be_contiguous(n):
    mask = random_mask((n, 3), 2, 0, 0.5).permute(2, 1, 0)
    bits = pack_bits(mask)
    assert torch.equal(bits, pack_bits(mask.contiguous()))
    strided = bits.transpose(0, 1).contiguous().transpose(0, 1)[:, 1:]
    assert torch.equal(unpack_bits(strided, n), mask[:, 1:])
    assert torch.equal(count_bits(strided), mask[:, 1:].sum(-1).int())
    assert torch.equal(pack_bits(mask[:, :1].expand(-1, 5, -1)), bits[:, :1].expand(-1, 5, -1))


@pytest.mark.parametrize(("size", "stride"), [((1,), (5,)), ((1, 1), (7, 7)), ((3, 1), (1, 5)), ((1, 2), (9, 2))])
def test_sides_of_one_may_have_any_stride(size, stride):
    bits = torch.arange(32, dtype=torch.int32).as_strided(size, stride, 3)
    mask = unpack_bits(bits, 32 * size[-1])
    assert torch.equal(pack_bits(mask), bits)
    assert torch.equal(count_bits(bits), mask.sum(-1).int())
    odd = torch.rand(32).as_strided(size, stride, 3) < 0.5
    assert torch.equal(unpack_bits(pack_bits(odd), size[-1]), odd)


@settings(max_examples=50, deadline=None)
@given(*MASKS)
def test_lists_of_a_mask_are_the_ascending_positions_of_its_ones(shape, n, seed, density):
    mask = random_mask(shape, n, seed, density)
    counts, indices = lists_of_mask(mask)
    assert (counts.shape, indices.shape) == (mask.shape[:-1], mask.shape)
    assert (counts.dtype, indices.dtype) == (torch.int32, torch.int32)
    assert indices.is_contiguous()
    for row, count, listed in zip(
        mask.view(-1, n).tolist(), counts.flatten().tolist(), indices.view(-1, n).tolist(), strict=True
    ):
        ones = [j for j, bit in enumerate(row) if bit]
        assert (count, listed) == (len(ones), ones + [0] * (n - len(ones)))
