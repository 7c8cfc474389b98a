"""report.html as a file: what it holds, that it asks no network, and that nothing of a run becomes markup."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser

import pytest
import report_factory as made
from page_factory import data_of, disturbed, five_processes, hostile_run, page_of, run_of, shell_of

from bsa_bench.errors import StoreError
from bsa_bench.report import write_report, write_reports
from bsa_bench.report.html import bundles
from bsa_bench.report.html.records import COLUMNS
from bsa_bench.result import Status
from bsa_bench.store import read_run
from bsa_bench.store.derive import derive
from bsa_bench.suite import load_suite, override


def column(data, title):
    place = [each["title"] for each in data["columns"]].index(title)
    return [row["cells"][place] for row in data["rows"]]


def every_status():
    """Results of every status."""
    too_fast = made.result(made.case("full@cpu", 16384), Status.IMPLAUSIBLE, reason="a median of 1 us")
    return made.renumber([*made.quick_results(), too_fast])


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quick")
    return page_of(folder, run_of(folder, every_status(), command=["bsa-bench", "run", "--suite", "quick"]))


def test_every_case_has_a_row_of_all_columns(quick):
    data = data_of(quick)
    assert len(data["rows"]) == len(every_status())
    assert {len(row["cells"]) for row in data["rows"]} == {len(COLUMNS)}
    assert {row["status"] for row in data["rows"]} >= {status.value for status in Status}


def test_the_cells_are_those_of_the_markdown_report(quick, tmp_path, unrendered):
    text = write_report(quick.parents[1] / "run", tmp_path).markdown.read_text()
    for row, (latency, _) in zip(data_of(quick)["rows"], column(data_of(quick), "Latency"), strict=True):
        if row["figures"]:
            assert f" {latency} " in text


def test_figures_sort_by_their_value_and_a_missing_one_has_none(quick):
    data = data_of(quick)
    rows = {row.result.case_id: row for row in derive_rows(quick)}
    for each, (text, key) in zip(data["rows"], column(data, "Latency"), strict=True):
        whole = rows[each["behind"]["id"]].whole
        assert (key, text == "-") == ((whole.median, False) if whole else (None, True))


def derive_rows(page):
    return derive(read_run(page.parents[1] / "run").latest())


def test_only_correct_rows_are_drawn(quick):
    correct = {row.result.case_id for row in derive_rows(quick) if row.is_correct}
    drawn = {row["behind"]["id"] for row in data_of(quick)["rows"] if row["figures"]}
    assert drawn == correct


def test_every_series_has_a_look_and_no_two_the_same(quick):
    data = data_of(quick)
    series = {row["figures"]["series"] for row in data["rows"] if row["figures"]}
    assert series == data["looks"].keys()
    looks = [tuple(look.values()) for look in data["looks"].values()]
    assert len(set(looks)) == len(looks)


def test_the_words_are_those_of_the_findings_and_failures_are_folded_with_their_reasons(quick):
    text = re.sub(r"<[^>]+>", "", shell_of(quick))
    assert "bsa@gather as a whole operator is" in text
    assert "One process: the interval is of the samples within it" in text
    assert "To keep in mind" in text
    folded = text[text.index("Not measured or not verified") :]
    assert "predicted 9.2 GiB, 6.1 GiB are free" in folded
    assert "cuDNN attention needs a CUDA device" in folded
    assert "Unverified, wrong or not run" not in text


def test_a_marked_row_has_its_marks_in_words(tmp_path):
    rows = data_of(page_of(tmp_path, run_of(tmp_path, disturbed(made.quick_results()))))["rows"]
    assert {mark for row in rows for mark in row["marks"]} == {"§ disturbed"}
    assert sum(bool(row["marks"]) for row in rows) > 20


def test_the_command_of_a_row_measures_that_case_alone(quick, tmp_path):
    (tmp_path / "plain.toml").write_text(
        "title = 'Plain'\nimplementations = ['bsa@gather']\n[axes]\ntokens = [64, 128]\n"
    )
    suite = load_suite(str(tmp_path / "plain.toml"), device_kind="cpu")
    for row in data_of(quick)["rows"][::7]:
        words = shlex.split(row["behind"]["command"])
        assert words[:8] == ["bsa-bench", "run", "--suite", "quick", "--device", "cpu", "--profile", "quick"]
        settings = [word for word in words if "=" in word]
        digest = row["behind"]["sections"]["Identity"]["Case digest"]
        assert [case.case_hash for case in override(suite, settings).cases()] == [digest]


def test_a_run_that_no_suite_made_has_no_command(tmp_path):
    page = page_of(tmp_path, run_of(tmp_path, [made.measured()], command=["pytest"]))
    assert [row["behind"]["command"] for row in data_of(page)["rows"]] == [None]


def test_the_flags_that_change_what_is_measured_are_in_the_command(tmp_path):
    command = ["bsa-bench", "run", "--suite=mine.toml", "limit=off", "--threads", "3", "--run-id", "x"]
    run = run_of(tmp_path, [made.measured()], command=command, num_processes=4, timer="host", cache="warm")
    text = data_of(page_of(tmp_path, run))["rows"][0]["behind"]["command"]
    assert "--suite mine.toml" in text
    assert "--processes 4 --timer host --cache warm --threads 3" in text
    assert text.endswith("limit=off")
    assert "run-id" not in text


def test_the_samples_of_a_row_are_in_order_process_by_process(tmp_path):
    results = five_processes()
    page = page_of(tmp_path, run_of(tmp_path, results, num_processes=5, num_cases=6))
    (row,) = [r for r in data_of(page)["rows"] if r["implementation"] == "bsa@flex" and r["tokens"] == 4096]
    own = [r for r in results if r.case.implementation == "bsa@flex" and r.case.workload.num_tokens == 4096]
    assert list(row["behind"]["samples"]) == ["1", "2", "3", "4", "5"]
    for samples, result in zip(row["behind"]["samples"].values(), own, strict=True):
        assert samples == pytest.approx(result.timing.samples, rel=1e-4)
    assert "5 processes" in column(data_of(page), "Speed-up")[0][0]


def test_more_samples_than_a_page_should_hold_are_thinned_and_it_says_so(tmp_path, monkeypatch):
    from bsa_bench.report.html import page as module

    monkeypatch.setattr(module, "MAX_SAMPLES", 10)
    data = data_of(page_of(tmp_path, run_of(tmp_path, [made.measured()])))
    samples = made.measured().timing.samples
    assert data["every"] == 3
    assert data["rows"][0]["behind"]["samples"]["1"] == pytest.approx(samples[::3], rel=1e-4)


def test_several_runs_share_a_page_and_what_differs_between_their_environments_is_marked(tmp_path):
    first = run_of(tmp_path, made.sparsity_results(), name="a")
    other = made.run_line(1).environment.model_copy(update={"device_name": "Another CPU", "hash": "f" * 12})
    second = run_of(tmp_path, made.sparsity_results(), name="b", environment=other)
    page = page_of(tmp_path, first, second)
    data = data_of(page)
    assert data["runs"] == ["made-up-run", "made-up-run-2"]
    assert [row["run"] for row in data["rows"]].count(1) == len(made.sparsity_results())
    assert {name.rpartition(" · ")[2] for name in data["looks"]} == set(data["runs"])
    assert re.search(r'class="differs"><th scope="row">Device\b', shell_of(page))
    assert not re.search(r'class="differs"><th scope="row">Python\b', shell_of(page))


@pytest.mark.usefixtures("unrendered")
def test_several_runs_have_a_markdown_report_each_next_to_their_page(tmp_path):
    runs = [run_of(tmp_path, [made.measured()], name=name) for name in ("a", "b")]
    written = write_reports(runs, tmp_path / "out")
    names = ["made-up-run/report.md", "made-up-run-2/report.md", "report.html"]
    assert [path.relative_to(tmp_path / "out").as_posix() for path in written.texts] == names
    assert all(path.is_file() for path in written.texts)


@pytest.mark.parametrize("results", [[], [made.result(status=Status.OOM, reason="no memory")]], ids=["none", "failed"])
def test_a_run_with_nothing_measured_has_a_page_that_says_so(tmp_path, results):
    page = page_of(tmp_path, run_of(tmp_path, results, num_cases=1))
    assert "Nothing was measured and proved correct" in shell_of(page)
    assert len(data_of(page)["rows"]) == len(results)


class Markup(HTMLParser):
    """The elements and attributes that a browser would make."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes = set(), set()
        self.addresses = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.addresses += [value for name, value in attrs if name in {"src", "href"}]


def test_nothing_of_a_hostile_run_becomes_markup(tmp_path, quick):
    page = page_of(tmp_path, hostile_run(tmp_path))
    found, usual = Markup(page.read_text()), Markup(quick.read_text())
    assert found.tags <= usual.tags | {"ol", "em", "small"}
    assert found.attributes <= usual.attributes
    assert found.addresses == ["data:,"]
    assert "&lt;img src=x onerror=window.hit=1&gt;" in shell_of(page)
    assert "{{ 7 * 191 }}" in shell_of(page)
    assert "1337" not in shell_of(page)


def test_the_page_names_no_address_and_its_policy_allows_none(quick):
    text = quick.read_text()
    assert re.findall(r"https?://\S+", shell_of(quick)) == []
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert "default-src 'none'" in policy.replace("&#39;", "'")
    assert "unsafe-inline' blob" not in policy
    assert "http" not in policy


def test_the_page_is_small_and_the_same_run_gives_the_same_bytes(quick, tmp_path):
    assert quick.stat().st_size < 3e6
    again = page_of(tmp_path, quick.parents[1] / "run")
    assert again.read_bytes() == quick.read_bytes()


def test_a_library_that_is_not_installed_is_named(monkeypatch):
    with pytest.raises(StoreError, match=r"no-such-package is not installed, which report.html takes lib\.js from"):
        bundles.Bundle("no-such-package", "lib.js").read()
    with pytest.raises(StoreError, match=r"itables [\d.]+: itables/no\.js cannot be read"):
        bundles.Bundle("itables", "itables/no.js").read()


def test_a_page_is_written_without_torch_pandas_matplotlib_or_the_libraries_python(tmp_path):
    run = run_of(tmp_path, [made.measured()])
    program = (
        "import sys; from bsa_bench.report import write_reports; "
        f"write_reports([{str(run)!r}], {str(tmp_path / 'out')!r}, formats=['html']); "
        "print({'torch', 'triton', 'pandas', 'matplotlib', 'plotly', 'itables'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.slow
def test_ten_thousand_rows_take_ten_seconds_of_a_usual_core_one_gigabyte_and_six_megabytes(tmp_path):
    names = ("full@sdpa-flash", "full@sdpa-math", "bsa@gather", "bsa@flex", "bsa@triton")
    cases = [made.case(name, 64 * n) for n in range(1, 2001) for name in names]
    run = run_of(tmp_path, made.renumber([made.measured(case) for case in cases]))
    # A usual core counts to ten million in 0.25 s; a slow or shared one takes as much longer for the page.
    program = (
        "import pathlib, time; from bsa_bench.report import write_reports\n"
        "for _ in range(10_000_000): pass\n"
        "counted = time.process_time()\n"
        f"write_reports([{str(run)!r}], {str(tmp_path / 'out')!r}, formats=['html'])\n"
        # Not the peak of getrusage: a started process inherits that of the process that started it.
        "status = dict(line.split(':') for line in pathlib.Path('/proc/self/status').read_text().splitlines())\n"
        "peak = int(status['VmHWM'].split()[0]) / 2**20\n"
        "print((time.process_time() - counted) / counted * 0.25, peak)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    seconds, peak_gib = map(float, done.stdout.split())
    assert seconds < 10
    assert peak_gib < 1
    page = tmp_path / "out" / "report.html"
    assert page.stat().st_size < 6e6
    assert len(data_of(page)["rows"]) == 10_000
