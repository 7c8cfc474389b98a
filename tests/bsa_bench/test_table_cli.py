"""`bsa-bench table`: formats, files, pipes, and what it refuses."""

import csv
import io
import re
from pathlib import Path

import pytest
import report_factory as made
import table_factory as tables

from bsa_bench.errors import EXIT_INFRASTRUCTURE, EXIT_NOTHING_MEASURED, EXIT_OK, EXIT_USAGE
from bsa_bench.report.named_tables import TABLE_NAMES

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs/tables.md"


@pytest.fixture
def results(folder):
    """A results folder with one run, `first`."""
    made.write_run(folder / "results" / "first", made.renumber(tables.both_passes()), run_id="first")
    return folder / "results"


@pytest.mark.parametrize(
    ("to", "start"),
    [
        ("md", "**Sparsity, FLOP"),
        ("latex", "% Made by bsa-bench"),
        ("csv", "group,method,engine,"),
        ("rich", "Sparsity,"),
    ],
)
def test_each_format_is_printed(bench, results, to, start):
    code, out, _ = bench("table", "main", "first", "--format", to)
    assert code == EXIT_OK
    assert out.startswith(start)
    assert "12.85" in out


def test_the_latest_run_and_text_for_a_terminal_are_the_defaults(bench, results):
    assert bench("table", "systems") == bench("table", "systems", "latest", "--format", "rich")
    assert "bsa@gather" in bench("table", "systems")[1]


def test_a_file_holds_what_would_be_printed_and_its_folder_is_made(bench, results, folder):
    printed = bench("table", "systems", "first", "--format", "latex")[1]
    code, out, _ = bench("table", "systems", "first", "--format", "latex", "--out", "paper/tables/systems.tex")
    assert (code, out) == (EXIT_OK, "paper/tables/systems.tex\n")
    assert (folder / out.strip()).read_text() == printed


def test_a_csv_is_nothing_but_rows_and_its_notes_go_to_stderr(bench, results):
    _, out, err = bench("table", "systems", "first", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["implementation"] for row in rows] == ["full@sdpa-flash", "bsa@gather"]
    assert float(rows[1]["speedup_forward"]) == pytest.approx(5.0)
    assert float(rows[1]["speedup_forward_low"]) <= 5.0 <= float(rows[1]["speedup_forward_high"])
    assert "Run first: suite made-up" in err


def test_several_runs_make_one_table(bench, results):
    gpu = tables.on_gpu()
    fast = tables.in_environment(tables.one_length(dense=1.0, bsa=0.1), gpu.hash)
    made.write_run(results / "second", made.renumber(fast), run_id="second", environment=gpu)
    out = bench("table", "systems", "first", "second")[1]
    assert "1,024 tokens; Made-up CPU, 2 threads" in out
    assert f"1,024 tokens; {gpu.device_name}" in out


def test_an_unknown_table_lists_those_that_there_are(bench, results):
    code, _, err = bench("table", "summary", "first")
    assert code == EXIT_USAGE
    for name in TABLE_NAMES:
        assert name in err


def test_an_unknown_format_is_refused(bench, results):
    code, _, err = bench("table", "main", "first", "--format", "html")
    assert code == EXIT_USAGE
    assert "latex" in err


def test_a_missing_name_or_run_is_a_usage_error(bench, results):
    assert bench("table")[0] == EXIT_USAGE
    code, _, err = bench("table", "main", "second")
    assert code == EXIT_USAGE
    assert "there are: first" in err


def test_a_run_that_lacks_what_a_table_needs_is_no_empty_table(bench, results):
    code, out, err = bench("table", "ablation", "first", "--out", "ablation.md", "--format", "md")
    assert (code, out) == (EXIT_NOTHING_MEASURED, "")
    assert "the run first (suite made-up) has none" in err
    assert "bsa-bench run --suite paper" in err
    assert not (results.parent / "ablation.md").exists()


def test_a_file_that_cannot_be_written_is_named(bench, results, folder):
    (folder / "taken").write_text("")
    code, _, err = bench("table", "main", "first", "--out", "taken/main.md", "--format", "md")
    assert code == EXIT_INFRASTRUCTURE
    assert "taken/main.md: cannot be written" in err


@pytest.mark.parametrize("to", ["rich", "md", "latex", "csv"])
def test_the_examples_in_the_guide_are_what_the_command_prints(bench, folder, to):
    command = re.search(
        rf"```\nbsa-bench (table [^\n]* --format {to})\n```\n\n```\w+\n(.*?)```\n", GUIDE.read_text(), re.DOTALL
    )
    assert command, to
    arguments = [str(ROOT / each) if each.startswith("results/") else each for each in command[1].split()]
    code, out, _ = bench(*arguments)
    assert (code, out) == (EXIT_OK, command[2])


def test_the_help_names_every_table(bench):
    out = " ".join(bench("table", "--help")[1].split())
    for name in TABLE_NAMES:
        assert f"{name}: " in out
