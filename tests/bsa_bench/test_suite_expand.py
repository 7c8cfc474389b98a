"""Expansion: counts, order, layers, variants, ranges."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bsa_bench.suite import Suite, load_suite
from bsa_bench.suite.ranges import Range
from bsa_bench.suite.schema import vocabulary

HEAD = (
    'title = "T"\nimplementations = ["bsa@gather", "full@sdpa-flash", "bsa@flex"]\npasses = ["forward", "backward"]\n'
)


def make(folder, body: str, device_kind="cpu") -> Suite:
    path = folder / "mine.toml"
    path.write_text(HEAD + body)
    return load_suite(str(path), device_kind=device_kind)


@pytest.fixture
def load(tmp_path):
    return lambda body, device_kind="cpu": make(tmp_path, body, device_kind)


def test_dense_cases_are_made_once_a_workload_and_sparse_ones_for_each_option(load):
    suite = load("[axes]\ntokens = [128, 64]\nkv_density = [0.1, 0.2, 0.3]\nquery_keep = [0.5, 1.0]\n")
    cases = suite.cases()
    assert len(cases) == 2 * 2 * (1 + 2 * 6)
    assert len({case.case_hash for case in cases}) == len(cases)
    assert sum(case.method == "full" for case in cases) == 4
    assert (
        suite.digest == load("[axes]\ntokens = [128, 64]\nkv_density = [0.1, 0.2, 0.3]\nquery_keep = [0.5, 1]").digest
    )


def test_cases_come_by_tokens_then_implementation_then_pass(load):
    cases = load("[axes]\ntokens = [128, 64]\n").cases()
    assert [(c.workload.num_tokens, c.implementation, c.passes) for c in cases] == [
        (tokens, implementation, passes)
        for tokens in (64, 128)
        for implementation in ("bsa@gather", "full@sdpa-flash", "bsa@flex")
        for passes in ("forward", "backward")
    ]
    groups = [case.group for case in load("[axes]\ntokens = [64]\nkv_density = [0.1, 0.2]").cases()]
    assert len([1 for a, b in pairwise(groups) if a != b]) == len(set(groups)) - 1  # cases of a group stay together


def test_repeated_values_make_no_second_case(load):
    assert len(load("[axes]\ntokens = [64, 64]\nkv_density = [0.1, 0.1]\n").cases()) == 6


def test_a_zip_may_join_a_length_with_an_option(load):
    cases = load("[[zip]]\ntokens = [64, 128]\nkv_density = [0.2, 0.1]\n").cases()
    assert {(c.workload.num_tokens, c.options["kv_density"]) for c in cases if c.options} == {(64, 0.2), (128, 0.1)}


def test_a_model_fills_what_is_not_given(load):
    (workload,) = {c.workload for c in load("[workload]\nmodel = 'wan2.1-14b'\nheads = 3\ntokens = 64\n").cases()}
    assert (workload.heads, workload.head_dim, workload.dtype) == (3, 128, "float32")
    (workload,) = {c.workload for c in load("[workload]\ntokens = 64\ndtype = 'auto'\n", "cuda").cases()}
    assert workload.dtype == "bfloat16"


def test_a_device_part_replaces_keys_wherever_they_stand_and_lengths_of_any_kind(load):
    body = """
        [workload]
        heads = 5
        [axes]
        tokens = [64, 128]
        kv_density = [0.1, 0.2]
        [cpu.workload]
        model = "cpu-1x32"
        [cuda]
        implementations = ["full@flex"]
        [cuda.bsa]
        kv_density = 0.3
        [[cuda.zip]]
        frames = [5, 9]
        height = [64, 128]
        width = [64, 64]
    """
    cpu, cuda = load(body).cases(), load(body, "cuda").cases()
    assert {(c.workload.heads, c.workload.num_tokens) for c in cpu} == {(1, 64), (1, 128)}
    assert {c.options["kv_density"] for c in cpu if c.options} == {0.1, 0.2}
    assert {(c.workload.heads, c.workload.token_grid) for c in cuda} == {(5, (2, 4, 4)), (5, (3, 8, 4))}
    assert {c.implementation for c in cuda} == {"full@flex"}


def test_a_clip_goes_only_to_the_kinds_that_take_one(load):
    cases = load("[workload]\ntokens = 64\n[input]\nclip = 'bikes'\n[axes]\nkind = ['smooth', 'video']\n").cases()
    assert {c.workload.input.label for c in cases} == {"smooth", "video:bikes"}


def test_variants_apply_where_they_say_and_what_is_left_out_keeps_its_reason(load):
    suite = load("""
        [axes]
        tokens = [64, 128]
        [bsa]
        kv_density = 0.2
        query_block = [4, 4, 8]
        [[variant]]
        name = "a"
        query_keep = 1.0
        when = { tokens = [64, 256] }
        [[variant]]
        name = "b"
        query_block = "none"
        implementations = ["bsa@flex"]
        paper = { speedup = 2, standing = "D", source = "here" }
        [[variant]]
        name = "c"
        query_keep = 1.0
        kv_density = 0.2
    """)
    sparse = {(c.workload.num_tokens, c.implementation, c.variant) for c in suite.cases() if c.options}
    assert sparse == {
        (64, "bsa@gather", "a"),
        (64, "bsa@flex", "a"),
        (64, "bsa@flex", "b"),
        (128, "bsa@flex", "b"),
        (128, "bsa@gather", "c"),
        (128, "bsa@flex", "c"),
    }
    assert {c.options["query_block"] for c in suite.cases() if c.variant == "b"} == {None}
    assert not any(c.paper for c in suite.cases())  # no forward+backward here
    texts = [str(item) for item in suite.dropped]
    assert any("variant 'a' at 4x4x8 = 128 tokens" in t and "only when tokens = 64 or 256" in t for t in texts)
    assert "variant 'b' of bsa@gather: only for bsa@flex" in texts
    assert any("variant 'c' of bsa@flex at 4x4x4" in t and "the same options as variant 'a'" in t for t in texts)


def test_a_condition_may_name_a_grid_or_an_input(load):
    suite = load("""
        [axes]
        grid = [[2, 2, 2], [4, 4, 4]]
        kind = ["smooth", "gaussian"]
        [[variant]]
        name = "a"
        when = { grid = [2, 2, 2], kind = "smooth" }
    """)
    found = {(c.workload.token_grid, c.workload.input.kind) for c in suite.cases() if c.variant}
    assert found == {((2, 2, 2), "smooth")}


def test_a_limit_leaves_out_passes_and_lengths_by_pattern(load):
    suite = load("""
        [axes]
        tokens = [64, 128]
        [limit."bsa@*"]
        max_tokens = 64
        [limit."full@sdpa-flash"]
        passes = ["forward"]
        reason = "enough"
    """)
    assert [(c.workload.num_tokens, c.implementation, c.passes) for c in suite.cases()] == [
        (64, "bsa@gather", "forward"),
        (64, "bsa@gather", "backward"),
        (64, "full@sdpa-flash", "forward"),
        (64, "bsa@flex", "forward"),
        (64, "bsa@flex", "backward"),
        (128, "full@sdpa-flash", "forward"),
    ]
    assert "full@sdpa-flash backward: the suite's limit is forward (enough)" in [str(item) for item in suite.dropped]


def test_every_key_is_of_one_known_type():
    words = vocabulary()
    kinds = (words.is_whole, words.is_real, words.is_tuple, words.is_flag)
    texts = {key for key in words.types if not any(holds(key) for holds in kinds)}
    assert {"model", "dtype", "kind", "clip", "path", "query_rule", "bsa.kv_rule", "fill"} <= texts
    assert not {"tokens", "kv_density", "bsa.block", "query_keep", "grid"} & texts
    assert words.is_whole("tokens")
    assert words.is_real("bsa.kv_density")
    assert words.is_tuple("query_block")
    assert not words.is_whole("query_block")


@pytest.mark.parametrize(
    ("raw", "whole", "expected"),
    [
        ({"start": 1024, "stop": 4096, "step": 1024}, True, [1024, 2048, 3072, 4096]),
        ({"start": 1, "stop": 10, "step": 4}, True, [1, 5, 9]),
        ({"start": 0.05, "stop": 0.2, "step": 0.05}, False, [0.05, 0.1, 0.15, 0.2]),
        ({"start": 1024, "stop": 16384, "num": 5, "scale": "log2"}, True, [1024, 2048, 4096, 8192, 16384]),
        ({"start": 0, "stop": 1, "num": 5}, False, [0, 0.25, 0.5, 0.75, 1]),
        ({"start": 1, "stop": 3, "num": 9}, True, [1, 2, 3]),
        ({"start": 7, "stop": 7, "step": 1}, True, [7]),
    ],
)
def test_a_range_has_the_values_that_are_written(raw, whole, expected):
    values = Range.model_validate(raw).values(whole=whole)
    assert values == expected
    assert not whole or all(type(value) is int for value in values)


@pytest.mark.slow
@given(start=st.integers(1, 10_000), span=st.integers(0, 9_999), step=st.integers(1, 500))
def test_a_stepped_range_is_what_python_counts(start, span, step):
    stop = start + span
    assert Range(start=start, stop=stop, step=step).values(whole=True) == list(range(start, stop + 1, step))


@given(
    start=st.floats(1e-3, 1e3),
    factor=st.floats(1, 1e3),
    num=st.integers(2, 40),
    scale=st.sampled_from(["linear", "log2"]),
    whole=st.booleans(),
)
def test_a_range_of_num_values_ascends_from_start_to_stop(start, factor, num, scale, whole):
    stop = start * factor
    values = Range(start=start, stop=stop, num=num, scale=scale).values(whole=whole)
    assert values == sorted(set(values))
    assert 1 <= len(values) <= num
    assert (values[0], values[-1]) == ((round(start), round(stop)) if whole else (start, stop))


@pytest.mark.slow
@given(
    st.dictionaries(
        st.sampled_from(["start", "stop", "step", "num"]), st.floats(-9, 9) | st.integers(-9, 9) | st.booleans()
    )
)
def test_a_range_is_refused_or_finite_and_not_empty(raw):
    try:
        values = Range.model_validate(raw).values(whole=False)
    except ValidationError:
        return
    assert values
    assert all(math.isfinite(value) for value in values)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(data=st.data(), length=st.integers(1, 5))
def test_axes_are_crossed_and_zips_advance_together(tmp_path_factory, data, length):
    unique = {"min_size": 1, "max_size": 4, "unique": True}
    tokens = data.draw(st.lists(st.integers(1, 4096), **unique))
    seeds = data.draw(st.lists(st.integers(0, 99), min_size=length, max_size=length, unique=True))
    heads = data.draw(st.lists(st.integers(1, 9), min_size=length, max_size=length))
    body = f"[axes]\ntokens = {tokens}\n[[zip]]\nseed = {seeds}\nheads = {heads}\n"
    cases = make(tmp_path_factory.mktemp("suite"), body).cases()
    assert len(cases) == len(tokens) * length * 3 * 2
    assert {(c.workload.input.seed, c.workload.heads) for c in cases} == set(zip(seeds, heads, strict=True))
