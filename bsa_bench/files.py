"""What a file is that somebody gave, so that an error can call it by its name."""

from __future__ import annotations

import codecs
import json
import zipfile
from pathlib import Path
from typing import Any

from bsa_bench.text import shortened

_HEAD_BYTES = 4096
_MOST_INDEX_BYTES = 64 << 20
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
    return None if path.is_file() else f"{path} is a device or a pipe, expected a file"


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
