"""Text of a run's as Markdown that shows it as it is: as code, or as words of a sentence."""

from __future__ import annotations

import re

from bsa_bench.text import visible

_MARKUP = re.compile(r"([\\`*<~$#]|\[(?=[^\]]*\]\()|&(?=[#\w]+;)|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")


def code(text: str) -> str:
    """A code span; where the text has backticks, between more of them than stand together in it."""
    shown = visible(text)
    longest = max(map(len, re.findall("`+", shown)), default=0)
    fence = "`" * (longest + 1)
    # Markdown takes one blank from each end; a span of blanks alone keeps them.
    pad = " " * (shown[:1] in {"`", " "} or shown[-1:] in {"`", " "})
    return f"{fence}{pad}{shown}{pad}{fence}" if shown.strip() else f"{fence} {fence}"


def words(text: str) -> str:
    """Words without markup, links, mathematics or entities."""
    return _MARKUP.sub(r"\\\1", visible(text))
