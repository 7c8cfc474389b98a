"""`git bisect run` in a work tree of its own, and what it says in the end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bsa_bench.child_process import child_environment, module_command, own_paths
from bsa_bench.errors import BenchError, StoreError, UsageError

_GRACE_S = 5.0


@contextmanager
def work_tree(repository: Path, tree: Path, revision: str) -> Iterator[Path]:
    """A work tree of a revision, for as long as the context lasts; a bisection in it is its own.

    Raises:
        UsageError: git cannot make it.
    """
    try:
        git(repository, "worktree", "add", "--quiet", "--detach", str(tree), revision, what=f"revision {revision!r}")
        yield tree
    finally:
        # The refs of a bisection are those of its work tree and go with it.
        command = ["git", "-C", str(repository), "worktree", "remove", "--force", "--force", str(tree)]
        subprocess.run(command, capture_output=True, check=False)


def run_bisect(tree: Path, place: Path) -> str:
    """Let `git bisect run` judge revisions by `bsa-bench bisect-step`; returns what it said.

    Args:
        tree: a work tree in which a bisection was started.
        place: the state of the bisection.

    Raises:
        BenchError: it ended before it came to an end, with its last words.
    """
    # The judge is this code, whatever revision is checked out; its kernels are named by path.
    # LANGUAGE: what git says is read below. A session of its own: an interrupt reaches us alone, and we end all of it.
    process = subprocess.Popen(
        ["git", "bisect", "run", *module_command("bsa_bench"), "bisect-step", str(place)],
        cwd=tree,
        env=child_environment(first=own_paths()) | {"PYTHONDONTWRITEBYTECODE": "1", "LANGUAGE": "en"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        text, _ = process.communicate()
    finally:
        if process.returncode is None:
            _end(process)
    if process.returncode and "cannot bisect more" not in text:
        last = "\n".join(text.strip().splitlines()[-6:])
        raise BenchError(f"git bisect run ended with exit code {process.returncode}:\n{last}")
    return text


def _end(process: subprocess.Popen[str]) -> None:
    """End git and the step that it runs, which ends its workers if it is given the time."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    try:
        process.communicate(timeout=_GRACE_S)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def first_bad(tree: Path, text: str) -> str | None:
    """The commit that it came to; None where skipped ones leave it open."""
    if "is the first" not in text:
        return None
    return git(tree, "rev-parse", "refs/bisect/bad", what="git bisect")


def candidates_in(text: str) -> tuple[str, ...]:
    """The commits among which the first bad one is."""
    return tuple(line for line in text.splitlines() if len(line) == 40 and all(c in "0123456789abcdef" for c in line))


def git(folder: Path, *arguments: str, what: str) -> str:
    """What git says.

    Args:
        what: is named in the error.

    Raises:
        UsageError: git refuses, with its own words.
        StoreError: there is no git.
    """
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        raise StoreError(f"git cannot be started: {error}") from error
    if done.returncode != 0:
        raise UsageError(f"{what}: {done.stderr.strip() or 'not known to git here'}")
    return done.stdout.strip()
