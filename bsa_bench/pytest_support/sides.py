"""The two sides of `assert_not_slower`: the sources as they are, and a git revision of the same repository."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

from bsa_bench.errors import UsageError
from bsa_bench.gate.lockstep import PairSide
from bsa_bench.gate.sides import WORK_TREE, open_pair_side
from bsa_bench.result import Case
from bsa_bench.run.sources import sources_digest
from bsa_bench.static.toolchain import revision_sources

HEAD_LABEL = WORK_TREE
_KERNELS = "bsa_kernels"


@dataclass(frozen=True)
class Sides:
    """Base and head.

    Args:
        own_sources: a digest of each side's own folders; None where the sides differ in bsa-bench's kernels, whose
            digest their processes tell.
    """

    base: PairSide
    head: PairSide
    own_sources: tuple[str, str] | None = None


@contextlib.contextmanager
def open_sides(than: str, paths: Sequence[str], case: Case) -> Iterator[Sides]:
    """Turn a revision into the two sides, for as long as the context lasts.

    Args:
        than: a revision of the repository around the working directory.
        paths: folders of that repository that its packages are imported from, relative to its top. Without one the
            repository has to be bsa-bench's own, of which the revision's kernels are measured.
        case: what is to be measured.

    Raises:
        UsageError: there is no such repository or revision, no path is given for a repository of somebody else's, a
            path is not there, or none of them holds the package that the case's method or engine is from.
    """
    top = _top()
    if paths:
        _check_package(top, paths, case)
        with revision_sources(than, top) as folder:
            before, after = _folders(folder, paths, f"revision {than!r}"), _folders(top, paths, HEAD_LABEL)
            yield Sides(
                PairSide(label=than, first_paths=before),
                PairSide(label=HEAD_LABEL, first_paths=after),
                own_sources=(_digest(before), _digest(after)),
            )
    elif not (top / "kernels" / _KERNELS).is_dir():
        raise UsageError(
            f"assert_not_slower: the repository {top} is not bsa-bench's own; set the ini value bsa_paths to those of "
            "its folders that your packages are imported from, such as src"
        )
    else:
        with open_pair_side(than) as base, open_pair_side(".") as head:
            yield Sides(base, head)


def _check_package(top: Path, paths: Sequence[str], case: Case) -> None:
    """Otherwise both sides would run what is installed, and be the same by mistake."""
    used = {"bsa_bench.methods": case.method, "bsa_bench.engines": case.base_engine}
    packages = [_KERNELS]
    for group, name in used.items():
        packages += [entry.module.partition(".")[0] for entry in entry_points(group=group, name=name)]
    names = [name for package in packages for name in (package, f"{package}.py")]
    if not any((folder / name).exists() for folder in _folders(top, paths, HEAD_LABEL) for name in names):
        raise UsageError(
            f"bsa_paths: got {', '.join(paths)}, expected a folder that holds {' or '.join(packages)}, which "
            f"{case.implementation} runs"
        )


def _folders(top: Path, paths: Sequence[str], where: str) -> tuple[Path, ...]:
    for path in paths:
        if not (top / path).is_dir():
            raise UsageError(f"bsa_paths: {where}: has no folder {path!r}")
    return tuple(top / path for path in paths)


def _digest(folders: Sequence[Path]) -> str:
    return " ".join(map(sources_digest, folders))


def _top() -> Path:
    try:
        done = subprocess.run(["git", "rev-parse", "--show-toplevel"], capture_output=True, text=True, check=False)
    except OSError as error:
        raise UsageError("assert_not_slower: git is not installed") from error
    if done.returncode != 0:
        raise UsageError(f"assert_not_slower: {Path.cwd()} is in no git repository: {done.stderr.strip()}")
    return Path(done.stdout.strip())
