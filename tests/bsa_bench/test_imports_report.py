"""Published figures in a report and on the command line: labelled everywhere, and apart from what was measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

import published_factory as files
import pytest
import report_factory as made
from published_factory import DEVICE, cudnn_row

from bsa_bench.errors import UsageError
from bsa_bench.imports import import_file
from bsa_bench.report import write_report
from bsa_bench.report.kit import Kit, looks
from bsa_bench.report.labels import Labels
from bsa_bench.report.published_plot import matching_lines
from bsa_bench.store import read_run
from bsa_bench.store.derive import derive

HEADING = "## Published elsewhere, other hardware"


def results(lengths=(1024, 2048)):
    cases = [made.case(name, length) for length in lengths for name in ("full@sdpa-flash", "full@flex")]
    return made.renumber([made.measured(each) for each in cases])


def published(tmp_path, text, name="theirs", **given):
    """Import a text; returns the file."""
    source = tmp_path / f"{name}.csv"
    source.write_text(text, newline="")
    return import_file(source, out=tmp_path / f"{name}.published.jsonl", **given).target


@pytest.fixture
def run(tmp_path):
    return made.write_run(tmp_path / "run", results())


@pytest.fixture
def report(run, tmp_path, unrendered):
    """Write a report of the run with these files; returns its files and its text."""

    def write(*paths):
        written = write_report(run, tmp_path / "report", published=paths)
        return written, written.markdown.read_text(encoding="utf-8")

    return write


def test_a_report_has_the_published_figures_in_a_section_of_their_own(report, tmp_path):
    path = published(tmp_path, files.cudnn(cudnn_row("0.250,700.000"), cudnn_row("0.5,650", passes="bwd")))
    _, text = report(path)
    before, _, section = text.partition(HEADING)
    section = section.partition("\n## ")[0]
    assert "None of these figures was measured here" in section
    assert (
        f"| cudnn-frontend | cudnn | published, {DEVICE} | 4 heads x 64, bfloat16, no mask, model made-up-model, "
        "cudnn 90000 | forward | 1,024 | median 250 us, 700 TFLOP/s |"
    ).replace("_", r"\_") in section
    assert "| backward | 1,024 | median 500 us, 650 TFLOP/s |" in section
    assert re.search(r"- theirs\.csv \(cudnn-frontend\), SHA-256 `[0-9a-f]{64}`", section)
    assert f"published, {DEVICE}" not in before


def test_the_first_line_names_the_files_so_that_the_report_can_be_made_again(report, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    published(tmp_path, files.cudnn())
    _, text = report(Path("theirs.published.jsonl"))
    assert "bsa-bench report run --published theirs.published.jsonl`" in text.splitlines()[0]


def test_measured_figures_are_the_same_with_and_without_published_ones(report, tmp_path):
    _, without = report()
    assert HEADING not in without
    _, text = report(published(tmp_path, files.cudnn(cudnn_row("0.001,90000.0"))))
    for heading in ("Findings", "Overview", "Measured cases"):
        pattern = rf"^## {heading}$.*?(?=^## )"
        own = [re.search(pattern, each, re.MULTILINE | re.DOTALL)[0] for each in (without, text)]
        assert own[0] == own[1]


def test_a_figure_that_two_files_hold_is_listed_once_and_a_label_names_the_source(report, tmp_path):
    path = published(tmp_path, files.cudnn(), label="Table 3")
    _, text = report(path, path)
    assert text.count(f"published, {DEVICE} |") == 1
    assert "| cudnn-frontend (Table 3) | cudnn |" in text


def test_text_from_a_file_is_no_markdown(report, tmp_path):
    row = cudnn_row("1,2", gpu="<b>|`x`_y_")
    _, text = report(published(tmp_path, files.cudnn(row)))
    assert r"published, \<b\>\|\`x\`\_y\_" in text


def test_a_long_file_is_cut_in_the_table_and_the_report_says_so(report, tmp_path):
    rows = [cudnn_row("1,2", length=64 + i) for i in range(230)]
    _, text = report(published(tmp_path, files.cudnn(*rows)))
    assert "The first 200 of 230 cases; the files have all of them." in text
    assert text.count(f"published, {DEVICE} |") == 200


def test_a_file_that_is_not_of_import_is_refused_before_anything_is_written(run, tmp_path):
    path = tmp_path / "raw.csv"
    path.write_text(files.cudnn())
    with pytest.raises(UsageError, match="expected a file that bsa-bench import wrote"):
        write_report(run, tmp_path / "report", published=[path])
    assert not (tmp_path / "report").exists()


# The plot


def test_a_plot_of_tflops_is_drawn_for_a_pass_with_matching_figures_and_for_no_other(report, tmp_path):
    rows = [cudnn_row("1,500", length=1024), cudnn_row("1,500", passes="bwd"), cudnn_row("1,500", length=8192)]
    written, text = report(published(tmp_path, files.cudnn(*rows)))
    stems = {path.stem for path in written.plots if "tflops-published" in path.stem}
    assert stems == {"tflops-published-forward"}
    assert "](tflops-published-forward.png)" in text


def test_figures_outside_the_axes_draw_no_plot(report, tmp_path):
    written, text = report(published(tmp_path, files.cudnn(cudnn_row("1,500", length=64))))
    assert not [path for path in written.plots if "tflops-published" in path.stem]
    assert HEADING in text


def lines_of(run, text, tmp_path, **given):
    rows = derive(read_run(run).latest())
    labels = Labels(row.result.case for row in rows)
    figures = import_file(_source(tmp_path, text), out=tmp_path / "out.jsonl", **given).figures
    return matching_lines(rows, Kit("forward", labels, looks(rows, labels), tmp_path), figures)


def _source(tmp_path, text):
    path = tmp_path / "source.csv"
    path.write_text(text, newline="")
    return path


@pytest.mark.parametrize(
    "other",
    [{"head_dim": 128}, {"mask": "top_left"}, {"kv": 77}, {"passes": "bwd"}, {"length": 512}, {"length": 4096}],
)
def test_a_figure_of_another_case_is_no_reference(other, run, tmp_path):
    text = files.cudnn(cudnn_row("1,500"), cudnn_row("1,900", **other))
    (line,) = lines_of(run, text, tmp_path).values()
    assert line == {1024: 500.0}


def test_a_reference_line_is_labelled_as_published_with_its_device_and_what_sets_it_apart(run, tmp_path):
    text = files.cudnn(
        cudnn_row("1,500"),
        cudnn_row("1,600", length=1500),
        cudnn_row("1,900", dtype="fp8"),
        cudnn_row("1,700", gpu="$Y$"),
    )
    lines = lines_of(run, text, tmp_path)
    assert {" ".join(label.split()): line for label, line in lines.items()} == {
        f"published, {DEVICE}: cudnn (cudnn-frontend), bfloat16": {1024: 500.0, 1500: 600.0},
        f"published, {DEVICE}: cudnn (cudnn-frontend), fp8": {1024: 900.0},
        "published, $Y$: cudnn (cudnn-frontend), bfloat16": {1024: 700.0},
    }


def test_a_latency_alone_is_never_turned_into_tflops(run, tmp_path):
    header = "(Batch, Heads, SeqLen, Dhead);sdpa-latency"
    text = files.tritonbench("(1, 2, 1024, 64);0.5", header=header)
    assert lines_of(run, text, tmp_path, device=DEVICE, passes="forward") == {}


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [(1024, 2048), (1024,)])
def test_reference_lines_are_rendered_for_several_lengths_and_for_one(lengths, tmp_path):
    run = made.write_run(tmp_path / "run", results(lengths))
    rows = [cudnn_row("1,500"), cudnn_row("1,900", dtype="fp8"), cudnn_row("1,400", length=2048)]
    written = write_report(run, tmp_path / "report", published=[published(tmp_path, files.cudnn(*rows))])
    (svg,) = [path for path in written.plots if path.stem == "tflops-published-forward" and path.suffix == ".svg"]
    text = svg.read_text()
    assert f"published, {DEVICE}" in text
    assert "#6b6b6b" in text.lower()


# The command


def test_import_prints_the_path_and_says_on_stderr_what_it_left_out(bench, folder):
    Path("wan.csv").write_text(files.cudnn(cudnn_row("1,2"), cudnn_row("inf,inf", success=False)))
    code, out, err = bench("import", "wan.csv")
    assert (code, out) == (0, "wan.published.jsonl\n")
    assert err == f"2 figures from cudnn-frontend, measured on {DEVICE}; left out: 2 failed\n"
    assert len(Path("wan.published.jsonl").read_text().splitlines()) == 2


def test_import_as_json_is_one_document_and_nothing_on_stderr(bench, folder):
    Path("a.csv").write_text(files.tritonbench("(1, 1, 64, 64, 64);oom;;0.25"))
    flags = ["--from", "tritonbench", "--device", DEVICE, "--pass", "forward", "--label", "theirs", "--out", "b.jsonl"]
    code, out, err = bench("import", "a.csv", *flags, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {
        "published": "b.jsonl",
        "format": "tritonbench",
        "num_figures": 1,
        "left_out": {"not a number": 1, "missing": 1},
        "devices": [DEVICE],
    }
    (line,) = Path("b.jsonl").read_text().splitlines()
    assert json.loads(line)["label"] == "theirs"
    assert json.loads(line)["axes"]["passes"] == "forward"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["import"], 2, "Missing argument 'FILE'"),
        (["import", "gone.csv"], 2, "gone.csv: cannot be read: No such file"),
        (["import", "wan.csv", "--from", "xlsx"], 2, "'xlsx' is not one of 'tritonbench', 'cudnn-frontend'"),
        (["import", "wan.csv", "--from", "nvbench"], 2, "this is a file of cudnn-frontend, not of nvbench"),
        (["import", "wan.csv", "--pass", "both"], 2, "'both' is not one of 'forward', 'backward'"),
        (["import", "wan.csv", "--out", "no/where.jsonl"], 5, "--out: no/where.jsonl"),
        (["import", "failed.csv"], 4, "no figure to import from cudnn-frontend (2 failed)"),
        (["report", "r", "--published", "wan.csv"], 2, "expected a file that bsa-bench import wrote"),
    ],
)
def test_what_cannot_be_imported_ends_with_its_code_and_a_reason(arguments, code, message, bench, folder):
    made.write_run(Path("results/r"), results())
    Path("wan.csv").write_text(files.cudnn())
    Path("failed.csv").write_text(files.cudnn(cudnn_row("inf,inf", success=False)))
    ended, out, err = bench(*arguments)
    assert (ended, out) == (code, "")
    assert message in " ".join(err.split())
    assert not list(Path().glob("*.jsonl"))
    assert not Path("reports").exists()


def test_report_takes_several_files(bench, folder, unrendered):
    made.write_run(Path("results/r"), results())
    for name, gpu in (("a", "GPU A"), ("b", "GPU B")):
        Path(f"{name}.csv").write_text(files.cudnn(cudnn_row("1,500", gpu=gpu)))
        assert bench("import", f"{name}.csv")[0] == 0
    flags = ["--published", "a.published.jsonl", "--published", "b.published.jsonl"]
    code, out, _ = bench("report", "r", "--out", "page", *flags, "--json")
    assert code == 0
    document = json.loads(out)
    text = Path(document["markdown"][0]).read_text()
    assert "published, GPU A |" in text
    assert "published, GPU B |" in text
    assert "page/tflops-published-forward.png" in document["plots"]
