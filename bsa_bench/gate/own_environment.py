"""A Python environment with what a revision depends on: made by venv and pip once, and kept in the user's cache."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bsa_bench.child_process import module_command
from bsa_bench.descendants import new_mark
from bsa_bench.errors import MachineError, StoreError, UsageError
from bsa_bench.static.compile import default_cache

TOLD_PACKAGES = ("torch", "triton", "numpy")
"""Whose versions are told where the sides have an environment each."""
_LAST_LINES = 6
_OTHER_PACKAGES = frozenset({"PYTHONPATH", "PYTHONHOME"})
"""Variables by which pip would take the packages of this environment for installed in the new one."""
_VERSIONS = """
import json, sys
from importlib.metadata import PackageNotFoundError, version
def find(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return None
print(json.dumps({name: find(name) for name in sys.argv[1:]}))
"""


@dataclass(frozen=True)
class Builder:
    """What makes an environment.

    Attributes:
        venv: a command that makes a virtual environment in the folder that follows.
        install: a command that installs the requirements that follow; `{python}` stands for that environment's.
    """

    venv: tuple[str, ...] = module_command("venv")
    install: tuple[str, ...] = (
        *module_command("pip", python="{python}"),
        *("install", "--disable-pip-version-check", "--no-input", "--progress-bar", "off"),
        "--",
    )


def environments_folder() -> Path:
    """`$XDG_CACHE_HOME/bsa-bench/environments`, by default below `~/.cache`."""
    return default_cache().with_name("environments")


def make_environment(
    dependencies: Sequence[str],
    *,
    label: str,
    tell: Callable[[str], None] = lambda _: None,
    builder: Builder | None = None,
) -> Path:
    """The Python of an environment that has these packages, made if there is none yet.

    One is known by the running Python and the list. It is built elsewhere and takes its place when it is whole.

    Args:
        dependencies: requirements as pip takes them.
        label: whose environment it is, for errors and for what is told.
        tell: told what happens.
        builder: makes it.

    Raises:
        MachineError: venv or pip fails, with its last words.
        StoreError: the cache folder cannot be written.
    """
    wanted = sorted(set(dependencies))
    folder = environments_folder() / _digest(wanted)
    python = folder / "bin" / "python"
    if python.exists():
        return python
    tell(f"environment of {label}: {len(wanted)} dependencies, installed once into {folder}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists() and not python.exists():  # the Python that it was made with is gone
            shutil.rmtree(folder)
        fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".new-"))
    except OSError as error:
        raise StoreError(f"cache folder {folder.parent}: {error.strerror}") from error
    try:
        _build(builder or Builder(), fresh, wanted, label, tell)
        with contextlib.suppress(OSError):  # another process was faster; what it made is the same
            fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    if not python.exists():
        raise StoreError(f"cache folder {folder}: cannot be written, or something else is there")
    return python


def versions_here() -> dict[str, str | None]:
    """The versions of `TOLD_PACKAGES` in this environment; None for what is not installed."""
    found: dict[str, str | None] = dict.fromkeys(TOLD_PACKAGES)
    for name in TOLD_PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def versions_of(python: Path, *, flag: str = "") -> dict[str, str | None]:
    """As `versions_here`, of another environment.

    Args:
        python: of the environment.
        flag: what named it, for the error.

    Raises:
        UsageError: it is no Python that bsa-bench runs on.
    """
    command = [str(python), "-P", "-c", _VERSIONS, *TOLD_PACKAGES]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UsageError(f"{flag}{python}: {error.strerror}, expected a Python") from error
    try:
        found: dict[str, str | None] = json.loads(done.stdout)
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise UsageError(f"{flag}{python}: expected a Python of 3.11 or later that starts, got: {last}") from None
    return found


def versions_text(versions: Mapping[str, str | None]) -> str:
    """`torch 2.13.0, no triton, numpy 2.1.0`."""
    return ", ".join(f"{name} {found}" if found else f"no {name}" for name, found in versions.items())


def _digest(dependencies: Sequence[str]) -> str:
    """Of the list and of the Python; an environment does not outlive the Python that it was made with."""
    about = [sys.implementation.name, sys.version, sys.base_prefix, *dependencies]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:20]


def _build(
    builder: Builder, folder: Path, dependencies: Sequence[str], label: str, tell: Callable[[str], None]
) -> None:
    _run([*builder.venv, str(folder)], label, tell)
    python = folder / "bin" / "python"
    if dependencies:
        _run([*(part.format(python=python) for part in builder.install), *dependencies], label, tell)
    try:
        (folder / "dependencies.txt").write_text("".join(f"{each}\n" for each in dependencies), encoding="utf-8")
    except OSError as error:
        raise StoreError(f"cache folder {folder}: {error.strerror}") from error


def _run(command: Sequence[str], label: str, tell: Callable[[str], None]) -> None:
    """Run a command to its end, telling each line that it writes; it and its children end with us."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={key: value for key, value in os.environ.items() if key not in _OTHER_PACKAGES} | new_mark(),
            start_new_session=True,
        )
    except OSError as error:
        raise MachineError(f"the environment of {label} cannot be made: {command[0]}: {error.strerror}") from error
    last: deque[str] = deque(maxlen=_LAST_LINES)
    assert process.stdout is not None
    with process.stdout:
        try:
            for line in process.stdout:
                if text := line.strip():
                    last.append(text)
                    tell(f"{label}: {text}")
            code = process.wait()
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if code != 0:
        said = "\n".join(["", *last]) if last else " nothing"
        what = " ".join(command[:4])
        raise MachineError(f"the environment of {label} cannot be made: {what} ended with {code}; it said:{said}")
