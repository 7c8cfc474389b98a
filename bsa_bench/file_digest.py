"""Which file it is: a name may hold other content tomorrow."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path


def file_digest(path: str | Path) -> str | None:
    """SHA-256 of a file's content in hex; null where it cannot be read, which whoever needs the content will say.

    Read once for as long as its size and its times stay.
    """
    try:
        file = Path(path).expanduser()
        if not file.is_file():
            return None
        stat = file.stat()
        return _digest(file.absolute(), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
    except (OSError, RuntimeError, ValueError):  # `~somebody` whom the system does not know; a zero byte
        return None


@lru_cache(maxsize=256)
def _digest(path: Path, *_state: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
