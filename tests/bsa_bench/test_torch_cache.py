"""Caches and homes that cannot be written: what does not need them runs, what does says so with the remedy."""

import os
import tempfile
from pathlib import Path

import pytest
import torch

from bsa_bench.cli.commands import _cache
from bsa_bench.engines import torch_cache
from bsa_bench.engines.blocks import FLEX, GATHER
from bsa_bench.engines.torch_cache import set_up_torch_cache, torch_cache_fault
from bsa_bench.errors import StoreError, UsageError
from bsa_bench.gate.own_environment import environments_folder
from bsa_bench.static import compile as compiling
from bsa_bench.static.compile import Toolchain, default_cache


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(torch_cache, "_fault", None)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")


@pytest.mark.parametrize("usable_temporary", [True, False])
def test_a_worker_whose_cache_is_broken_gets_another_and_refuses_what_compiles(tmp_path, monkeypatch, usable_temporary):
    (tmp_path / "file").write_text("")
    broken = str(tmp_path / "file" / "cache")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", broken)
    real = tempfile.mkdtemp

    def mkdtemp(**options):
        if options["dir"] is None and not usable_temporary:
            raise FileNotFoundError(2, "No usable temporary directory found")
        return real(**options)

    monkeypatch.setattr(tempfile, "mkdtemp", mkdtemp)
    set_up_torch_cache()
    assert Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]).is_dir()
    about = torch.device("cpu"), torch.float32, 32
    assert broken in FLEX.unsupported(*about, backward=False)
    assert GATHER.unsupported(*about, backward=False) is None


def test_a_cache_that_works_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "made"))
    set_up_torch_cache()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "made")
    assert torch_cache_fault() is None


@pytest.mark.parametrize("folder", [default_cache, environments_folder])
def test_without_a_home_the_caches_of_static_gate_and_tune_say_what_to_set(monkeypatch, folder):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(UsageError, match="no home folder to keep compiled code in; set HOME or XDG_CACHE_HOME"):
        folder()


def test_static_without_a_temporary_folder_names_the_variable(monkeypatch):
    def nowhere(*_, **__):
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "TemporaryFile", nowhere)
    with pytest.raises(StoreError, match=r"no temporary folder can be written \(No usable.*set TMPDIR to one"):
        compiling._Worker(Toolchain(), {})


def test_doctor_tells_of_a_cache_of_compiled_code_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "not yet"))
    assert _cache() is None
    assert not (tmp_path / "not yet").exists()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert _cache().startswith(
        f"{tmp_path}/file/bsa-bench/static cannot be written, as {tmp_path}/file cannot; set XDG"
    )
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "file")
    assert "cannot be written" in _cache()
