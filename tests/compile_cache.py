"""Compiled kernels for tests, shared by all tests, by the processes of pytest-xdist and by the next run."""

import functools
import hashlib
import shutil
import time
from pathlib import Path

from filelock import FileLock

from bsa_bench.static import compile as compiling
from bsa_bench.static import compile_worker
from bsa_bench.static.compile import Settings, Toolchain, compile_all, default_cache
from bsa_bench.static.toolchain import triton_toolchain

KEPT_S = 30 * 24 * 3600.0
"""For how long the code of another revision's compiler is kept after its last use."""


@functools.cache
def cache_folder():
    """The cache of compiled code; one for each content of what compiles, for an entry's key has all but that."""
    sources = (Path(module.__file__).read_bytes() for module in (compiling, compile_worker))
    folder = default_cache().with_name("tests") / hashlib.sha256(b"".join(sources)).hexdigest()[:16] / "static"
    folder.mkdir(parents=True, exist_ok=True)
    (folder.parent / "lock").touch()
    for used in folder.parent.parent.glob("*/lock"):
        if used.stat().st_mtime < time.time() - KEPT_S:
            shutil.rmtree(used.parent, ignore_errors=True)
    return folder


def toolchain_of(release):
    """A release of Triton: the installed one for None, others are fetched once and stay in the user's cache."""
    if release is None:
        return Toolchain()
    cache = default_cache()
    cache.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(cache.with_name("tests.lock")):  # one process fetches, the others find it
        return triton_toolchain(release, cache)


def compile_once(jobs, *, release=None, **settings):
    """As `compile_all`, from the shared cache; processes that want the same wait for the one that compiles it."""
    toolchain, folder = toolchain_of(release), cache_folder()
    with FileLock(folder.parent / "lock"):
        return compile_all(jobs, Settings(folder, toolchain=toolchain, **settings))
