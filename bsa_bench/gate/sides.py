"""The sides of a comparison by execution: the sources that run this command, or those of a git revision."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path

import bsa_bench
from bsa_bench.errors import UsageError
from bsa_bench.gate.lockstep import PairSide
from bsa_bench.gate.pair_job import Reply
from bsa_bench.gate.side_environment import THIS_ENVIRONMENT, EnvironmentChoice, in_environment
from bsa_bench.gate.verdict import Side
from bsa_bench.result import Case
from bsa_bench.run.sources import sources_digest
from bsa_bench.static.sides import HERE, is_toolchain
from bsa_bench.static.toolchain import revision_sources

WORK_TREE = "the work tree"
ROOT = Path(bsa_bench.__file__).resolve().parents[1]
"""What holds the `bsa_bench` that runs: a checkout, or the folder of the installed packages."""
_KERNELS, _BENCH = "bsa_kernels", "bsa_bench"
_COMMIT_DIGITS = 40
_COMPUTES = ("methods", "engines", "block_method.py", "catalog.py")
"""What of the benchmark's package is part of what a case computes."""


@contextlib.contextmanager
def open_pair_side(
    name: str,
    *,
    own_bench: bool = False,
    paths: Sequence[Path] = (),
    flag: str = "--path",
    environment: EnvironmentChoice = THIS_ENVIRONMENT,
) -> Iterator[PairSide]:
    """Turn the name of a side into what its processes import, for as long as the context lasts.

    Args:
        name: `.` for the sources that run this command, or a git revision of the repository around the working
            directory.
        own_bench: take the benchmark's code from the revision too, not only its kernels.
        paths: folders of packages, relative to the top of that repository: of these each side imports its own, and the
            kernels and the benchmark are the installed ones for both. For repositories other than bsa-bench's.
        flag: what names the paths, for errors.
        environment: the Python that it runs on.

    Raises:
        UsageError: there is no such revision, it has not these folders, they are outside the repository or come with
            `own_bench`; or the working directory is another checkout than the code that runs, so that `.` would not
            mean what it says; or as `in_environment`.
        MachineError, StoreError: as `in_environment`.
    """
    environment.check()
    if environment.own and paths:
        raise UsageError(
            f"--own-environment: got {flag} too, whose packages have to be installed to be found; make an environment "
            "with the base's dependencies and yours, and name it with --base-python"
        )
    with (
        _open_sources(name, own_bench=own_bench, paths=paths, flag=flag) as (side, revision),
        in_environment(side, environment, revision=revision, here=_top() if paths else ROOT) as placed,
    ):
        yield placed


@contextlib.contextmanager
def _open_sources(
    name: str, *, own_bench: bool, paths: Sequence[Path], flag: str
) -> Iterator[tuple[PairSide, Path | None]]:
    """The side as its sources are, and the top of a revision's files."""
    if own_bench and paths:
        raise UsageError(f"--own-bench: got {flag} too, whose packages run under the installed benchmark on both sides")
    check_paths(paths, flag=flag)
    if name == HERE and paths:
        yield _with_paths(WORK_TREE, _top(), paths, flag), None
        return
    if name == HERE:
        check_here()
        yield PairSide(label=WORK_TREE, own_code=_bench_of(ROOT) if own_bench else (), bench=ROOT / _BENCH), None
        return
    with revision_sources(revision_of(name), Path.cwd()) as folder:
        if paths:
            yield _with_paths(name, folder, paths, flag), folder
            return
        if not (folder / "kernels" / _KERNELS).is_dir():
            raise UsageError(
                f"revision {name!r}: has no kernels/bsa_kernels, expected a revision of bsa-bench; of another "
                f"repository, name the folders of your packages with {flag}"
            )
        bench = (folder, folder / "suites") if own_bench else ()
        own_code = _bench_of(folder) if own_bench else ()
        side = PairSide(
            label=_short(name), first_paths=(*bench, folder / "kernels"), own_code=own_code, bench=folder / _BENCH
        )
        yield side, folder


def _top() -> Path:
    """Of the repository around the working directory, or that."""
    return Path(_git(Path.cwd(), "rev-parse", "--show-toplevel") or Path.cwd())


def check_paths(paths: Sequence[Path], *, flag: str) -> None:
    """See that folders are named from the top of a repository on.

    Raises:
        UsageError: one is outside it.
    """
    for path in paths:
        if path.is_absolute() or ".." in path.parts:
            raise UsageError(f"{flag}: got {str(path)!r}, expected folders inside the repository, relative to its top")


def _with_paths(label: str, top: Path, paths: Sequence[Path], flag: str) -> PairSide:
    folders = tuple(top / path for path in paths)
    for path, folder in zip(paths, folders, strict=True):
        if not folder.is_dir():
            raise UsageError(f"{flag} {path}: expected a folder relative to the top of the repository, in {label}")
    return PairSide(label=label, first_paths=folders, own_code=folders)


def not_held(side: PairSide, cases: Mapping[str, Case], *, flag: str = "--path") -> dict[str, str]:
    """Cases by name that run no package of a side's folders, with the reason.

    Both sides would run what is installed, and be the same by mistake.

    Args:
        side: one without folders of its own holds all that it runs.
        cases: what is to be measured.
        flag: what names the folders.

    Raises:
        UsageError: that is so of every case.
    """
    if not side.first_paths or _holds(side, _KERNELS):
        return {}
    reasons: dict[str, str] = {}
    for implementation, case in {case.implementation: case for case in cases.values()}.items():
        packages = _own_packages(case)
        if not any(_holds(side, package) for package in packages):
            names = " or ".join([_KERNELS, *packages])
            reasons[implementation] = (
                f"{flag}: no folder in {side.label} holds {names}, which {implementation} runs; expected the folder "
                "that the package lies in"
            )
    found = {name: reasons[case.implementation] for name, case in cases.items() if case.implementation in reasons}
    if found and len(found) == len(cases):
        raise UsageError(next(iter(found.values())))
    return found


def _holds(side: PairSide, package: str) -> bool:
    return any((folder / name).exists() for folder in side.first_paths for name in (package, f"{package}.py"))


def _own_packages(case: Case) -> list[str]:
    """Of others than bsa-bench: what the case's method and engine are registered from."""
    used = {"bsa_bench.methods": case.method, "bsa_bench.engines": case.base_engine}
    entries = [entry for group, name in used.items() for entry in entry_points(group=group, name=name)]
    return list(dict.fromkeys(entry.module.partition(".")[0] for entry in entries))


def run_the_same(sides: Sequence[PairSide], told: Sequence[Reply]) -> bool:
    """Whether both sides run the same sources, comments and docstrings aside, on the same Python.

    Args:
        sides: base and head.
        told: what their processes said of their kernels when they were set up.
    """
    if told[0].sources != told[1].sources or sides[0].command != sides[1].command:
        return False
    try:
        base, head = ([sources_digest(folder) for folder in side.own_code] for side in sides)
    except SyntaxError:  # a file that does not parse is like no other
        return False
    return base == head


def compute_the_same(sides: Sequence[PairSide]) -> bool:
    """Whether the benchmark's methods and engines are the same at both sides, comments and docstrings aside.

    The head's run at both; so a fault in them is at both sides, and only an oracle finds it.
    """
    try:
        base, head = (
            [sources_digest(side.bench / name) for name in _COMPUTES if (side.bench / name).exists()]
            if side.bench
            else []
            for side in sides
        )
    except SyntaxError:
        return False
    return base == head


def own_packages(sides: Sequence[PairSide]) -> set[str]:
    """Which of bsa-bench's own packages each side has of its own, so that its operations can be compared."""
    found = {_KERNELS} if all(not side.first_paths or _holds(side, _KERNELS) for side in sides) else set()
    if all((side.own_code and not side.first_paths) or _holds(side, _BENCH) for side in sides):
        found.add(_BENCH)
    return found


def _short(name: str) -> str:
    """A commit as people write it; any other name as it is."""
    return name[:12] if len(name) == _COMMIT_DIGITS and set(name) <= set("0123456789abcdef") else name


def _bench_of(top: Path) -> tuple[Path, ...]:
    return top / _BENCH, top / "suites"


def describe_side(name: str) -> Side:
    """The side as a result stores it: with its commit, where there is one."""
    if is_toolchain(name):
        return Side(label=name)
    if name != HERE:
        return Side(label=name, commit=_git(Path.cwd(), "rev-parse", "--verify", f"{revision_of(name)}^{{commit}}"))
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
    if here != ROOT and (here / "kernels" / _KERNELS).is_dir() and (here / "bsa_bench").is_dir():
        raise UsageError(
            f"the working directory is the checkout {here}, the bsa-bench that runs is that of {ROOT}; "
            "run `PYTHONPATH=.:kernels:suites python -m bsa_bench ...` to measure the checkout"
        )


def revision_of(name: str) -> str:
    """What git calls the revision that a side names, with or without `git:` before it."""
    return name.removeprefix("git:")


def has_revision(name: str) -> bool:
    """Whether the repository around the working directory has a revision."""
    return _git(Path.cwd(), "rev-parse", "--verify", "--quiet", f"{revision_of(name)}^{{commit}}") is not None


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
