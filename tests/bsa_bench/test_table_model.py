"""Tables as data: digits, marks, shared footnotes, and how each format prints and escapes them."""

import csv
import io

import pytest
from markdown_it import MarkdownIt

from bsa_bench.report.table_latex import escaped, latex
from bsa_bench.report.table_marks import NO_MARK_NOTE, with_marks, with_shared_footnotes
from bsa_bench.report.table_model import NOTHING, Cell, Column, Contest, Mark, RowGroup, Table, figure_text
from bsa_bench.report.table_rich import to_plain
from bsa_bench.report.table_text import markdown, to_csv

NASTY = r"a_b 50% & |c| #1 $x$ {y} ~z ^2 <w> \end *s* [l](u) --resume `d_e|f`"


def figure(value, low=None, high=None, contest=Contest.OPEN, **fields):
    return Cell(value=value, low=low, high=high, contest=contest, **fields)


def small(*cells, better="larger", **fields):
    columns = (Column("name", "Name", align="left"), Column("speedup", "Speed-up", "x", better=better))
    rows = tuple((Cell(f"row {place}"), cell) for place, cell in enumerate(cells))
    return Table("small", "A caption", columns, (RowGroup("", rows),), **fields)


def marks_of(*cells, better="larger"):
    return [row[1].mark.value for row in with_marks(small(*cells, better=better)).rows]


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (12.873, None, None, "12.9"),
        (12.873, 12.8729, 12.8731, "12.9"),  # three digits at most
        (12.873, 12.1, 13.4, "12.9"),
        (12.873, 9.1, 16.0, "13"),
        (12.873, 5.0, 40.0, "10"),
        (3.2, 1.0, 40.0, "3"),  # at least one
        (2890.0, 2500.0, 3300.0, "2900"),
        (9.996, 9.99, 10.01, "10.0"),
        (0.0512, 0.0509, 0.0515, "0.0512"),
        (0.0512, 0.04, 0.06, "0.05"),
        (0.0, 0.0, 0.0, "0"),
        (1.0, 1.0, 1.0, "1.00"),
        (0.996, 0.9, 1.05, "1.0"),
    ],
)
def test_a_figure_has_the_digits_that_its_interval_supports(value, low, high, text):
    assert figure_text(value, low, high) == text


def test_the_best_and_the_second_best_are_marked_where_their_intervals_are_separate():
    assert marks_of(figure(3, 2.9, 3.1), figure(9, 8.8, 9.2), figure(5, 4.8, 5.2)) == ["", "best", "second"]


def test_the_smallest_is_best_where_smaller_is_better():
    cells = (figure(3, 2.9, 3.1), figure(9, 8.8, 9.2), figure(5, 4.8, 5.2))
    assert marks_of(*cells, better="smaller") == ["best", "", "second"]


def test_nothing_is_marked_where_the_two_best_intervals_touch():
    assert marks_of(figure(9, 8.0, 9.2), figure(8.5, 7.9, 8.0), figure(5, 4.8, 5.2)) == ["", "", ""]


def test_a_second_best_is_not_marked_where_a_third_is_not_separate_from_it():
    assert marks_of(figure(9, 8.8, 9.2), figure(5, 4.5, 5.5), figure(4.9, 4.4, 5.4)) == ["best", "", ""]


def test_of_two_figures_none_is_called_second_best():
    assert marks_of(figure(9, 8.8, 9.2), figure(5, 4.5, 5.5)) == ["best", ""]


def test_one_figure_alone_is_not_called_best():
    assert marks_of(figure(9, 8.8, 9.2), NOTHING) == ["", ""]


def test_a_doubtful_figure_is_never_marked_and_none_below_it_either():
    assert marks_of(figure(9, 8.8, 9.2, Contest.DOUBTFUL), figure(5, 4.5, 5.5), figure(1, 0.9, 1.1)) == ["", "", ""]


def test_a_doubtful_figure_that_is_slower_does_not_keep_the_best_from_being_marked():
    assert marks_of(figure(9, 8.8, 9.2), figure(5, 4.5, 5.5, Contest.DOUBTFUL)) == ["best", ""]


def test_nothing_is_separate_from_a_figure_of_one_process():
    assert marks_of(figure(9, 8.8, 9.2), figure(5, 4.9, 5.1, Contest.UNBOUNDED)) == ["", ""]


def test_published_figures_take_no_part_in_the_comparison():
    assert marks_of(figure(99, contest=Contest.OUT), figure(9, 8.8, 9.2), figure(5, 4.5, 5.5)) == ["", "best", ""]


def test_a_table_in_which_nothing_can_be_marked_says_so():
    assert NO_MARK_NOTE in with_marks(small(figure(9, 1, 20), figure(5, 1, 20))).notes
    assert NO_MARK_NOTE not in with_marks(small(figure(9, 8.8, 9.2), figure(5, 4.5, 5.5))).notes


def test_a_footnote_that_all_figures_of_a_row_bear_moves_to_its_first_cell():
    columns = (Column("name", "Name", align="left"), Column("a", "A"), Column("b", "B"))
    all_bear = (Cell("x"), figure(1, 0.9, 1.1, footnotes=("n",)), figure(2, 1.9, 2.1, footnotes=("n",)))
    one_bears = (Cell("y"), figure(1, 0.9, 1.1, footnotes=("n",)), figure(2, 1.9, 2.1))
    rows = with_shared_footnotes(Table("t", "T", columns, (RowGroup("", (all_bear, one_bears)),))).rows
    assert [[cell.footnotes for cell in row] for row in rows] == [[("n",), (), ()], [(), ("n",), ()]]


def test_footnotes_are_lettered_in_reading_order_and_equal_ones_share_a_letter():
    made = small(figure(1, footnotes=("first", "second")), figure(2, footnotes=("second",)))
    assert made.letters == {"first": "a", "second": "b"}
    many = small(*(figure(1, footnotes=(f"note {i}",)) for i in range(28)))
    assert list(many.letters.values())[24:] == ["y", "z", "aa", "ab"]


def test_markdown_marks_and_footnotes_are_parsed_back_from_its_table():
    text = markdown(
        with_marks(small(figure(9, 8.8, 9.2, footnotes=("a note",)), figure(5, 4.8, 5.2), figure(1, 0.9, 1.1)))
    )
    assert "| row 0 | **9.0**<sup>a</sup> |" in text
    assert "| row 1 | <ins>5.0</ins> |" in text
    assert "- <sup>a</sup> a note" in text
    assert "second-best" in text


def test_markdown_escapes_what_would_be_markup_or_end_a_cell():
    made = Table(
        "t",
        NASTY,
        (Column("n", NASTY, align="left"), Column("v", "V")),
        (RowGroup(NASTY, ((Cell(NASTY), figure(1)),)),),
    )
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown(made))
    cells = [
        t.children for i, t in enumerate(tokens) if t.type == "inline" and tokens[i - 1].type in {"td_open", "th_open"}
    ]
    assert len(cells) == 6  # of three rows with two cells each
    expected = NASTY.replace("`", "")
    for inline in (cells[0], cells[4]):
        assert "".join(child.content for child in inline) == expected
        assert [child.content for child in inline if child.type == "code_inline"] == ["d_e|f"]


def test_latex_escapes_every_special_letter():
    assert escaped("a_b 50% & #1 $x {y}") == r"a\_b 50\% \& \#1 \$x \{y\}"
    assert escaped(r"\end ~ ^") == r"\textbackslash{}end \textasciitilde{} \textasciicircum{}"
    assert escaped("<w> |c| [5]") == r"\textless{}w\textgreater{} \textbar{}c\textbar{} {[}5{]}"
    assert escaped("--resume") == "-{}-resume"
    assert escaped("`bsa@gather x_y`") == r"\texttt{bsa@\allowbreak{}gather x\_y}"
    assert escaped("3 \N{MULTIPLICATION SIGN} \N{CJK UNIFIED IDEOGRAPH-4E2D}") == r"3 $\times$ \texttt{U+4E2D}"


def test_latex_is_a_booktabs_table_with_marks_footnotes_and_powers_of_ten():
    columns = (
        Column("name", "Name", align="left"),
        Column("speedup", "Speed-up", "x", group="forward", better="larger"),
        Column("error", "Error", group="forward", notation="scientific"),
    )
    rows = (
        (Cell("bsa@x", is_code=True), figure(9, 8.8, 9.2), figure(4.1e-7, footnotes=("of `grad_q`",))),
        (Cell("other"), figure(5, 4.8, 5.2), NOTHING),
        (Cell("last"), figure(1, 0.9, 1.1), NOTHING),
    )
    text = latex(with_marks(Table("t", "50% faster", columns, (RowGroup("1,024 tokens", rows),), ("A note.",))))
    for part in (
        r"\caption{50\% faster}",
        r"\label{tab:bsa-t}",
        r"\multicolumn{2}{c}{forward}",
        r"\cmidrule(lr){2-3}",
        r"\shortstack[r]{Speed-up \\ {[}x{]}}",
        r"\multicolumn{3}{@{}l@{}}{\textit{1,024 tokens}} \\",
        r"\texttt{bsa@x} & \textbf{9.0} & $4.1\times 10^{-7}$\textsuperscript{a} \\",
        r"other & \underline{5.0} & -- \\",
        r"\textsuperscript{a}\,of \texttt{grad\_q}\par",
        r"A note.\par",
        r"\toprule", r"\midrule", r"\bottomrule",
    ):  # fmt: skip
        assert part in text


def test_csv_holds_figures_in_full_with_interval_mark_and_what_stands_in_their_place():
    made = with_marks(small(figure(9.0123456789, 8.8, 9.2), figure(5, 4.8, 5.2), Cell("OOM", footnotes=("7.9 GiB",))))
    rows = list(csv.DictReader(io.StringIO(to_csv(made))))
    head = to_csv(small(figure(9), better=None)).splitlines()[0]
    assert head == "group,name,speedup,footnotes"  # neither interval nor mark
    assert list(rows[0]) == ["group", "name", "speedup", "speedup_low", "speedup_high", "speedup_mark", "footnotes"]
    assert (rows[0]["speedup"], rows[0]["speedup_low"], rows[0]["speedup_mark"]) == ("9.0123456789", "8.8", "best")
    assert (rows[2]["speedup"], rows[2]["footnotes"]) == ("", "speedup: OOM; speedup: 7.9 GiB")


def test_plain_text_shows_marks_without_styles_and_cuts_nothing():
    name = "x" * 300
    made = small(figure(9, 8.8, 9.2), figure(5, 4.8, 5.2), Cell("OOM", footnotes=(name,)), figure(1, 0.9, 1.1))
    lines = to_plain(with_marks(made)).splitlines()
    assert any(line.split() == ["row", "0", "9.0*"] for line in lines)
    assert any(line.split() == ["row", "1", "5.0+"] for line in lines)
    assert any(line.split() == ["row", "2", "OOM", "[a]"] for line in lines)
    assert name in "".join(line.strip() for line in lines)
    assert Mark.BEST.value in "\n".join(lines)
