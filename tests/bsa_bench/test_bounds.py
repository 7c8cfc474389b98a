"""Sizes that nobody measures, values of the wrong type and paths of no file: usage errors that name the bound."""

import os
import time

import pytest
from cli_factory import TINY
from run_factory import Bench

from bsa_bench.catalog import unsupported_case
from bsa_bench.errors import SuiteError, UsageError
from bsa_bench.result import Status
from bsa_bench.suite import expand, load_suite, override
from bsa_bench.units import parse_duration
from bsa_bench.workload import MAX_TOKENS, Workload

HUGE = "9" * 21
VMOBA = """
title = "V"
implementations = ["full@sdpa-flash", "vmoba@gather"]
passes = ["forward"]
[workload]
tokens = 131
"""


@pytest.fixture
def quick():
    return load_suite("quick", device_kind="cpu")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (f"frames={HUGE}", r"frames\[0\]: got 9{21}, expected a number less than or equal to 1000000"),
        ("height=1000001", r"height\[0\]: got 1000001, expected a number less than or equal to 1000000"),
        (
            "tokens=100000000000031",
            r"tokens\[0\]: got 100000000000031, expected a number less than or equal to 1073741824",
        ),
        (f"tokens={'9' * 5000}", r"tokens\[0\]: got '9{76}\.\.\., expected an integer"),
        ("heads=65537", "expected a number less than or equal to 65536"),
        ("head_dim=65537", "expected a number less than or equal to 65536"),
        ("batch=65537", "expected a number less than or equal to 65536"),
        ("vae=4x8x1025", "expected a number less than or equal to 1024"),
        (f"seed={HUGE}", "expected a number less than or equal to 9223372036854775807"),
        (f"bsa.block=4x4x{HUGE}", "expected a number less than or equal to 1073741824"),
        (f"topk={HUGE}", "expected a number less than or equal to 1073741824"),
        ("processes=1001", "processes: got 1001, expected a number less than or equal to 1000"),
        ("time_limit_s=inf", "time_limit_s: got inf, expected a number less than or equal to 31536000"),
        ("budget_s=1e300", r"budget_s: got 1e\+300, expected a number less than or equal to 31536000"),
        ("size=1000000x1000000x1000000", "= 976,566,406,250,000 tokens, expected at most 1,073,741,824"),
        ("grid=2048x2048x2048", "2,048 x 2,048 x 2,048 = 8,589,934,592 tokens, expected at most 1,073,741,824"),
        ("variant=[1]", "override: variant: got 1, but this suite has no variants"),
        ("variant=[{a = 1}]", "override: variant: got {'a': 1}, but this suite has no variants"),
        ("variant={a = 1}", "override: variant: got 'a', but this suite has no variants"),
        (f"tokens={'[' * 5000}", r"override: tokens: got '\[+\.\.\., not valid TOML: "),
        (f"tokens=[{'9' * 5000}]", "not valid TOML: Exceeds the limit"),
        ('video=["a\\u0000b"]', r"path: 'a\\x00b' holds a zero byte, which no path does"),
        (f"video={'v' * 5000}", "is too long: 5,000 letters, expected at most 4,096, and 255 between two slashes"),
        ("video=~nouser/x.mp4", "path: '~nouser/x.mp4': `~` is no folder here, expected a home folder"),
    ],
)
def test_a_setting_out_of_bounds_is_refused_at_once_and_the_bound_named(quick, setting, message):
    started = time.process_time()
    with pytest.raises(SuiteError, match=message) as refused:
        override(quick, [setting])
    assert time.process_time() - started < 1
    assert len(str(refused.value)) < 2 * len(setting) + 500


def test_the_bound_itself_is_accepted_and_has_a_grid_at_once():
    started = time.process_time()
    assert Workload(tokens=MAX_TOKENS).token_grid == (1024, 1024, 1024)
    assert Workload(tokens=1_073_741_789).token_grid == (1, 1, 1_073_741_789)  # the largest prime below
    assert Workload(grid=(1024, 1024, 1024)).num_tokens == MAX_TOKENS
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("a = " + "[" * 5000, "mine.toml: not valid TOML: its values are nested deeper than Python reads"),
        ("a = " + "[" * 100 + "]" * 100, "mine.toml: a: unknown key"),
        (f"processes = {'9' * 5000}", "mine.toml: not valid TOML: it Exceeds the limit"),
        ("#" * (1 << 20), "mine.toml is too long, expected a suite in TOML of at most 1,048,576 bytes"),
        ("[[variant]]\nname = 'a'\npaper = {speedup = inf, standing = 'P', source = 'x'}", "paper.speedup: got inf"),
    ],
)
def test_a_suite_out_of_bounds_is_refused(tmp_path, body, message):
    file = tmp_path / "mine.toml"
    file.write_text(f'title = "T"\nimplementations = ["bsa@gather"]\n{body}\n')
    with pytest.raises(SuiteError, match=message):
        load_suite(str(file), device_kind="cpu")


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ("seed = {start = 0, stop = 9999, step = 1}", "cross with implementations and variants to 1,000,000 combi"),
        ("seed = {start = 0, stop = 4, step = 1}", "comes to more than 100 cases"),
    ],
)
def test_a_suite_of_more_cases_than_fit_in_memory_is_refused(tmp_path, monkeypatch, axes, message):
    monkeypatch.setattr(expand, "MAX_CASES", 100)
    file = tmp_path / "mine.toml"
    names = ", ".join(f'"{method}@gather"' for method in ("full", "bsa", "vsa", "vmoba", "moba", "swa"))
    more = '"full@flex", "bsa@flex", "vsa@flex", "moba@flex"'
    head = f'title = "T"\nimplementations = [{names}, {more}]\n'
    file.write_text(f"{head}[axes]\nbatch = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]\ntokens = [64]\n{axes}\n")
    with pytest.raises(SuiteError, match=message):
        load_suite(str(file), device_kind="cpu")


@pytest.mark.parametrize("text", ["9" * 400 + "h", "8761h", "525601m"])
def test_a_time_of_more_than_a_year_is_refused(text):
    with pytest.raises(UsageError, match=r"duration: got .*, expected at most 8760h") as refused:
        parse_duration(text)
    assert len(str(refused.value)) < 200


def test_a_case_that_its_method_is_not_defined_on_is_listed_and_stored_as_unsupported(bench, scripted, folder):
    (folder / "tiny.toml").write_text(VMOBA)
    there = scripted()
    code, out, _ = bench("run", "--suite", "tiny.toml", "--dry-run")
    assert code == 0
    assert "vmoba.block: expected sides that divide the grid's 1x1x131" in " ".join(out.split())
    cases = load_suite("./tiny.toml", device_kind="cpu").cases()
    runner = Bench(there.folder)
    outcome = runner.run(cases, unavailable=unsupported_case)
    assert outcome.counts == {Status.OK: 1, Status.UNSUPPORTED: 1}


@pytest.mark.parametrize("name", ["~nouser/r", "x" * 5000, "a/" * 3000, "\x1b[2J" * 2000])
@pytest.mark.parametrize(
    "verb",
    [
        ("doctor", "--results"),
        ("run", "--suite", "tiny.toml", "--results"),
        ("run", "--suite", "tiny.toml", "--reports"),
        ("run", "--suite", "tiny.toml", "--video"),
        ("report", "--out"),
        ("report", "--published"),
        ("table", "main", "--out"),
        ("plot", "speedup", "latest", "--out"),
        ("export", "--out"),
        ("import",),
        ("import", "tiny.toml", "--out"),
        ("tune", "--dry-run", "--out"),
        ("tune", "--dry-run", "--cache"),
        ("limits", "--out"),
        ("gate", "--path"),
        ("gate", "--junit"),
        ("gate", "--markdown"),
        ("gate", "--baselines"),
        ("noise", "--noise"),
        ("compare", "a", "b", "--base-python"),
        ("profile", "bsa@gather", "--out"),
        ("static", "--limits"),
        ("static", "--config"),
    ],
)
def test_a_path_that_no_file_can_have_is_a_usage_error_of_every_option(verb, name, bench, folder):
    code, out, err = bench(*verb, name)
    assert code == 2
    assert out == ""
    assert "path: " in err
    assert len(err) < 600
    assert "\x1b" not in err
    assert [path.name for path in folder.iterdir()] == ["tiny.toml"]


@pytest.mark.parametrize("name", ["pipe", "endless", "folder"])
@pytest.mark.parametrize("verb", [("run", "--suite"), ("import",), ("report", "--published"), ("static", "--limits"),
                                  ("static", "--config")])  # fmt: skip
def test_what_does_not_end_is_not_read(verb, name, bench, folder):
    os.mkfifo(folder / "pipe")
    (folder / "endless").symlink_to("/dev/zero")
    (folder / "folder").mkdir()
    code, _, err = bench(*verb, f"./{name}")
    assert code in {2, 5}
    assert name in err or "no run" in err


def test_the_suite_of_these_tests_is_accepted(folder):
    (folder / "tiny.toml").write_text(TINY)
    assert load_suite("./tiny.toml", device_kind="cpu").cases()


def test_a_word_of_the_command_line_is_repeated_in_part(bench, folder):
    code, _, err = bench("list", "\x1b[2J" * 2000)
    assert code == 2
    assert len(err) < 1500
    assert "\x1b" not in err
