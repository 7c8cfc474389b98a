"""Other toolchains to compare with: another release of Triton, or the sources of another revision."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from bsa_bench.child_process import module_command
from bsa_bench.errors import StoreError, UsageError
from bsa_bench.static.compile import Toolchain

_VERSION = re.compile(r"\d+\.\d+(\.\d+)?")


def triton_toolchain(version: str, cache: Path) -> Toolchain:
    """A release of Triton beside the installed one, fetched with pip once and kept in the cache.

    Raises:
        UsageError: it is no version, or pip cannot get it; with pip's own words.
        StoreError: the cache folder cannot be written.
    """
    if not _VERSION.fullmatch(version):
        raise UsageError(f"triton: got {version!r}, expected a release such as 3.6.0")
    folder = cache.parent / "triton" / version
    if not folder.is_dir():
        _install(f"triton=={version}", folder)
    return Toolchain(label=f"triton {version}", first_paths=(folder,))


def _install(requirement: str, folder: Path) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".new-"))
    except OSError as error:
        raise StoreError(f"cache folder {folder.parent}: {error.strerror}") from error
    command = [*module_command("pip"), "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    try:
        done = subprocess.run(
            [*command, "--only-binary=:all:", "--target", str(fresh), requirement],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise UsageError(f"pip cannot install {requirement}: {done.stderr.strip()}")
        with contextlib.suppress(OSError):  # another process was faster; what it made is the same
            fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


@contextlib.contextmanager
def revision_sources(revision: str, repository: Path) -> Iterator[Path]:
    """The files of a git revision in a folder of their own, for as long as the context lasts.

    Raises:
        UsageError: there is no git, no repository, or no such revision; with git's own words.
    """
    commit = _git(repository, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}", what=revision)
    top = _git(repository, "rev-parse", "--show-toplevel", what=revision).decode().strip()
    archive = _git(Path(top), "archive", "--format=tar", commit.decode().strip(), what=revision)
    with tempfile.TemporaryDirectory(prefix="bsa-bench-revision-") as folder:
        with tarfile.open(fileobj=BytesIO(archive)) as tar:
            tar.extractall(folder, filter="data")
        yield Path(folder)


def _git(folder: Path, *arguments: str, what: str) -> bytes:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, check=False)
    except FileNotFoundError as error:
        raise UsageError(f"revision {what!r}: git is not installed") from error
    if done.returncode != 0:
        words = done.stderr.decode(errors="replace").strip() or "no such commit, branch or tag here"
        raise UsageError(f"revision {what!r}: {words}")
    return done.stdout
