"""Overrides from the command line."""

from __future__ import annotations

import pytest

from bsa_bench.errors import SuiteError
from bsa_bench.suite import load_suite, override


@pytest.fixture
def quick():
    return load_suite("quick", device_kind="cpu")


@pytest.fixture
def paper():
    return load_suite("paper", device_kind="cuda")


def lengths(suite) -> list[tuple[int, int, int]]:
    return sorted({case.workload.token_grid for case in suite.cases()})


def test_a_length_replaces_the_suites_own_whatever_its_kind(quick):
    assert lengths(override(quick, ["tokens=64,512"])) == [(4, 4, 4), (8, 8, 8)]
    assert lengths(override(quick, ["grid=5x7x9"])) == [(5, 7, 9)]
    assert lengths(override(quick, ["size=5x32x64,9x64x32"])) == [(2, 2, 4), (3, 4, 2)]
    assert lengths(override(quick, ["frames=5", "height=32", "width=64,32"])) == [(2, 2, 2), (2, 2, 4)]
    assert lengths(override(quick, ["tokens={start=64, stop=192, step=64}"])) == [(4, 4, 4), (4, 4, 8), (4, 6, 8)]
    assert lengths(override(override(quick, ["tokens=64"]), ["size=5x32x32"])) == [(2, 2, 2)]


def test_frames_alone_keep_the_suites_frame_sizes():
    suite = override(load_suite("long-video", device_kind="cpu"), ["frames=5,9"])
    assert lengths(suite) == [(2, 16, 32), (3, 16, 32)]


@pytest.mark.slow
def test_any_key_implementation_and_pass_can_be_given(quick):
    settings = ["tokens=64", "kv_density=0.2,1", "implementation=bsa@flex,full@flex", "pass=forward", "dtype=bfloat16"]
    suite = override(
        quick, [*settings, "seed=3", "block=2x4x8", 'query_block=["none", [2, 8, 8]]', "profile=report", "budget_s=9"]
    )
    assert len(suite.cases()) == 1 + 2 * 2
    assert {c.options["kv_density"] for c in suite.cases() if c.options} == {0.2, 1.0}
    assert {str(c.options["query_block"]) for c in suite.cases() if c.options} == {"None", "[2, 8, 8]"}
    (workload,) = {c.workload for c in suite.cases()}
    assert (workload.dtype, workload.input.seed) == ("bfloat16", 3)
    assert (suite.profile, suite.limits.budget_s, suite.limits.time_limit_s) == ("report", 9, 300)
    assert suite.digest != quick.digest == override(quick, []).digest


def test_the_number_of_processes_is_a_setting_and_part_of_the_digest(quick):
    assert quick.num_processes is None
    five = override(quick, ["processes=5"])
    assert five.num_processes == 5
    assert five.digest != quick.digest
    assert override(five, ["processes=2"]).num_processes == 2


def test_an_input_can_be_a_file_a_clip_or_made(quick, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (workload,) = {c.workload for c in override(quick, ["video=a.mp4", "tokens=64"]).cases()}
    assert (workload.input.kind, workload.input.path, workload.input.clip) == ("video", str(tmp_path / "a.mp4"), None)
    (workload,) = {c.workload for c in override(quick, ["input=gaussian", "tokens=64"]).cases()}
    assert workload.input.label == "gaussian"
    from_smooth = override(override(quick, ["input=smooth"]), ["clip=carphone"])
    assert {c.workload.input.label for c in from_smooth.cases()} == {"video:carphone"}
    assert {c.workload.input.label for c in override(quick, ["kind=video,smooth"]).cases()} == {"video:bikes", "smooth"}


def test_a_model_brings_its_heads(quick):
    (heads,) = {(c.workload.heads, c.workload.head_dim) for c in override(quick, ["model=hunyuanvideo"]).cases()}
    assert heads == (24, 128)


def test_limits_hold_unless_turned_off(quick):
    with pytest.raises(SuiteError, match=r"(?s)no case is left.*full@sdpa-math at .*limit is 4,096 tokens"):
        override(quick, ["tokens=8192", "implementation=full@sdpa-math"])
    assert override(quick, ["tokens=8192", "implementation=full@sdpa-math", "limit=off"]).cases()


def test_a_variant_under_a_new_length_runs_everywhere_and_loses_the_papers_figure(paper):
    cases = override(paper, ["tokens=1024"]).cases()
    assert len({c.variant for c in cases if c.options}) == 6
    assert not any(c.paper for c in cases)


def test_a_variant_loses_the_options_that_are_overridden(paper):
    cases = override(paper, ["kv_density=0.3"]).cases()
    assert {c.options["kv_density"] for c in cases if c.options} == {0.3}
    assert all(c.variant.endswith(" (changed)") and not c.paper for c in cases if c.options)


def test_the_papers_figure_stays_only_while_length_and_options_do(paper):
    assert sum(c.paper is not None for c in override(paper, ["seed=7", "dtype=float16"]).cases()) == 6 * 3
    assert not any(c.paper for c in override(paper, ["fill=zero"]).cases())
    chosen = override(paper, ["variant=both (0.93),both (0.95)"])
    assert {c.variant for c in chosen.cases() if c.paper} == {"both (0.93)", "both (0.95)"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["tokens"], "override: got 'tokens', expected key=value such as tokens=4096,16384"),
        (["tokens="], "override: got 'tokens=', expected key=value"),
        (["tokns=3"], "unknown key 'tokns', expected one of alpha, .*; did you mean 'tokens'"),
        (["tokens=abc"], r"override: tokens\[0\]: got 'abc', expected an integer$"),
        (["tokens=64,1.5"], r"override: tokens\[1\]: got '1.5', expected an integer$"),
        (["tokens=1", "tokens=2"], "override: tokens is given 2 times, expected once, as tokens=a,b,c"),
        (["tokens=1", "grid=1x1x1"], r"two kinds of length, tokens \(at tokens\) and grid \(at grid\)"),
        (["frames=5", "size=5x32x32"], r"frames is given twice, at frames and at zip\[0\]"),
        (["tokens={start"], "override: tokens: got '{start', not valid TOML"),
        (
            ["kv_density={start=0.5, stop=0.1, step=0.1}"],
            "override: kv_density: stop: got 0.1, expected at least start = 0.5",
        ),
        (["kv_density=0.1,2"], r"override: kv_density\[1\]: got 2.0, expected a number less than or equal to 1"),
        (["size=61x448"], "override: size: got '61x448', expected frames x height x width such as 61x448x832"),
        (["block=4x4"], r"override: block\[0\]: got \[4, 4\], expected exactly three integers"),
        (["dtype=bfloat"], "did you mean 'bfloat16'"),
        (["implementation=bsa_gather"], "expected method@engine such as bsa@gather; did you mean 'bsa@gather'"),
        (["pass=fwd"], r"override: passes\[0\]: got 'fwd', expected 'forward', 'backward' or"),
        (["profile=reprt"], "override: profile: got 'reprt', expected 'quick' or 'report'; did you mean 'report'"),
        (["processes=0"], "override: processes: got 0, expected a number greater than 0"),
        (["processes=1.5"], "override: processes: got '1.5', expected an integer"),
        (["time_limit_s=a"], "override: time_limit_s: got 'a', expected a number"),
        (["limit=on"], "override: limit: got 'on', expected off"),
        (["variant=x"], "override: variant: got 'x', but this suite has no variants"),
        (["input=smooth", "video=x"], "override: video is given with kind, expected one of them"),
        (["input=smooth", "path=x"], "override: input.path: got .*, expected kind = 'video' or 'captured' with it"),
    ],
)
def test_a_wrong_setting_is_named(quick, settings, message):
    with pytest.raises(SuiteError, match=message):
        override(quick, settings)


def test_variants_can_be_chosen_by_name(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'title = "T"\nimplementations = ["bsa@flex"]\n[workload]\ntokens = 64\n'
        '[[variant]]\nname = "a"\n[[variant]]\nname = "b"\nfill = "zero"\n'
    )
    suite = load_suite(str(path), device_kind="cpu")
    assert {c.variant for c in override(suite, ["variant=b"]).cases()} == {"b"}
    with pytest.raises(SuiteError, match="override: variant: got 'c', expected one of a, b"):
        override(suite, ["variant=c"])
