"""Compilation in worker processes: what each failure says, what the cache keeps, what the environment may change."""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from static_factory import TOYS

from bsa_bench.child_process import own_paths
from bsa_bench.errors import StoreError
from bsa_bench.static import compile as compiling
from bsa_bench.static.compile import Compiled, Failure, Settings, Toolchain, Workers, compile_all, default_cache
from bsa_bench.static.compile_worker import FILES, is_complete, mend_lines
from bsa_bench.static.config import KernelConfig
from bsa_bench.static.removed import remedy_for

pytest.importorskip("triton")

SIGNATURE = {"x_ptr": "*fp32", "y_ptr": "*fp32"}
HEAD = "import os\nimport sys\nimport time\n\nimport triton\nimport triton.language as tl\n\n\n"
KERNEL = """
@triton.jit
def add_one(x_ptr, y_ptr, SIZE: tl.constexpr = 128):
    offs = tl.arange(0, SIZE)
    tl.store(y_ptr + offs, tl.load(x_ptr + offs) + 1.0)
"""
WRAPPED = """
@triton.autotune(configs=[triton.Config({"SIZE": 64}), triton.Config({"SIZE": 256})], key=[])
@triton.heuristics({"SIZE": lambda arguments: 32})
"""


def add_one(name="add_one", *, kernel=f"{TOYS}:add_one", **changes):
    """A kernel that compiles quickly."""
    given = {"signature": SIGNATURE, "constexprs": {"SIZE": 128}} | changes
    return KernelConfig(name=name, kernel=kernel, **given)


def compile_one(config, cache, *, workers=None, **settings):
    (done,) = compile_all([(config, "sm_90")], Settings(cache, processes=1, **settings), workers=workers)
    return done


@pytest.fixture(scope="module")
def workers():
    """One process for all tests of what a cache does."""
    with Workers(Toolchain()) as workers:
        yield workers


# What does not compile


@pytest.fixture(scope="module")
def failures(tmp_path_factory):
    """All that goes wrong, one after another in one worker (and those that follow its crashes); a good one is last."""
    folder = tmp_path_factory.mktemp("failures")
    (folder / "raises.py").write_text(HEAD + "TABLE = {}['no key']\n" + KERNEL)
    (folder / "ends.py").write_text(HEAD + "print('giving up', file=sys.stderr, flush=True)\nos._exit(3)\n")
    (folder / "aborts.py").write_text(HEAD + "os.abort()\n")
    (folder / "prints.py").write_text(HEAD + "print('hello')\nos.write(1, b'raw')\n" + KERNEL)
    (folder / "wrapped.py").write_text(HEAD + WRAPPED + KERNEL.lstrip())
    configs = [
        add_one("no file", kernel=f"{folder}/none.py:add_one"),
        add_one("no module", kernel="bsa_kernels.no_such:add_one"),
        add_one("no function", kernel=f"{TOYS}:add_two"),
        add_one("plain function", kernel=f"{TOYS}:plain_function"),
        add_one("no argument", signature={"x_ptr": "*fp32"}),
        add_one("no constant", constexprs={}),
        add_one("unknown argument", signature={**SIGNATURE, "z_ptr": "*fp32"}),
        add_one("unknown constant", constexprs={"SIZE": 128, "WIDTH": 1}),
        add_one("typed constant", signature={**SIGNATURE, "SIZE": "i32"}, constexprs={}),
        add_one("given twice", constexprs={"SIZE": 128, "x_ptr": 0}),
        add_one("bad type", signature={**SIGNATURE, "y_ptr": "*bf17"}),
        add_one("bad alignment", divisible_by_16=("x_ptr", "SIZE")),
        add_one("bad attribute", constexprs={"SIZE": "tl.float33"}),
        add_one("bad shapes", kernel=f"{TOYS}:broken", signature={"x_ptr": "*fp32"}),
        add_one("raises", kernel=f"{folder}/raises.py:add_one"),
        add_one("ends", kernel=f"{folder}/ends.py:add_one"),
        add_one("aborts", kernel=f"{folder}/aborts.py:add_one"),
        add_one("prints", kernel=f"{folder}/prints.py:add_one", constexprs={}),
        add_one("wrapped", kernel=f"{folder}/wrapped.py:add_one", constexprs={}),
        add_one("good"),
    ]
    seen = []
    jobs = [(config, "sm_90") for config in configs]
    done = compile_all(jobs, Settings(folder / "cache", processes=1), on_done=seen.append)
    assert seen == done
    assert [each.config for each in done] == configs
    return {each.config.name: each for each in done}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("no file", "no kernel", "none.py' is not there"),
        ("no module", "no kernel", "module 'bsa_kernels.no_such' cannot be imported: No module named 'bsa_kernels.no_"),
        ("no function", "no kernel", f"'add_two' is not there; {TOYS} has add_one, attend, broken, clipped, load_tile"),
        ("plain function", "no kernel", f"'plain_function' is no @triton.jit function; {TOYS} has add_one, "),
        ("no argument", "signature", "argument 'y_ptr' is missing, expected it under signature"),
        ("no constant", "signature", "argument 'SIZE' is missing, expected it under constexprs"),
        ("unknown argument", "signature", "no argument 'z_ptr'; there are x_ptr, y_ptr, SIZE"),
        ("unknown constant", "signature", "no argument 'WIDTH'; there are x_ptr, y_ptr, SIZE"),
        ("typed constant", "signature", "'SIZE' is a tl.constexpr, expected its value under constexprs"),
        ("given twice", "signature", "'x_ptr' has a type and a value, expected one of them"),
        ("bad type", "signature", "'y_ptr': got '*bf17', expected a type of Triton such as '*bf16', 'i32' or 'fp32'"),
        ("bad alignment", "signature", "divisible_by_16 names 'SIZE', which has no type there"),
        ("bad attribute", "signature", "triton.language has no 'float33'"),
        ("bad shapes", "compiler", "incompatible dimensions at index 0: 128 and 256"),
        ("raises", "no kernel", "raises.py' cannot be imported: KeyError: 'no key'"),
        ("ends", "crash", "the compiler's process ended with exit code 3"),
        ("aborts", "crash", "the compiler's process ended with SIGABRT"),
    ],
)
def test_a_failure_names_the_cause(failures, name, kind, message):
    failure = failures[name]
    assert isinstance(failure, Failure)
    assert failure.kind == kind
    assert message in failure.message
    if kind == "signature" and name != "bad attribute":
        assert failure.message.startswith(f"kernel '{TOYS}:add_one': signature: ")


@pytest.mark.slow
def test_the_compiler_s_words_point_at_the_line(failures):
    assert "tl.arange(0, 2 * SIZE)\n" in failures["bad shapes"].message


@pytest.mark.slow
def test_what_a_crashed_worker_wrote_is_its_log(failures):
    assert failures["ends"].log == "giving up"
    assert "giving up" not in failures["aborts"].log


@pytest.mark.slow
def test_a_crash_ends_one_compilation_only(failures):
    assert isinstance(failures["good"], Compiled)
    assert "add_one" in failures["good"].listing


@pytest.mark.slow
def test_what_a_kernel_s_module_prints_does_no_harm(failures):
    assert isinstance(failures["prints"], Compiled)


@pytest.mark.slow
def test_a_default_of_a_constant_counts_and_wrappers_of_a_kernel_do_not(failures):
    identities = [failures[name].record.identity for name in ("prints", "wrapped")]
    assert [identity["constants"] for identity in identities] == [{"SIZE": "128"}, {"SIZE": "128"}]


@pytest.mark.slow
def test_a_compilation_without_end_is_ended(monkeypatch, tmp_path):
    (tmp_path / "sleeps.py").write_text(HEAD + "time.sleep(60)\n")
    monkeypatch.setattr(compiling, "LIMIT_S", 2.0)
    start = time.monotonic()
    failure = compile_one(add_one(kernel=f"{tmp_path}/sleeps.py:add_one"), tmp_path / "cache")
    assert time.monotonic() - start < 30
    assert (failure.kind, failure.message) == ("time limit", "the compiler took more than 2 s")


# Imports that fail


@pytest.fixture(scope="module")
def half_imported(tmp_path_factory):
    """Kernels whose files import a package that fails after its first part, one after another in one worker."""
    folder = tmp_path_factory.mktemp("half")
    for name, end in (("halfpack", "import a_module_that_nobody_installed"), ("oddpack", "TABLE = {}['no key']")):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(f"from {name} import parts\n{end}\n")
        (folder / name / "parts.py").write_text("WIDTH = 64\n" + HEAD + KERNEL)
    (folder / "first.py").write_text(HEAD + "from halfpack.parts import WIDTH\n" + KERNEL)
    (folder / "second.py").write_text(HEAD + "from halfpack.parts import WIDTH\n" + KERNEL)
    (folder / "third.py").write_text(HEAD + KERNEL)
    kernels = {
        "first": f"{folder}/first.py",
        "second": f"{folder}/second.py",
        "third": f"{folder}/third.py",
        "module": "oddpack.parts",
    }
    configs = [add_one(name, kernel=f"{place}:add_one") for name, place in kernels.items()]
    jobs = [(config, arch) for config in configs for arch in ("sm_80", "sm_90")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        done = compile_all(jobs, Settings(folder / "cache", processes=1))
    return {(each.config.name, each.arch): each for each in done}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("first", "No module named 'a_module_that_nobody_installed'"),
        ("second", "No module named 'a_module_that_nobody_installed'"),  # its package's first part was loaded before
        ("module", "module 'oddpack.parts' cannot be imported: KeyError: 'no key'"),
    ],
)
def test_an_import_that_failed_fails_for_each_architecture_and_file(half_imported, name, words):
    failures = [half_imported[name, arch] for arch in ("sm_80", "sm_90")]
    assert {(type(each), each.kind) for each in failures} == {(Failure, "no kernel")}
    assert words in failures[0].message
    assert failures[0].message == failures[1].message


@pytest.mark.slow
def test_a_failed_import_stops_no_other_file(half_imported):
    assert {type(half_imported["third", arch]) for arch in ("sm_80", "sm_90")} == {Compiled}


# Constants that are functions


@pytest.mark.slow
def test_a_constant_can_be_a_jitted_function_whose_source_counts(tmp_path, workers):
    applied = "ACT(tl.load(x_ptr + offs))"
    text = HEAD + KERNEL.replace("SIZE: tl.constexpr = 128", "ACT: tl.constexpr, SIZE: tl.constexpr = 128").replace(
        "tl.load(x_ptr + offs) + 1.0", applied
    )
    (tmp_path / "k.py").write_text(text)
    acts = "import triton\n\n\n@triton.jit\ndef scaled(x):\n    return x * {}\n"
    found = []
    for name, factor in (("one", 3.0), ("other", 7.0)):
        (tmp_path / f"{name}.py").write_text(acts.format(factor))
        config = add_one(kernel=f"{tmp_path}/k.py:add_one", constexprs={"ACT": f"{tmp_path}/{name}.py:scaled"})
        found.append(compile_one(config, tmp_path / "cache", workers=workers))
    assert {type(each) for each in found} == {Compiled}
    assert found[0].folder != found[1].folder
    assert ["FMUL" in each.listing for each in found] == [True, True]
    assert found[0].record.identity["constants"]["ACT"].startswith("scaled ")
    config = add_one(kernel=f"{tmp_path}/k.py:add_one", constexprs={"ACT": f"{tmp_path}/one.py:missing"})
    assert "'missing' is not there" in compile_one(config, tmp_path / "cache", workers=workers).message


# What Triton removed


@pytest.mark.parametrize(
    ("message", "remedy"),
    [
        (
            "p = tl.make_block_ptr(x)\nBlock pointers have been removed in favor of the tensor descriptor API",
            "Triton 3.8.0 still has make_block_ptr: --triton 3.8.0",
        ),
        (
            "AttributeError: module 'triton.language' has no attribute 'advance'",
            "Triton 3.8.0 still has advance: --triton 3.8.0",
        ),
        (
            "load() got an unexpected keyword argument 'boundary_check'",
            "Triton 3.8.0 still has boundary_check: --triton 3.8.0",
        ),
        (
            "cannot import name 'get_tmem_reg_layout' from 'triton.experimental.gluon.language.nvidia.blackwell'",
            "Triton 3.7.0 still has get_tmem_reg_layout: --triton 3.7.0",
        ),
        ("async_copy_global_to_shared has been removed; call async_load instead", "Triton 3.8.0 still has async_copy_"),
        ("module 'triton.language' has no attribute 'float33'", None),
        ("p = tl.make_block_ptr(x)\nincompatible dimensions", None),
    ],
)
def test_what_triton_removed_names_the_release_that_has_it(message, remedy):
    assert (remedy_for(message) or "").startswith(remedy or "")
    assert (remedy_for(message) is None) == (remedy is None)


# The cache


@pytest.fixture
def cached(tmp_path, failures):
    """A cache with one entry, and what was compiled."""
    entry = failures["good"].folder
    cache = tmp_path / "cache"
    folder = cache / entry.parent.name / entry.name
    shutil.copytree(entry, folder)
    return cache, replace(failures["good"], folder=folder)


def test_the_default_cache_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "bsa-bench" / "static"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert default_cache() == Path("/home/someone/.cache/bsa-bench/static")


@pytest.mark.slow
def test_what_is_in_the_cache_is_not_compiled_again(cached, workers):
    cache, first = cached
    assert not first.was_cached
    assert {path.name for path in first.folder.iterdir()} == set(FILES)
    again = compile_one(first.config, cache, workers=workers)
    assert again.was_cached
    assert (again.folder, again.record, again.listing) == (first.folder, first.record, first.listing)


@pytest.mark.slow
def test_without_cache_it_is_compiled_again(cached, workers):
    cache, first = cached
    (first.folder / "kernel.sass").write_text("old")
    again = compile_one(first.config, cache, workers=workers, use_cache=False)
    assert not again.was_cached
    assert (again.folder, again.record.registers) == (first.folder, first.record.registers)
    assert "add_one" in again.listing
    assert [path.name for path in first.folder.parent.iterdir()] == [first.folder.name]


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_an_entry_without_a_file_is_no_entry(cached, name):
    folder = cached[1].folder
    assert is_complete(folder)
    (folder / name).unlink()
    assert not is_complete(folder)


@pytest.mark.slow
def test_an_entry_without_a_file_is_made_again(cached, workers):
    cache, first = cached
    (first.folder / "kernel.ptx").unlink()
    again = compile_one(first.config, cache, workers=workers)
    assert not again.was_cached
    assert {path.name for path in again.folder.iterdir()} == set(FILES)


@pytest.mark.slow
def test_each_option_has_an_entry_of_its_own(tmp_path, workers):
    base = add_one()
    configs = [base, replaced(num_warps=8), replaced(num_stages=2), replaced(maxnreg=32), replaced(divisible_by_16=())]
    jobs = [(config, "sm_90") for config in configs] + [(base, "sm_80"), (replaced(constexprs={"SIZE": 256}), "sm_90")]
    done = compile_all(jobs, Settings(tmp_path, processes=1), workers=workers)
    for other in ({"fp_fusion": False}, {"line_info": False}):
        done.append(compile_one(base, tmp_path, workers=workers, **other))
    assert not any(each.was_cached for each in done)
    assert len({each.folder for each in done}) == len(jobs) + 2
    assert [each.record.identity["options"]["enable_fp_fusion"] for each in done[-2:]] == [False, True]
    assert [each.record.identity["line_info"] for each in done[-2:]] == [True, False]


def replaced(**changes):
    return add_one().model_copy(update=changes)


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_is_an_error_of_the_store(tmp_path, workers):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(StoreError, match=r"cache folder .*/cache: (Not a directory|File exists)"):
        compile_one(add_one(), tmp_path / "cache", workers=workers)


# What surrounds the compiler


@pytest.mark.slow
def test_the_user_s_settings_of_triton_change_nothing(cached, monkeypatch, tmp_path):
    first = cached[1]
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("TRITON_DISABLE_LINE_INFO", "1")
    monkeypatch.setenv("TRITON_PTXAS_PATH", "/no/ptxas")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "own"))
    monkeypatch.setenv("DISABLE_PTXAS_OPT", "1")
    monkeypatch.setenv("DISABLE_LLVM_OPT", "1")
    monkeypatch.setenv("PTXAS_OPTIONS", "--no-such-flag")
    monkeypatch.setenv("USE_IR_LOC", "ttgir")
    again = compile_one(first.config, tmp_path / "fresh")
    assert isinstance(again, Compiled), again.message
    assert again.listing == first.listing
    assert not (tmp_path / "own").exists()


def test_other_variables_reach_the_compiler(monkeypatch):
    monkeypatch.setenv("SOME_SETTING", "kept")
    monkeypatch.setenv("PYTHONPATH", "/first:/second")
    environment = Toolchain(first_paths=(Path("/other/triton"),)).environment()
    assert environment["SOME_SETTING"] == "kept"
    own = list(map(str, own_paths()))
    assert environment["PYTHONPATH"].split(":") == ["/other/triton", own[0], "/first", "/second", *own[1:]]


def test_the_assembler_s_memory_lies_at_the_same_addresses_each_time():
    script = (
        "import subprocess; from bsa_bench.static.compile_worker import fix_addresses; "
        "print(fix_addresses(), subprocess.check_output(['cat', '/proc/self/personality'], text=True))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    said, personality = done.stdout.split()
    no_randomization = 0x0040000  # what a container may refuse
    assert said == str(bool(int(personality, 16) & no_randomization))


def test_each_statement_of_inline_assembly_has_the_line_of_the_whole():
    ptx = (
        "\t.loc\t1 10 4\n\t// begin inline asm\n\t.loc\t1 10 4\n\tmov.u16 %rs1, 0x0;\n\t.loc\t1 11 4\n"
        "\tld.global.b16 { %rs1 }, [ %rd1 ];\n\n\t// end inline asm\n\t.loc\t1 11 2\n\tret;\n"
    )
    assert mend_lines(ptx) == (
        "\t.loc\t1 10 4\n\t// begin inline asm\n\tmov.u16 %rs1, 0x0;\n"
        "\tld.global.b16 { %rs1 }, [ %rd1 ];\n\n\t// end inline asm\n\t.loc\t1 11 2\n\tret;\n"
    )
