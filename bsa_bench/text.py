"""Text of the user's (names, titles, paths) as it may be shown: nothing in it acts on a terminal or a file."""

from __future__ import annotations

import re
import textwrap
import unicodedata

#: Control characters, the two that end a line without being one, halves of surrogate pairs, and marks that turn the
#: direction of what follows.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def visible(text: str) -> str:
    r"""Text on one line, with `\x1b` in place of what cannot be seen; of a name that is no UTF-8 its bytes, `\xff`."""
    return _UNSEEN.sub(_named, re.sub(r"\s*[\t\n\r\v\f]\s*", " ", text))


def is_unicode(text: str) -> bool:
    """Whether text can be stored as UTF-8; a file name with other bytes, as Python shows it, cannot."""
    return not any(0xD800 <= ord(letter) <= 0xDFFF for letter in text)


def shortened(text: str, most: int) -> str:
    """Text at most so many letters wide; of a longer one the start and the end, which often sets it apart."""
    if num_cells(text) <= most:
        return text
    tail = (most - 1) // 3
    return f"{_start(text, most - 1 - tail)}…{_start(text[::-1], tail)[::-1]}"


def wrapped(text: str, width: int) -> str:
    """Text in lines of at most so many letters; a longer word is broken, but at no hyphen."""
    narrower = max(width * len(text) // max(num_cells(text), 1), 1)
    return "\n".join(textwrap.wrap(text, narrower, break_on_hyphens=False))


def num_cells(text: str) -> int:
    """How many Latin letters text is as wide as: letters of East Asian scripts count twice, combining ones nothing."""
    return sum(map(_cells, text))


def _cells(letter: str) -> int:
    return 0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in {"W", "F"} else 1


def _start(text: str, most: int) -> str:
    room = most
    for place, letter in enumerate(text):
        room -= _cells(letter)
        if room < 0:
            return text[:place]
    return text


def _named(found: re.Match[str]) -> str:
    code = ord(found.group())
    # Python stands a byte that it cannot decode for by U+DC00 plus the byte.
    is_byte = 0xDC80 <= code <= 0xDCFF
    return f"\\x{code - 0xDC00 if is_byte else code:02x}" if is_byte or code < 0x100 else f"\\u{code:04x}"
