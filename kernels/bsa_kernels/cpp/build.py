"""Compile the C++ kernels into the user's cache, once for each source, compiler, flags and CPU.

A library's name holds a digest of what it was made of and one of its content, so that a file which is damaged or cut
short is noticed, removed and made anew. It is written under another name and renamed: processes that compile at the
same time do not disturb each other.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

_FOLDER = Path(__file__).parent
_LIMIT_S = 300.0
_STALE_S = 3600.0
# Not -ffast-math: it assumes that there is no infinity, by which rows without keys are told, and in a library it
# makes some linkers set the whole process to flush subnormal numbers to zero.
_FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-shared",
    "-pthread",
    "-fno-math-errno",
    "-fno-trapping-math",
)


class BuildError(Exception):
    """The library cannot be made here; says why, and the remedy, in a sentence."""


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler: the command that runs it, and the first line of what it says of its version."""

    command: tuple[str, ...]
    version: str


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/bsa-bench/cpu`, by default below `~/.cache`.

    Raises:
        BuildError: the user has no home folder.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bsa-bench" / "cpu"
    except RuntimeError as error:
        raise BuildError("the user has no home folder to compile into; set XDG_CACHE_HOME.") from error


def find_compiler() -> Compiler:
    """The compiler that `CXX` names, or else g++, clang++ or c++.

    Raises:
        BuildError: there is none, or it does not run.
    """
    given = os.environ.get("CXX", "")
    try:
        named = shlex.split(given)
    except ValueError as error:
        raise BuildError(f"CXX is {given!r}, expected a C++ compiler and its options ({error}).") from error
    found = next(filter(None, map(shutil.which, named[:1] or ("g++", "clang++", "c++"))), None)
    if found is None:
        if named:
            raise BuildError(f"CXX names the C++ compiler {named[0]!r}, which does not exist; install it or unset CXX.")
        raise BuildError("compiling the kernels needs a C++ compiler; install g++ or clang++.")
    command = (found, *named[1:])
    said = _run([*command, "--version"])
    return Compiler(command, said.stdout.partition("\n")[0].strip())


def build(*, cache: Path | None = None, flags: Sequence[str] = ()) -> Path:
    """Return the library, compiled now or found in the cache.

    Args:
        cache: the folder of libraries, `default_cache` without.
        flags: more flags of the compiler.

    Raises:
        BuildError: there is no compiler, it failed, or the cache cannot be written.
    """
    folder = default_cache() if cache is None else cache
    compiler = find_compiler()
    command = [*compiler.command, *_FLAGS, _native_flag(), *flags]
    key = _digest(*_sources(), compiler.version, *command, _cpu())
    if found := _find(folder, key):
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_stale(folder)
        with tempfile.TemporaryDirectory(prefix="compiling-", dir=folder) as scratch:
            made = Path(scratch) / "kernels.so"
            _compile(command, made)
            final = folder / f"{key}-{_digest(made.read_bytes())}.so"
            made.replace(final)
    except OSError as error:
        raise BuildError(
            f"the kernels are compiled into {folder}, which cannot be written ({error.strerror}); set XDG_CACHE_HOME "
            "to a folder that can."
        ) from error
    return final


def _compile(command: Sequence[str], made: Path) -> None:
    """Compile the sources, all at once, and link them. Raises as `_run`."""
    sources = sorted(_FOLDER.glob("*.cpp"))
    objects = [str(made.with_name(f"{source.stem}.o")) for source in sources]
    with ThreadPoolExecutor(len(sources)) as pool:
        pairs = zip(sources, objects, strict=True)
        runs = [pool.submit(_run, [*command, "-c", str(source), "-o", made_of]) for source, made_of in pairs]
        for run in runs:
            run.result()
    _run([*command, *objects, "-o", str(made)])


def _find(folder: Path, key: str) -> Path | None:
    """The intact library with this key; damaged ones are removed."""
    for path in sorted(folder.glob(f"{key}-*.so")):
        with contextlib.suppress(OSError):
            if path.name == f"{key}-{_digest(path.read_bytes())}.so":
                return path
            path.unlink()
    return None


def _remove_stale(folder: Path) -> None:
    """Remove what compilations left that were killed."""
    for path in folder.glob("compiling-*"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < time.time() - _STALE_S:
                shutil.rmtree(path, ignore_errors=True)


def _sources() -> list[bytes]:
    return [path.read_bytes() for path in sorted([*_FOLDER.glob("*.cpp"), *_FOLDER.glob("*.h")])]


def _native_flag() -> str:
    return "-mcpu=native" if platform.machine() in {"arm64", "aarch64"} else "-march=native"


def _cpu() -> str:
    """What tells one CPU from another, for which `native` means something else."""
    lines = {platform.machine(), platform.processor()}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("model name", "flags", "Features", "CPU part", "CPU implementer")):
                lines.add(line)
    return "\n".join(sorted(lines))


def _digest(*parts: str | bytes) -> str:
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        sha.update(len(data).to_bytes(8, "little"))
        sha.update(data)
    return sha.hexdigest()[:32]


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a compiler.

    Raises:
        BuildError: it cannot be started, fails or takes too long.
    """
    name = Path(command[0]).name
    try:
        return subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=_LIMIT_S, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{name} did not compile the kernels within {_LIMIT_S:.0f} s; try another, by CXX.") from error
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or "").strip().splitlines()
        said = next(
            (line for line in lines if "error" in line), lines[-1] if lines else f"exit code {error.returncode}"
        )
        raise BuildError(f"{name} cannot compile the kernels: {said.strip()}; try another compiler, by CXX.") from error
    except OSError as error:
        raise BuildError(f"{name} cannot be started ({error.strerror}); try another compiler, by CXX.") from error
