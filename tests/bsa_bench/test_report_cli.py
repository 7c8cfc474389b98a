"""`bsa-bench report`: which files of which runs it writes, and where."""

import json
from pathlib import Path

import pytest
import report_factory as made

pytestmark = pytest.mark.usefixtures("unrendered")


@pytest.fixture
def runs(folder):
    """Two stored runs, `a` and `b`."""
    for name in ("a", "b"):
        made.write_run(folder / "results" / name, [made.measured()], run_id=name)
    return folder


def files(folder="reports"):
    return {path.relative_to(folder).as_posix() for path in Path(folder).rglob("report.*")}


def test_both_files_are_written_unless_one_format_is_asked_for(bench, runs):
    assert bench("report", "a") == (0, "report: reports/a/report.md\nreport: reports/a/report.html\n", "")
    assert bench("report", "a", "--format", "md", "--out", "md") == (0, "report: md/report.md\n", "")
    assert bench("report", "a", "--format", "html", "--out", "html") == (0, "report: html/report.html\n", "")
    assert (files(), files("md"), files("html")) == ({"a/report.md", "a/report.html"}, {"report.md"}, {"report.html"})
    assert [path.name for path in Path("html").iterdir()] == ["report.html"]


def test_several_runs_share_a_page_next_to_a_markdown_report_of_each(bench, runs):
    code, out, err = bench("report", "a", "results/b")
    assert (code, err) == (0, "")
    assert out.splitlines() == [f"report: reports/a+1/{name}" for name in ("a/report.md", "b/report.md", "report.html")]
    assert files("reports/a+1") == {"a/report.md", "b/report.md", "report.html"}


def test_json_names_every_file(bench, runs):
    document = json.loads(bench("report", "a", "--json")[1])
    assert document["markdown"] == ["reports/a/report.md"]
    assert document["html"] == "reports/a/report.html"
    assert all(Path(plot).is_file() for plot in document["plots"])
    assert json.loads(bench("report", "a", "--format", "md", "--json")[1])["html"] is None


def test_a_run_that_is_given_twice_or_is_not_there_is_refused_and_nothing_is_written(bench, runs):
    code, _, err = bench("report", "a", "results/a/results.jsonl")
    assert code == 2
    assert "run results/a: given twice, expected each run once" in err
    code, _, err = bench("report", "a", "c")
    assert code == 2
    assert "run 'c': not found under results" in err
    assert bench("report", "a", "--format", "pdf")[0] == 2
    assert not Path("reports").exists()


def test_a_folder_that_cannot_be_written_is_named(bench, runs):
    Path("file").write_text("")
    code, _, err = bench("report", "a", "--format", "html", "--out", "file/x")
    assert code == 5
    assert "file/x: the report cannot be written" in err
