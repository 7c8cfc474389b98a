import json
import re
import subprocess
from pathlib import Path

import pytest
from compile_cache import cache_folder
from report_factory import case, measured, run_line, write_run
from static_examples import CONFIG, DENSE, EXAMPLE, KERNEL

from bsa_bench.cli.static_command import _exit_code
from bsa_bench.errors import UsageError
from bsa_bench.methods.bsa import BsaOptions
from bsa_bench.result import Work
from bsa_bench.static.compile import Failure
from bsa_bench.static.config import KernelConfig

triton = pytest.importorskip("triton")

FORWARD = "attend-bf16-d64-k64"
ONE = ("--only", FORWARD, "--arch", "sm_90")
USER = ("--config", EXAMPLE, "--only", DENSE, "--arch", "sm_90")


@pytest.fixture
def static(bench, folder, monkeypatch):
    """Run `bsa-bench static` in an empty folder that has `scale.py`, with the cache that tests share."""
    monkeypatch.setenv("BSA_BENCH_CACHE", str(cache_folder()))
    monkeypatch.delenv("COLUMNS", raising=False)
    Path("scale.py").write_text(KERNEL)
    return lambda *arguments: bench("static", *arguments)


def config(text=""):
    """A configuration file for `scale.py`, and how to ask for it, with one process for all that it has."""
    Path("scale.toml").write_text(CONFIG + text)
    return ("--config", "scale.toml", "--arch", "sm_90", "--jobs", "1")


# What it shows


@pytest.mark.slow
def test_the_table_of_a_shipped_configuration(static):
    code, out, err = static(*ONE)
    assert (code, err) == (0, "")
    assert out.startswith("sm_90, ceilings on H200-SXM (largest matrix product measured: 788 TFLOP/s)\n")
    (row,) = [line for line in out.splitlines() if line.startswith(f"{FORWARD} ")]
    assert " wgmma " in row
    assert " 2 of 2 " in row
    assert f"\nTriton {triton.__version__}; floating-point fusion on, line info on.\nCeilings assume:\n- " in out
    assert "\n- left out: power" in out
    assert "\x1b" not in out


@pytest.mark.slow
def test_the_table_is_as_wide_as_the_terminal(static, monkeypatch):
    monkeypatch.setenv("COLUMNS", "90")
    out = static(*USER)[1]
    assert 80 < max(map(len, out.splitlines())) <= 90


@pytest.mark.slow
def test_json_is_one_document_with_all_that_the_table_shows(static):
    code, out, err = static(*USER, "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    (row,) = document["configurations"]
    assert (row["name"], row["arch"], row["triton"]) == (DENSE, "sm_90", triton.__version__)
    assert 32 < row["registers"] <= 255
    (main,) = [loop for loop in row["loops"] if loop["is_main"]]
    assert main["num_instructions"] > 100
    assert {each["class"] for each in main["tensor"]} == {"wgmma"}
    (ceiling,) = row["ceilings"]
    assert 0 < ceiling["in_order_flop_per_s"] <= ceiling["overlapped_flop_per_s"]
    bandwidth = {"value": 4.8e12, "source": "NVIDIA H200 datasheet", "measured": False}
    assert document["devices"]["H200-SXM"]["hbm_bytes_per_s"] == bandwidth
    again = json.loads(static(*USER, "--format", "json")[1])["configurations"][0]
    assert again["was_cached"]
    assert again["digest"] == row["digest"]


@pytest.mark.slow
def test_markdown_has_tables_of_equal_rows(static):
    code, out, _ = static(*USER, "--format", "md")
    assert code == 0
    table = re.findall(r"^\|.*\|$", out, re.MULTILINE)
    assert len(table) == 3
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
    assert table[2].startswith(f"| {DENSE} |")
    assert "- H200-SXM: hbm_bytes_per_s 4.8e+12 (NVIDIA H200 datasheet)\n" in out


@pytest.mark.slow
def test_the_launch_that_is_predicted_has_the_tokens_heads_and_density_asked_for(static):
    shape = ("--tokens", "65536", "--heads", "2", "--kv-density", "0.25")
    (row,) = json.loads(static(*ONE, "--json", *shape)[1])["configurations"]
    (ceiling,) = row["ceilings"]
    blocks = 65536 // 64
    assert ceiling["overlapped_s"] * ceiling["overlapped_flop_per_s"] == pytest.approx(
        2 * blocks * 0.25 * blocks * row["flop_per_trip"]
    )


@pytest.mark.slow
def test_a_kernel_of_ones_own(static):
    code, out, _ = static("--kernel", f"{EXAMPLE.with_suffix('.py')}:dense_forward", *USER)
    assert code == 0
    assert len(re.findall(r"^dense-", out, re.MULTILINE)) == 1


@pytest.mark.slow
def test_explain_shows_the_main_loop_by_line_and_sass_its_instructions(static):
    code, out, err = static("explain", DENSE, "--config", EXAMPLE, "--arch", "sm_90")
    assert (code, err) == (0, "")
    assert out.startswith(f"{DENSE}, sm_90a, Triton {triton.__version__}\n")
    assert re.search(r"^H200-SXM: at most \d+ TFLOP/s, set by ", out, re.MULTILINE)
    assert "weights = tl.exp2(scores - new_top[:, None])" in out
    assert "HGMMA" not in out
    assert "HGMMA" in static("explain", DENSE, "--config", EXAMPLE, "--arch", "sm_90", "--sass")[1]


@pytest.mark.slow
def test_measured_rates_of_stored_runs_stand_beside_the_ceiling(static):
    of = case("bsa@triton", 23296, head_dim=64, heads=12, dtype="bfloat16", options=BsaOptions(query_keep=1.0))
    base = measured(of)
    work = Work(**(base.work.model_dump() | {"flops_executed": 3.21e12, "query_keep_realised": 1.0}))
    timing = base.timing.model_copy(update={"phases": {"attend": [0.01] * 9}})
    gpu = {"device_kind": "cuda", "device_name": "NVIDIA H200"}
    environment = run_line(1).environment.model_copy(update=gpu)
    results = [measured(of, work=work, timing=timing)]
    write_run(Path("results/reference/one-h200"), results, environment=environment)
    padded = f"{FORWARD}-padded"  # as the grid of the case is
    out = static("--only", padded, "--arch", "sm_90")[1]
    assert "measured" in out
    assert " 321" in next(line for line in out.splitlines() if line.startswith(padded))


# Differences


@pytest.mark.slow
def test_the_same_sources_and_the_same_triton_give_the_same_code(static, tmp_path, monkeypatch):
    assert static("diff", ".", ".", *USER)[:2] == (0, ". -> .: 1 compilations, 1 with the same code\n")
    # As if pip had fetched the release that is installed.
    version = triton.__version__
    fetched = tmp_path / "cache" / "triton" / version
    fetched.mkdir(parents=True)
    (fetched / "triton").symlink_to(Path(triton.__file__).parent)
    (tmp_path / "cache" / "static").symlink_to(cache_folder())
    monkeypatch.setenv("BSA_BENCH_CACHE", str(tmp_path / "cache" / "static"))
    side = f"triton=={version}"
    code, out, _ = static("diff", side, side, *USER)
    assert (code, out) == (0, f"{side} -> {side}: 1 compilations, 1 with the same code\n")
    document = json.loads(static("diff", side, ".", *USER, "--json")[1])
    assert (document["base"], document["head"]) == (side, ".")
    assert [(c["name"], c["arch"], c["verdict"]) for c in document["changes"]] == [(DENSE, "sm_90", "same")]


@pytest.fixture
def repository(static):
    """A git repository with the dense example, its one commit, and flags that ask for one configuration."""
    text = EXAMPLE.with_suffix(".py").read_text()
    before = "weights = tl.exp2(scores - new_top[:, None])"
    assert before in text
    Path("dense_forward.py").write_text(text.replace(before, f"{before} * 1.5"))
    example, shape = EXAMPLE.read_text(), "ROWS = 128, KEYS = 64, D = 64"
    assert shape in example
    Path("mine.toml").write_text(example.replace(shape, "ROWS = 64, KEYS = 64, D = 64"))  # compiles sooner
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "-q"], ["add", "dense_forward.py", "mine.toml"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *arguments], check=True)
    return ("--config", "mine.toml", "--only", DENSE, "--arch", "sm_90")


def rewrite(path, old, new):
    text = Path(path).read_text()
    assert old in text
    Path(path).write_text(text.replace(old, new))


@pytest.mark.slow
def test_a_diff_of_revisions_sees_constants_and_not_comments(static, repository):
    rewrite("dense_forward.py", "* 1.5\n", "* 1.5  # a comment\n        # and another\n")
    assert static("diff", "HEAD", ".", *repository)[1] == "HEAD -> .: 1 compilations, 1 with the same code\n"
    rewrite("dense_forward.py", "* 1.5  # a comment\n        # and another\n", "* 2.5\n")
    code, out, _ = static("diff", "HEAD", *repository)
    assert code == 0
    assert f"\n{DENSE}, sm_90: changed\n" in out
    removed = re.findall(r"^  - (\S.*\S) +dense_forward.py:(\d+)$", out, re.MULTILINE)
    added = re.findall(r"^  \+ (\S.*\S) +dense_forward.py:(\d+)$", out, re.MULTILINE)
    assert removed
    assert len(removed) == len(added)
    assert {line for _, line in removed} == {line for _, line in added}
    assert all("1.5" in text for text, _ in removed)
    assert all("2.5" in text for text, _ in added)


@pytest.mark.slow
def test_a_diff_says_that_the_main_loop_is_lost(static, repository):
    rewrite("dense_forward.py", "for _ in range(0, tokens, KEYS):", "for _ in tl.static_range(2):")
    code, out, err = static("diff", "HEAD", ".", *repository)
    assert (code, err) == (0, "")
    assert f"\n{DENSE}, sm_90: main loop lost\n  no loop of the head has a dot any more\n" in out
    assert "\n  spills in the main loop: 0 -> none\n" in out
    assert re.search(r"^  instructions a trip: \d+ -> none$", out, re.MULTILINE)
    (change,) = json.loads(static("diff", ".", "HEAD", *repository, "--json")[1])["changes"]
    assert (change["verdict"], change["figures"]["spills in the main loop"]) == ("main loop gained", [None, 0])


@pytest.mark.slow
def test_a_side_that_does_not_compile_is_said(static, repository):
    rewrite("dense_forward.py", "* 1.5", "* missing")
    code, out, _ = static("diff", "HEAD", ".", *repository)
    assert code == 8
    assert f"\n{DENSE}, sm_90: failed\n  head does not compile: " in out
    assert "missing is not defined" in out


# What is wrong


WRONG = [
    (["--arch", "sm_91"], "--arch: got 'sm_91', expected one of sm_80, sm_90, sm_100; did you mean 'sm_90'?"),
    (["--device", "H20"], "--device: got 'H20', expected one of A100-SXM-80GB, H100-SXM, H200-SXM, B200"),
    (["--device", "B200", "--arch", "sm_90"], "--device: B200 is sm_100, got --arch sm_90"),
    (
        ["--only", "forward-*", "--config", EXAMPLE],
        "configuration 'forward-*': not known; there are: dense-d64-128x64, ",
    ),
    (["explain", "dens-d64", "--config", EXAMPLE], "configuration 'dens-d64': not known; did you mean 'dense-d64-"),
    (["--kernel", "scale.py"], "--kernel: got 'scale.py', expected path.py:function or module:function"),
    (["--kernel", "scale.py:scale"], "--kernel: needs --config FILE.toml with the kernel's signature"),
    (["--config", "gone.toml"], "config: gone.toml: No such file or directory"),
    (["--config", "scale.py"], "config: scale.py is no TOML: "),
    (["--json", "--format", "md"], "--json: got --format md beside it, expected one of them"),
    (["--arch", "sm_90", "explain", FORWARD], "static: --arch stands before explain, expected after it"),
    (["--triton", "latest"], "triton: got 'latest', expected a release such as 3.6.0"),
    (["diff", "triton==new", "."], "triton: got 'new', expected a release such as 3.6.0"),
    (["diff", "main", "."], "revision 'main': "),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_a_wrong_flag_is_one_line_that_says_what_was_expected(static, arguments, message):
    code, out, err = static(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"bsa-bench: {message}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "csv"], "'csv' is not one of 'table', 'md', 'json'"),
        (["--set", "all"], "'all' is not one of 'shipped', 'candidates'"),
        (["--dtype", "int8"], "'int8' is not one of 'bf16', 'fp16', 'fp32'"),
        (["--tokens", "3"], "'--tokens'"),
        (["--jobs", "0"], "'--jobs'"),
        (["explain"], "Missing argument 'CONFIG'"),
        (["show"], "No such command 'show'"),
    ],
)
def test_what_the_parser_refuses_names_the_choices(static, arguments, message):
    code, out, err = static(*arguments)
    assert (code, out) == (2, "")
    assert message in err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("num_warps = 3", "scale.toml: scale.num_warps: got 3, expected a power of two"),
        ("num_warp = 4", "scale.toml: num_warp: unknown key, expected one of "),
        ("[[config]]\nname = 'a'\n[[config]]\nname = 'a'", "config: scale.toml: names must differ, got 'a' twice"),
    ],
)
def test_a_wrong_configuration_file_names_file_key_and_value(static, text, message):
    code, out, err = static(*config(text))
    assert (code, out) == (2, "")
    assert err.startswith(f"bsa-bench: {message}")
    assert err.count("\n") == 1


@pytest.mark.slow
def test_a_kernel_that_is_not_there_or_has_another_signature_is_named(static):
    wrong = {
        "kernel = 'gone.py:scale'": "gone.py' is not there",
        "kernel = 'scale.py:scal'": ": 'scal' is not there; ",
        "kernel = 'scale.py:tl'": ": 'tl' is no @triton.jit function; ",
        "kernel = 'no_such_module:scale'": "module 'no_such_module' cannot be imported: ",
        "signature = { m = 'i32' }": "signature: no argument 'm'; there are x_ptr, y_ptr, n, FACTOR, SIZE",
        "signature = { n = 'int' }": "signature: 'n': got 'int', expected a type of Triton such as '*bf16'",
        "signature = { SIZE = 'i32' }": "signature: 'SIZE' is a tl.constexpr, expected its value under constexprs",
        "constexprs = { SIZE = 64 }\ndivisible_by_16 = ['z']": "divisible_by_16 names 'z', which has no type there",
        "num_warps = 4": "signature: argument 'SIZE' is missing, expected it under constexprs",
    }
    entries = (f"[[config]]\nname = 'c{number}'\n{text}\n" for number, text in enumerate(wrong))
    arguments = config("".join(entries))
    code, out, _ = static(*arguments, "--json")
    assert code == 2
    failures = json.loads(out)["failures"]
    for failure, message in zip(failures, wrong.values(), strict=True):
        assert message in failure["message"]
        assert failure["kind"] in {"no kernel", "signature"}
    code, out, err = static(*arguments, "--only", "c8")
    assert (code, out) == (2, "")
    assert re.fullmatch(r"bsa-bench: c8, sm_90: kernel '\S+scale.py:scale': signature: argument 'SIZE' .*\n", err)


@pytest.mark.slow
def test_what_compiles_is_shown_beside_what_does_not_in_the_compilers_words(static):
    arguments = config("[axes]\nSIZE = [128, 100]")
    code, out, err = static(*arguments)
    assert (code, err) == (8, "")
    assert re.search(r"^scale-size128 ", out, re.MULTILINE)
    assert "- not compiled: scale-size100, sm_90 (compiler):\n  CompilationError: at 2:37:\n" in out
    assert "arange's range must be a power of 2" in out
    (failure,) = json.loads(static(*arguments, "--json")[1])["failures"]
    assert (failure["name"], failure["arch"], failure["kind"]) == ("scale-size100", "sm_90", "compiler")
    code, out, _ = static(*arguments, "--format", "md")
    assert code == 8
    assert "- `scale-size100`, sm_90: compiler\n\n  ```text\n  CompilationError: " in out


def test_where_nothing_compiles_for_different_causes_each_is_told():
    one, other = (KernelConfig(name=name, kernel="k.py:f", signature={}) for name in ("one", "other"))
    failures = [
        Failure(one, "sm_80", "compiler", "no fp8 here", "a log"),
        Failure(one, "sm_90", "compiler", "too much shared memory", ""),
        Failure(one, "sm_100", "compiler", "too much shared memory", ""),
        Failure(other, "sm_80", "compiler", "no fp8 here", "a log"),
    ]
    with pytest.raises(UsageError) as error:
        _exit_code(failures)
    assert str(error.value) == (
        "one, sm_80: no fp8 here\na log\none, sm_90, sm_100: too much shared memory\n"
        "and 1 more that do not compile; --json lists them"
    )


@pytest.mark.slow
def test_where_nothing_compiles_the_compilers_words_are_the_error(static):
    arguments = config("[axes]\nSIZE = [100, 200]")
    words = "arange's range must be a power of 2\nand 1 more that do not compile; --json lists them\n"
    for more in ((), ("--format", "md")):
        code, out, err = static(*arguments, *more)
        assert (code, out) == (2, "")
        assert err.startswith("bsa-bench: scale-size100, sm_90: CompilationError: at 2:37:\n")
        assert err.endswith(words)
    assert static("explain", "scale-*", *arguments)[0] == 2
    code, out, _ = static(*arguments, "--json")
    assert code == 2
    assert len(json.loads(out)["failures"]) == 2


@pytest.mark.slow
def test_a_compiler_that_crashes_is_a_failure_and_the_rest_goes_on(static):
    crash = "import os, sys\nsys.stderr.write('abandon ship')\nsys.stderr.flush()\nos.abort()\n"
    Path("crash.py").write_text(crash + KERNEL)
    arguments = config("[[config]]\nname='good'\n[[config]]\nname='bad'\nkernel='crash.py:scale'\n[axes]\nSIZE=[128]")
    code, out, _ = static(*arguments, "--json")
    assert code == 8
    document = json.loads(out)
    assert [each["name"] for each in document["configurations"]] == ["good-size128"]
    (failure,) = document["failures"]
    assert (failure["name"], failure["kind"]) == ("bad-size128", "crash")
    assert failure["message"] == "the compiler's process ended with SIGABRT"
    assert "abandon ship" in failure["log"]


@pytest.mark.slow
def test_a_release_that_pip_cannot_get_is_said_in_pips_words(static, monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    code, out, err = static(*ONE, "--triton", "3.99.0", "--cache", tmp_path / "cache" / "static")
    assert (code, out) == (2, "")
    assert err.startswith("bsa-bench: pip cannot install triton==3.99.0: ")
    assert "No matching distribution found" in err
    assert list((tmp_path / "cache" / "triton").iterdir()) == []


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_ends_with_5(static):
    Path("file").write_text("")
    code, out, err = static(*config("[axes]\nSIZE = [128]"), "--cache", "file/cache")
    assert (code, out) == (5, "")
    assert err == "bsa-bench: cache folder file/cache: Not a directory\n"
