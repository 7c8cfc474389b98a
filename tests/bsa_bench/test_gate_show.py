"""What a person reads of a gate's result: the terminal, and the Markdown of a pull request."""

import io
import re

import gate_result_factory as made
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.cells import cell_len
from rich.console import Console

from bsa_bench.errors import EXIT_AMBIGUOUS, EXIT_SLOWER, UsageError
from bsa_bench.gate.show.markdown import MARKER, markdown
from bsa_bench.gate.show.page import code, code_block, escaped
from bsa_bench.gate.show.rows import grid
from bsa_bench.gate.show.terminal import MAX_DETAIL_LINES, MAX_DETAILED_CHECKS, print_result
from bsa_bench.gate.show.words import EXIT_MEANING, change_text, exit_meaning, one_line, percent, ratio_text, value_text
from bsa_bench.gate.verdict import Change, TierResult, Verdict, exit_code

NASTY = "a|b `c` ``d`` <e> *f* _g_ [h](i) \\ $j$ ~~k~~ &amp; -> l"


def printed(result, width=None, **options):
    """Lines on a terminal of this width, or in a pipe."""
    out = io.StringIO()
    console = Console(file=out, width=width or 80, force_terminal=width is not None, color_system=None)
    print_result(result, console, **options)
    return out.getvalue().splitlines()


def tables(text):
    """Each table of the Markdown as rows of cells, the text of code and words alike."""
    found, is_inside = [], False
    for token in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text):
        if token.type in {"table_open", "table_close"}:
            is_inside = token.type == "table_open"
            found += [[]] * is_inside
        elif token.type == "tr_open":
            found[-1] = [*found[-1], []]
        elif token.type == "inline" and is_inside:
            found[-1][-1].append("".join(child.content for child in token.children))
    return found


def unchanged(num, tier=0):
    return tuple(made.check(tier, f"config-{i:04d}", Verdict.UNCHANGED, where="sm_90") for i in range(num))


def failed(num, **fields):
    return tuple(
        made.check(0, f"broken-{i:04d}", Verdict.FAILED, where="sm_90", changes=(made.SPILLS,), **fields)
        for i in range(num)
    )


# The terminal.


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_lines_keep_within_the_terminal_but_for_details_and_the_last_one(width):
    *lines, last = printed(made.result(), width)
    details = {f"    {line}" for line in made.SASS_DIFF}
    assert [line for line in lines if cell_len(line) > width and line not in details] == []
    assert last.startswith("tiers 0-2 measured")


@pytest.mark.parametrize("width", [60, 80, 120, 200, None])
def test_every_changed_check_is_shown_with_its_figures_and_reason(width):
    text = one_line(" ".join(printed(made.result(), width)))
    for tier in made.result().tiers:
        for check in tier.checks:
            assert (check.name in text) == check.verdict.is_change or check.name == "attend-bf16-d128-k32"
            if check.verdict.is_change:
                assert check.reason is None or check.reason in text
                assert all(change.metric in text for change in check.changes if change.severity != "info")
    for figure in (
        "1.10x [1.08, 1.12]",
        "12.3 ms -> 13.5 ms",
        "8.1%",
        "8 (confirm)",
        "triton_attend.py:118",
        "0 -> 12",
    ):
        assert figure in text


def test_in_a_pipe_each_row_is_one_line_under_one_head():
    lines = printed(made.result())
    at = lines.index("tier 2, CPU execution", lines.index(""))
    head = lines[at + 1]
    row = next(line for line in lines[at:] if line.startswith("AMBIGUOUS"))
    assert row.index("1.04x") + len("1.04x [0.98, 1.10]") == head.index("ratio") + len("ratio")
    assert row.index("two groups of pairs") == head.index("why")


def test_the_worst_stand_first_and_what_is_unchanged_is_only_counted():
    lines = printed(made.result([made.cpu_tier()]), 80)
    names = [verdict for line in lines for verdict in Verdict if line.startswith(f"{verdict}  ") and "@" in line]
    assert names == [Verdict.WRONG, Verdict.SLOWER, Verdict.AMBIGUOUS, Verdict.NOT_MEASURED, Verdict.FASTER]
    assert any(
        "1 SAME, 1 VERIFIED of 7 checks, 1 control among them" in line for line in printed(made.result(), 120 + 30)
    )
    assert not any("(control)" in line for line in lines)


def test_verbose_lists_the_unchanged_the_info_figures_and_all_of_the_detail():
    brief, verbose = ("\n".join(printed(made.result(), **options)) for options in ({}, {"verbose": True}))
    for text in (
        "full@sdpa-flash 8x16x16, forward (control)",
        "pool-bf16-d128",
        "198 -> 200 (+1%)",
        "LDL R, [R1+0x2c]",
    ):
        assert text in verbose
        assert text not in brief


def test_detail_is_folded_to_its_first_lines_and_says_how_to_get_the_rest():
    lines = printed(made.result())
    more = lines.index(f"    ... {len(made.SASS_DIFF) - MAX_DETAIL_LINES} more lines: --verbose, or the JSON document")
    assert lines[more - MAX_DETAIL_LINES : more] == [f"    {line}" for line in made.SASS_DIFF[:MAX_DETAIL_LINES]]


def test_of_many_checks_with_detail_the_first_ones_show_it():
    lines = printed(made.result([TierResult(tier=0, checks=failed(30, detail=("- FADD R", "+ FMUL R")))]))
    assert lines.count("    + FMUL R") == MAX_DETAILED_CHECKS
    assert f"{30 - MAX_DETAILED_CHECKS} more checks with lines of detail: --verbose, or the JSON document" in lines


def test_the_legend_has_the_verdicts_that_occur_and_no_others():
    text = "\n".join(printed(made.result([made.UNCHANGED_TIER, made.NO_GPU])))
    assert re.findall(r"^([A-Z_]+) {2,}", text, re.MULTILINE) == [Verdict.NOT_MEASURED, Verdict.UNCHANGED]
    assert "detectable" not in text
    everything = "\n".join(printed(made.result()))
    assert {verdict for verdict in Verdict if f"\n{verdict} " in everything} == set(Verdict)


def test_the_last_line_is_the_summary_and_what_the_exit_code_means():
    result = made.result([made.UNCHANGED_TIER, made.NO_GPU])
    assert printed(result, 80)[-1] == (
        "tier 0 measured, tier 3 NOT_MEASURED: no NVIDIA GPU here (1 UNCHANGED); "
        "exit 0: nothing that was measured came out worse than the base"
    )


def test_what_was_not_measured_is_named_and_never_said_to_have_passed():
    lines = printed(made.result([made.UNCHANGED_TIER, made.NO_GPU]))
    assert "tier 3, GPU timing     NOT_MEASURED: no NVIDIA GPU here" in lines
    assert "not asked for: 1 counters, 2 CPU execution" in lines
    assert "pass" not in "\n".join(lines).replace(Verdict.NOT_MEASURED.meaning, "")


def test_a_long_name_has_a_line_of_its_own_and_the_figures_stay_in_their_columns():
    name = "bsa@gather-kv0.1-keep0.5-" + "x" * 60
    checks = (
        made.check(2, name, Verdict.SLOWER, pairs=made.pairs(1.2), reason="a reason"),
        made.check(2, "short", Verdict.SLOWER, pairs=made.pairs(1.3)),
    )
    lines = printed(made.result([TierResult(tier=2, checks=checks)]), 120)
    at = next(i for i, line in enumerate(lines) if line.startswith("SLOWER") and name in line)
    assert lines[at].split() == ["SLOWER", name]
    assert lines[at + 1].index("1.20x") == lines[at + 3].index("1.30x")
    assert lines[at + 2] == "    a reason"


def test_a_text_cannot_drive_the_terminal_nor_the_markup_of_rich():
    check = made.check(
        1, "evil\x1b[2J[red]name", Verdict.FAILED, reason="two\nlines\x07\ud800", detail=("a\x1b]0;b", "\tc\r")
    )
    lines = printed(made.result([TierResult(tier=1, checks=(check,))]))
    assert any("evil[red]name" in line and "two lines" in line for line in lines)
    assert not any(ord(character) < 32 for line in lines for character in line)
    assert "two lines |" in markdown(made.result([TierResult(tier=1, checks=(check,))]))


# Markdown.


def test_each_table_of_the_markdown_is_whole():
    found = tables(markdown(made.result()))
    assert len(found) == 1 + 4 + 3
    assert all(len(row) == len(table[0]) for table in found for row in table)


def test_changed_rows_come_first_with_what_they_could_have_detected():
    text = markdown(made.result())
    cpu = next(table for table in tables(text) if table[1][1].startswith("bsa@triton interpreted"))
    assert cpu[0] == ["verdict", "case", "ratio", "time per call", "detectable", "limit", "pairs", "why"]
    assert [row[0] for row in cpu[1:]] == ["WRONG", "SLOWER", "AMBIGUOUS", "NOT_MEASURED", "FASTER"]
    assert cpu[2][2:7] == ["1.10x [1.08, 1.12]", "12.3 ms → 13.5 ms", "8.1%", "5%", "8 (confirm)"]
    assert text.startswith(f"{MARKER}\n### bsa-bench gate: 1 WRONG, 1 SLOWER, 2 FAILED, ")
    assert text.index("SLOWER**") < text.index("<details>") < text.index("full@sdpa-flash")


def test_a_tier_that_was_not_measured_stands_in_headline_and_table():
    text = markdown(made.result([made.UNCHANGED_TIER, made.NO_GPU]))
    assert "### bsa-bench gate: nothing that was measured is worse, GPU timing NOT_MEASURED\n" in text
    assert ["3, GPU timing", "NOT_MEASURED: no NVIDIA GPU here", "-"] in tables(text)[0]
    assert "### bsa-bench gate: GPU timing NOT_MEASURED\n" in markdown(made.result([made.NO_GPU]))


def test_no_text_is_taken_for_markup():
    change = Change(metric=NASTY, base=NASTY, head=None, severity="fail", rule=NASTY, line=NASTY)
    check = made.check(0, NASTY, Verdict.FAILED, where=NASTY, changes=(change,), detail=("```", "````", NASTY))
    text = markdown(made.result([TierResult(tier=0, checks=(check,), notes=(NASTY,))]))
    row = tables(text)[1][1]
    plain, arrowed = one_line(NASTY), NASTY.replace("->", "→")
    assert row == ["FAILED", plain, plain, arrowed, f"{arrowed} → none", plain, arrowed]
    tokens = MarkdownIt("commonmark").parse(text)
    (block,) = (token.content for token in tokens if token.type == "fence")
    assert block == f"```\n````\n{NASTY}\n"
    html = "".join(token.content for token in tokens if token.type == "html_block")
    assert "<e>" not in html


@settings(max_examples=30, deadline=None)
@given(
    st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF, blacklist_characters="\x7f"), min_size=1, max_size=30)
)
def test_any_text_survives_a_table_cell_as_words_and_as_code(text):
    text = one_line(text)
    cells = tables(f"| a | b |\n| --- | --- |\n| {escaped(text)} | {code(text)} |\n")[0][1]
    assert cells == [text, text]


def test_a_code_block_holds_whatever_fences_are_in_it():
    lines = ["`", "~~~", "`````", "    indented"]
    (token,) = MarkdownIt("commonmark").parse("\n".join(code_block(lines, "diff")))
    assert (token.content, token.info) == ("\n".join(lines) + "\n", "diff")


@pytest.mark.parametrize("limit", [1_000, 3_000, 8_000, 65_000])
def test_the_markdown_keeps_within_its_limit_and_says_what_it_left_out(limit):
    detail = tuple(f"+ LDL R, [R1+{i}] µ" for i in range(40))
    tier = TierResult(tier=0, checks=failed(150, detail=detail) + unchanged(250), notes=("n" * 2_000,))
    text = markdown(made.result([tier, made.NO_GPU]), limit_bytes=limit)
    assert len(text.encode()) <= limit
    assert text.count("<details>") == text.count("</details>")
    assert text.count("```") % 2 == 0
    assert f"*Cut to {limit:,} bytes: " in text
    assert "150 FAILED" in text
    assert all(len(row) == len(table[0]) for table in tables(text) for row in table)
    rows_left_out = int(re.search(r"([\d,]+) rows? left out", text)[1].replace(",", ""))
    rows_shown = sum(len(table) - 1 for table in tables(text))
    assert rows_left_out + rows_shown == 2 + 150 + 250


def test_what_fits_is_not_said_to_be_cut():
    assert "*Cut to" not in markdown(made.result())


def test_a_limit_that_leaves_no_room_is_refused():
    with pytest.raises(UsageError, match="limit_bytes: got 999, expected at least 1,000"):
        markdown(made.result(), limit_bytes=999)


# Words and rows.


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "none"),
        ([], "none"),
        (True, "yes"),
        (4_294_967_296, "4,294,967,296"),
        (4_294_967_296.0, "4,294,967,296"),
        (0.1234567, "0.123457"),
        ("", '""'),
        (["wgmma", "tma"], "wgmma, tma"),
        ([3, 4, None], "3, 4, none"),
        ("0f" * 32, "0f0f0f0f0f0f"),
        ("x" * 80, "x" * 57 + "..."),
        ({"a": 1}, '{"a": 1}'),
    ],
)
def test_a_value_reads_as_a_person_would_write_it(value, text):
    assert value_text(value) == text


@pytest.mark.parametrize(
    ("base", "head", "text"),
    [
        (198, 200, "198 -> 200 (+1%)"),
        (200, 100, "200 -> 100 (-50%)"),
        (100, 412, "100 -> 412 (+312%)"),
        (0, 12, "0 -> 12"),
        (None, 12, "none -> 12"),
        ("ab" * 10 + "00", "ab" * 10 + "01", f'"{"ab" * 10}00" -> "{"ab" * 10}01"'),
        (0.12345678, 0.12345679, "0.12345678 -> 0.12345679 (+8.1e-06%)"),
    ],
)
def test_a_change_never_shows_two_values_alike(base, head, text):
    assert change_text(Change(metric="m", base=base, head=head, severity="info")) == text


@pytest.mark.parametrize(
    ("ratio", "half", "text"),
    [
        (1.1, 0.03, "1.10x [1.07, 1.13]"),
        (1.003, 0.004, "1.003x [0.999, 1.007]"),
        (12.0, 1.0, "12.0x [11.0, 13.0]"),
    ],
)
def test_a_ratio_has_the_digits_that_its_interval_supports(ratio, half, text):
    assert ratio_text(made.pairs(ratio, half=half)) == text


def test_shares_read_well_at_any_size():
    assert [percent(share) for share in (0.02, 0.0312, 0.128, 0.994, 0.996, 15.5)] == [
        "2%", "3.1%", "13%", "99%", "100%", "1,550%",
    ]  # fmt: skip


def test_a_warning_within_a_failed_check_is_marked_and_hidden_figures_are_counted():
    warn = Change(metric="cubin bytes", base=100, head=130, severity="warn", rule="more than 20% larger")
    check = made.check(0, "c", Verdict.FAILED, changes=(warn, made.REGISTERS, made.SPILLS), reason="worse.")
    assert [row.why for row in grid([check]).rows] == [
        "spills in the main loop must not rise; worse",
        "warning: more than 20% larger; 1 more figure differs",
    ]
    assert [row.cells[0] for row in grid([check]).rows] == ["FAILED", ""]


def test_every_exit_code_of_the_gate_has_a_meaning():
    assert all(code in EXIT_MEANING for code in range(8) if code != 2)


def test_an_exit_code_that_comes_of_ambiguity_says_so():
    tier = TierResult(tier=2, checks=(made.check(2, "c", Verdict.AMBIGUOUS, pairs=made.pairs(1.04)),))
    fail, own = (exit_code([tier], ambiguous=how) for how in ("fail", "ambiguous"))
    assert (fail, own) == (EXIT_SLOWER, EXIT_AMBIGUOUS)
    assert exit_meaning(made.result([tier], exit_code=fail)) == "ambiguous checks count as failures here"
    assert exit_meaning(made.result([tier], exit_code=own)).startswith("ambiguous: ")
    assert exit_meaning(made.result(exit_code=EXIT_SLOWER)).startswith("worse than the base")
