"""What FlexAttention needs of a machine, and what is said where that is missing or broken."""

import os
import tempfile
from pathlib import Path

import pytest
import torch

from bsa_kernels.engines import flex, flex_needs, get_engine

CPU = torch.device("cpu")


def reason(engine="flex"):
    return get_engine(engine).unsupported(CPU, torch.float32, 32, backward=False)


def program(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def no_cache(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file" / "cache"))


def test_a_cache_that_cannot_be_made_is_named_and_concerns_flex_alone(tmp_path, no_cache):
    assert reason() == (
        f"torch.compile keeps what it compiles in {tmp_path}/file/cache, which cannot be written (Not a directory); "
        "set TORCHINDUCTOR_CACHE_DIR to a folder that can, or use the engine gather."
    )
    assert reason("gather") is None


def test_without_any_temporary_folder_it_says_so(monkeypatch):
    def nowhere():
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    assert "no temporary one can be written; set TORCHINDUCTOR_CACHE_DIR" in reason()


def test_an_account_without_a_name_has_a_cache_all_the_same(tmp_path, monkeypatch):
    def nobody():
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr(flex_needs.getpass, "getuser", nobody)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    assert reason() is None
    assert (tmp_path / f"torchinductor_uid_{os.getuid()}").is_dir()


def test_a_compiler_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler++")
    assert "CXX names the C++ compiler 'no-such-compiler++'" in reason()
    monkeypatch.setenv("CXX", "g++ -O2")  # torch takes it for one word
    assert "'g++ -O2', by which torch.compile would compile FlexAttention and which does not exist" in reason()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("exit 3", "exit code 3"),
        ("echo 'fatal error: cannot execute cc1plus' >&2; exit 1", "fatal error: cannot execute cc1plus"),
        ('test "$1" = --version', "exit code 1"),
    ],
)
def test_a_compiler_that_cannot_compile_is_named_with_its_last_words(tmp_path, monkeypatch, text, said):
    broken = program(tmp_path / "c++", text)
    monkeypatch.setenv("CXX", broken)
    assert (
        reason()
        == f"the C++ compiler {broken} cannot compile FlexAttention for a CPU: {said}; set CXX to one that can."
    )


def test_a_good_compiler_counts_where_path_has_none(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", program(tmp_path / "c++", "exit 0"))
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert flex_needs.cpp_fault() is None
    monkeypatch.delenv("CXX")
    assert "needs a C++ compiler; install g++, or name one by CXX" in flex_needs.cpp_fault()


def test_a_gpu_needs_the_cache_and_no_cpp(no_cache, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler++")
    said = flex.unsupported(torch.device("cuda"), torch.float16, 64, backward=True)
    assert Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]).name in said
    assert "no-such" not in said
