"""The selection in C++ against its twin in torch: the same tables over random settings, ties, orders and threads."""

import random

import pytest
import torch
from kernel_helpers import DEVICE

from bsa_kernels import make_bsa_plan
from bsa_kernels.cpp import library
from bsa_kernels.engines import get_engine
from bsa_kernels.methods.bsa import cpp_select, stages
from bsa_kernels.methods.bsa.options import BsaOptions
from bsa_kernels.methods.bsa.pipeline import bsa_operator
from bsa_kernels.methods.bsa.stages import Selected, build_plan, grids

pytestmark = pytest.mark.skipif(DEVICE.type != "cpu", reason="the inputs of these tests are on the GPU")
KV_RULES = ("statistical", "topk", "mass", "softmax_stat")
GRID = (5, 8, 9)


def drawn(seed):
    """Random options, and normal q and k in fp64 with a random head size."""
    draw = random.Random(seed)

    def triple(high):
        return tuple(draw.randint(1, high) for _ in range(3))

    options = BsaOptions(
        grid=triple(9),
        block=triple(5),
        query_block=draw.choice([None, triple(5)]),
        query_keep=draw.choice([0.05, 0.3, 0.5, 0.9, 1]),
        kv_density=draw.choice([1e-20, 0.1, 0.3, 0.7, 1]),
        query_rule=draw.choice(["window", "block", "flat_half", "central_mean"]),
        kv_rule=draw.choice(KV_RULES),
        fill=draw.choice(["nearest", "similar", "flat", "zero"]),
    )
    if options.kv_density < 1e-3 and options.kv_rule != "topk":  # the twin has no quantile of 1 - 1e-20
        options = BsaOptions(**{**vars(options), "kv_density": 0.01})
    return options, normal(options.grid, draw.randint(1, 40), seed)


def normal(grid, head_dim, seed=0):
    make = torch.Generator().manual_seed(seed)
    shape = (2, 2, grid[0] * grid[1] * grid[2], head_dim)
    return [torch.randn(shape, generator=make, dtype=torch.float64) for _ in range(2)]


def both(q, k, options, *, scale=0.3, is_tiled=False):
    """What C++ and torch select."""
    found = cpp_select.select(q, k, options, scale=scale, is_tiled=is_tiled)
    return found, stages.select_tokens(q, k, options, scale=scale, is_tiled=is_tiled, in_triton=False)


def is_same(found, expected):
    return all(one.dtype == other.dtype and torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.fixture
def num_threads(monkeypatch):
    """Sets torch's number of threads, all of which start however small a call is; one again at the end."""
    monkeypatch.setattr(cpp_select, "NUMBERS_A_THREAD", 1)
    yield torch.set_num_threads
    torch.set_num_threads(1)


@pytest.mark.parametrize("is_tiled", [False, True])
def test_a_hundred_random_settings_select_what_torch_does(is_tiled, num_threads):
    for seed in range(50 * is_tiled, 50 * is_tiled + 50):
        options, (q, k) = drawn(seed)
        num_threads(1 + seed % 3)
        if is_tiled:
            q, k = (grid.permute(x) for grid, x in zip(grids(options), (q, k), strict=True))
        found, expected = both(q, k, options, is_tiled=is_tiled)
        assert is_same(found, expected), f"seed {seed}: {options}"
        build_plan(found, options).check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_shorter_formats_select_what_torch_does_but_for_ties_that_rounding_makes(dtype):
    # A decision is within a rounding of fp32 of its threshold once in a million, and there are as many here.
    differs = []
    for seed in range(100, 140):
        options, tensors = drawn(seed)
        found, expected = both(*(x.to(dtype) for x in tensors), options)
        if not is_same(found, expected):
            differs.append(seed)
    assert len(differs) <= 1, differs


@pytest.mark.parametrize("fill", ["nearest", "similar", "flat", "zero"])
@pytest.mark.parametrize("query_rule", ["window", "block"])
def test_ties_go_to_the_lowest_index(query_rule, fill):
    make = torch.Generator().manual_seed(0)
    few = torch.randn(3, 16, generator=make)
    few[0] = 0
    q, k = (few[torch.randint(0, 3, (1, 2, 360), generator=make)] for _ in range(2))
    for kv_rule in KV_RULES:
        for block in ((2, 4, 4), (1, 1, 1)):
            options = BsaOptions(grid=GRID, block=block, query_rule=query_rule, fill=fill, kv_rule=kv_rule)
            found, expected = both(q, k, options)
            assert is_same(found[:3], expected[:3])
            build_plan(found, options).check()
    options = BsaOptions(grid=GRID, block=(1, 1, 1), kv_rule="topk", kv_density=0.4)
    found, expected = both(q.sign(), k.sign(), options)  # products are whole numbers: their ties are ties everywhere
    assert is_same(found, expected)


def test_equal_keys_and_a_scale_of_zero_keep_every_block():
    q, k = (x.float() for x in normal(GRID, 8))
    for keys, scale in ((torch.ones_like(k), 0.3), (k, 0.0)):
        found, expected = both(q, keys, BsaOptions(grid=GRID, block=(2, 3, 4)), scale=scale)
        assert is_same(found, expected)
        assert found.block_bits.unique().tolist() == [(1 << 27) - 1]


def test_a_negative_scale_and_rows_with_strides_are_read_right():
    wide = [torch.stack((x, x), -1)[..., 0].transpose(1, 2).contiguous().transpose(1, 2) for x in normal(GRID, 8)]
    found, expected = both(*wide, BsaOptions(grid=GRID, kv_density=0.3), scale=-0.4)
    assert is_same(found, expected)
    gaps = [torch.stack((x, x), -1)[..., 0] for x in wide]
    assert gaps[0].stride(-1) == 2
    assert is_same(both(*gaps, BsaOptions(grid=GRID, kv_density=0.3), scale=-0.4)[0], expected)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
@pytest.mark.parametrize("query_rule", ["window", "block"])
def test_tables_stay_valid_where_inputs_are_not_finite(query_rule, value):
    q, k = (x.float() for x in normal(GRID, 8))
    q[:, :, ::7, 3] = value
    k[:, :, ::5, 2] = value
    for kv_rule in KV_RULES:
        options = BsaOptions(grid=GRID, block=(2, 4, 4), query_rule=query_rule, kv_rule=kv_rule, fill="similar")
        build_plan(both(q, k, options)[0], options).check()


def test_large_blocks_and_many_blocks_select_what_torch_does():
    for options in (
        BsaOptions(grid=(8, 8, 12), block=(8, 8, 8), query_rule="central_mean", query_keep=0.3, fill="similar"),
        BsaOptions(grid=(8, 8, 16), block=(1, 1, 1), query_block=(2, 2, 2), kv_rule="mass"),
        BsaOptions(grid=(8, 8, 16), block=(1, 1, 1), kv_density=0.02),
    ):
        assert is_same(*both(*normal(options.grid, 20), options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tables_are_the_same_bits_for_any_number_of_threads(dtype, num_threads):
    q, k = (x.to(dtype) for x in normal((8, 16, 16), 64))
    options = BsaOptions(grid=(8, 16, 16))
    expected = cpp_select.select(q, k, options, scale=0.1, is_tiled=False)
    for threads in (2, 3, 64):
        num_threads(threads)
        assert is_same(cpp_select.select(q, k, options, scale=0.1, is_tiled=False), expected)


def test_the_operator_of_the_engine_cpu_selects_in_cpp_what_make_bsa_plan_does(monkeypatch):
    calls = []
    monkeypatch.setattr(library.Library, "select", _counting(library.Library.select, calls))
    q, k = normal(GRID, 16)
    for tiled in (False, True):
        options = BsaOptions(grid=GRID, kv_density=0.3)
        operator = bsa_operator(options, get_engine("cpu", tiled=tiled), scale=0.25)
        plan = operator.run({"q": q, "k": k, "v": k})["plan"]
        expected = make_bsa_plan(q, k, grid=GRID, kv_density=0.3)
        names = Selected._fields
        assert is_same([getattr(plan, name) for name in names], [getattr(expected, name) for name in names])
    assert len(calls) == 2


def _counting(function, calls):
    def counted(self, problem):
        calls.append(problem)
        function(self, problem)

    return counted


@pytest.mark.slow
def test_the_operator_passes_the_checks_of_torch():
    q, k = normal(GRID, 8)
    options = BsaOptions(grid=GRID, query_block=(2, 2, 4))
    torch.library.opcheck(torch.ops.bsa_kernels.bsa_select_cpp.default, (q, k, options.code, 0.3, False))
