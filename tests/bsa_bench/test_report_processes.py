"""What reports and the terminal say of one process, of several, and of those that disagree."""

from __future__ import annotations

import io
import re

import pytest
import report_factory as made
from rich.console import Console

from bsa_bench.report import build, write_report
from bsa_bench.report.labels import interval_text, speedup_text
from bsa_bench.report.terminal import print_table
from bsa_bench.store import read_run
from bsa_bench.store.derive import Ratio

DENSE, SPARSE = made.case("full@sdpa-flash"), made.case("bsa@gather")
ONE = [made.measured(DENSE, median=8.76), made.measured(SPARSE, median=1.0)]
FIVE = [
    *made.repeated(DENSE, medians=[8.0] * 5),
    *made.repeated(SPARSE, medians=[8 / 7.4, 8 / 8.0, 8 / 8.1, 8 / 8.4, 8 / 8.9]),
]
FOOTNOTE = "One process: the interval is of the samples within it and says nothing of how far another process would be"


@pytest.fixture
def unplotted(monkeypatch):
    """Leave plots out."""
    monkeypatch.setattr(build, "draw_plots", lambda *_: [])


def printed(tmp_path, results, **run_fields):
    out = io.StringIO()
    print_table(read_run(made.write_run(tmp_path / "run", made.renumber(results), **run_fields)), Console(file=out))
    return out.getvalue()


def reported(tmp_path, results, **run_fields):
    run = made.write_run(tmp_path / "run", made.renumber(results), **run_fields)
    return write_report(run, tmp_path / "report").markdown.read_text(encoding="utf-8")


def row(text, implementation):
    return next(line for line in text.splitlines() if line.startswith(implementation))


def test_a_speed_up_says_how_many_processes_stand_behind_it():
    assert speedup_text(None) == "-"
    assert speedup_text(Ratio(8.76, 8.0, 9.5)) == "8.76x (one process)"
    assert speedup_text(Ratio(8.1, 7.4, 8.9, 5, 0.9375)) == "8.10x [7.40, 8.90], 5 processes"


def test_an_interval_behind_slower_than_is_turned_over():
    assert interval_text(Ratio(8.1, 7.4, 8.9, 5)) == "(7.40x to 8.90x, 5 processes)"
    assert interval_text(Ratio(0.5, 0.4, 0.8, 5)) == "(1.25x to 2.50x, 5 processes)"
    assert interval_text(Ratio(0.5, 0.4, 0.8)) == "(one process)"


def test_the_terminal_says_one_process_with_one_footnote(tmp_path):
    text = printed(tmp_path, ONE)
    assert "8.76x (one process)" in row(text, "bsa@gather")
    assert "8.76x faster than full@sdpa-flash (one process); ideal" in text
    assert text.count(FOOTNOTE) == 1


def test_the_terminal_shows_the_interval_of_several_processes_and_no_footnote(tmp_path):
    text = printed(tmp_path, FIVE, num_cases=2, num_processes=5, seed=3)
    assert "8.10x [7.40, 8.90], 5 processes" in row(text, "bsa@gather")
    assert "8.10x faster than full@sdpa-flash (7.40x to 8.90x, 5 processes); ideal" in text
    assert "one process" not in text.lower()
    assert "Cases left" not in text


@pytest.mark.usefixtures("unplotted")
def test_the_report_says_one_process_in_headlines_and_tables_with_one_footnote_in_the_findings(tmp_path):
    text = reported(tmp_path, ONE)
    findings, tables = text.split("## Overview")
    assert re.search(r"1\.00 s ± [\d.]+% \(one process\); the fastest dense row is", findings)
    assert "**8.76x faster than** `full@sdpa-flash` (one process); ideal" in findings
    assert findings.count(FOOTNOTE) == 1
    assert tables.count("8.76x (one process)") == 2  # overview and speed-up table
    assert "CV within / between" not in tables
    assert "| Processes |" not in text


@pytest.mark.usefixtures("unplotted")
def test_the_report_shows_the_interval_of_several_processes(tmp_path):
    text = reported(tmp_path, FIVE, num_cases=2, num_processes=5, seed=3)
    assert "(2 OK), to be measured in 5 processes each." in text
    assert "(5 processes); the fastest dense row is" in text
    assert "**8.10x faster than** `full@sdpa-flash` (7.40x to 8.90x, 5 processes); ideal" in text
    assert text.count("8.10x [7.40, 8.90], 5 processes") == 2
    assert "| 105 in 5 processes |" in text
    assert "| CV within / between |" in text
    assert "| Processes | 5 a case, in random order with seed 3 |" in text
    assert FOOTNOTE not in text
    assert " † |" not in text


@pytest.mark.usefixtures("unplotted")
def test_few_processes_are_marked_for_their_coverage(tmp_path):
    assert "† |" in reported(tmp_path, made.repeated(SPARSE, medians=[1.0, 1.1, 1.2]))


@pytest.mark.usefixtures("unplotted")
def test_a_bimodal_row_is_flagged_where_disturbed_ones_are_and_never_the_headline(tmp_path):
    split = made.repeated(made.case("bsa@flex"), medians=[0.1, 0.1001, 0.3, 0.3001, 0.1002])
    text = printed(tmp_path, [*FIVE, *split], num_cases=3)
    assert row(text, "bsa@flex").endswith("OK, bimodal")
    assert "Bimodal: the processes of these fall into two groups, around" in text
    assert "  bsa@flex, forward at 1,024 tokens: 100 ms and 300 ms" in text
    assert "Largest speed-up: bsa@gather" in text
    report = reported(tmp_path, [*FIVE, *split], num_cases=3)
    assert next(line for line in report.splitlines() if "`bsa@flex`** | OK" in line).split("|")[3].endswith("¶ ")
    assert "or between: bsa@flex, forward at 1,024 tokens: 100 ms and 300 ms." in report


@pytest.mark.usefixtures("unplotted")
def test_a_process_that_was_wrong_takes_the_figure_away_and_names_itself(tmp_path):
    bad = made.wrong(SPARSE).model_copy(update={"process_index": 5})
    text = reported(tmp_path, [*FIVE, bad], num_cases=2)
    assert "**WRONG**" in text
    assert "in process 6: grad_k: 0.31 against a budget of 1e-06" in text
    assert "faster than" not in text


@pytest.mark.usefixtures("unplotted")
def test_a_run_that_lacks_processes_says_so_and_keeps_its_figures(tmp_path):
    text = reported(tmp_path, FIVE, num_cases=2, num_processes=6, seed=0)
    assert "**Unfinished**, cases left: 2 of 2; --resume goes on." in text
    assert "8.10x [7.40, 8.90], 5 processes" in text


@pytest.mark.usefixtures("unplotted")
def test_one_process_that_did_not_repeat_its_bits_is_enough_to_say_so(tmp_path):
    results = [
        each.model_copy(update={"correctness": each.correctness.model_copy(update={"repeat_identical": same})})
        for each, same in zip(made.repeated(SPARSE, medians=[1.0, 1.0]), (True, False), strict=True)
    ]
    (line,) = [line for line in reported(tmp_path, results).splitlines() if line.startswith("| `bsa@gather` | correct")]
    assert line.endswith("| no |")


@pytest.mark.slow
@pytest.mark.usefixtures("unrendered")
def test_plots_are_drawn_of_several_processes(tmp_path):
    results = []
    for tokens in (1024, 2048):
        for name, medians in (("full@sdpa-flash", [4.0, 5.0, 4.0]), ("bsa@gather", [1.0, 1.0, 2.0])):
            results += made.repeated(made.case(name, tokens), medians=medians)
    text = reported(tmp_path, results, num_cases=4, num_processes=3, seed=0)
    assert "speedup-forward.png" in text
    assert "latency-forward.png" in text
