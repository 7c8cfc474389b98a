"""Append results to `results/<run>/results.jsonl` so that nothing written is ever lost or half there."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self

from bsa_bench.errors import StoreError, UsageError
from bsa_bench.result import Result, RunLine
from bsa_bench.store.line_digest import with_digest
from bsa_bench.store.reader import RESULTS_FILE, Run, read_run

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MOST_LETTERS = 100
"""Of a suite's name in a run's, which is the name of a folder."""
_REMEDY: dict[int, str] = {
    errno.ENOSPC: "free some disk space; --resume goes on with the run",
    errno.EDQUOT: "free some of your disk quota; --resume goes on with the run",
    errno.EFBIG: "raise the limit of the file size (ulimit -f); --resume goes on with the run",
    errno.EACCES: "make the folder writable for you, or choose another results folder",
    errno.EPERM: "make the folder writable for you, or choose another results folder",
    errno.EROFS: "the file system is read-only: choose another results folder",
    errno.ENOTDIR: "a file stands where a folder is needed: move it away, or choose another results folder",
    errno.EEXIST: "a file stands where a folder is needed: move it away, or choose another results folder",
    errno.ENOLCK: "this file system has no locks: choose a results folder on another one",
    errno.EOPNOTSUPP: "this file system has no locks: choose a results folder on another one",
}


class RunWriter:
    """The one writer of a run. A line is on disk, whole, when `append` returns.

    The file is opened for append, locked against a second process for as long as the writer is open, and each line is
    one `os.write` followed by `fsync`. A line that could not be written whole is taken back, so the file still loads.

    Attributes:
        run_id: the run's name, which is its folder's name.
        folder: `results_root/run_id`.
        previous: what the run held when it was resumed; None for a new run, and for one killed before its first line.
        messages: what the user should know about the opening, such as a torn line that was cut off.
    """

    def __init__(
        self, folder: Path, fd: int, *, previous: Run | None, messages: Sequence[str] = (), content: bytes = b""
    ) -> None:
        self.run_id = folder.name
        self.folder = folder
        self.path = folder / RESULTS_FILE
        self.previous = previous
        self.messages = list(messages)
        self._fd: int | None = fd
        self._parts = [content]
        self._size = len(content)

    @classmethod
    def create(cls, results_root: str | Path, run_id: str) -> RunWriter:
        """Start a new run.

        Raises:
            UsageError: a run of this name exists, or the name cannot be a folder's name.
            StoreError: the folder or the file cannot be made.
        """
        try:
            return cls._create(results_root, run_id)
        except FileExistsError as error:
            raise UsageError(
                f"run {run_id!r}: {error.filename} exists; go on with it by --resume, or give the new run another name"
            ) from error

    @classmethod
    def begin(cls, results_root: str | Path, suite: str) -> RunWriter:
        """Start a new run of a suite under the first free name: two may begin in one second.

        Raises:
            StoreError: the folder or the file cannot be made.
        """
        name = default_run_id(suite)
        for number in count(2):
            try:
                return cls._create(results_root, name)
            except FileExistsError:
                name = f"{default_run_id(suite)}-{number}"
        raise AssertionError

    @classmethod
    def _create(cls, results_root: str | Path, run_id: str) -> RunWriter:
        folder = _run_folder(results_root, run_id)
        path = folder / RESULTS_FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _store_error(folder, "cannot make the run's folder", error) from error
        try:
            fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            raise
        except OSError as error:
            raise _store_error(path, "cannot make the results file", error) from error
        _lock(fd, path)
        return cls(folder, fd, previous=None)

    @classmethod
    def resume(cls, results_root: str | Path, run_id: str) -> RunWriter:
        """Open an existing run to go on with it; a torn last line is cut off and said in `messages`.

        Raises:
            UsageError: there is no such run.
            StoreError: the file cannot be opened, is being written by another process, or does not load.
        """
        folder = _run_folder(results_root, run_id)
        path = folder / RESULTS_FILE
        try:
            fd = os.open(path, os.O_RDWR | os.O_APPEND)
        except FileNotFoundError as error:
            raise UsageError(f"run {run_id!r}: nothing to resume, there is no {path}; leave --resume out") from error
        except OSError as error:
            raise _store_error(path, "cannot open the results file", error) from error
        _lock(fd, path)
        try:
            messages = _cut_torn_line(fd, path)
            previous = read_run(path) if os.fstat(fd).st_size else None
            content = path.read_bytes()
        except OSError as error:
            os.close(fd)
            raise _store_error(path, "cannot read the results file", error) from error
        except BaseException:
            os.close(fd)
            raise
        return cls(folder, fd, previous=previous, messages=messages, content=content)

    @property
    def next_seq(self) -> int:
        """The sequence number after the last one that the run held when it was opened."""
        return max((r.seq for r in self.previous.results), default=-1) + 1 if self.previous else 0

    def append(self, *lines: RunLine | Result) -> None:
        """Write the lines, all or none of them, and return when they are on disk.

        Raises:
            StoreError: they could not be written; the file holds what it held before. Or the file is not what was
                written any more: then they are in the copy that `check` made.
        """
        if self._fd is None:
            raise ValueError(f"{self.path}: the writer is closed")
        data = b"".join(with_digest(line.model_dump_json().encode()) + b"\n" for line in lines)
        self.check(data)
        size = self._size
        try:
            written = os.write(self._fd, data)
            while written < len(data):  # a nearly full disk takes a part, and says why at the next write
                written += os.write(self._fd, data[written:])
            os.fsync(self._fd)
        except OSError as error:
            undone = self._take_back(size)
            raise _store_error(self.path, f"cannot append {len(data)} bytes{undone}", error) from error
        self._parts.append(data)
        self._size += len(data)

    def check(self, more: bytes = b"") -> None:
        """See that the file is where it was and as long as what was written, which takes microseconds.

        Args:
            more: what is about to be appended.

        Raises:
            StoreError: it was deleted, replaced or cut off. All that was measured is in another folder then, which the
                message names; a run of that name can be resumed.
        """
        if self._fd is not None and (what := self._what_happened(self._fd)):
            raise StoreError(f"{self.path}: {what} while the run was writing it; {self._keep(more)}")

    def _what_happened(self, fd: int) -> str | None:
        ours = os.fstat(fd)
        try:
            there = self.path.stat()
        except OSError as error:
            return "was deleted or moved" if isinstance(error, FileNotFoundError) else f"was lost ({error.strerror})"
        if not os.path.samestat(ours, there):
            return "was replaced by another file"
        if ours.st_size != self._size:
            return f"was changed, from {self._size:,} to {ours.st_size:,} bytes,"
        return None

    def _keep(self, more: bytes) -> str:
        """Write all lines into a folder of their own, near by or where temporary files go, and say which it is."""
        trouble = "there is nothing to keep"
        for root in (self.folder.parent, Path(tempfile.gettempdir())) if self._size + len(more) else ():
            try:
                root.mkdir(parents=True, exist_ok=True)
                folder = Path(tempfile.mkdtemp(prefix=f"{self.run_id}-kept-", dir=root))
                with (folder / RESULTS_FILE).open("wb") as file:
                    file.writelines([*self._parts, more])
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                trouble = f"it could not be kept in {root} ({error.strerror})"
                continue
            resume = f"--results {root} --run-id {folder.name} --resume"
            return f"the run stops, what it measured is kept in {folder}; go on with {resume}"
        return f"the run stops, {trouble}"

    def close(self) -> None:
        """Close the file and give the lock back."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take_back(self, size: int) -> str:
        assert self._fd is not None
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            return f" (nor take the torn line back: {error.strerror}; it is cut off at the next --resume)"
        return ""


def run_to_resume(results_root: str | Path, run_id: str) -> Run | None:
    """Read what `RunWriter.resume` would go on with, without opening it; None for a run killed before its first line.

    Raises:
        UsageError: there is no such run.
        StoreError: the file does not load.
    """
    path = _run_folder(results_root, run_id) / RESULTS_FILE
    if not path.is_file():
        raise UsageError(f"run {run_id!r}: nothing to resume, there is no {path}; leave --resume out")
    return read_run(path) if path.stat().st_size else None


def check_writable(results_root: str | Path) -> None:
    """Write, sync and remove a small file in the results folder, made if missing: a run must not find out later.

    Raises:
        StoreError: the folder cannot be made or written.
    """
    root = Path(results_root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root) as file:
            file.write(b"\0" * 65536)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _store_error(root, "cannot write in the results folder", error) from error


def default_run_id(suite: str, now: datetime | None = None) -> str:
    """`<suite>-<UTC yyyymmdd-hhmmss>`; of a suite's path the file's stem."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(suite).stem).lstrip("._-")[:_MOST_LETTERS] or "run"
    return f"{stem}-{(now or datetime.now(UTC)).astimezone(UTC):%Y%m%d-%H%M%S}"


def _run_folder(results_root: str | Path, run_id: str) -> Path:
    if not _RUN_ID.fullmatch(run_id):
        raise UsageError(
            f"run name: got {run_id!r}, expected letters, digits, '.', '_' and '-', the first a letter or digit"
        )
    return Path(results_root) / run_id


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise StoreError(f"{path}: another process is writing this run; wait for it, or start a new run") from error
    except OSError as error:
        os.close(fd)
        raise _store_error(path, "cannot lock the results file", error) from error


def _cut_torn_line(fd: int, path: Path) -> list[str]:
    """Cut off a last line that was being written when the run was killed: without its newline, or not JSON."""
    try:
        data = path.read_bytes()
        keep = data.rfind(b"\n") + 1
        if keep == len(data):
            last = data.rfind(b"\n", 0, max(keep - 1, 0)) + 1
            keep = keep if _is_json(data[last:keep]) else last
        if keep == len(data):
            return []
        os.ftruncate(fd, keep)
        os.fsync(fd)
    except OSError as error:
        raise _store_error(path, "cannot cut off a torn last line", error) from error
    return [f"{path}: the last line was torn when the run was killed; its {len(data) - keep} bytes are cut off"]


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return not line.strip()
    return True


def _store_error(path: Path, what: str, error: OSError) -> StoreError:
    remedy = _REMEDY.get(error.errno or 0, "see to the cause, or choose another results folder")
    return StoreError(f"{path}: {what}: {error.strerror or error}; {remedy}")
