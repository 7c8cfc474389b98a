"""Tables for LaTeX: a `table` with booktabs' rules, which needs no other package."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bsa_bench import __version__
from bsa_bench.report.table_model import Cell, Column, Mark, Table
from bsa_bench.report.table_text import CODE, SEPARATE

LATEX_LEGEND = r"\textbf{Bold}: the best of its column and group; \underline{underlined}: the second-best. "
_ESCAPES = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "[": "{[}",
    "]": "{]}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "\N{PLUS-MINUS SIGN}": r"$\pm$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{MICRO SIGN}": r"$\mu$",
    "\N{GREATER-THAN OR EQUAL TO}": r"$\geq$",
    "\N{LESS-THAN OR EQUAL TO}": r"$\leq$",
    "\N{EN DASH}": "--",
    "\N{EM DASH}": "---",
    "\N{RIGHT SINGLE QUOTATION MARK}": "'",
}
_EXPONENT = re.compile(r"(?P<digits>\d(?:\.\d+)?)e(?P<sign>[+-])0*(?P<power>\d+)")
_LAST_LATIN = 0xFF
#: Up to how many lines a page has room for notes that are not set smaller.
_TALL = 30
#: From how many columns on a table is set smaller, to fit a page.
_FONTS = ((12, r"\scriptsize"), (8, r"\footnotesize"), (0, r"\small"))


def latex(table: Table) -> str:
    """Write a `table` environment to be input, with caption, label `tab:bsa-NAME`, footnotes and notes."""
    letters, width = table.letters, len(table.columns)
    font = next(font for least, font in _FONTS if width >= least)
    aligns = "".join("l" if column.align == "left" else "r" for column in table.columns)
    lines = [
        f"% Made by bsa-bench {__version__}; needs \\usepackage{{booktabs}}.",
        r"\begin{table}",
        r"  \centering",
        f"  \\caption{{{escaped(table.title)}}}",
        f"  \\label{{tab:bsa-{table.name}}}",
        rf"  {font}\setlength{{\tabcolsep}}{{4pt}}",
        f"  \\begin{{tabular}}{{@{{}}{aligns}@{{}}}}",
        r"    \toprule",
        *_span_lines(table),
        f"    {' & '.join(_header(column) for column in table.columns)} \\\\",
    ]
    for group in table.groups:
        lines.append(r"    \midrule")
        if group.title:
            lines.append(f"    \\multicolumn{{{width}}}{{@{{}}l@{{}}}}{{\\textit{{{escaped(group.title)}}}}} \\\\")
        lines += [f"    {_row(row, table.columns, letters)} \\\\" for row in group.rows]
    lines += [r"    \bottomrule", r"  \end{tabular}", *_note_lines(table), r"\end{table}"]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Words as LaTeX that prints them as they are; code in backticks is set in the typewriter font."""
    parts = CODE.split(" ".join(text.split()))
    return "".join(_breakable_code(part) if i % 2 else _escaped(part) for i, part in enumerate(parts))


def _escaped(text: str) -> str:
    letters = [
        _ESCAPES.get(letter) or (letter if ord(letter) <= _LAST_LATIN else _by_number(letter)) for letter in text
    ]
    return re.sub(r"-(?=-)", "-{}", "".join(letters)) if "--" in text else "".join(letters)


def _by_number(letter: str) -> str:
    """What pdflatex has no glyph for, as `U+4E2D`."""
    return f"\\texttt{{U+{ord(letter):04X}}}"


def _breakable_code(text: str) -> str:
    """Typewriter; a line may end behind the signs that join the parts of a name."""
    broken = re.sub(r"(?<=[@/:,])", r"\\allowbreak{}", _escaped(text))
    return f"\\texttt{{{broken}}}"


def _span_lines(table: Table) -> list[str]:
    """The headings that span columns, with a rule below each."""
    if not any(title for title, _ in table.spans):
        return []
    cells, rules, first = [], [], 1
    for title, number in table.spans:
        if title:
            cells.append(f"\\multicolumn{{{number}}}{{c}}{{{escaped(title)}}}")
            rules.append(f"\\cmidrule(lr){{{first}-{first + number - 1}}}")
        else:
            cells += [""] * number
        first += number
    return [f"    {' & '.join(cells)} \\\\", f"    {' '.join(rules)}"]


def _header(column: Column) -> str:
    """Header words one below the other, so that columns stay as narrow as their figures."""
    words = [escaped(word) for word in column.header.split("\n")]
    words += [escaped(f"[{column.unit}]")] if column.unit else []
    side = "l" if column.align == "left" else "r"
    stacked = r" \\ ".join(words)
    return f"\\shortstack[{side}]{{{stacked}}}" if len(words) > 1 else stacked


def _row(row: Sequence[Cell], columns: Sequence[Column], letters: dict[str, str]) -> str:
    cells = []
    for cell, column in zip(row, columns, strict=True):
        text = cell.text(column)
        text = f"\\texttt{{{_escaped(text)}}}" if cell.is_code else escaped(text)
        text = _EXPONENT.sub(_power, text) if cell.value is not None else "--" if text == "-" else text
        text = {Mark.BEST: f"\\textbf{{{text}}}", Mark.SECOND: f"\\underline{{{text}}}"}.get(cell.mark, text)
        refs = ",".join(sorted(letters[note] for note in cell.footnotes))
        cells.append(f"{text}\\textsuperscript{{{refs}}}" if refs else text)
    return " & ".join(cells)


def _power(found: re.Match[str]) -> str:
    sign = "-" if found["sign"] == "-" else ""
    return f"${found['digits']}\\times 10^{{{sign}{found['power']}}}$"


def _note_lines(table: Table) -> list[str]:
    notes = [f"\\textsuperscript{{{letter}}}\\,{escaped(text)}" for text, letter in table.letters.items()]
    notes += [f"{LATEX_LEGEND}{escaped(SEPARATE)}"] if table.has_marks else []
    notes += [escaped(note) for note in table.notes]
    if not notes:
        return []
    body = [f"    {note}\\par" for note in notes]
    font = r"\footnotesize" if len(table.rows) + len(table.groups) <= _TALL else r"\scriptsize"
    return [r"  \par\medskip", rf"  \begin{{minipage}}{{\linewidth}}{font}\raggedright", *body, r"  \end{minipage}"]
