"""Markdown of a bounded size, and the escapes that keep a foreign text from becoming markup."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from bsa_bench.errors import UsageError
from bsa_bench.gate.show.words import count_text

LEAST_BYTES = 1_000
_RESERVED_BYTES = 250
_MARKUP = re.compile(r"([\\`*_{}\[\]<>|~$#&])")


class Page:
    """Takes blocks of Markdown for as long as they fit, and says at the end what did not.

    Args:
        limit_bytes: of the whole text in UTF-8, so that it holds for a limit in characters too.

    Raises:
        UsageError: the limit leaves no room for anything.
    """

    def __init__(self, limit_bytes: int) -> None:
        if limit_bytes < LEAST_BYTES:
            raise UsageError(f"limit_bytes: got {limit_bytes:,}, expected at least {LEAST_BYTES:,}")
        self._limit = limit_bytes
        self._left = limit_bytes - _RESERVED_BYTES
        self._blocks: list[str] = []
        self._rows_left_out = 0
        self._parts_left_out = 0

    def add(self, *lines: str) -> bool:
        """A block: all of it or nothing; whether it fitted."""
        is_in = self._take("\n".join(lines))
        self._parts_left_out += not is_in
        return is_in

    def table(
        self,
        head: Sequence[str],
        is_figure: Sequence[bool],
        rows: Sequence[Sequence[str]],
        *,
        before: str = "",
        after: str = "",
    ) -> None:
        """A table of cells that are Markdown already, as many of its rows as fit.

        `before` and `after` stand around it; they open and close what folds it.
        """
        frame = [before, ""] if before else []
        frame += [_line(head), _line(["---:" if right else "---" for right in is_figure])]
        end = ["", after] if after else []
        room = self._left - _num_bytes("\n".join([*frame, *end])) - 1
        lines = []
        for row in rows:
            line = _line(row)
            room -= _num_bytes(line) + 1
            if room < 0:
                break
            lines.append(line)
        if lines:
            is_in = self._take("\n".join([*frame, *lines, *end]))
            assert is_in
        else:
            self._parts_left_out += 1
        self._rows_left_out += len(rows) - len(lines)

    def fold(self, summary: str, *lines: str) -> None:
        """Lines of Markdown behind a summary that the reader opens."""
        self.add(opening(summary), "", *lines, "", CLOSING)

    def text(self) -> str:
        """The whole, with a note of what was left out."""
        blocks = list(self._blocks)
        if self._parts_left_out or self._rows_left_out:
            parts = [count_text(self._parts_left_out, "part")] if self._parts_left_out else []
            parts += [count_text(self._rows_left_out, "row")] if self._rows_left_out else []
            blocks.append(f"*Cut to {self._limit:,} bytes: {' and '.join(parts)} left out. The JSON document has all.*")
        text = "\n\n".join(blocks) + "\n"
        assert _num_bytes(text) <= self._limit
        return text

    def _take(self, block: str) -> bool:
        need = _num_bytes(block) + 2
        if need > self._left:
            return False
        self._left -= need
        self._blocks.append(block)
        return True


CLOSING = "</details>"


def opening(summary: str) -> str:
    """Of a part that is folded; closed by `CLOSING`, with an empty line at each end of what is between."""
    return f"<details>\n<summary>{html.escape(summary, quote=False)}</summary>"


def escaped(text: str) -> str:
    """One line of text as it is: nothing in it is markup, of a table's cell neither."""
    return _MARKUP.sub(r"\\\1", text)


def code(text: str) -> str:
    """One line as code, for a table's cell too."""
    if not text:
        return ""
    fence = "`" * (_longest_run(text) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return fence + pad + text.replace("|", "\\|") + pad + fence


def code_block(lines: Sequence[str], language: str) -> list[str]:
    """Lines as a block of code, whatever is in them."""
    fence = "`" * max(3, max(map(_longest_run, lines), default=0) + 1)
    return [fence + language, *lines, fence]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def _num_bytes(text: str) -> int:
    return len(text.encode())
