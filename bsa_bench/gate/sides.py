"""The sides of a comparison by execution: the sources that run this command, or those of a git revision."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import bsa_bench
from bsa_bench.errors import UsageError
from bsa_bench.gate.lockstep import PairSide
from bsa_bench.gate.verdict import Side
from bsa_bench.static.sides import HERE
from bsa_bench.static.toolchain import revision_sources

WORK_TREE = "the work tree"
ROOT = Path(bsa_bench.__file__).resolve().parents[1]
"""What holds the `bsa_bench` that runs: a checkout, or the folder of the installed packages."""


@contextlib.contextmanager
def open_pair_side(name: str, *, own_bench: bool = False, paths: Sequence[Path] = ()) -> Iterator[PairSide]:
    """Turn the name of a side into what its processes import, for as long as the context lasts.

    Args:
        name: `.` for the sources that run this command, or a git revision of the repository around the working
            directory.
        own_bench: take the benchmark's code from the revision too, not only its kernels.
        paths: folders of packages, relative to the top of that repository: of these each side imports its own, and the
            kernels and the benchmark are the installed ones for both. For repositories other than bsa-bench's.

    Raises:
        UsageError: there is no such revision, or it has not these folders; or the working directory is another checkout
            than the code that runs, so that `.` would not mean what it says.
    """
    if name == HERE and paths:
        yield _with_paths(WORK_TREE, Path(_git(Path.cwd(), "rev-parse", "--show-toplevel") or Path.cwd()), paths)
        return
    if name == HERE:
        check_here()
        yield PairSide(label=WORK_TREE, own_code=_bench_of(ROOT) if own_bench else ())
        return
    with revision_sources(name.removeprefix("git:"), Path.cwd()) as folder:
        if paths:
            yield _with_paths(name, folder, paths)
            return
        if not (folder / "kernels" / "bsa_kernels").is_dir():
            raise UsageError(
                f"revision {name!r}: has no kernels/bsa_kernels, expected a revision of bsa-bench; of another "
                "repository, name the folders of your packages with --path"
            )
        bench = (folder, folder / "suites") if own_bench else ()
        own_code = _bench_of(folder) if own_bench else ()
        yield PairSide(label=name, first_paths=(*bench, folder / "kernels"), own_code=own_code)


def _with_paths(label: str, top: Path, paths: Sequence[Path]) -> PairSide:
    folders = tuple(top / path for path in paths)
    for path, folder in zip(paths, folders, strict=True):
        if path.is_absolute() or not folder.is_dir():
            raise UsageError(f"--path {path}: expected a folder relative to the top of the repository, in {label}")
    return PairSide(label=label, first_paths=folders, own_code=folders)


def _bench_of(top: Path) -> tuple[Path, ...]:
    return top / "bsa_bench", top / "suites"


def describe_side(name: str) -> Side:
    """The side as a result stores it: with its commit, where there is one."""
    if name.startswith("triton=="):
        return Side(label=name)
    if name != HERE:
        return Side(
            label=name, commit=_git(Path.cwd(), "rev-parse", "--verify", f"{name.removeprefix('git:')}^{{commit}}")
        )
    status = _git(ROOT, "status", "--porcelain", "--untracked-files=normal", "--", "bsa_bench", "kernels", "suites")
    commit = _git(ROOT, "rev-parse", "HEAD") if _is_checkout(ROOT) else None
    return Side(label=WORK_TREE, commit=commit, dirty=bool(status) if commit and status is not None else None)


def check_here() -> None:
    """See that `.` means the checkout in which the command was given.

    Raises:
        UsageError: the working directory is in another checkout of bsa-bench than the code that runs.
    """
    top = _git(Path.cwd(), "rev-parse", "--show-toplevel")
    if top is None:
        return
    here = Path(top).resolve()
    if here != ROOT and (here / "kernels" / "bsa_kernels").is_dir() and (here / "bsa_bench").is_dir():
        raise UsageError(
            f"the working directory is the checkout {here}, the bsa-bench that runs is that of {ROOT}; "
            "run `PYTHONPATH=.:kernels:suites python -m bsa_bench ...` to measure the checkout"
        )


def has_revision(name: str) -> bool:
    """Whether the repository around the working directory has a revision."""
    return _git(Path.cwd(), "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}") is not None


def _is_checkout(folder: Path) -> bool:
    """Whether a folder is the top of a repository, not one inside it, such as a virtual environment's packages."""
    top = _git(folder, "rev-parse", "--show-toplevel")
    return top is not None and Path(top).resolve() == folder


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says; None where there is no git, no repository, or no such thing."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
