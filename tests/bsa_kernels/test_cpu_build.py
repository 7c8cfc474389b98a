"""How the engine `cpu` is compiled and cached: what makes a file of its own, damage, races, and what cannot compile."""

import os
import stat
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import pytest
import torch

import bsa_kernels
from bsa_kernels import block_sparse_attention, bsa_attention, engines, explain_engine, full_plan
from bsa_kernels.cpp import build as building
from bsa_kernels.cpp import library
from bsa_kernels.cpp.build import BuildError, build, default_cache, find_compiler
from bsa_kernels.engines import get_engine
from bsa_kernels.grid import BlockGrid

# Notes each compilation of one source, takes some time, and writes what it was asked for to the file behind -o.
FAKE = r"""#!/bin/sh
if [ "$2" = --version ] || [ "$1" = --version ]; then echo "fake 1.0"; exit 0; fi
case "$*" in *" -c "*attend.cpp*) echo run >> "{log}" ;; esac
sleep 0.2
for last; do :; done
echo "$*" | tr ' ' '\n' | grep '^-' > "$last"
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A compiler that takes 0.2 s; returns how often it ran."""
    return use_compiler(tmp_path, monkeypatch, FAKE)


def use_compiler(tmp_path, monkeypatch, script):
    path, log = tmp_path / "fake-c++", tmp_path / "log"
    path.write_text(script.replace("{log}", str(log)))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(path))
    return lambda: len(log.read_text().splitlines()) if log.exists() else 0


def fault(monkeypatch):
    """What the engine says of this machine, asked anew."""
    monkeypatch.setattr(library, "_loaded", [])
    return get_engine("cpu").unsupported(torch.device("cpu"), torch.float32, 64, backward=True)


def test_a_library_is_compiled_once_and_then_found(fake, tmp_path):
    first = build(cache=tmp_path / "cache")
    assert build(cache=tmp_path / "cache") == first
    assert fake() == 1
    assert list((tmp_path / "cache").iterdir()) == [first]
    assert f"{building._native_flag()}" in first.read_text()


@pytest.mark.parametrize("what", ["flags", "compiler", "source", "CPU"])
def test_other_flags_compilers_sources_and_cpus_have_libraries_of_their_own(what, fake, tmp_path, monkeypatch):
    first, flags = build(cache=tmp_path), ()
    if what == "flags":
        flags = ("-DOTHER",)
    elif what == "compiler":
        use_compiler(tmp_path, monkeypatch, FAKE.replace("1.0", "1.1"))
    elif what == "source":
        monkeypatch.setattr(building, "_sources", lambda: [b"int main() {}"])
    else:
        monkeypatch.setattr(building, "_cpu", lambda: "another")
    assert build(cache=tmp_path, flags=flags).name.split("-")[0] != first.name.split("-")[0]
    assert fake() == 2


@pytest.mark.parametrize("damage", [lambda data: data[:-3], lambda data: b"", lambda data: b"x" + data[1:]])
def test_a_damaged_file_is_removed_and_made_anew(damage, fake, tmp_path):
    cache = tmp_path / "cache"
    first = build(cache=cache)
    intact = first.read_bytes()
    first.write_bytes(damage(intact))
    again = build(cache=cache)
    assert fake() == 2
    assert again.read_bytes() == intact
    assert list(cache.iterdir()) == [again]


def test_what_a_killed_compilation_left_is_not_used_and_goes_after_an_hour(fake, tmp_path):
    cache = tmp_path / "cache"
    for name in ("compiling-old", "compiling-new"):
        (cache / name).mkdir(parents=True)
        (cache / name / "attend.so").write_text("half")
    os.utime(cache / "compiling-old", (0, 0))
    made = build(cache=cache)
    assert sorted(cache.iterdir()) == sorted([made, cache / "compiling-new"])


@pytest.mark.slow
def test_processes_that_compile_at_once_do_not_disturb_each_other(fake, tmp_path):
    code = "import sys, pathlib; from bsa_kernels.cpp.build import build\nprint(build(cache=pathlib.Path(sys.argv[1])))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(tmp_path / "cache")]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(4)]
    paths = {process.communicate(timeout=300)[0].strip() for process in started}
    assert [process.returncode for process in started] == [0] * 4
    assert len(paths) == 1
    assert [str(path) for path in (tmp_path / "cache").iterdir()] == list(paths)


def test_the_cache_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "bsa-bench" / "cpu"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache() == tmp_path / "home" / ".cache" / "bsa-bench" / "cpu"


def test_without_a_compiler_the_engine_is_unsupported_and_says_so(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(building.shutil, "which", lambda name: None)
    expected = "compiling the kernels needs a C++ compiler; install g++ or clang++; or use the engine gather."
    assert fault(monkeypatch) == expected
    grid = BlockGrid((1, 1, 8), (1, 1, 8))
    q = torch.zeros(1, 1, 8, 8)
    with pytest.raises(ValueError, match=r"engine 'cpu': compiling the kernels needs a C\+\+ compiler"):
        block_sparse_attention(q, q, q, full_plan(1, 1, grid, device=q.device), engine="cpu")


def test_without_a_compiler_auto_is_gather_and_says_so_once(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-c++")
    monkeypatch.setattr(library, "_loaded", [])
    monkeypatch.setattr(engines, "_warned", set())
    said = (
        "engine 'auto' is 'gather' on this CPU, which is several times as slow as 'cpu': CXX names the C++ compiler "
        "'no-such-c++', which does not exist; install it or unset CXX."
    )
    q = torch.randn(1, 1, 64, 8)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for _ in range(2):
            found = bsa_attention(q, q, q, grid=(4, 4, 4))
    assert [(warning.category, str(warning.message)) for warning in warned] == [(RuntimeWarning, said)]
    assert torch.equal(found, bsa_attention(q, q, q, grid=(4, 4, 4), engine="gather"))
    assert explain_engine("cpu") == said


def test_a_compiler_that_does_not_exist_is_named(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-c++ -O2")
    assert fault(monkeypatch) == (
        "CXX names the C++ compiler 'no-such-c++', which does not exist; install it or unset CXX; "
        "or use the engine gather."
    )


def test_a_cache_that_cannot_be_written_is_named(fake, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert fault(monkeypatch) == (
        f"the kernels are compiled into {tmp_path / 'file' / 'bsa-bench' / 'cpu'}, which cannot be written "
        "(Not a directory); set XDG_CACHE_HOME to a folder that can; or use the engine gather."
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_home_is_named(fake, monkeypatch, tmp_path):
    (tmp_path / "home").mkdir(mode=0o500)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert "which cannot be written (Permission denied)" in fault(monkeypatch)


def test_a_compilation_that_fails_gives_the_compilers_first_error(monkeypatch, tmp_path):
    script = FAKE.replace("sleep", "echo 'In file x' >&2; echo 'attend.cpp:3: error: no vectors' >&2; exit 1; sleep")
    count = use_compiler(tmp_path, monkeypatch, script)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    expected = (
        "fake-c++ cannot compile the kernels: attend.cpp:3: error: no vectors; try another compiler, by CXX; "
        "or use the engine gather."
    )
    assert fault(monkeypatch) == expected
    assert get_engine("cpu").unsupported(torch.device("cpu"), torch.float32, 64, backward=True) == expected
    assert count() == 1  # a failure is kept for the process
    assert list(default_cache().iterdir()) == []


def test_a_library_that_cannot_be_loaded_is_named(fake, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert "the compiled kernels cannot be loaded: " in fault(monkeypatch)


def test_cxx_may_have_options(fake, monkeypatch):
    compiler = os.environ["CXX"]
    monkeypatch.setenv("CXX", f"{compiler} -O1")
    assert find_compiler().command == (compiler, "-O1")
    assert find_compiler().version == "fake 1.0"


def test_a_compiler_that_does_not_run_is_an_error(monkeypatch, tmp_path):
    use_compiler(tmp_path, monkeypatch, "not a program")
    with pytest.raises(BuildError, match=r"fake-c\+\+ cannot be started"):
        build(cache=tmp_path)


def test_the_package_ships_every_source():
    folder = Path(bsa_kernels.__file__).parent
    project = tomllib.loads((folder.parents[1] / "pyproject.toml").read_text())
    shipped = {
        p for pattern in project["tool"]["setuptools"]["package-data"]["bsa_kernels"] for p in folder.glob(pattern)
    }
    sources = {p for p in (folder / "cpp").iterdir() if p.suffix in {".cpp", ".h"}}
    assert {p.name for p in sources} >= {"attend.cpp", "backward.cpp", "tiles.h", "simd.h", "threads.h", "formats.h"}
    assert sources <= shipped


@pytest.mark.parametrize("given", ["g++ 'half", 'clang++ "'])
def test_a_compiler_in_half_a_quotation_is_named(monkeypatch, given):
    monkeypatch.setenv("CXX", given)
    with pytest.raises(
        BuildError, match=r"^CXX is .*, expected a C\+\+ compiler and its options \(No closing quotation"
    ):
        find_compiler()
