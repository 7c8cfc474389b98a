"""Other releases of Triton and other revisions of the sources: how they are had, and why they cannot be."""

import subprocess
import sys
from pathlib import Path

import pytest

import bsa_kernels
from bsa_bench.errors import StoreError, UsageError
from bsa_bench.static.compile import Toolchain, list_configs
from bsa_bench.static.config import ARCH_NAMES
from bsa_bench.static.toolchain import revision_sources, triton_toolchain

pytest.importorskip("triton")


@pytest.mark.parametrize("version", ["3", "three", "3.6.0rc1", "../3.6.0", ""])
def test_what_is_no_version_is_refused(version, tmp_path):
    with pytest.raises(UsageError, match=rf"triton: got '{version}', expected a release such as 3\.6\.0"):
        triton_toolchain(version, tmp_path / "static")


@pytest.mark.slow
def test_pip_s_words_tell_why_a_release_cannot_be_had(monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(UsageError, match=r"(?s)pip cannot install triton==3\.99\.0: .*No matching distribution"):
        triton_toolchain("3.99.0", tmp_path / "static")
    assert list((tmp_path / "triton").iterdir()) == []


def test_a_release_that_was_fetched_is_used_again(tmp_path):
    folder = tmp_path / "triton" / "3.6.0"
    folder.mkdir(parents=True)
    assert triton_toolchain("3.6.0", tmp_path / "static") == Toolchain("triton 3.6.0", sys.executable, (folder,))


def test_a_release_needs_a_cache_that_can_be_written(tmp_path):
    (tmp_path / "triton").write_text("a file")
    with pytest.raises(StoreError, match=r"cache folder .*/triton: (File exists|Not a directory)"):
        triton_toolchain("3.6.0", tmp_path / "static")


@pytest.fixture
def repository(tmp_path):
    """A git repository of one commit, changed since; it holds kernels that declare no configurations."""
    folder = tmp_path / "repository"
    package = folder / "kernels" / "bsa_kernels"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("VERSION = 'committed'\n")
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    for command in (("init", "-q"), ("add", "."), (*identity, "commit", "-q", "-m", "first")):
        subprocess.run(["git", "-C", str(folder), *command], check=True)
    (package / "__init__.py").write_text("VERSION = 'changed'\n")
    (package / "new.py").touch()
    return folder


def test_a_revision_s_sources_are_those_committed_and_are_gone_afterwards(repository):
    with revision_sources("HEAD", repository / "kernels") as folder:
        files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
        assert files == [Path("kernels/bsa_kernels/__init__.py")]
        assert (folder / files[0]).read_text() == "VERSION = 'committed'\n"
    assert not folder.exists()


def test_a_revision_that_is_not_there_is_named(repository, tmp_path):
    with (
        pytest.raises(UsageError, match="revision 'no-such': no such commit, branch or tag here"),
        revision_sources("no-such", repository),
    ):
        pass
    with (
        pytest.raises(UsageError, match=r"revision 'HEAD': .*not a git repository"),
        revision_sources("HEAD", tmp_path),
    ):
        pass


def test_without_git_there_are_no_revisions(repository, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match="revision 'HEAD': git is not installed"), revision_sources("HEAD", repository):
        pass


SHAPE = {"tokens": 1024, "heads": 2, "kv_density": 0.1}
EARLIER = """
from dataclasses import dataclass

@dataclass
class Shape:
    tokens: int
    heads: int
    kv_density: float

@dataclass
class Config:
    name: str
    kernel: str
    signature: dict

def shipped(shape, *, dtype):
    return [Config(f"forward-{shape.tokens}", "bsa_kernels.a:forward", {"x_ptr": f"*{dtype}"})]
"""


def declared(*folders, archs=("sm_90",)):
    """What sources declare as shipped."""
    return list_configs("shipped", SHAPE, archs, dtype="bf16", toolchain=Toolchain("HEAD", first_paths=folders))


def test_a_revision_without_configurations_says_so(repository):
    with revision_sources("HEAD", repository) as folder, pytest.raises(UsageError) as error:
        declared(folder, folder / "kernels")
    assert str(error.value).startswith("HEAD: these sources declare no configurations: No module named 'bsa_kernels.")


EDITABLE_INSTALL = """
import sys
from importlib.machinery import PathFinder

class Finder:
    @staticmethod
    def find_spec(fullname, path=None, target=None):
        return PathFinder.find_spec(fullname, [{package!r}]) if fullname.startswith("bsa_kernels.") else None

sys.meta_path.append(Finder)
"""


def test_a_revision_gets_no_module_from_an_editable_install_of_another(repository, tmp_path):
    package = Path(bsa_kernels.__file__).parent
    (tmp_path / "sitecustomize.py").write_text(EDITABLE_INSTALL.format(package=str(package)))
    with pytest.raises(UsageError, match=r"No module named 'bsa_kernels\.block_sparse'"):
        declared(repository / "kernels", tmp_path)


def test_a_revision_before_configurations_had_architectures_declares_the_same_for_each(repository):
    package = repository / "kernels" / "bsa_kernels" / "block_sparse"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "configurations.py").write_text(EARLIER)
    found = declared(repository / "kernels", archs=("sm_80", "sm_100"))
    assert list(found) == ["sm_80", "sm_100"]
    assert found["sm_80"] == found["sm_100"]
    assert [(c.name, c.signature) for c in found["sm_80"]] == [("forward-1024", {"x_ptr": "*bf16"})]


@pytest.mark.slow
def test_these_sources_declare_configurations_of_different_names_for_each_architecture():
    found = declared(archs=ARCH_NAMES)
    assert tuple(found) == ARCH_NAMES
    for configs in found.values():
        assert len({config.name for config in configs}) == len(configs) > 5
