"""The report's Markdown as HTML that nothing from a run can break out of."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING

from markupsafe import Markup

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

#: A run may name its cases, reasons and files as it likes: none of that becomes markup, a link or a picture.
_OFF = ("html_block", "html_inline", "image", "link", "autolink", "reference")


def prose(lines: Iterable[str]) -> Markup:
    """Paragraphs, lists and headings."""
    return Markup(_markdown().render("\n".join(lines)))  # noqa: S704 -- the renderer escapes, and makes no links


def phrase(text: str) -> Markup:
    """One line."""
    return Markup(_markdown().renderInline(text))  # noqa: S704 -- as above


@cache
def _markdown() -> MarkdownIt:
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark", {"html": False}).disable(list(_OFF))
