"""Which speed-ups are verdicts, and in which words, in the report and on the terminal."""

import io
import re

import pytest
import report_factory as made
from rich.console import Console

from bsa_bench.report import tables
from bsa_bench.report.findings import findings
from bsa_bench.report.labels import Labels
from bsa_bench.report.terminal import print_table
from bsa_bench.report.verdicts import Verdicts
from bsa_bench.result import DeviceState, Status
from bsa_bench.store import read_run
from bsa_bench.store.derive import derive


def told(tmp_path, results):
    """The findings as one text, what the terminal prints, and the rows with their judge."""
    run = read_run(made.write_run(tmp_path, made.renumber(results)))
    rows = derive(run.latest())
    labels = Labels(row.result.case for row in rows)
    out = io.StringIO()
    print_table(run, Console(file=out, width=80))
    return "\n".join(findings(run, rows, labels)), out.getvalue(), rows, Verdicts(rows, "cpu")


def left(implementation, tokens=1024):
    return made.result(made.case(implementation, tokens), Status.NOT_MEASURED, reason="left out by the budget of 3 min")


def sparse_row(rows):
    return next(row for row in rows if not row.is_dense and row.speedup)


def test_a_clear_speed_up_over_all_dense_engines_is_a_verdict(tmp_path):
    results = [made.measured(made.case("full@sdpa-flash"), median=1.0), made.measured(median=0.25)]
    text, shown, rows, verdicts = told(tmp_path, results)
    assert verdicts.doubt(sparse_row(rows)) is None
    assert "`bsa@gather` as a whole operator is **4.00x faster than** `full@sdpa-flash` (one process)" in text
    assert "Largest speed-up: bsa@gather, forward at 1,024 tokens, 4.00x faster than full@sdpa-flash" in shown


def test_over_a_dense_engine_that_is_slower_than_one_that_was_left_there_is_no_verdict(tmp_path):
    results = [made.measured(made.case("full@flex"), median=1.0), made.measured(median=0.1), left("full@sdpa-flash")]
    text, shown, rows, verdicts = told(tmp_path, results)
    why = "full@sdpa-flash is expected to be faster and not measured"
    assert verdicts.doubt(sparse_row(rows)) == why
    words = "10.0x over the fastest dense measured (1 of 2), `full@flex` (one process)"
    assert f"`bsa@gather` as a whole operator: no verdict, {why}: {words}" in text
    assert "faster than" not in text
    assert "Largest speed-up" not in shown
    largest = f"{words.replace('`', '')}, {why}; ideal"
    assert f"No speed-up is a verdict; the largest: bsa@gather, forward at 1,024 tokens, {largest}" in shown
    assert "baseline (1 of 2)" in shown
    table = "\n".join(tables.speed_table(rows, Labels(row.result.case for row in rows), verdicts))
    assert re.search(r"`full@flex` .*\| +baseline \(1 of 2\) \|", table)
    overview = "\n".join(tables.overview_table(rows, Labels(row.result.case for row in rows), verdicts))
    assert re.search(r"`full@flex` 1\.00 s \(1 of 2\) \|", overview)


def test_a_dense_engine_that_was_left_and_is_expected_to_be_slower_takes_nothing_from_the_verdict_but_is_said(tmp_path):
    results = [made.measured(made.case("full@sdpa-flash"), median=1.0), made.measured(median=0.25), left("full@flex")]
    text, shown, rows, verdicts = told(tmp_path, results)
    assert verdicts.doubt(sparse_row(rows)) is None
    assert "**4.00x faster than** the fastest dense measured (1 of 2), `full@sdpa-flash`" in text
    assert "Largest speed-up: bsa@gather" in shown


def test_which_dense_engine_is_faster_is_known_from_where_both_were_measured(tmp_path):
    short = [made.measured(made.case("full@sdpa-flash"), median=3.0), made.measured(made.case("full@flex"), median=1.0)]
    long = [made.measured(made.case("full@flex", 4096), median=9.0), made.measured(made.case(tokens=4096), median=1.0)]
    rows, verdicts = told(tmp_path, [*short, *long, left("full@sdpa-flash", 4096)])[2:]
    assert verdicts.doubt(sparse_row(rows)) is None


@pytest.mark.parametrize("disturbed", ["full@sdpa-flash", "bsa@gather"])
def test_where_either_side_is_disturbed_there_is_no_verdict(tmp_path, disturbed):
    state = DeviceState(other_cpu_share=0.4)
    results = [
        made.measured(made.case(name), median=median, **({"state": state} if name == disturbed else {}))
        for name, median in (("full@sdpa-flash", 1.0), ("bsa@gather", 0.25))
    ]
    text, shown, _, _ = told(tmp_path, results)
    assert "as a whole operator: no verdict, disturbed while timed: 4.00x over `full@sdpa-flash`" in text
    assert "faster than" not in text
    assert "No speed-up is a verdict; the largest: bsa@gather" in shown


@pytest.mark.parametrize("median", [0.999, 1.001])
def test_where_the_interval_holds_1x_neither_is_called_faster(tmp_path, median):
    results = [made.measured(made.case("full@sdpa-flash"), median=1.0), made.measured(median=median)]
    text, shown, _, _ = told(tmp_path, results)
    assert "as a whole operator: no verdict, the interval holds 1x: " in text
    assert "faster than" not in text
    assert "slower than" not in text
    assert "No row is faster than the fastest dense; the closest: bsa@gather" in shown
    if median > 1:
        assert "it is dense; whether a sparse row beats it is open, the interval holds 1x" in text


def test_where_all_are_slower_the_closest_is_named_and_nothing_is_called_the_largest_speed_up(tmp_path):
    results = [
        made.measured(made.case("full@sdpa-flash"), median=1.0),
        made.measured(made.case("bsa@gather"), median=2.0),
        made.measured(made.case("bsa@flex"), median=4.0),
    ]
    text, shown, _, _ = told(tmp_path, results)
    closest = "the closest: bsa@gather, forward at 1,024 tokens, 2.00x slower than full@sdpa-flash (one process)"
    assert f"No row is faster than the fastest dense; {closest}" in shown
    assert "Largest speed-up" not in shown
    assert "it is dense, no sparse row beats it" in text


def test_a_row_without_a_speed_up_has_no_verdict_to_ask_for(tmp_path):
    rows, verdicts = told(tmp_path, [made.measured()])[2:]
    with pytest.raises(ValueError, match="expected one with a speed-up, got bsa@gather"):
        verdicts.doubt(rows[0])
