"""What a file is that somebody gave, so that an error can call it by its name."""

from __future__ import annotations

import codecs
import errno
import json
import os
import zipfile
from pathlib import Path
from typing import Any

from bsa_bench.errors import UsageError
from bsa_bench.text import is_unicode, shortened, visible

_HEAD_BYTES = 4096
_MOST_INDEX_BYTES = 64 << 20
_MOST_PATH, _MOST_NAME = 4096, 255
_WIDE = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_MAGIC = {
    b"\x93NUMPY": "an array of NumPy (.npy)",
    b"\x89HDF\r\n": "an HDF5 file",
    b"GGUF": "a GGUF file",
    b"\x80\x02": "a pickle, of an old torch.save perhaps (.pt)",
    b"\x80\x03": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
    b"version https://git-lfs": "a pointer of Git LFS in place of the file; `git lfs pull` gets it",
}


def why_no_file(path: Path) -> str | None:
    """Why nothing can be read there, with the path; null where it is a file."""
    try:
        if path.is_dir():
            return f"{path} is a folder, expected a file"
        if not path.exists():
            return f"no such file: {path}"
    except OSError as error:  # a name that is too long
        return f"{path} cannot be read: {error.strerror or error}"
    except ValueError:
        return f"{visible(str(path))} holds a zero byte, which no path does"
    return None if path.is_file() else f"{path} is a device or a pipe, expected a file"


def is_regular(path: Path) -> bool:
    """Whether a file is there that ends, and not a folder, a device or a pipe; of what cannot be looked at, no."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or one with a zero byte
        return False


def read_regular(path: Path, *, most_bytes: int | None = None) -> bytes:
    """Read a file; a pipe or a device would keep whoever reads it, or fill the memory.

    Args:
        most_bytes: of a longer file, so many bytes and one more are read.

    Raises:
        OSError: there is none, it is no regular file, or it cannot be read.
    """
    if path.exists() and not path.is_dir() and not path.is_file():
        raise OSError(errno.EINVAL, "it is a device or a pipe, expected a file")
    with path.open("rb") as file:
        return file.read(-1 if most_bytes is None else most_bytes + 1)


def user_path(text: str | Path) -> Path:
    """A path as a user writes it, with the home folder in the place of `~`.

    Raises:
        UsageError: there is no such home, the path is longer than any file's, or has a zero byte.
    """
    given = str(text)
    shown = shortened(visible(given), 200)
    if "\0" in given:
        raise UsageError(f"path: '{shown}' holds a zero byte, which no path does")
    size = len(os.fsencode(given)) if is_unicode(given) else len(given)
    longest = max(map(len, given.split("/")))
    if size > _MOST_PATH or longest > _MOST_NAME:
        raise UsageError(
            f"path: '{shown}' is too long: {len(given):,} letters, expected at most {_MOST_PATH:,}, and {_MOST_NAME} "
            "between two slashes"
        )
    try:
        return Path(given).expanduser()
    except RuntimeError:
        raise UsageError(
            f"path: '{shown}': `~` is no folder here, expected a home folder; write the whole path"
        ) from None


def decode_text(content: bytes) -> str:
    """UTF-8 as text, with the mark at its start or without.

    Raises:
        ValueError: it is something else; the message says what, as the rest of a sentence.
    """
    if content.startswith(_WIDE):
        raise ValueError("is text in UTF-16 or UTF-32; save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"is no text in UTF-8: byte {content[error.start]:#04x} at {error.start:,}") from None


def describe_tensors(path: Path) -> str | None:
    """What a file is that should hold tensors as safetensors does; null where that cannot be told.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head:
        return "an empty file"
    if zipfile.is_zipfile(path):
        return _describe_archive(path)
    for magic, name in _MAGIC.items():
        if head.startswith(magic):
            return name
    is_json = head.lstrip(b" \r\n\t\xef\xbb\xbf")[:1] in {b"{", b"["}
    return _describe_json(path) if is_json and path.stat().st_size <= _MOST_INDEX_BYTES else None


def _describe_archive(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith("/data.pkl") or name == "data.pkl" for name in names):
        return "a file of torch.save (.pt)"
    if any(name.endswith(".npy") for name in names):
        return "an archive of NumPy (.npz)"
    return "a ZIP archive"


def _describe_json(path: Path) -> str:
    try:
        document: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return "text that begins like JSON"
    files = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(files, dict):
        return "a JSON document"
    names = sorted({str(name) for name in files.values()})
    listed = ", ".join(shortened(name, 60) for name in names[:3]) + f" and {len(names) - 3:,} more" * (len(names) > 3)
    return f"the JSON index of a checkpoint in parts; the tensors are in {listed or 'no file'}"
