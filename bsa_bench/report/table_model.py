"""Tables as data: columns, and cells that carry a figure with its interval, a mark and footnotes.

What a table says is decided where it is built; how it looks is up to the renderers (`table_text`, `table_latex`,
`table_rich`). Words may hold code in backticks, in every format.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from string import ascii_lowercase
from typing import Literal

from bsa_bench.units import three_digits

MOST_DIGITS = 3


class Mark(StrEnum):
    """What a cell is marked with."""

    NONE = ""
    BEST = "best"
    SECOND = "second"


class Contest(StrEnum):
    """How a figure takes part in the comparison with the others of its column and group.

    OPEN: its interval holds, and it may be marked. DOUBTFUL: compared by its interval, never marked. UNBOUNDED: nothing
    is known of how far it would move if measured again, so that nothing is separate from it. OUT: not compared.
    """

    OPEN = "open"
    DOUBTFUL = "doubtful"
    UNBOUNDED = "unbounded"
    OUT = "out"


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        key: of the CSV, with the unit in which values are held: `median_s`.
        header: above the cells.
        unit: behind the header in brackets, where there is one.
        align: figures stand right.
        group: a heading that spans neighbouring columns of the same group.
        scale: what a value is multiplied by before it is printed in `unit`.
        notation: `scientific` where values span orders of magnitude.
        better: which end of the column is best; null where nothing is marked.
    """

    key: str
    header: str
    unit: str = ""
    align: Literal["left", "right"] = "right"
    group: str = ""
    scale: float = 1.0
    notation: Literal["plain", "scientific"] = "plain"
    better: Literal["larger", "smaller"] | None = None


@dataclass(frozen=True)
class Cell:
    """Words, or a figure with its interval (null where it has none), in the unit of the column's key.

    Attributes:
        words: printed in place of a figure.
        value, low, high: the figure.
        printed: how its source prints the figure, where that is no matter of an interval.
        mark: set by `table_marks`.
        contest: whether it is compared.
        footnotes: their texts; equal texts share a letter.
        is_code: words are a name that is typed.
    """

    words: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    printed: str = ""
    mark: Mark = Mark.NONE
    contest: Contest = Contest.OUT
    footnotes: tuple[str, ...] = ()
    is_code: bool = False

    def __post_init__(self) -> None:
        assert self.value is None or not self.words, "a cell holds words or a figure"

    def text(self, column: Column) -> str:
        """The figure with the digits that its interval supports, in the column's unit, or the words."""
        if self.value is None or self.printed:
            return self.printed or self.words
        ends = [None if end is None else end * column.scale for end in (self.low, self.high)]
        value = self.value * column.scale
        if column.notation == "scientific" and 0 < abs(value) < 0.001:
            return f"{value:.1e}"
        return figure_text(value, *ends)


NOTHING = Cell("-")


@dataclass(frozen=True)
class RowGroup:
    """Rows that are compared with each other, under a title of their own (empty: none)."""

    title: str
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Table:
    """A table. `name` is its label in LaTeX, `notes` stand below it, after the footnotes."""

    name: str
    title: str
    columns: tuple[Column, ...]
    groups: tuple[RowGroup, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert len({column.key for column in self.columns}) == len(self.columns), "two columns share a key"
        assert all(len(row) == len(self.columns) for row in self.rows), "a row misses cells"

    @property
    def rows(self) -> tuple[tuple[Cell, ...], ...]:
        """The rows of all groups."""
        return tuple(row for group in self.groups for row in group.rows)

    @property
    def has_marks(self) -> bool:
        """Whether any cell is marked as best or second-best."""
        return any(cell.mark for row in self.rows for cell in row)

    @property
    def letters(self) -> dict[str, str]:
        """The letter of each footnote, in the order in which a reader meets them: a to z, aa, ab ..."""
        texts = dict.fromkeys(text for row in self.rows for cell in row for text in cell.footnotes)
        return {text: _letter(index) for index, text in enumerate(texts)}

    @property
    def spans(self) -> list[tuple[str, int]]:
        """Neighbouring columns of one group: its heading (empty for none) and how many there are."""
        found: list[tuple[str, int]] = []
        for column in self.columns:
            if found and found[-1][0] == column.group:
                found[-1] = column.group, found[-1][1] + 1
            else:
                found.append((column.group, 1))
        return found


def figure_text(value: float, low: float | None, high: float | None) -> str:
    """A figure with as many digits as its interval supports, at most three.

    The last digit is that of the first digit of the wider half of the interval: 12.873 with [12.1, 13.4] becomes
    `12.9`, with [9.1, 16] `13`, with [5, 40] `10`. Without an interval, or with one of no width, three digits.
    """
    half = 0.0 if low is None or high is None else max(value - low, high - value)
    if half <= 0 or value == 0 or not math.isfinite(half):
        return three_digits(value)
    size = _exponent(float(f"{value:.{MOST_DIGITS - 1}e}"))  # 9.996 becomes 10.0
    place = min(max(_exponent(float(f"{half:.0e}")), size - MOST_DIGITS + 1), size)
    return f"{round(value, -place):.{max(-place, 0)}f}"


def _exponent(value: float) -> int:
    """The power of ten of the first digit: -1 of 0.75."""
    return math.floor(math.log10(abs(value)))


def _letter(index: int) -> str:
    first, second = divmod(index, len(ascii_lowercase))
    return (ascii_lowercase[first - 1] if first else "") + ascii_lowercase[second]
