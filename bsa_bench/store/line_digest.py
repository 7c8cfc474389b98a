"""The digest that each stored line ends with: SHA-256 of the line without it.

It finds what happened to a file by accident, a flipped bit or a hand that slipped. It is no signature: who rewrites a
line can write its digest too.
"""

from __future__ import annotations

import hashlib
import re

_END = re.compile(rb',"digest":"([0-9a-f]{64})"}\s*\Z')


def with_digest(line: bytes) -> bytes:
    """A JSON object with its digest as the last key."""
    return b'%s,"digest":"%s"}' % (line[:-1], hashlib.sha256(line).hexdigest().encode())


def without_digest(line: bytes) -> tuple[bytes, bool | None]:
    """The object as it was, and whether its digest fits; None where it has none, as before digests were written."""
    end = _END.search(line)
    if end is None:
        return line, None
    plain = line[: end.start()] + b"}"
    return plain, hashlib.sha256(plain).hexdigest().encode() == end[1]
